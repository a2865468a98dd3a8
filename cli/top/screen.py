"""The screen of `cuebook top`: agents above, below them what is open and what waits, and the newest endings.

What comes from the log is shown as plain text: never as markup, and with what is unprintable as escapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Input, Static

from cuebook.cli.output import plain
from cuebook.cli.top.frame import SORTS, agent_cells, ending_cells, instance_cells, queue_cells, run_cells, status_words

__all__ = ["Top"]

_STYLES: Final = {
    "healthy": "green", "suspect": "yellow", "lost": "bold red", "draining": "yellow", "absent": "bold red",
    "completed": "green", "failed": "red", "compensated": "yellow", "cancelled": "dim", "rejected": "red",
    "aborted": "red", "stuck": "bold red",
}  # fmt: skip
_TABLES: Final = {
    "agents": ["AGENT", "INST", "HEALTH", "BUSY", "", "TASKS/S", "FAILED/S", "WAITING", "OLDEST"],
    "runs": ["COUNT", "OPEN RUNS OF", "STATE"],
    "queues": ["WAITING FOR", "PRIO", "TASKS", "OLDEST", "WHY"],
    "endings": ["AT (UTC)", "HOW", "RUN", "OF"],
}
_INSTANCES: Final = ["AGENT", "INSTANCE", "HEALTH", "BUSY", "", "VERSION", "PROCESS", "SINCE (UTC)", ""]


class Top(App[None]):
    """Shows what `frame` gives, every `interval_s`; `watch` keeps it up to date, and what it raises is in `failure`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "cuebook"
    CSS = """
    #title { height: 1; background: $primary; color: $text; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #status { height: 1; padding: 0 1; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    DataTable { background: $background; scrollbar-size-vertical: 1; overflow-x: hidden; padding: 0 1; }
    #agents { height: auto; min-height: 4; max-height: 50%; }
    #below { height: 1fr; min-height: 6; border-top: solid $primary-darken-2; }
    #left { width: 1fr; }
    #runs { height: 1fr; }
    #queues { height: 1fr; border-top: solid $primary-darken-2; }
    #endings { width: 1fr; height: 1fr; border-left: solid $primary-darken-2; }
    DataTable:focus > .datatable--header { color: $accent; }
    #filter { dock: bottom; display: none; height: 1; border: none; padding: 0 1; margin-bottom: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("d", "detail", "Instances"),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("tab", "app.focus_next", "Next table", show=False),
        Binding("escape", "leave", "Leave", show=False, priority=True),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
    ]

    def __init__(
        self,
        frame: Callable[[], dict[str, Any]],
        watch: Callable[[], Coroutine[Any, Any, None]] | None = None,
        *,
        connected: Callable[[], bool] = lambda: True,
        interval_s: float = 1.0,
    ) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.paused = False
        self.detailed = False
        self.sort = SORTS[0]
        self.wanted = ""
        self._frame, self._watch, self._connected, self._interval_s = frame, watch, connected, interval_s
        self._shown: dict[str, Any] = {}
        self._filled: dict[str, list[list[str]]] = {}
        self._title, self._status = Static(id="title"), Static(id="status")
        self._tables = {
            name: DataTable[Text](id=name, cursor_type="row", cell_padding=1, zebra_stripes=False) for name in _TABLES
        }
        self._filter = Input(
            id="filter", placeholder="only rows with this text; Enter keeps it, Escape drops it", compact=True
        )

    def compose(self) -> ComposeResult:
        """See textual."""
        yield self._title
        yield self._status
        yield self._tables["agents"]
        with Horizontal(id="below"):
            with Vertical(id="left"):
                yield self._tables["runs"]
                yield self._tables["queues"]
            yield self._tables["endings"]
        yield self._filter
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """See textual."""
        for name, columns in _TABLES.items():
            self._tables[name].add_columns(*columns)
        self._tables["agents"].focus()
        self.refresh_frame()
        if self._watch is not None:
            self.run_worker(self._keep_watching(self._watch))
        self.set_interval(self._interval_s, self.refresh_frame)

    async def _keep_watching(self, watch: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await watch()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - it is handed on to whoever opened the screen
            self.failure = error
            self.exit()

    # --- keys ---

    def action_sort(self) -> None:
        """Sort the agents by the next thing."""
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        self._show()

    def action_detail(self) -> None:
        """Show every instance instead of agents, and back."""
        self.detailed = not self.detailed
        table = self._tables["agents"]
        table.clear(columns=True)
        self._filled.pop("agents")
        table.add_columns(*(_INSTANCES if self.detailed else _TABLES["agents"]))
        self._show()

    def action_pause(self) -> None:
        """Let the screen stand still, and go on."""
        self.paused = not self.paused
        self.refresh_frame()

    def action_filter(self) -> None:
        """Ask which rows."""
        self._filter.display = True
        self._filter.value = self.wanted
        self._filter.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """See textual."""
        self.wanted = message.value.strip().lower()
        self._show()

    def on_input_submitted(self) -> None:
        """See textual."""
        self._filter.display = False
        self._tables["agents"].focus()

    def action_leave(self) -> None:
        """Drop the filter."""
        self._filter.value = self.wanted = ""
        self.on_input_submitted()
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """While somebody types what to look for, letters are letters."""
        return not self._filter.has_focus or action in ("leave", "quit")

    # --- what is seen ---

    def refresh_frame(self) -> None:
        """Take a new frame, unless paused."""
        if not self.paused or not self._shown:
            self._shown = self._frame()
        self._show()

    def _show(self) -> None:
        frame, log = self._shown, self._shown["log"]
        parts = [
            f"cuebook · {frame['space']}",
            f"event {log['sequence']:,}",
            f"{log['events_s']:,.1f} events/s",
            f"{log['tasks_s']:,.1f} tasks/s",
            "paused" if self.paused else "live" if self._connected() else "reconnecting",
        ]
        parts.append(f"by {self.sort}" + (f" · only {self.wanted!r}" if self.wanted else ""))
        self._title.update(Text(plain(" · ".join(parts))))
        self._status.update(Text(plain(status_words(frame))))
        if self.detailed:
            self._fill("agents", instance_cells(frame))
        else:
            self._fill("agents", agent_cells(frame, self.sort))
        self._fill("runs", run_cells(frame))
        self._fill("queues", queue_cells(frame))
        self._fill("endings", ending_cells(frame))

    def _fill(self, name: str, rows: list[list[str]]) -> None:
        wanted = [cells for cells in rows if not self.wanted or any(self.wanted in cell.lower() for cell in cells)]
        if self._filled.get(name) == wanted:
            return  # drawing is what costs
        self._filled[name] = wanted
        table = self._tables[name]
        row, top = table.cursor_row, table.scroll_y
        table.clear()
        for cells in wanted:
            table.add_row(*(_cell(cell) for cell in cells))
        if wanted:
            table.move_cursor(row=min(row, table.row_count - 1), animate=False)
            table.scroll_to(y=top, animate=False)
        else:
            table.add_row(Text("none", style="dim"), *[Text("")] * (len(table.columns) - 1))


def _cell(text: str) -> Text:
    numeric = text.replace(",", "").replace(".", "").replace("/", "").isdigit()
    style = _STYLES.get(text, "cyan" if text[:1] in "█░" and text else "")
    return Text(plain(text), style=style, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
