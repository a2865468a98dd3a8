"""The demo for people's eyes: a live table on a terminal, one line for each thing that happens elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cuebook.actors.orchestrator.state import StepState, TaskState
from cuebook.cli.demo.story import Line, Story, TicketStory

__all__ = ["LiveView", "PlainView", "QuietConsole", "View"]

_COLOURS: Final = {
    "refunded": "green", "answered": "green", "thanked": "green", "escalated": "cyan", "compensated": "magenta",
    "compensating": "magenta", "running": "yellow", "opened": "dim",
}  # fmt: skip
_LAST_LINES: Final = 4
_MOST_ROWS: Final = 60
_OTHER_LINES: Final = 7
"""What the table needs of the screen besides its rows."""
_MICROSECONDS: Final = 1_000_000


class QuietConsole(Console):
    """A console that goes on in silence when nobody reads any more: the exit status still counts."""

    def on_broken_pipe(self) -> None:
        """See Console, which would raise SystemExit, wherever in the event loop that may be."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class View(Protocol):
    """Something that shows the demo. Use `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """Tell about the demo itself."""

    def show(self, story: Story, line: Line) -> None:
        """Tell one line of the story."""

    def tick(self, story: Story) -> None:
        """Time has passed."""


class PlainView:
    """One line for each thing, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began, self._began_at = time.monotonic(), time.time_ns() // 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        """See View."""
        self._print(time.monotonic() - self._began, text)

    def show(self, story: Story, line: Line) -> None:
        """See View."""
        ticket = story.tickets.get(line.ticket)
        took = f" ({ticket.seconds(line.moment):.2f} s)" if ticket is not None and ticket.closed else ""
        self._print((line.moment - self._began_at) / _MICROSECONDS, f"{line.ticket:5} {line.text}{took}")

    def tick(self, story: Story) -> None:
        """See View."""

    def _print(self, seconds: float, text: str) -> None:
        self._console.print(f"{seconds:5.2f} s  {text}", soft_wrap=True, markup=False, highlight=False)


class LiveView:
    """A table with a row for each ticket, as many as the screen has room for, and the last lines below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain = PlainView(console)
        self._lines: deque[Line] = deque(maxlen=_LAST_LINES)
        self._story = Story("")
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        tickets = list(self._story.tickets.values())
        if tickets:
            self._console.print(_table(tickets[:_MOST_ROWS], self._story.moment))
        if len(tickets) > _MOST_ROWS:
            self._console.print(f"and {len(tickets) - _MOST_ROWS} more")

    def say(self, text: str) -> None:
        """See View."""
        self._plain.say(text)

    def show(self, story: Story, line: Line) -> None:
        """See View."""
        self._lines.append(line)
        self._story = story

    def tick(self, story: Story) -> None:
        """See View."""
        self._story = story
        room = max(3, self._console.size.height - _OTHER_LINES - _LAST_LINES)
        table = _table(list(story.tickets.values())[-room:], time.time_ns() // 1000)
        lines = [Text(f"{line.ticket:5} {line.text}", style="dim", no_wrap=True) for line in self._lines]
        self._live.update(Group(table, *lines), refresh=True)


def _table(tickets: Sequence[TicketStory], now: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("ticket", no_wrap=True)
    table.add_column("outcome", no_wrap=True, min_width=12)
    table.add_column("steps", ratio=1)
    table.add_column("s", justify="right", no_wrap=True)
    for ticket in tickets:
        status = Text(ticket.status, style=_COLOURS.get(ticket.status, "red"))
        table.add_row(ticket.id, status, _steps(ticket), f"{ticket.seconds(now):.2f}")
    return table


def _steps(ticket: TicketStory) -> Text:
    if ticket.run is None:
        return Text(ticket.text, style="dim", no_wrap=True, overflow="ellipsis")
    parts = [_step(item) for _, item in sorted(ticket.run.items.items())]
    return Text(" ").join(part for part in parts if part)


def _step(item: TaskState | StepState) -> Text:
    if isinstance(item, StepState):
        if item.type != "ask":
            return Text(item.type, style="dim")
        if item.closed:
            return Text(f"person: {item.by or item.status}", style="bold cyan")
        return Text("person?", style="bold reverse cyan")
    name = f"↩{item.handler}" if item.compensates is not None else item.handler
    if item.attempt > 1:
        name += f"\N{MULTIPLICATION SIGN}{item.attempt}"
    match item.status:
        case "completed":
            style = "magenta" if item.compensates is not None else "yellow" if item.attempt > 1 else "green"
            return Text(name, style=style)
        case "escalated":
            return Text(f"{name}?", style="bold reverse cyan")
        case "failed" | "backoff" | "aborted" | "rejected":
            return Text(name, style="red")
    return Text(name, style="dim")
