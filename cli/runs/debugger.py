"""The terminal viewer of one run: its events on the left, on the right the state after the chosen one.

What comes from the log is shown as plain text: never as markup, and with what is unprintable as escapes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Input, Static

from cuebook.cli.history.difference import Change
from cuebook.cli.history.timeline import alarm, words
from cuebook.cli.history.views import Item, event_view
from cuebook.cli.moments import clock, span
from cuebook.cli.output import compact, plain, to_json
from cuebook.cli.runs.stepping import Steps
from cuebook.events.envelope import Envelope

__all__ = ["Debugger"]

LOOK_S: Final = 0.5
_CHANGED: Final = "bold yellow"
_HIDDEN: Final = frozenset({"run_id", "items", "tasks", "tasks_completed", "tasks_failed", "first_sequence"})
_OF_ITEM_HIDDEN: Final = frozenset({"id", "n"})
_is_time: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z").fullmatch
_HELP: Final = "any text of the events; Enter finds, n and N go on"


class Debugger(App[None]):
    """Shows `steps`; `news` yields the events to come, and ends or raises when there are no more.

    What `news` raises is kept in `failure` and ends the viewer.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "cuebook"
    CSS = """
    #title { height: 1; background: $primary; color: $text; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #timeline { width: 1fr; height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    #state { width: 1fr; height: 1fr; padding: 0 1; border-left: solid $primary; scrollbar-size-vertical: 1; }
    #state:focus { border-left: thick $accent; }
    #search { dock: bottom; display: none; height: 1; border: none; padding: 0 1; margin-bottom: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j,space", "step(1)", "Next", key_display="↓", priority=False),
        Binding("up,k", "step(-1)", "Back", key_display="↑"),
        Binding("home,g", "jump(0)", "First", key_display="g", priority=True),
        Binding("end,G", "jump(-1)", "Last", key_display="G", priority=True),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("n", "again(1)", "Next match", show=False),
        Binding("N", "again(-1)", "Match before", show=False),
        Binding("f", "filter", "This task"),
        Binding("e", "event", "Event"),
        Binding("tab", "other_side", "Side", show=False, priority=True),
        Binding("escape", "leave", "Leave", show=False, priority=True),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
    ]

    def __init__(
        self, steps: Steps, news: AsyncGenerator[Item] | None = None, connected: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__()
        self.steps = steps
        self.failure: Exception | None = None
        self.place = 0
        """After how many events the state is shown; it begins with `begin_at`."""
        self.begin_at = 1
        self._news, self._connected = news, connected
        self._title, self._fields = Static(id="title"), Static(id="fields")
        self._timeline = DataTable[Text](id="timeline", cursor_type="row", show_header=False, cell_padding=0)
        self._state = VerticalScroll(id="state", can_focus=True)
        self._search = Input(id="search", placeholder=_HELP, compact=True)
        self._shown: list[int] = []
        self._filter: tuple[int | None] | None = None
        self._sought = ""
        self._raw = False
        self._status = ""

    def compose(self) -> ComposeResult:
        """See textual."""
        yield self._title
        with Horizontal():
            yield self._timeline
            with self._state:
                yield self._fields
        yield self._search
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """See textual."""
        self._timeline.add_columns("at", "+", "n", "what")
        self._show_rows()
        self._choose(min(max(self.begin_at, 1), len(self.steps.items)))
        self._timeline.focus()
        if self._news is not None and not self.steps.ended:
            self._follow(self._news)
        else:
            self._news = None
        self.set_interval(LOOK_S, self._show_title)

    @work
    async def _follow(self, news: AsyncGenerator[Item]) -> None:
        try:
            async with aclosing(news) as items:
                async for item in items:
                    at_end = self.place == len(self.steps.items)
                    self.steps.add(item)
                    place = len(self.steps.items)
                    if self._is_wanted(place):
                        self._shown.append(place)
                        self._timeline.add_row(*self._cells(place), key=str(place))
                    if at_end and self._is_wanted(place):
                        self._choose(place)
                    self._show_title()
                    if self.steps.ended:
                        break
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - it is handed on to whoever opened the viewer
            self.failure = error
            self.exit()
        self._news = None
        self._show_title()

    # --- keys ---

    def action_step(self, by: int) -> None:
        """Go on by so many events."""
        index = self._shown.index(self.place) + by
        self._choose(self._shown[min(max(index, 0), len(self._shown) - 1)])

    def action_jump(self, index: int) -> None:
        """Go to the first event or the last."""
        self._choose(self._shown[index])

    def action_filter(self) -> None:
        """Show only events of the task, the step or the run that this one is about; again: all."""
        self._filter = (self.steps.part(self.place),) if self._filter is None else None
        self._show_rows()
        self._choose(self.place)

    def action_event(self) -> None:
        """Show the whole event instead of the state, and back."""
        self._raw = not self._raw
        self._show_state()

    def action_search(self) -> None:
        """Ask what to look for."""
        self._search.display = True
        self._search.value = self._sought
        self._search.focus()

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """See textual."""
        self._sought = message.value.strip()
        self.action_leave()
        self.action_again(1)

    def action_again(self, direction: int) -> None:
        """Go to the next event with what was looked for."""
        if not self._sought:
            return
        found = self.steps.find(self._sought, self._shown, self.place, backwards=direction < 0)
        if found is None:
            self.notify(f"no event contains {plain(self._sought)!r}", severity="warning", markup=False)
        else:
            self._choose(found)

    def action_leave(self) -> None:
        """Out of the search, or out of the filter."""
        if self._search.display:
            self._search.display = False
            self._timeline.focus()
        elif self._filter is not None:
            self.action_filter()

    def action_other_side(self) -> None:
        """Between events and state, so that the keys scroll it."""
        (self._timeline if self._state.has_focus else self._state).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """While somebody types what to look for, letters are letters."""
        return not self._search.has_focus or action in ("leave", "quit")

    # --- what is seen ---

    def on_data_table_row_highlighted(self, message: DataTable.RowHighlighted) -> None:
        """See textual."""
        if message.row_key.value is not None:
            place = int(message.row_key.value)
            if place != self.place:
                self.place = place
                self._show_state()
                self._show_title()

    def _is_wanted(self, place: int) -> bool:
        return self._filter is None or self.steps.part(place) == self._filter[0]

    def _show_rows(self) -> None:
        self._shown = [place for place in self.steps.places() if self._is_wanted(place)]
        self._timeline.clear()
        for place in self._shown:
            self._timeline.add_row(*self._cells(place), key=str(place))

    def _cells(self, place: int) -> list[Text]:
        item = self.steps.items[place - 1]
        since = span(max(item.recorded_at - self.steps.items[0].recorded_at, 0) / 1e6)
        part = self.steps.part(place)
        return [
            Text(f"{item.sequence}", style="dim", justify="right"),
            Text(f"  +{since}", justify="right"),
            Text("  run" if part is None else f"  {part}", justify="right"),
            Text("  " + words(item)[:200], style=alarm(item), no_wrap=True, overflow="ellipsis"),
        ]

    def _choose(self, place: int) -> None:
        self.place = place
        self._timeline.move_cursor(row=self._shown.index(place))
        self._show_state()
        self._show_title()

    def _show_title(self) -> None:
        steps = self.steps
        parts = [
            f"run {steps.run_id}",
            self._status,
            f"event {self._shown.index(self.place) + 1} of {len(self._shown)}",
        ]
        if self._filter is not None:
            parts.append("the run itself" if self._filter[0] is None else f"only {self._filter[0]}")
        if self._news is not None:
            parts.append("live" if self._connected() else "live, reconnecting")
        self._title.update(Text(" · ".join(filter(None, parts))))

    def _show_state(self) -> None:
        item = self.steps.items[self.place - 1]
        text = Text()
        text.append(f"{item.sequence}  {clock(item.recorded_at)} UTC\n", "dim")
        text.append(f"{item.event_type if isinstance(item, Envelope) else 'unreadable'}\n", "bold")
        text.append(f"{words(item)}\n")
        state = Text()
        self._add_state(state)
        text.append(Text("\n" + to_json(event_view(item), indent=2)) if self._raw else state)
        self._fields.update(text)
        self._state.scroll_home(animate=False)

    def _add_state(self, text: Text) -> None:
        fields, changes = self.steps.fields(self.place), self.steps.changes(self.place)
        self._status = fields["status"]
        touched = {change.path[1] for change in changes if change.path[0] == "items" and len(change.path) > 1}
        for n in [n for n in fields["items"] if n in touched or n == str(self.steps.part(self.place))]:
            item = fields["items"][n]
            of_item = [change for change in changes if change.path[:2] == ("items", n)]
            text.append(f"\n{item['kind']} {n}\n", "bold")
            _add_fields(text, {name: item[name] for name in item if name not in _OF_ITEM_HIDDEN}, of_item, 2)
        text.append(f"\nrun {self.steps.run_id}\n", "bold")
        own = [change for change in changes if change.path[0] not in ("items", *_HIDDEN)]
        _add_fields(text, {name: value for name, value in fields.items() if name not in _HIDDEN}, own, 0)
        if fields["items"]:
            text.append("\nsteps\n", "bold")
        for n, item in fields["items"].items():
            mark = "▶" if n in touched else " "
            name = ".".join(filter(None, [item.get("agent"), item.get("handler")])) or item["kind"]
            text.append(f"{mark}{n:>3} {item['status']:<10} {plain(name)}\n", _CHANGED if n in touched else "")


def _add_fields(text: Text, fields: dict[str, Any], changes: list[Change], depth: int) -> None:
    """Fields that say something; those that changed come first and stand out, with what they were.

    `depth`: where in the paths of `changes` the names of the fields stand.
    """
    changed: dict[Any, list[Change]] = {}
    for change in changes:
        changed.setdefault(change.path[depth] if len(change.path) > depth else "", []).append(change)
    new = "" in changed
    for name, value in sorted(fields.items(), key=lambda field: field[0] not in changed):
        if name in changed or value not in (None, "", [], {}):
            text.append(f"{'*' if name in changed or new else ' '}{name.replace('_', ' ')} ", "dim")
            text.append(_words(value), _CHANGED if name in changed or new else "")
            text.append(f"{_was(changed.get(name, []), depth)}\n", "dim")


def _was(changes: list[Change], depth: int) -> str:
    """What a field was that changed as a whole, and that said something before."""
    if not changes or len(changes[0].path) > depth + 1 or changes[0].before in (None, "", [], {}):
        return ""
    return f"  was {_words(changes[0].before, 40)}"


def _words(value: Any, limit: int = 400) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and _is_time(value):
        return f"{value[:10]} {value[11:23]}"
    return plain(value)[:limit] if isinstance(value, str) else compact(value, limit)
