"""What was recorded beside what would be now, field by field, as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cuebook.cli.history.difference import Change
from cuebook.cli.output import compact

__all__ = ["change_cells", "sides"]

_WIDEST = 48

Cells = tuple[str, str, str]
"""A field, and either side."""


def change_cells(changes: Iterable[Change]) -> list[Cells]:
    """Each change as a row; a side that has nothing there is empty."""
    return [
        (
            change.name,
            "" if change.op == "add" else compact(change.before, _WIDEST),
            "" if change.op == "remove" else compact(change.value, _WIDEST),
        )
        for change in changes
    ]


def sides(left: str, right: str, rows: Sequence[Cells]) -> list[str]:
    """A small table with these two headings."""
    every = [("", left, right), *rows]
    first, second = (max(len(row[n]) for row in every) for n in range(2))
    return [f"  {name.ljust(first)}  {one.ljust(second)} | {other}".rstrip() for name, one, other in every]
