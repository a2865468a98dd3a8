"""What the deciding orchestrator sees happen, for metrics: how often, and how long it took by the times in the log.

Stands beside the fold and takes nothing from it but what an event was about. A message that changed nothing, such as a
duplicate, is not counted: the moment in the state is then not that of the event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from cuebook.actors.orchestrator.state import RUN_CLOSED, TASK_CLOSED, StepState, TaskState
from cuebook.actors.orchestrator.world import Touched
from cuebook.events import facts
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Event
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import LONG_S, Histogram, Metric, Names, Sample

__all__ = ["Tallies"]

_MOST_OPENINGS: Final = 1_000_000
"""Runs of which it is kept when they were asked for; of others the time counts from when they started."""


_CAUSES: Final = ("failure", "loss", "handed_back", "person")
_HEALTH: Final = ("healthy", "suspect", "lost", "draining", "stopped")


class _OfAgent:
    """The path of every task: nothing is looked up here but by a short word."""

    __slots__ = ("durations", "outcomes", "placements", "run_durations", "runs", "started")

    def __init__(self) -> None:
        self.started = 0
        self.placements, self.durations, self.run_durations = Histogram(LONG_S), Histogram(LONG_S), Histogram(LONG_S)
        self.outcomes, self.runs = dict.fromkeys(TASK_CLOSED, 0), dict.fromkeys(TASK_CLOSED, 0)

    def samples(self, agent: str) -> Iterable[Sample]:
        yield Sample(names.RUNS_STARTED, ("", agent), self.started)
        yield Sample(names.PLACEMENT, (agent,), self.placements.now())
        yield Sample(names.TASK_DURATION, (agent,), self.durations.now())
        yield Sample(names.RUN_DURATION, ("", agent), self.run_durations.now())
        for outcome in TASK_CLOSED:
            yield Sample(names.TASKS, (agent, outcome), self.outcomes[outcome])
            yield Sample(names.RUNS, ("", agent, outcome), self.runs[outcome])


class Tallies:
    """Told of every event while this orchestrator decides; the numbers stay when another one takes over."""

    def __init__(self) -> None:
        self.agents, self.sagas = Names(), Names()
        self._counts: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        self._times: dict[tuple[Metric, tuple[str, ...]], Histogram] = {}
        self._agents: dict[str, _OfAgent] = {}
        """By the label of the agent."""
        self._worked_for: set[tuple[str, str]] = set()
        """Sagas and agents that have had tasks of theirs."""
        self._asked_at: dict[str, int] = {}
        """When open runs of sagas were asked for, in microseconds since 1970."""
        self._seen: dict[type[Event], Callable[[Envelope, Touched], None]] = {
            facts.TaskRequested: self._requested,
            facts.TaskAssigned: self._assigned,
            facts.TaskRetried: self._retried,
            facts.TaskEscalated: self._escalated,
            facts.TaskCompleted: self._task_ended,
            facts.TaskAborted: self._task_ended,
            facts.TaskCancelled: self._task_ended,
            facts.TaskRejected: self._task_ended,
            facts.RunRequested: self._opened,
            facts.RunForked: self._opened,
            facts.RunStarted: self._opened,
            facts.RunCompleted: self._run_ended,
            facts.RunFailed: self._run_ended,
            facts.RunCompensated: self._run_ended,
            facts.RunCancelled: self._run_ended,
            facts.RunRejected: self._run_ended,
            facts.RunCompensating: self._compensating,
            facts.RunStuck: self._stuck,
            facts.StepAsked: self._asked,
            facts.AgentRegistered: self._health,
            facts.AgentSuspected: self._health,
            facts.AgentLost: self._health,
            facts.AgentRecovered: self._health,
            facts.AgentDraining: self._health,
            facts.DrainRequested: self._health,
            facts.AgentStopped: self._health,
            facts.MessageRejected: self._rejected,
        }

    def saw(self, envelope: Envelope, touched: Touched) -> None:
        """One event, after it was folded."""
        see = self._seen.get(type(envelope.event))
        if see is not None:
            see(envelope, touched)

    def expect(self, agents: Iterable[str], sagas: Iterable[str]) -> None:
        """Count what these may do from 0: what first appears as a 1 has not increased, for Prometheus."""
        for saga in map(self.sagas, sagas):
            self._from_zero(names.RUNS, saga, "", of=RUN_CLOSED)
            for metric, labels in (
                (names.RUNS_STARTED, (saga, "")),
                (names.COMPENSATIONS, (saga,)),
                (names.ESCALATIONS, ("question", saga, "")),
                (names.ESCALATIONS, ("stuck", saga, "")),
            ):
                self._counts[metric, labels] += 0
        for agent in map(self.agents, agents):
            self._of(agent)
            self._from_zero(names.RETRIES, agent, of=_CAUSES)
            self._from_zero(names.HEALTH_CHANGES, agent, of=_HEALTH)
            self._counts[names.ESCALATIONS, ("task", "", agent)] += 0
        self._counts[names.REJECTED, ()] += 0

    def samples(self) -> list[Sample]:
        """What has happened since the start."""
        found = [sample for agent, one in self._agents.items() for sample in one.samples(agent)]
        found += [Sample(metric, labels, count) for (metric, labels), count in self._counts.items()]
        return found + [Sample(metric, labels, times.now()) for (metric, labels), times in self._times.items()]

    def _of(self, agent: str) -> _OfAgent:
        found = self._agents.get(agent)
        if found is None:
            label = self.agents(agent)
            found = self._agents.get(label)
            if found is None:
                found = self._agents[label] = _OfAgent()
        return found

    def _from_zero(self, metric: Metric, *labels: str, of: Iterable[str]) -> None:
        for last in of:
            self._counts[metric, (*labels, last)] += 0

    def _add(self, metric: Metric, *labels: str) -> None:
        self._counts[metric, labels] += 1

    def _record(self, metric: Metric, microseconds: int, *labels: str) -> None:
        key = metric, labels
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = Histogram(LONG_S)
        times.record(microseconds / 1e6)

    # --- tasks ---

    def _requested(self, envelope: Envelope, touched: Touched) -> None:
        run, task = touched.run, touched.item
        if run is None or task is None:
            return
        if run.opened_sequence == envelope.sequence:
            self._of(envelope.address.agent).started += 1
        elif (pair := (run.saga, envelope.address.agent)) not in self._worked_for:
            self._worked_for.add(pair)  # from 0, as in `expect`
            self._counts[names.ESCALATIONS, ("task", self.sagas(run.saga), self.agents(pair[1]))] += 0

    def _assigned(self, envelope: Envelope, touched: Touched) -> None:
        task = touched.item
        if isinstance(task, TaskState) and task.assigned_sequence == envelope.sequence:
            self._of(task.agent).placements.record((task.assigned_at - task.free_at) / 1e6)

    def _retried(self, envelope: Envelope, touched: Touched) -> None:
        task, event = touched.item, envelope.event
        if not isinstance(task, TaskState) or task.status != "backoff" or not isinstance(event, facts.TaskRetried):
            return
        if event.lost:
            cause = "loss"
        elif not envelope.source.startswith("orchestrator"):
            cause = "handed_back"
        else:
            cause = "person" if task.resolution is not None and not task.failures else "failure"
        self._add(names.RETRIES, self.agents(task.agent), cause)

    def _escalated(self, envelope: Envelope, touched: Touched) -> None:
        run, task = touched.run, touched.item
        if isinstance(task, TaskState) and task.escalated_at == envelope.recorded_at and run is not None:
            self._add(names.ESCALATIONS, "task", self.sagas(run.saga), self.agents(task.agent))

    def _task_ended(self, envelope: Envelope, touched: Touched) -> None:
        run, task = touched.run, touched.item
        if not isinstance(task, TaskState) or not task.closed or task.ended_at != envelope.recorded_at:
            return
        agent, seconds = self._of(task.agent), (task.ended_at - task.requested_at) / 1e6
        agent.outcomes[task.status] += 1
        agent.durations.record(seconds)
        if task.compensates is not None:
            self._add(names.UNDONE, self.agents(task.agent), task.status)
        if run is not None and run.standalone:
            agent.runs[task.status] += 1
            agent.run_durations.record(seconds)

    # --- runs and questions ---

    def _opened(self, envelope: Envelope, touched: Touched) -> None:
        run = touched.run
        if run is not None and run.opened_sequence == envelope.sequence:
            self._add(names.RUNS_STARTED, self.sagas(run.saga), "")
            if len(self._asked_at) < _MOST_OPENINGS:
                self._asked_at[run.run_id] = envelope.recorded_at

    def _run_ended(self, envelope: Envelope, touched: Touched) -> None:
        run = touched.run
        if run is None or not run.closed or run.ended_at != envelope.recorded_at:
            return
        saga = self.sagas(run.saga)
        began = self._asked_at.pop(run.run_id, run.started_at)
        self._add(names.RUNS, saga, "", run.status)
        if began:
            self._record(names.RUN_DURATION, run.ended_at - began, saga, "")

    def _compensating(self, _: Envelope, touched: Touched) -> None:
        if touched.run is not None and touched.run.status == "compensating":
            self._add(names.COMPENSATIONS, self.sagas(touched.run.saga))

    def _stuck(self, envelope: Envelope, touched: Touched) -> None:
        run = touched.run
        if run is not None and run.status == "stuck" and run.stuck_at == envelope.recorded_at:
            self._add(names.ESCALATIONS, "stuck", self.sagas(run.saga), "")

    def _asked(self, envelope: Envelope, touched: Touched) -> None:
        run, step = touched.run, touched.item
        if run is not None and isinstance(step, StepState) and step.opened_at == envelope.recorded_at:
            self._add(names.ESCALATIONS, "question", self.sagas(run.saga), "")

    # --- agents, and what has no effect ---

    def _health(self, envelope: Envelope, touched: Touched) -> None:
        instance = touched.instance
        if instance is not None and instance.changed_at == envelope.recorded_at:
            self._add(names.HEALTH_CHANGES, self.agents(instance.agent), instance.health)

    def _rejected(self, _: Envelope, __: Touched) -> None:
        self._add(names.REJECTED)
