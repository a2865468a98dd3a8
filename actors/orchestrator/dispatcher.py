"""Deciding about tasks: admit, place, retry, escalate, cancel. One decision about a task is under way at a time.

`decide` looks at the folded state and appends the next fact, naming the sequence it has seen. When somebody else was
faster the append is refused, the other's fact arrives through the log, and `decide` is asked again.
"""

from __future__ import annotations

import difflib
import logging
from typing import Any

from cuebook.actors.orchestrator import retry
from cuebook.actors.orchestrator.placement import Choice, Queue, why
from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.state import TIMEOUT, RunState, TaskState, span_us
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.world import World
from cuebook.actors.schemas import compile_schema, describe_error, find_error
from cuebook.events.errors import ConcurrencyConflictError, ConfigurationError, CuebookError, PoisonMessageError
from cuebook.events.facts import (
    Error,
    Event,
    HandlerSpec,
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
"""After a task's timeout the agent says so itself; this much later the orchestrator does."""
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
        """Tasks of agents that never registered."""
        self._validators: dict[tuple[str, str], Any] = {}
        self._validators_from = -1

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
                self._enqueue(task)
                self.place(task.agent)
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
        due = task.assigned_at + span_us((task.timeout_s or 0.0) + ANSWER_GRACE_S)
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
        registry = self.world.registry
        if task.agent not in registry.handlers:
            self._wait_for_stranger(task)
            return
        found = registry.find_handler(task.agent, task.handler)
        if found is None:
            known = ", ".join(sorted(registry.handlers[task.agent]))
            named = f"agent {task.agent!r} has no handler {task.handler!r}"
            self._reject(
                task, named if task.handler else f"agent {task.agent!r} has several handlers", f"name one of: {known}"
            )
            return
        name, spec = found
        if task.compensates is None:
            wrong = self._find_input_error(task, name, spec)
            if wrong:
                self._reject(
                    task, f"input of {task.agent}.{name}: {wrong}", "send input that fits the handler's schema"
                )
                return
        self._place_now(task)

    def _place_now(self, task: TaskState) -> None:
        """Give the task to an instance, unless others wait for the agent or nobody can take it: then it waits."""
        if not self._queues.get(task.agent):
            choice = self.world.placement.choose(task, self.world.registry.by_agent.get(task.agent, {}).values())
            if choice is not None:
                self._assign(task, *choice)
                return
        self._enqueue(task)
        self.place(task.agent)

    def _find_input_error(self, task: TaskState, name: str, spec: HandlerSpec) -> str:
        registry = self.world.registry
        if self._validators_from != registry.schema_changes:
            self._validators.clear()
            self._validators_from = registry.schema_changes
        validator = self._validators.get((task.agent, name))
        if validator is None:
            try:
                validator = self._validators[task.agent, name] = compile_schema(spec.input_schema)
            except ConfigurationError as error:
                return str(error)
        return "" if validator.is_valid(task.input) else describe_error(validator, task.input)

    def _wait_for_stranger(self, task: TaskState) -> None:
        due = task.requested_at + int(UNKNOWN_AGENT_GRACE_S * 1_000_000)
        if self._port.now() < due:
            self._strangers.setdefault(task.agent, {})[task.run_id, task.n] = task
            self._timers.set(("stranger", task.run_id, task.n), due)
            return
        known = sorted(self.world.registry.handlers)
        near = difflib.get_close_matches(task.agent, known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known agents: {', '.join(known) or 'none'}"
        self._reject(task, f"no agent {task.agent!r} has ever registered", remedy)

    def _forget_stranger(self, task: TaskState) -> None:
        waiting = self._strangers.get(task.agent)
        if waiting is not None and waiting.pop((task.run_id, task.n), None) is not None:
            self._timers.cancel(("stranger", task.run_id, task.n))
            if not waiting:
                del self._strangers[task.agent]

    def _reject(self, task: TaskState, reason: str, remedy: str) -> None:
        self._post(task, "rejected", TaskRejected(reason=reason[:MAX_REASON], remedy=remedy[:MAX_REASON]))

    # --- placement ---

    def _enqueue(self, task: TaskState) -> None:
        queue = self._queues.get(task.agent)
        if queue is None:
            queue = self._queues[task.agent] = Queue()
        queue.add(task)

    def place(self, agent: str) -> None:
        """Give waiting tasks of an agent to its instances, as many as fit."""
        queue = self._queues.get(agent)
        if not queue:
            return
        instances = self.world.registry.by_agent.get(agent, {})
        choose = self.world.placement.choose

        def choice_for(task: TaskState) -> Choice | None:
            return choose(task, instances.values())

        while taken := queue.take(choice_for):
            task, (instance, reason) = taken
            self._assign(task, instance, reason)

    def _assign(self, task: TaskState, instance: InstanceState, reason: dict[str, Any]) -> None:
        found = self.world.registry.find_handler(task.agent, task.handler)
        if found is None:  # the agent's latest registration dropped the handler while the task waited
            self._reject(task, f"agent {task.agent!r} no longer has handler {task.handler!r}", "request it anew")
            return
        name, spec = found
        event = TaskAssigned(
            handler=name,
            attempt=task.attempt + 1,
            timeout_s=task.timeout_s or spec.timeout_s,
            input=task.input,
            reason=reason,
            compensates=task.compensates,
        )
        instance.tasks.add((task.run_id, task.n))
        self._post(task, "assigned", event, instance)

    def instances_changed(self, agent: str) -> None:
        """An instance registered, recovered or left: look at what waits for its agent."""
        if agent in self.world.registry.handlers and agent in self._strangers:
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
        instances = self.world.registry.by_agent.get(task.agent, {})
        return why(task, instances.values(), max(len(self._queues.get(task.agent, ())) - 1, 0))

    def depths(self) -> dict[str, int]:
        """How many tasks wait for each agent."""
        waiting = {agent: len(queue) for agent, queue in self._queues.items()}
        for agent, tasks in self._strangers.items():
            waiting[agent] = waiting.get(agent, 0) + len(tasks)
        return waiting

    # --- after a person's decision ---

    def _policy(self, task: TaskState) -> RetryPolicy:
        if task.retry is not None:
            return task.retry
        found = self.world.registry.find_handler(task.agent, task.handler)
        return found[1].retry if found is not None else RetryPolicy()

    def _resolve(self, task: TaskState) -> None:
        resolution = task.resolution
        assert resolution is not None, "a resolved task has a resolution"
        if resolution.action == "retry":
            self._post(task, "retried", TaskRetried(reason=f"{resolution.by or 'a person'} said so"))
        elif resolution.action == "abort":
            reason = resolution.note or f"given up by {resolution.by or 'a person'}"
            self._post(task, "aborted", TaskAborted(reason=reason, error=task.error))
        else:
            found = self.world.registry.find_handler(task.agent, task.handler)
            wrong = find_error(found[1].output_schema, resolution.output) if found and task.compensates is None else ""
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
