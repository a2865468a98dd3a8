"""The table of metrics in docs/telemetry.md, from the catalogue: `just docs` writes it, a test holds the file to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cuebook.telemetry.metric_names import ALL

__all__ = ["DOCUMENT", "rewritten"]

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "telemetry.md"
_TABLE: Final = re.compile(r"(<!-- metrics -->\n).*?(<!-- end of metrics -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """The document with the table as it should be."""
    rows = ["| metric | type | unit | labels | of | meaning |", "|---|---|---|---|---|---|"]
    for metric in ALL:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        unit = metric.unit.strip("{}")
        cells = f"`{metric.exported}`", metric.kind, unit, labels, metric.by, metric.about
        rows.append("| " + " | ".join(cells) + " |")
    table = "\n".join(rows) + "\n"
    return _TABLE.sub(lambda found: found[1] + table + found[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()), encoding="utf-8")
