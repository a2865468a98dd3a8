"""One run as a sequence of events with the state after each: what the viewer shows, without the terminal.

Place k is after the first k events; place 0 is before all of them. Going back does not fold from the beginning: a dump
of the run is kept every `KEEP_EVERY` events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from cuebook.actors.orchestrator.dumps import dump_run, load_run
from cuebook.actors.orchestrator.state import RunState, place_of
from cuebook.cli.history.difference import Change, find_changes
from cuebook.cli.history.timeline import words
from cuebook.cli.history.views import Item, event_view, run_view
from cuebook.cli.runs.diffs import run_fields
from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskProgressed

__all__ = ["Steps"]

KEEP_EVERY: Final = 64


class Steps:
    """Give it the events of one run in order with `add`. A standalone task is a run of one task."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.items: list[Item] = []
        self._kept: list[tuple[dict[str, Any], dict[int, TaskProgressed]]] = [(dump_run(RunState(run_id)), {})]
        self._newest = RunState(run_id)
        self._progress: dict[int, TaskProgressed] = {}

    def add(self, item: Item) -> None:
        """Take the next event."""
        self.items.append(item)
        _apply(self._newest, self._progress, item)
        if len(self.items) % KEEP_EVERY == 0:
            self._kept.append((dump_run(self._newest), dict(self._progress)))

    @property
    def ended(self) -> bool:
        """Whether nothing about the run can change any more."""
        task = self._newest.items.get(0) if self._newest.standalone else None
        return self._newest.closed or (task is not None and task.closed)

    def fields(self, place: int) -> dict[str, Any]:
        """The run after the first `place` events, its tasks and steps by number; empty before the first one."""
        if not place:
            return {}
        dump, kept = self._kept[place // KEEP_EVERY]
        state, progress = load_run(dump), dict(kept)
        for item in self.items[place - place % KEEP_EVERY : place]:
            _apply(state, progress, item)
        return run_fields(run_view(state, self.items[:1], {}, progress))

    def changes(self, place: int) -> list[Change]:
        """What the event at a place has changed."""
        return find_changes(self.fields(place - 1), self.fields(place)) if place else []

    def part(self, place: int) -> int | None:
        """The number of the task or step that the event at a place is about; None: the run itself."""
        if not place:
            return None
        item = self.items[place - 1]
        if isinstance(item, Envelope):
            return item.address.n if item.address.n >= 0 else None
        where = place_of(item.subject)
        return where[2] if where is not None and where[2] >= 0 else None

    def places(self, part: int | None = None, *, every: bool = True) -> list[int]:
        """The places, in order: every one, or those of events about one task, or None for the run itself."""
        return [place for place in range(1, len(self.items) + 1) if every or self.part(place) == part]

    def find(self, text: str, places: list[int], start: int, *, backwards: bool = False) -> int | None:
        """The next of `places` after `start` (or before it) whose event contains a text in any case; goes round."""
        ahead = [place for place in places if place > start] + [place for place in places if place <= start]
        behind = [place for place in places if place < start] + [place for place in places if place >= start]
        wanted: Callable[[int], bool] = lambda place: text.casefold() in self._haystack(place)  # noqa: E731
        return next(filter(wanted, reversed(behind) if backwards else ahead), None)

    def _haystack(self, place: int) -> str:
        item = self.items[place - 1]
        return f"{words(item)} {json.dumps(event_view(item), ensure_ascii=False, default=str)}".casefold()


def _apply(state: RunState, progress: dict[int, TaskProgressed], item: Item) -> None:
    if not isinstance(item, Envelope):
        where = place_of(item.subject)
        if where is not None and where[1] == state.run_id:
            state.skip(where[0], where[2], item.sequence)
    elif item.address.kind == "progress":
        if isinstance(item.event, TaskProgressed):
            progress[item.address.n] = item.event
    else:
        state.apply(item)
