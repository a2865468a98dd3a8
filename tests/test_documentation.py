"""What the documentation points at exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = [
        f"{document}: {target}"
        for document in documents()
        for target in LINK.findall((ROOT / document).read_text())
        if not target.startswith(("http://", "https://", "mailto:")) and not leads_somewhere(document, target)
    ]
    assert broken == []


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def leads_somewhere(document: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (ROOT / document.parent / name) if name else ROOT / document
    return file.exists() and (not anchor or anchor in {anchor_of(h) for h in HEADING.findall(file.read_text())})


def anchor_of(heading: str) -> str:
    """The name GitHub gives a heading: lower case, spaces as dashes, punctuation dropped."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_tests_that_the_documents_name_are_there() -> None:
    named = {
        found
        for document in documents()
        for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / document).read_text())
    }
    assert named
    assert [f"{file}::{test}" for file, test in sorted(named) if f"def {test}(" not in text_of(ROOT / file)] == []


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""
