"""Deciding about tasks: admit, place, retry, escalate, cancel. One decision about a task is under way at a time.

`decide` looks at the folded state and appends the next fact, naming the sequence it has seen. When somebody else was
faster the append is refused, the other's fact arrives through the log, and `decide` is asked again.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from typing import Any

from cuebook.actors.orchestrator import retry
from cuebook.actors.orchestrator.admission import MAX_PRIORITY, Admission, admit, find_objection, only
from cuebook.actors.orchestrator.placement import Choice, Queue, fits, why
from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.state import TIMEOUT, RunState, TaskState, span_us
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.variants import Team
from cuebook.actors.orchestrator.world import World
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, PoisonMessageError
from cuebook.events.facts import (
    Error,
    Event,
    RetryPolicy,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskEscalated,
    TaskFailed,
    TaskRejected,
    TaskRetried,
)

__all__ = ["Dispatcher"]

UNKNOWN_AGENT_GRACE_S = 30.0
"""How long a task may name an agent that never registered; it may be starting."""
ANSWER_GRACE_S = 2.0
"""After a task's timeout the agent says so itself; this much later the orchestrator does. One that may be offline has
so much longer, since it may have the task and the answer and nobody hears it."""
CANCEL_GRACE_S = 10.0
MAX_REASON = 2_000
"""Characters of what is said about a refusal."""
REPEAT_AFTER_US = 1_000_000

logger = logging.getLogger(__name__)


class Dispatcher:
    """Decides about the tasks of all runs."""

    def __init__(self, world: World, port: Port, timers: Timers) -> None:
        self.world, self._port, self._timers = world, port, timers
        self._queues: dict[str, Queue] = {}
        self._strangers: dict[str, dict[tuple[str, int], TaskState]] = {}
        """Tasks that nobody can take and that wait for a moment only, until somebody registers."""

    def decide(self, run: RunState, task: TaskState) -> None:
        """Append what follows from the task's state, unless a decision is under way."""
        if task.pending:
            return
        status = task.status
        if status != "assigned":
            self._timers.cancel(("deadline", task.run_id, task.n))
        if status == "assigned":
            self._watch(run, task)
            return
        if task.closed:
            self._forget_stranger(task)
            return
        cancel = self._cancelled(run, task)
        if cancel is not None:
            self._post(task, "cancelled", TaskCancelled(reason=cancel, outcome_unknown=task.in_doubt))
        elif status == "waiting":
            self._admit(task)
        elif status == "failed":
            decision = retry.after_failure(task, self._policy(task))
            self._post(task, "retried" if isinstance(decision, TaskRetried) else "escalated", decision)
        elif status == "backoff":
            if task.free_at <= self._port.now():
                self._admit(task)
            else:
                self._timers.set(("free", task.run_id, task.n), task.free_at)
        elif status == "resolved":
            self._resolve(task)

    def _watch(self, run: RunState, task: TaskState) -> None:
        """An assigned task: see that it ends."""
        key = (task.agent, task.instance)
        instance = self.world.registry.instances.get(key)
        if instance is None or instance.health in ("lost", "stopped"):
            decision = retry.after_loss(task)
            self._post(task, "retried" if isinstance(decision, TaskRetried) else "escalated", decision)
            return
        due = task.assigned_at + span_us((task.timeout_s or 0.0) + ANSWER_GRACE_S + instance.offline_for_s)
        if (reason := self._cancelled(run, task)) is not None:
            attempt = [task.run_id, task.n, task.assigned_sequence]
            self._port.signal(*key, {"cancel": attempt, "reason": reason[:MAX_REASON]})
            due = min(due, self._port.now() + int(CANCEL_GRACE_S * 1_000_000))
        self._timers.set(("deadline", task.run_id, task.n), due)

    def overdue(self, run: RunState, task: TaskState) -> None:
        """The agent has not answered in time and not said so either."""
        if task.pending or task.status != "assigned":
            return
        cancel = self._cancelled(run, task)
        if cancel is not None:
            self._post(task, "cancelled", TaskCancelled(reason=cancel, outcome_unknown=True))
            return
        message = f"{task.instance} did not answer within {task.timeout_s:g} s"
        error = Error(type=TIMEOUT, message=message, classes=[TIMEOUT, "TimeoutError"])
        self._post(task, "failed", TaskFailed(error=error, attempt=task.attempt, by="orchestrator"))

    @staticmethod
    def _cancelled(run: RunState, task: TaskState) -> str | None:
        """Why the task is no longer wanted, or None.

        When its run ends, what undoes a step goes on. So does a task that can be undone and may have had its effect:
        only its outcome tells whether it has to be.
        """
        if task.cancel_reason is not None:
            return task.cancel_reason
        if task.compensates is not None or (task.compensation and task.in_doubt):
            return None
        return run.cancel_reason or run.winding or None

    # --- admission ---

    def _admit(self, task: TaskState) -> None:
        """Give a task to an instance, unless others wait for the agent or nobody can take it: then it waits."""
        if not -MAX_PRIORITY <= task.priority <= MAX_PRIORITY and not task.attempt and task.compensates is None:
            reason = f"priority {task.priority} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}"
            self._refuse(task, Admission(reason=reason, remedy="ask again with another"))
            return
        team = self.world.registry.teams.get(task.agent)
        if team is None:
            self._wait_for_stranger(task)
            return
        present = team.present
        if len(present) == 1 and not find_objection(present[0], task):
            task.takers = None  # the normal case: everybody has the same handlers
        elif not self._find_takers(task, team):
            return
        queue = self._queues.get(task.agent)
        if not queue:
            choice = self._choose(task, team)
            if choice is not None:
                self._assign(task, *choice)
                return
            if queue is None:
                queue = self._queues[task.agent] = Queue(team.revision)
        queue.add(task)
        self.place(task.agent)

    def _find_takers(self, task: TaskState, team: Team) -> bool:
        """Note on a task who can take it; False when it is refused, or waits outside the queue."""
        admission = admit(task, team, self._port.now())
        if admission.reason:
            self._refuse(task, admission)
        elif admission.until:
            self._wait_outside(task, admission.until)
        else:
            task.takers = admission.takers
            return True
        return False

    def _refuse(self, task: TaskState, admission: Admission) -> None:
        self._forget_stranger(task)
        if task.attempt:  # something was done already, so a person decides
            self._post(task, "escalated", TaskEscalated(reason=admission.reason[:MAX_REASON]))
        else:
            self._reject(task, admission.reason, admission.remedy)

    def _wait_for_stranger(self, task: TaskState) -> None:
        due = task.requested_at + int(UNKNOWN_AGENT_GRACE_S * 1_000_000)
        if self._port.now() < due:
            self._wait_outside(task, due)
            return
        known = sorted(self.world.registry.teams)
        near = difflib.get_close_matches(task.agent, known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known agents: {', '.join(known) or 'none'}"
        reason = f"no agent {task.agent!r} has ever registered"
        self._refuse(task, Admission(reason=reason, remedy=remedy))

    def _wait_outside(self, task: TaskState, due: int) -> None:
        self._strangers.setdefault(task.agent, {})[task.run_id, task.n] = task
        self._timers.set(("stranger", task.run_id, task.n), due)

    def _forget_stranger(self, task: TaskState) -> None:
        waiting = self._strangers.get(task.agent)
        if waiting is not None and waiting.pop((task.run_id, task.n), None) is not None:
            self._timers.cancel(("stranger", task.run_id, task.n))
            if not waiting:
                del self._strangers[task.agent]

    def _reject(self, task: TaskState, reason: str, remedy: str) -> None:
        self._post(task, "rejected", TaskRejected(reason=reason[:MAX_REASON], remedy=remedy[:MAX_REASON]))

    # --- placement ---

    def place(self, agent: str) -> None:
        """Give waiting tasks of an agent to its instances, as many as fit."""
        queue = self._queues.get(agent)
        if not queue:
            return
        team = self.world.registry.teams[agent]
        if queue.revision != team.revision:
            self._look_again(queue, team)

        def choice_for(task: TaskState) -> Choice | None:
            return self._choose(task, team)

        while taken := queue.take(choice_for):
            task, (instance, reason) = taken
            self._assign(task, instance, reason)

    def _look_again(self, queue: Queue, team: Team) -> None:
        """Other variants are there than when these tasks were put in the queue."""
        queue.revision = team.revision
        for task in queue.clear():
            if self._find_takers(task, team):
                queue.add(task)

    def _choose(self, task: TaskState, team: Team) -> Choice | None:
        world, takers = self.world, task.takers
        instances = world.registry.by_agent.get(task.agent, {}).values()
        if takers is None:
            return world.placement.choose(task, instances)
        choice = world.placement.choose(task, [one for one in instances if one.variant in takers])
        if choice is not None:
            choice[1]["only"] = team.names(one for one in team.present if one in takers)
        return choice

    def _assign(self, task: TaskState, instance: InstanceState, reason: dict[str, Any]) -> None:
        found = instance.variant.find(task.handler) if instance.variant is not None else None
        assert found is not None, "placed only where the handler is"
        name, spec = found
        event = TaskAssigned(
            handler=name,
            attempt=task.attempt + 1,
            timeout_s=task.asked_timeout_s or spec.timeout_s,
            input=task.input,
            reason=reason,
            compensates=task.compensates,
        )
        instance.tasks.add((task.run_id, task.n))
        self._post(task, "assigned", event, instance)

    def instances_changed(self, agent: str) -> None:
        """An instance registered, recovered or left: look at what waits for its agent."""
        if agent in self._strangers and agent in self.world.registry.teams:
            for task in self._strangers.pop(agent).values():
                self._timers.cancel(("stranger", task.run_id, task.n))
                run = self.world.runs.get(task.run_id)
                if run is not None:
                    self.decide(run, task)
        self.place(agent)

    def instance_gone(self, instance: InstanceState) -> None:
        """An instance was lost or stopped: its tasks go to others."""
        for run_id, n in list(instance.tasks):
            run = self.world.runs.get(run_id)
            task = run.items.get(n) if run is not None else None
            if run is not None and isinstance(task, TaskState) and task.status == "assigned":
                self.decide(run, task)

    def why_waiting(self, task: TaskState) -> str:
        """Why a task is not placed, for people; empty when it does not wait."""
        if task.status not in ("waiting", "backoff") or task.pending:
            return ""
        if task.status == "backoff" and task.free_at > self._port.now():
            return f"the next attempt is in {(task.free_at - self._port.now()) / 1e6:.1f} s"
        ahead = max(len(self._queues.get(task.agent, ())) - 1, 0)
        instances, only_these = self._able(task)
        return why(task, instances, ahead, only_these)

    def is_stranded(self, task: TaskState) -> bool:
        """Whether no instance that is there could take a task, even with all its slots free."""
        return not any(fits(task, one) for one in self._able(task)[0])

    def _able(self, task: TaskState) -> tuple[list[InstanceState], str]:
        """The instances whose handlers can take a task; where these are not all of its agent, who they are."""
        registry = self.world.registry
        instances = list(registry.by_agent.get(task.agent, {}).values())
        team = registry.teams.get(task.agent)
        if team is None or admit(task, team, self._port.now()).takers is None:
            return instances, ""
        text, able = only(task, team)
        return [one for one in instances if one.variant in able], text

    def depths(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        waiting = {agent: len(queue) for agent, queue in self._queues.items()}
        for agent, tasks in self._strangers.items():
            waiting[agent] = waiting.get(agent, 0) + len(tasks)
        return waiting

    # --- after a person's decision ---

    def _policy(self, task: TaskState) -> RetryPolicy:
        """Of the instance that failed it; where that is forgotten, of whoever has the handler."""
        if task.retry is not None:
            return task.retry
        registry = self.world.registry
        instance = registry.instances.get((task.agent, task.instance))
        team = registry.teams.get(task.agent)
        variants = [instance.variant] if instance is not None and instance.variant is not None else []
        for variant in (*variants, *reversed(team.variants if team is not None else [])):
            if found := variant.find(task.handler):
                return found[1].retry
        return RetryPolicy()

    def _resolve(self, task: TaskState) -> None:
        resolution = task.resolution
        assert resolution is not None, "a resolved task has a resolution"
        if resolution.action == "retry":
            self._post(task, "retried", TaskRetried(reason=f"{resolution.by or 'a person'} said so"))
        elif resolution.action == "abort":
            reason = resolution.note or f"given up by {resolution.by or 'a person'}"
            self._post(task, "aborted", TaskAborted(reason=reason, error=task.error))
        else:
            team = self.world.registry.teams.get(task.agent)
            wrong = ""
            if team is not None and task.compensates is None:
                wrong = team.find_output_error(task.handler, resolution.output)
            if wrong:
                self._post(task, "escalated", TaskEscalated(reason=f"the supplied result does not fit: {wrong}"))
            else:
                event = TaskCompleted(output=resolution.output, attempt=task.attempt, by=resolution.by or "a person")
                self._post(task, "completed", event)

    # --- appending ---

    def _post(self, task: TaskState, fact: str, event: Event, instance: InstanceState | None = None) -> None:
        subjects = self.world.subjects
        expected = task.last_sequence
        reserved = instance

        def done(_: int, error: CuebookError | None) -> None:
            if error is not None:
                self._refused(task, expected, error, reserved)

        subject = subjects.task(
            task.run_id, task.n, fact, task.agent if instance else "", instance.instance if instance else ""
        )
        try:
            task.pending = self._port.post(
                subject,
                event,
                scope=subjects.task_scope(task.run_id, task.n),
                expected=expected,
                correlation_id=task.correlation_id,
                causation_id=task.causation_id,
                traceparent=task.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            if isinstance(event, TaskAssigned) and event.compensates is not None and event.input is not None:
                self._post(task, fact, replace(event, input=None), instance)  # the agent reads it from the log
                return
            if reserved is not None:
                reserved.tasks.discard((task.run_id, task.n))
            if fact == "rejected":
                raise
            if fact == "completed":
                self._post(task, "escalated", TaskEscalated(reason=f"the supplied result cannot be stored: {error}"))
                return
            self._reject(task, f"cannot be handed on: {error}", error.remedy)

    def _refused(self, task: TaskState, expected: int, error: CuebookError, reserved: InstanceState | None) -> None:
        """Our append did not count: somebody was faster, or the log was away."""
        task.pending = ""
        run = self.world.runs.get(task.run_id)
        if reserved is not None and not (task.status == "assigned" and task.instance == reserved.instance):
            reserved.tasks.discard((task.run_id, task.n))
        if run is None:
            return
        if isinstance(error, ConcurrencyConflictError):
            if task.last_sequence > expected:
                self.decide(run, task)
            return  # else the other's fact is still on its way here, and brings the next decision
        logger.warning("could not append: %s", error, extra={"run_id": task.run_id, "n": task.n})
        self._timers.set(("again", task.run_id, task.n), self._port.now() + REPEAT_AFTER_US)
