"""What is open in a space, counted: runs by saga and state, the queues, the escalations, the agents.

Counting goes over all that is open. So the counts are kept and given again until they are old, and counting never takes
more than a small part of the orchestrator's time, however many ask.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState

__all__ = ["Overview", "Tally", "count_open", "instance_facts", "unserved"]

FRESH_S = 0.5
SHARE = 0.02
"""The most of the orchestrator's time that counting may take."""
_MOST_ROWS = 500
_MOST_NAMED = 5

_QueueKey = tuple[str, int, frozenset[tuple[str, str]], Any]


class Overview:
    """Gives the counts, which are at most half a second old, or on a very full space as old as counting is dear."""

    def __init__(self) -> None:
        self._until = 0.0
        self._core: Orchestrator | None = None
        self._answer: dict[str, Any] = {}

    def get(self, core: Orchestrator, now: int) -> dict[str, Any]:
        """The counts. `now`: microseconds since 1970 by the server's clock."""
        began = time.perf_counter()
        if core is not self._core or began >= self._until:
            self._core, self._answer = core, count_open(core, now)
            ended = time.perf_counter()
            self._until = ended + max(FRESH_S, (ended - began) / SHARE)
        return self._answer


def count_open(core: Orchestrator, now: int) -> dict[str, Any]:
    """Count. Times are microseconds since 1970 by the server's clock; of long lists the longest waiting come first.

    `queues`: tasks that wait to be placed, by agent, priority and labels, with why the oldest of them waits; `stranded`
    says that no instance could take them even if it had nothing else to do.
    """
    tally = Tally(core.world.runs.values(), now)
    return {
        "at": now,
        "sequence": core.world.position.sequence,
        **tally.view(core.dispatcher.why_waiting, core.dispatcher.is_stranded),
        "unserved": unserved(core),
        "agents": [instance_facts(one) for one in core.world.registry.instances.values()],
    }


class Tally:
    """Runs that are open, counted in one pass."""

    def __init__(self, runs: Iterable[RunState], now: int) -> None:
        self._runs: Counter[tuple[str, str, str]] = Counter()
        self._waiting: dict[_QueueKey, list[TaskState]] = {}
        self._escalations: dict[str, list[tuple[int, str]]] = {}
        for run in runs:
            first = run.items.get(0) if run.standalone else None
            agent = first.agent if isinstance(first, TaskState) else ""
            self._runs[run.saga, agent, run.outcome()] += 1
            for item in run.items.values():
                self._add(item, now)
            if run.status == "stuck":
                self._escalate("stuck", run.run_id, run.stuck_at)

    def _add(self, item: TaskState | StepState, now: int) -> None:
        name = f"{item.run_id}/{item.n}"
        if isinstance(item, StepState):
            if item.type == "ask" and item.status == "open":
                self._escalate("question", name, item.opened_at)
        elif item.status == "waiting" or (item.status == "backoff" and item.free_at <= now):
            key = (item.agent, item.priority, frozenset((item.labels or {}).items()), item.takers)
            self._waiting.setdefault(key, []).append(item)
        elif item.status == "escalated":
            self._escalate("task", name, item.escalated_at)

    def _escalate(self, kind: str, name: str, since: int) -> None:
        self._escalations.setdefault(kind, []).append((since, name))

    def view(self, why: Callable[[TaskState], str], is_stranded: Callable[[TaskState], bool]) -> dict[str, Any]:
        """The counts as plain data: `runs`, `queues` and `escalations`."""
        queues: list[dict[str, Any]] = []
        for (agent, priority, labels, _), tasks in self._waiting.items():
            oldest = min(tasks, key=lambda task: task.requested_at)
            queues.append({"agent": agent, "priority": priority, "labels": dict(sorted(labels)), "waiting": len(tasks),
                           "oldest": f"{oldest.run_id}/{oldest.n}", "oldest_at": oldest.requested_at,
                           "reason": why(oldest), "stranded": is_stranded(oldest)})  # fmt: skip
        queues.sort(key=lambda one: one["oldest_at"])
        return {
            "runs": [
                {"saga": saga, "agent": agent, "status": status, "count": count}
                for (saga, agent, status), count in self._runs.most_common(_MOST_ROWS)
            ],
            "queues": queues[:_MOST_ROWS],
            "escalations": [
                {"kind": kind, "count": len(found), "oldest_at": min(found)[0],
                 "first": [name for _, name in sorted(found)[:_MOST_NAMED]]}
                for kind, found in sorted(self._escalations.items())
            ],
        }  # fmt: skip


def instance_facts(one: InstanceState) -> dict[str, Any]:
    """One instance, with what it has in hand."""
    return {
        "agent": one.agent,
        "instance": one.instance,
        "health": one.health,
        "version": one.version,
        "labels": one.labels,
        "slots": one.slots,
        "in_flight": len(one.tasks),
        "registered_at": one.registered_at,
        "changed_at": one.changed_at,
        "host": one.host,
        "pid": one.pid,
        "reason": one.reason,
    }


def unserved(core: Orchestrator) -> list[dict[str, Any]]:
    """Open runs whose code this orchestrator has not got: their saga, or the version that they started with."""
    runs: dict[tuple[str, str], list[str]] = {}
    for run in core.world.runs.values():
        if reason := core.conductor.why_not(run):
            runs.setdefault((run.saga, reason), []).append(run.run_id)
    largest = sorted(runs.items(), key=lambda item: -len(item[1]))[:_MOST_ROWS]
    return [
        {"saga": saga, "reason": reason, "count": len(found), "runs": found[:_MOST_NAMED]}
        for (saga, reason), found in largest
    ]
