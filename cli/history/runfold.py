"""Many runs folded from the log at once: for lists without a database, and for the state of a space at any sequence.

Memory follows the runs that are open. One that has ended is reduced to its line in the list, and of those lines only
the newest are kept. A request under the id of a run that is over looks like a new run until its refusal comes, as it
does to the orchestrator.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from cuebook.actors.orchestrator.state import RunState
from cuebook.cli.history.views import Item, run_summary
from cuebook.cli.meter import Meter
from cuebook.events.envelope import Envelope
from cuebook.events.facts import MessageRejected
from cuebook.events.log import EventLog

__all__ = ["RunFold", "fold_runs"]

_OPENING = frozenset({("task", "requested"), ("run", "requested"), ("run", "started"), ("run", "forked")})
_KINDS = frozenset({"run", "task", "step"})
Keep = Callable[[dict[str, Any]], bool]


class RunFold:
    """Fold messages with `apply`; `newest` lists runs, `open` has the states of those that go on."""

    def __init__(
        self, limit: int, keep: Keep = lambda _: True, on_end: Callable[[RunState], None] = lambda _: None
    ) -> None:
        """Remember at most `limit` ended runs for which `keep` is true of their summary; `on_end` sees each whole."""
        self.open: dict[str, RunState] = {}
        self.ended: dict[str, int] = {}
        """How many runs have ended in each status."""
        self._limit, self._keep, self._on_end = limit, keep, on_end
        self.opened_at: dict[str, int] = {}
        self._opened_by: dict[int, str] = {}
        self._kept: list[tuple[int, dict[str, Any]]] = []

    def apply(self, item: Item) -> None:
        """Fold one message of the log; what is not about a run changes nothing."""
        if not isinstance(item, Envelope):
            return
        address = item.address
        if isinstance(item.event, MessageRejected):
            self._forget(address.n, item.event.subject)
            return
        if address.kind not in _KINDS:
            return
        run = self.open.get(address.run_id)
        if run is None:
            if (address.kind, address.fact) not in _OPENING or address.n > 0:
                return
            run = self.open[address.run_id] = RunState(address.run_id)
            self.opened_at[address.run_id] = item.recorded_at
            self._opened_by[item.sequence] = address.run_id
        run.apply(item)
        task = run.items.get(0) if run.standalone else None
        if run.closed or (task is not None and task.closed):
            self._close(run)

    def newest(self) -> list[dict[str, Any]]:
        """The newest runs that are wanted, newest first, at most the limit."""
        rows = [row for row in self.summaries() if self._keep(row)] + [row for _, row in self._kept]
        return sorted(rows, key=lambda row: -int(row["first_sequence"]))[: self._limit]

    def summaries(self) -> list[dict[str, Any]]:
        """All runs that go on."""
        return [run_summary(run, self.opened_at[run.run_id]) for run in self.open.values()]

    def take_over(self, other: RunFold) -> None:
        """Go on with the open runs of another fold, which must not be used any more."""
        self.open, self.opened_at, self._opened_by = other.open, other.opened_at, other._opened_by

    def _forget(self, sequence: int, subject: str) -> None:
        """The message there had no effect: what it seemed to open was a run that is over."""
        run_id = self._opened_by.get(sequence)
        if run_id is not None and subject.split(".")[1:3] == ["run", run_id]:  # in a copy sequences are others
            del self.open[run_id], self.opened_at[run_id], self._opened_by[sequence]

    def _close(self, run: RunState) -> None:
        self._on_end(run)
        row = run_summary(run, self.opened_at.pop(run.run_id))
        del self.open[run.run_id]
        self._opened_by.pop(run.opened_sequence, None)
        self.ended[row["status"]] = self.ended.get(row["status"], 0) + 1
        if self._keep(row):
            heapq.heappush(self._kept, (run.opened_sequence, row))
            if len(self._kept) > self._limit:
                heapq.heappop(self._kept)


async def fold_runs(
    log: EventLog, fold: RunFold, *, after: int = 0, until: int | None = None, silent: bool = False
) -> RunFold:
    """Fold the runs of which the log holds the beginning after a sequence."""
    last = (await log.verify()).last_sequence
    until = last if until is None else min(until, last)
    filters = [log.subjects.all_runs, log.subjects.all_rejected]
    with Meter(after + 1, until, silent=silent) as meter:
        async with aclosing(log.read(after=after, until=until, filters=filters)) as items:
            async for item in items:
                fold.apply(item)
                meter.at(item.sequence)
    return fold
