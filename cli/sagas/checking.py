"""The present code of sagas against what was recorded of their runs, finished and open ones, in one reading of the log.

Memory is bounded: a run is held while it is open, and of more than `MOST_HELD` open ones those that began first are
put aside by name and read again, one at a time, in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RunState, fold_run
from cuebook.cli.directory import nearest
from cuebook.cli.exits import DriftError
from cuebook.cli.history.difference import find_changes
from cuebook.cli.history.sides import change_cells, sides
from cuebook.cli.history.views import Item
from cuebook.cli.loading import load_sagas
from cuebook.cli.meter import Meter
from cuebook.cli.moments import parse_since
from cuebook.cli.options import Output, Target
from cuebook.cli.output import Lines, note, plain
from cuebook.cli.runs.showing import find_run
from cuebook.cli.sagas.drift import check_run
from cuebook.cli.sagas.fence import Fence
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError
from cuebook.events.facts import RunForked, RunRequested, RunStarted
from cuebook.events.log import EventLog

__all__ = ["Check", "Histories", "check_sagas"]

MOST_HELD = 5_000
"""Open runs held in memory at a time."""
_KINDS = frozenset({"run", "task", "step"})


class Histories:
    """Runs of the sagas named in `wanted`, folded side by side; `on_end` sees each whole, and is done with it then."""

    def __init__(self, wanted: Mapping[str, Any], on_end: Callable[[RunState], None], *, most: int = MOST_HELD) -> None:
        self.open: dict[str, RunState] = {}
        self.aside: dict[str, None] = {}
        """Open runs that did not fit, by id."""
        self.seen: set[str] = set()
        """All sagas with runs here, wanted or not."""
        self._wanted, self._on_end, self._most = wanted, on_end, most

    def apply(self, item: Item) -> None:
        """Fold one message; a run whose beginning was not seen is left out."""
        if not isinstance(item, Envelope) or item.address.kind not in _KINDS:
            return
        run_id = item.address.run_id
        run = self.open.get(run_id)
        if run is None:
            run = self._begin(item)
            if run is None:
                return
        run.apply(item)
        if run.closed:
            del self.open[run_id]
            self._on_end(run)

    def _begin(self, item: Envelope) -> RunState | None:
        match item.event:
            case RunRequested():
                saga = item.address.agent
            case RunStarted() | RunForked():
                saga = item.event.saga
            case _:
                return None
        self.seen.add(saga)
        if saga not in self._wanted or item.address.run_id in self.aside:
            return None
        if len(self.open) >= self._most:
            first = next(iter(self.open))
            del self.open[first]
            self.aside[first] = None
        run = self.open[item.address.run_id] = RunState(item.address.run_id)
        return run


class Check:
    """Holds runs against sagas; prints each that differs, and counts.

    A run is held against the version that it started with; where that is not among them, against the newest.
    """

    def __init__(self, sagas: Repertoire, lines: Lines) -> None:
        self.checked, self.open, self.differ = Counter[str](), Counter[str](), Counter[str]()
        """By saga."""
        self._sagas, self._lines, self._fence = sagas, lines, Fence()

    def look(self, run: RunState) -> None:
        """Check one run; those that never started decided nothing."""
        saga = self._sagas.find(run.saga, run.version) or self._sagas.get(run.saga)
        if saga is None or not run.started_sequence:
            return
        self.checked[saga.name] += 1
        self.open[saga.name] += not run.closed
        found = check_run(saga, run, self._fence)
        if found is not None:
            self.differ[saga.name] += 1
            self._lines.add(found, partial(_sides, found))

    async def read(self, log: EventLog, after: int, until: int, *, silent: bool) -> set[str]:
        """Check all runs that began in (after, until]; returns the sagas that have runs there."""
        runs = Histories(self._sagas, self.look)
        with Meter(after + 1, until, silent=silent) as meter:
            async with aclosing(log.read(after=after, until=until, filters=[log.subjects.all_runs])) as items:
                async for item in items:
                    runs.apply(item)
                    meter.at(item.sequence)
        for run in runs.open.values():
            self.look(run)
        for run_id in runs.aside:
            history = await log.history(run_id)
            self.look(fold_run(run_id, (item for item in history if item.sequence <= until)))
        return runs.seen

    def tell(self, output: Output) -> None:
        """Say what was checked. Raises DriftError where something differs."""
        for name, count in self.checked.items():
            going_on = self.open[name]
            note(f"{name}: {count} runs checked ({going_on} open), {self.differ[name]} would go another way", output)
        if differ := self.differ.total():
            raise DriftError(
                f"{differ} of {self.checked.total()} runs would go another way with the present code",
                remedy="finish or cancel open ones before this code is served, or give it another saga name",
            )


async def check_sagas(target: Target, specs: Sequence[str], since: str, output: Output, *, run_id: str = "") -> None:
    """Check all runs that began since then, or one. Raises DriftError, NotFoundError when there is none."""
    sagas = Repertoire(load_sagas(specs))
    async with session(target) as client:
        log = client.log
        last = (await log.verify()).last_sequence
        after = await log.sequence_at(parse_since(since)) if since else 0
        with Lines(output) as lines:
            check = Check(sagas, lines)
            if run_id:
                run, _ = await find_run(log, run_id)
                check.look(run)
                seen = {run.saga} if run.saga else set()
            else:
                seen = await check.read(log, after, last, silent=output.for_programs)
        if not check.checked:
            began = f" that began since {since}" if since else ""
            raise NotFoundError(
                f"there is no run of {' or '.join(sagas)}{began} to check in space {log.subjects.space!r}",
                remedy=f"runs there are of: {', '.join(sorted(seen))}" if seen else _what_else(since),
            )
        check.tell(output)


def _what_else(since: str) -> str:
    return "leave --since out, or say an earlier one" if since else nearest("", (), "run")


def _sides(found: dict[str, Any]) -> str:
    """The first difference of a run, side by side."""
    where = "" if found["step"] is None else f", step {found['step']}"
    version = f" version {found['version']}" if found["version"] else ""
    head = f"{found['run_id']} ({found['saga']}{version}, {found['status']}){where}: {found['reason']}"
    recorded, asked = found["recorded"], found["asked"]
    rows = []
    if isinstance(recorded, dict) and isinstance(asked, dict) and recorded.get("call") == asked.get("call", 0):
        rows.append(("call", str(recorded["call"]), str(asked["call"])))
    rows += change_cells(find_changes(recorded or {}, asked or {}))
    return "\n".join([plain(head), *sides("recorded", "would ask now", rows)])
