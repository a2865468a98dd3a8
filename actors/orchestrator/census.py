"""What is open now, for metrics: counted when somebody looks, over all open runs, a piece at a time.

Between pieces other work goes on, so that a hundred thousand open runs hold up nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from itertools import islice
from typing import Final

from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.registry import PLACEABLE
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.orchestrator.world import World
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import Names, Sample
from cuebook.telemetry.metric_names import priority_label

__all__ = ["Census"]

PIECE: Final = 500
"""Runs that are looked at in a row: about a millisecond."""
LOST_FOR_S: Final = 3600.0
"""A lost instance counts for so long; it may never come back, as when its machine is gone."""
_HEALTH: Final = ("healthy", "suspect", "draining", "lost")
_WAITING: Final = ("waiting", "backoff")
_RUN_STATUSES: Final = ("running", "compensating", "stuck")
_TASK_STATUSES: Final = ("waiting", "backoff", "assigned", "escalated")
_KINDS: Final = ("task", "question", "stuck")


class Census:
    """One count. `now`: microseconds since 1970 by the server's clock. Agents and sagas go by the labels given."""

    def __init__(self, now: int, agents: Names, sagas: Names) -> None:
        self._now, self._agents, self._sagas = now, agents, sagas
        self._runs: Counter[tuple[str, str, str]] = Counter()
        self._tasks: Counter[tuple[str, str]] = Counter()
        self._queues: Counter[tuple[str, str]] = Counter()
        self._queued_since: dict[str, int] = defaultdict(lambda: now)
        self._escalations: Counter[tuple[str, str, str]] = Counter()
        self._asked_since: dict[str, int] = defaultdict(lambda: now)

    async def take(self, core: Orchestrator) -> list[Sample]:
        """Count everything, and give it as samples: zeros too, of the agents and sagas that are here."""
        for saga in core.world.listening.names:
            for status in _RUN_STATUSES:
                self._runs[self._sagas(saga), "", status] += 0
        runs = iter(list(core.world.runs.values()))
        while piece := list(islice(runs, PIECE)):
            for run in piece:
                self._count(run)
            await asyncio.sleep(0)
        return [*self._samples(), *self._of_agents(core.world), Sample(names.TIMERS, (), len(core.timers))]

    def _count(self, run: RunState) -> None:
        saga = self._sagas(run.saga) if run.saga else ""
        if run.closed:  # since the list was made
            return
        for item in run.items.values():
            if isinstance(item, StepState):
                if item.type == "ask" and item.status == "open":
                    self._escalate("question", saga, "", item.opened_at)
            elif not item.closed:
                self._count_task(item, saga)
        if run.standalone:
            first = run.items.get(0)
            agent = self._agents(first.agent) if isinstance(first, TaskState) else ""
            self._runs["", agent, "running"] += 1
        else:
            self._runs[saga, "", run.status] += 1
            if run.status == "stuck":
                self._escalate("stuck", saga, "", run.stuck_at)

    def _count_task(self, task: TaskState, saga: str) -> None:
        agent = self._agents(task.agent)
        self._tasks[agent, task.status] += 1
        if task.status in _WAITING and task.free_at <= self._now:
            self._queues[agent, priority_label(task.priority)] += 1
            self._queued_since[agent] = min(self._queued_since[agent], task.free_at)
        elif task.status == "escalated":
            self._escalate("task", saga, agent, task.escalated_at)

    def _escalate(self, kind: str, saga: str, agent: str, since: int) -> None:
        self._escalations[kind, saga, agent] += 1
        self._asked_since[kind] = min(self._asked_since[kind], since)

    def _samples(self) -> list[Sample]:
        found = [Sample(names.RUNS_OPEN, labels, count) for labels, count in self._runs.items()]
        found += [Sample(names.QUEUE_DEPTH, labels, count) for labels, count in self._queues.items()]
        found += [Sample(names.ESCALATIONS_OPEN, labels, count) for labels, count in self._escalations.items()]
        for kind in _KINDS:
            if not any(labels[0] == kind for labels in self._escalations):
                found.append(Sample(names.ESCALATIONS_OPEN, (kind, "", ""), 0))
            found.append(Sample(names.ESCALATION_AGE, (kind,), self._age_s(self._asked_since[kind])))
        return found

    def _of_agents(self, world: World) -> list[Sample]:
        found: list[Sample] = []
        for agent, instances in world.registry.by_agent.items():
            health: Counter[str] = Counter()
            slots = used = 0
            for one in instances.values():
                if one.health == "lost" and self._age_s(one.changed_at) > LOST_FOR_S:
                    continue
                health[one.health] += 1
                if one.health == PLACEABLE:
                    slots, used = slots + one.slots, used + len(one.tasks)
            label = self._agents(agent)
            if not any(health[one] for one in _HEALTH) and not any(key[0] == label for key in self._tasks):
                continue  # it was here once
            for status in _TASK_STATUSES:
                self._tasks[label, status] += 0
            found += [Sample(names.INSTANCES, (label, one), health[one]) for one in _HEALTH]
            found += [Sample(names.SLOTS, (label,), slots), Sample(names.SLOTS_USED, (label,), used)]
            if not any(key[0] == label for key in self._queues):
                found.append(Sample(names.QUEUE_DEPTH, (label, "0"), 0))
        known = {sample.labels[0] for sample in found if sample.metric is names.SLOTS}
        waiting = known | {agent for agent, _ in self._queues}
        found += [Sample(names.TASKS_OPEN, labels, count) for labels, count in self._tasks.items()]
        return found + [Sample(names.QUEUE_AGE, (agent,), self._age_s(self._queued_since[agent])) for agent in waiting]

    def _age_s(self, since: int) -> float:
        return max(0.0, (self._now - since) / 1e6)
