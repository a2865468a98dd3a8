"""Programs, commands and output, as the documents show them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ROOT", "block", "blocks"]

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    """All code blocks of a language, in order."""
    return [code for found, code in _FENCE.findall((ROOT / document).read_text()) if found == language]


def block(document: str, language: str, beginning: str) -> str:
    """The one code block of a language that begins with this."""
    (found,) = [code for code in blocks(document, language) if code.startswith(beginning)]
    return found
