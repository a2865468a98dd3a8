"""Which instance gets the next task. Pure: the order is priority, then age; the choice is affinity, then least loaded.

Only healthy instances with a free slot and all required labels are asked. Tasks that nobody can take wait in order, and
`why` says what for.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from cuebook.actors.orchestrator.registry import PLACEABLE, InstanceState
from cuebook.actors.orchestrator.state import TaskState
from cuebook.actors.orchestrator.variants import Variant

__all__ = ["Choice", "Placement", "Queue", "fits", "why"]

REMEMBERED_AFFINITIES = 100_000


class Queue:
    """Tasks of one agent that wait for an instance: one heap for each set of required labels, and of able variants.

    So a task whose labels nobody free has does not stand in the way of others, and costs nothing while it waits.
    `revision` is that of the agent's team for which the tasks' `takers` were found.
    """

    def __init__(self, revision: int = 0) -> None:
        self.revision = revision
        self._heaps: dict[_Key, list[tuple[int, int, str, int, TaskState]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def __bool__(self) -> bool:
        return any(self._heaps.values())

    def add(self, task: TaskState) -> None:
        """Put a task in its place; it may be there already."""
        if task.queued:
            return
        task.queued = True
        labels = frozenset(task.labels.items()) if task.labels else _NO_LABELS
        key: _Key = labels if task.takers is None else (labels, task.takers)
        heap = self._heaps.get(key)
        if heap is None:
            heap = self._heaps[key] = []
        heapq.heappush(heap, (-task.priority, task.requested_sequence, task.run_id, task.n, task))

    def take(self, choose: Callable[[TaskState], Choice | None]) -> tuple[TaskState, Choice] | None:
        """Take out the most urgent task for which `choose` finds an instance; None when there is none."""
        tops = []
        for key, heap in list(self._heaps.items()):
            while heap and not heap[0][4].ready:
                heapq.heappop(heap)[4].queued = False
            if heap:
                tops.append(heap)
            elif key is not _NO_LABELS:
                del self._heaps[key]
        if len(tops) > 1:
            tops.sort(key=lambda heap: heap[0])
        for heap in tops:
            task = heap[0][4]
            choice = choose(task)
            if choice is not None:
                heapq.heappop(heap)
                task.queued = False
                return task, choice
        return None

    def clear(self) -> list[TaskState]:
        """Take out all; returns those that still wait."""
        tasks = [entry[4] for heap in self._heaps.values() for entry in heap]
        self._heaps.clear()
        for task in tasks:
            task.queued = False
        return [task for task in tasks if task.ready]


_Labels: TypeAlias = frozenset[tuple[str, str]]
_Key: TypeAlias = _Labels | tuple[_Labels, frozenset[Variant]]
_NO_LABELS: _Labels = frozenset()
Choice = tuple[InstanceState, dict[str, Any]]


class Placement:
    """Chooses instances and remembers which one an affinity key preferred last."""

    def __init__(self) -> None:
        self._preferred: OrderedDict[tuple[str, str], str] = OrderedDict()

    def choose(self, task: TaskState, instances: Iterable[InstanceState]) -> Choice | None:
        """The instance for a task and the reason, for people; None when nobody can take it now."""
        best: InstanceState | None = None
        preferred: InstanceState | None = None
        wanted = self._preferred.get((task.agent, task.affinity)) if task.affinity is not None else None
        candidates = 0
        best_load = 2.0
        for one in instances:
            if one.health != PLACEABLE or one.slots <= len(one.tasks):
                continue
            if task.labels and not one.has(task.labels):
                continue
            candidates += 1
            load = len(one.tasks) / one.slots
            if load < best_load:
                best, best_load = one, load
            if one.instance == wanted:
                preferred = one
        if best is None:
            return None
        if preferred is not None:
            return preferred, {"by": "affinity", "key": task.affinity, "candidates": candidates}
        reason: dict[str, Any] = {"by": "least loaded" if candidates > 1 else "only one", "candidates": candidates}
        if wanted is not None:
            reason["preferred"] = f"{wanted} could not take it"
        return best, reason

    def remember(self, task: TaskState) -> None:
        """Fold an assignment: the instance is preferred from now on for the task's affinity key."""
        if task.affinity is None:
            return
        key = (task.agent, task.affinity)
        self._preferred[key] = task.instance
        self._preferred.move_to_end(key)
        if len(self._preferred) > REMEMBERED_AFFINITIES:
            self._preferred.popitem(last=False)

    def dump(self) -> list[list[str]]:
        """For a snapshot."""
        return [[agent, key, instance] for (agent, key), instance in self._preferred.items()]

    def load(self, data: Iterable[Sequence[str]]) -> None:
        """The inverse of `dump`."""
        self._preferred = OrderedDict(((agent, key), instance) for agent, key, instance in data)


def fits(task: TaskState, instance: InstanceState) -> bool:
    """Whether an instance is healthy and has the labels that a task requires."""
    return instance.health == PLACEABLE and (not task.labels or instance.has(task.labels))


def why(task: TaskState, instances: Iterable[InstanceState], ahead: int, only: str = "") -> str:
    """Why a task waits, for people. `only`: `instances` are those of the variants that alone can take it."""
    known = [one for one in instances if one.health not in ("stopped", "unregistered")]
    if not known:
        return f"{only}, and no instance of that is running" if only else f"no instance of {_of(task)} is running"
    healthy = [one for one in known if one.health == PLACEABLE]
    if not healthy:
        states = ", ".join(sorted({one.health for one in known}))
        if only:
            return f"{only}, and no instance of that is healthy ({len(known)} {states})"
        return f"no instance of {_of(task)} is healthy ({len(known)} {states})"
    whose = f"{only}, and " if only else ""
    of = "of that" if only else f"of {task.agent!r}"
    if task.labels:
        fitting = [one for one in healthy if one.has(task.labels)]
        if not fitting:
            wanted = ", ".join(f"{key}={value}" for key, value in task.labels.items())
            return f"{whose}none of the {len(healthy)} healthy instances {of} has the labels {wanted}"
        healthy = fitting
    slots = sum(one.slots for one in healthy)
    return f"{whose}all {slots} slots of {len(healthy)} instances {of} are taken; {ahead} more wait"


def _of(task: TaskState) -> str:
    return f"agent {task.agent!r}"
