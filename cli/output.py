"""What goes to stdout: JSON for programs, tables and fields for people. Notes for people go to stderr.

Whatever comes from the log may come from anybody, so nothing unprintable reaches a terminal: control characters, and
those that turn the direction of writing, are shown escaped. Colour only on a terminal, and never with NO_COLOR set.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from cuebook.cli.options import Output

__all__ = [
    "Lines",
    "compact",
    "counted",
    "document",
    "fields",
    "gist",
    "heading",
    "line",
    "note",
    "plain",
    "section",
    "show_list",
    "show_one",
    "styled",
    "table",
    "to_json",
]

_STYLES = {
    "completed": "green", "healthy": "green", "answered": "green", "matched": "green",
    "failed": "red", "aborted": "red", "rejected": "red", "stuck": "bold red", "lost": "red", "unreadable": "red",
    "escalated": "bold yellow", "compensating": "yellow", "compensated": "yellow", "suspect": "yellow",
    "backoff": "yellow", "draining": "yellow", "open": "yellow", "behind": "yellow", "parked": "yellow",
    "regressed": "bold red", "abandoned": "yellow", "building": "cyan", "kept": "dim", "beside": "cyan",
    "running": "cyan", "assigned": "cyan", "cancelled": "dim", "stopped": "dim", "expired": "dim",
}  # fmt: skip
_WIDE = 100


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in readable Unicode, with what is unprintable as escapes."""
    unicode = (getattr(sys.stdout, "encoding", "utf-8") or "").lower().startswith("utf")  # textual's says nothing
    text = json.dumps(value, ensure_ascii=not unicode, indent=indent, default=_other)
    if not text.replace("\n", "").isprintable():
        text = "".join(char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text)
    return text


def compact(value: Any, limit: int = _WIDE) -> str:
    """A value on one line, cut at `limit` characters."""
    text = to_json(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(text: str) -> str:
    """Text on one line, with what is unprintable as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with what it counts: `1 run`, `2,000 runs`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def gist(text: str) -> str:
    """The first line, with a sign that there is more."""
    first, _, rest = text.partition("\n")
    return f"{first} …" if rest else first


def note(message: str, output: Output = Output.TEXT) -> None:
    """Say something to a person beside the answer; programs get only the answer."""
    if not output.for_programs:
        print(plain(message), file=sys.stderr, flush=True)  # noqa: T201 - this is the place that prints


def show_list(output: Output, rows: Sequence[dict[str, Any]], render: Callable[[], None]) -> None:
    """Print all rows; `render` prints them for people."""
    match output:
        case Output.JSON:
            _print(to_json(list(rows), indent=2))
        case Output.JSONL:
            for row in rows:
                _print(to_json(row))
        case Output.TEXT:
            render()


def show_one(output: Output, value: dict[str, Any], render: Callable[[], None]) -> None:
    """Print one object; `render` prints it for people."""
    match output:
        case Output.JSON:
            _print(to_json(value, indent=2))
        case Output.JSONL:
            _print(to_json(value))
        case Output.TEXT:
            render()


class Lines(AbstractContextManager["Lines"]):
    """Prints items as they come: a line each, or the elements of one JSON array, which is complete on leaving."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._output is Output.JSON:
            _print("\n]" if self._count else "[]")

    @property
    def is_empty(self) -> bool:
        """Whether nothing was printed yet."""
        return not self._count

    def add(self, item: dict[str, Any], line: Callable[[], str]) -> None:
        """Print one item; `line` is how people see it."""
        match self._output:
            case Output.JSON:
                sys.stdout.write(("[\n" if not self._count else ",\n") + to_json(item))
                sys.stdout.flush()
            case Output.JSONL:
                _print(to_json(item))
            case Output.TEXT:
                _print(line())
        self._count += 1


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print aligned columns; on a terminal with colour, and cut to its width. With no rows, `empty` goes to stderr."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if not cells:
        note(empty)
    elif _is_terminal():
        _rich_table(columns, cells)
    else:
        widths = _widths(columns, cells)
        for row in [list(columns), *cells]:
            _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a heading and a table under it, or `none`."""
    heading(title)
    rows = list(rows)
    if rows:
        table(columns, rows, empty="")
    else:
        line("none")


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values under each other; values that are None or empty are left out.

    A str is printed as it is, line by line, anything else as JSON, over several lines where it is long.
    """
    shown = [(name, value) for name, value in pairs if value is not None and value not in ("", [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        margin = "\n" + " " * (width + 2)
        text = margin.join(map(plain, value.split("\n"))) if isinstance(value, str) else to_json(value)
        if not isinstance(value, str) and len(text) > _WIDE:
            text = to_json(value, indent=2).replace("\n", margin)
        _print(f"{styled(name.ljust(width), 'dim')}  {styled(text, _STYLES.get(text, ''))}")


def styled(text: str, style: str) -> str:
    """The text in a rich style if stdout is a terminal, else as it is."""
    if not style or not _is_terminal():
        return text
    from rich.style import Style

    return Style.parse(style).render(text)


def heading(text: str) -> None:
    """Print a line that begins a part of a page."""
    _print("")
    _print(styled(plain(text), "bold"))


def document(value: Any) -> None:
    """Print a value as JSON over as many lines as it takes."""
    _print(to_json(value, indent=2))


def line(text: str) -> None:
    """Print one line."""
    _print(plain(text))


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the place that prints


def _is_terminal() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if sum(_widths(columns, cells)) + 2 * (len(columns) - 1) > console.width:
        filled = [n for n, column in enumerate(zip(*cells, strict=True)) if any(column)]
        columns, cells = [columns[n] for n in filled], [[row[n] for n in filled] for row in cells]
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, no_wrap=True, overflow="ellipsis")
    # The last column, which says why, is what gets cut; ids are there to be copied, so a longer line goes on below.
    *others, _ = _widths(columns, cells)
    taken = sum(others) + 2 * len(others)
    room = max(console.width - taken, 10)
    console.width = taken + room
    for row in cells:
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in [*row[:-1], last]))
    console.print(grid)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(columns, *cells, strict=True)]


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
