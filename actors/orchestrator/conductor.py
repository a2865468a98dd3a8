"""Deciding about runs: admit them, drive their sagas, fire their timers, undo them, close them.

As with tasks, `decide` derives the next fact from the folded state and may be asked any number of times.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Mapping
from typing import Any

from cuebook.actors.attempt import raise_from_a_person, text_of
from cuebook.actors.orchestrator.openings import find_input_error
from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.sagas import Drift, Execution, Raised, Returned, drift_of, error_of
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.world import World
from cuebook.actors.saga import Ask, Call, Saga, Sleep, Wait
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, PoisonMessageError
from cuebook.events.facts import (
    AnswerRefused,
    Error,
    Event,
    OutsideEvent,
    RunCancelled,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunForked,
    RunRejected,
    RunResumed,
    RunStarted,
    RunStuck,
    StepAsked,
    StepCancelled,
    StepExpired,
    StepMatched,
    StepSlept,
    StepWaiting,
    TaskRequested,
)
from cuebook.events.subjects import task_id

__all__ = ["Conductor"]

REPEAT_AFTER_US = 1_000_000
MAX_SHOWN = 20_000
"""Characters of what is shown to people about a run that is stuck."""
MAX_SHOWN_OF_FORK = 500
"""The same of either side where both stand in a sentence."""

logger = logging.getLogger(__name__)


class Conductor:
    """Decides about the runs of all sagas."""

    def __init__(self, world: World, port: Port, timers: Timers, sagas: Repertoire) -> None:
        self.world, self._port, self._timers, self._sagas = world, port, timers, sagas
        self._executions: dict[str, Execution] = {}
        self._requesting: dict[str, set[int]] = {}
        """Steps whose request is under way, by run."""

    # --- starting ---

    def _admit(self, run: RunState) -> None:
        """A run that somebody asked for by the saga's name."""
        saga = self._sagas.get(run.saga)
        if saga is None:
            near = difflib.get_close_matches(run.saga, list(self._sagas), 1)
            known = f"did you mean {near[0]!r}?" if near else f"known sagas: {', '.join(sorted(self._sagas)) or 'none'}"
            self._post(
                run, "rejected", RunRejected(reason=f"this orchestrator serves no saga {run.saga!r}", remedy=known)
            )
        elif run.cancel_reason is not None:
            self._post(run, "cancelled", RunCancelled(reason=run.cancel_reason))
        elif not run.complete:
            return  # the rest of what it shares with its origin is on the way
        elif run.forked is not None and (older := self._version_for_fork(run)) is not None:
            self._start(run, older)
        elif wrong := find_input_error(saga, run.input):
            remedy = "send input that fits the saga's model"
            self._post(run, "rejected", RunRejected(reason=f"saga {saga.name}: {wrong}", remedy=remedy))
        elif run.forked is not None and (drift := drift_of(saga, run)) is not None:
            self._post(run, "rejected", _refuse_fork(run.forked, drift))
        else:
            self._start(run, saga)

    def _start(self, run: RunState, saga: Saga[Any, Any]) -> None:
        started = RunStarted(
            saga=saga.name,
            version=saga.version,
            input=run.input,
            trigger=run.opened_sequence,
            retry_of=run.retry_of,
        )
        self._post(run, "started", started)

    def _version_for_fork(self, run: RunState) -> Saga[Any, Any] | None:
        """The newest version whose code would have come where a fork begins; None when there is none."""
        fitting = (one for one in reversed(self._sagas.versions(run.saga)) if not find_input_error(one, run.input))
        return next((one for one in fitting if drift_of(one, run) is None), None)

    # --- driving ---

    def decide(self, run: RunState) -> None:
        """Append what follows from the run's state, unless a decision about the run itself is under way."""
        if run.pending or run.closed:
            return
        self._forget_requested(run)
        match run.status:
            case "requested":
                self._admit(run)
            case "running":
                self._drive(run)
            case "compensating":
                self._undo(run)
            case "stuck":
                if run.cancel_reason is not None and run.stuck_from == "running":
                    self._wind_down(run, run.cancel_reason, None)
                elif run.retry_requested:
                    self._post(run, "resumed", RunResumed())

    def decide_step(self, run: RunState, step: StepState) -> None:
        """Fire or close a sleep, a wait or a question."""
        key = ("step", step.run_id, step.n)
        if step.closed:
            self._timers.cancel(key)
            return
        if step.status != "open" or step.pending:
            return
        if step.refused is not None:
            sequence, reason = step.refused
            self._post_step(step, "refused", AnswerRefused(sequence=sequence, reason=reason))
        elif run.winding or run.cancel_reason is not None:
            self._post_step(step, "cancelled", StepCancelled(reason=run.winding or run.cancel_reason or ""))
        elif step.due and step.due <= self._port.now():
            self._post_step(step, "expired", StepExpired())
        elif step.due:
            self._timers.set(key, step.due)

    def look_back(self, run: RunState, step: StepState) -> None:
        """The awaited event may have come before the saga waited for it."""

        def answer(sequence: int, data: Any) -> None:
            if step.status == "open" and not step.pending:
                self._post_step(step, "matched", StepMatched(sequence=sequence, data=data))

        alike = (
            item.taken
            for item in run.items.values()
            if isinstance(item, StepState) and item.topic == step.topic and item.match == step.match
        )
        after = max([run.listens_after, *alike])
        self._port.find_event(step.topic, step.match or {}, after, self.world.position.sequence, answer)

    def offer(self, envelope: Envelope) -> None:
        """An outside event: give it to the steps that wait for it."""
        assert isinstance(envelope.event, OutsideEvent)
        waits = self.world.waits.get(envelope.address.topic)
        for run_id, n in waits.waiting_for(envelope.event.data) if waits is not None else ():
            run = self.world.runs.get(run_id)
            step = run.items.get(n) if run is not None else None
            if not isinstance(step, StepState) or step.status != "open" or step.pending:
                continue  # where an append is under way and fails, the step looks back by itself
            self._post_step(step, "matched", StepMatched(sequence=envelope.sequence, data=envelope.event.data))

    def forget(self, run: RunState) -> None:
        """The run is closed."""
        execution = self._executions.pop(run.run_id, None)
        if execution is not None:
            execution.close()
        self._requesting.pop(run.run_id, None)
        for n in run.items:
            self._timers.cancel(("step", run.run_id, n))

    def rest(self) -> None:
        """Somebody else decides now; what was under way here has its outcome in the log."""
        for execution in self._executions.values():
            execution.close()
        self._executions.clear()
        self._requesting.clear()

    def why_not(self, run: RunState) -> str:
        """Why a run does not go on, although nothing of it has failed: its code is not here. Empty as a rule."""
        if not run.saga or run.closed:
            return ""
        return self._sagas.why_not(run.saga, run.version if run.started_sequence else "")

    def served(self) -> list[dict[str, Any]]:
        """The sagas this orchestrator has the code of: the newest version of each, and which versions there are."""
        return [
            {**_facts(one), "versions": [version.version for version in self._sagas.versions(one.name)]}
            for one in self._sagas.values()
        ]

    def describe(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """More about the saga that a question names, with its input as JSON Schema; None for one that is not served.

        If the question has an `input`: also what is wrong with it, or an empty string.
        """
        saga = self._sagas.get(str(question.get("saga", "")))
        if saga is None:
            return None
        told = {**_facts(saga), "input_schema": saga.input_schema()}
        if "input" in question:
            told["input_error"] = find_input_error(saga, question["input"])
        return told

    def _drive(self, run: RunState) -> None:
        if run.cancel_reason is not None:
            self._wind_down(run, run.cancel_reason, None)
            return
        saga = self._sagas.find(run.saga, run.version)
        if saga is None:
            return  # it waits for an orchestrator that has the code
        execution = self._executions.get(run.run_id)
        if execution is None:
            try:
                execution = self._executions[run.run_id] = Execution(saga, run)
            except BaseException as error:  # noqa: BLE001 - pydantic's, or whatever an author's validator raises
                raise_from_a_person(error)
                self._stick(run, Drift(None, run.input, None, f"the input no longer fits the saga: {text_of(error)}"))
                return
        execution.advance(run)
        goes_on = execution.outcome is None or isinstance(execution.outcome, Returned)
        asked = execution.unrecorded(run) if goes_on else []
        if not all(self._request(run, n, request) for n, request in asked):
            return
        match execution.outcome:
            case Drift() as drift:
                self._stick(run, drift)
            case Raised(raised):
                told = error_of(raised)  # not its own text: the author's __str__ may raise
                self._wind_down(run, f"{told.type}: {told.message}"[:2000], told)
            case Returned(result):
                step = execution.unsettled(run)
                if step is None:
                    self._post(run, "completed", RunCompleted(result=result))
                elif step.error is not None:
                    reason = f"a step that was not awaited failed: {step.error}"
                    self._wind_down(run, reason[:2000], error_of(step.error))

    def _request(self, run: RunState, n: int, request: Call | Sleep | Wait | Ask) -> bool:
        """Append a step the saga asks for. The first one wins; if the log has another, the fold shows it as drift.

        False for one that no event can hold: the run winds down, and nothing more is asked for.
        """
        under_way = self._requesting.setdefault(run.run_id, set())
        if n in under_way:
            return True
        subjects, kind = self.world.subjects, "task" if isinstance(request, Call) else "step"
        match request:
            case Call():
                event: Event = TaskRequested(
                    handler=request.handler,
                    input=request.input,
                    priority=request.priority,
                    affinity=request.affinity,
                    labels=request.labels,
                    timeout_s=request.timeout_s,
                    retry=request.retry.policy() if request.retry is not None else None,
                    compensation=request.compensation,
                )
                subject = subjects.task(run.run_id, n, "requested", request.agent)
                scope = subjects.task_scope(run.run_id, n)
            case Sleep():
                subject, event = subjects.step(run.run_id, n, "slept"), StepSlept(seconds=request.seconds)
                scope = subjects.step_scope(run.run_id, n)
            case Wait():
                event = StepWaiting(topic=request.topic, match=request.match, timeout_s=request.timeout_s)
                subject, scope = subjects.step(run.run_id, n, "waiting"), subjects.step_scope(run.run_id, n)
            case Ask():
                event = StepAsked(
                    question=request.question,
                    schema=request.schema,
                    context=request.context,
                    timeout_s=request.timeout_s,
                )
                subject, scope = subjects.step(run.run_id, n, "asked"), subjects.step_scope(run.run_id, n)
        under_way.add(n)

        def done(_: int, error: CuebookError | None) -> None:
            self._requested(run, n, error)

        try:
            self._port.post(
                subject,
                event,
                scope=scope,
                expected=run.last_stray(kind, n),
                correlation_id=run.correlation_id,
                causation_id=run.opened_id,
                traceparent=run.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            under_way.discard(n)
            if not under_way:
                del self._requesting[run.run_id]  # else the end would wait for it
            self._wind_down(run, f"step {n} cannot be stored: {error}", error_of(error))
            return False
        return True

    def _requested(self, run: RunState, n: int, error: CuebookError | None) -> None:
        """The append of a step has an outcome. One that was stored stays under way until the fold has it."""
        if error is None:
            return
        self._requesting.get(run.run_id, set()).discard(n)
        if not isinstance(error, ConcurrencyConflictError):
            logger.warning("could not append: %s", error, extra={"run_id": run.run_id, "n": n})
        self._again(("run", run.run_id))

    def _forget_requested(self, run: RunState) -> None:
        under_way = self._requesting.get(run.run_id)
        if under_way is not None:
            under_way -= {n for n in under_way if (item := run.items.get(n)) is not None and item.status != "new"}
            if not under_way:
                del self._requesting[run.run_id]

    # --- ending ---

    def _wind_down(self, run: RunState, reason: str, error: Error | None) -> None:
        """Close what is open; once nothing is, undo what was done, or end the run where there is nothing to undo."""
        run.winding = reason
        still_open = [item for item in run.items.values() if not item.closed and item.status != "new"]
        if still_open or run.run_id in self._requesting:
            return  # each closes by its own decision, and its last fact asks again
        steps = run.completed_steps()
        if steps:
            self._post(run, "compensating", RunCompensating(reason=reason, error=error, steps=steps))
        elif run.cancel_reason is not None:
            self._post(run, "cancelled", RunCancelled(reason=reason))
        else:
            self._post(run, "failed", RunFailed(error=error or Error(type="Failed", message=reason)))

    def _undo(self, run: RunState) -> None:
        """Request the compensations one after the other, each when the one before it has its own recorded result."""
        for n in run.undo or ():
            tries = [item for item in run.items.values() if isinstance(item, TaskState) and item.compensates == n]
            if any(item.status == "completed" for item in tries):
                continue
            if any(not item.closed for item in tries) or run.run_id in self._requesting:
                return
            failed = [item for item in tries if item.last_sequence > run.resumed_sequence]
            if failed:
                error = failed[-1].error
                what = f"{failed[-1].status}: {error.message}" if error is not None else failed[-1].status
                reason = f"step {n} could not be undone ({task_id(run.run_id, failed[-1].n)} was {what})"
                self._post(run, "stuck", RunStuck(reason=reason, step=n))
                return
            self._request_undo(run, n)
            return
        self._post(run, "compensated", RunCompensated(reason=run.reason, error=run.error))

    def _request_undo(self, run: RunState, n: int) -> None:
        step = run.items.get(n)
        if not isinstance(step, TaskState):
            self._post(
                run, "stuck", RunStuck(reason=f"step {n} is to be undone, but no such task was asked for", step=n)
            )
            return
        subjects = self.world.subjects
        number = next(free for free in itertools.count(n + 1) if free not in run.items)

        def done(_: int, error: CuebookError | None) -> None:
            self._requested(run, number, error)

        refusal = ""
        for carried in ({"input": step.input, "output": step.output}, None):  # None: the agent reads it from the log
            event = TaskRequested(
                handler=step.handler, input=carried, priority=step.priority, affinity=step.affinity, compensates=n
            )
            try:
                self._port.post(
                    subjects.task(run.run_id, number, "requested", step.agent),
                    event,
                    scope=subjects.task_scope(run.run_id, number),
                    expected=run.last_stray("task", number),
                    correlation_id=run.correlation_id,
                    causation_id=run.opened_id,
                    traceparent=run.traceparent,
                    done=done,
                )
            except PoisonMessageError as error:
                refusal = str(error)
            else:
                self._requesting.setdefault(run.run_id, set()).add(number)
                return
        self._post(run, "stuck", RunStuck(reason=f"step {n} cannot be undone: {refusal}"[:2000], step=n))

    def _stick(self, run: RunState, drift: Drift) -> None:
        execution = self._executions.pop(run.run_id, None)
        if execution is not None:
            execution.close()
        reason = drift.reason[:2000]
        stuck = RunStuck(reason=reason, step=drift.step, recorded=drift.recorded, asked=drift.asked)
        if len(repr((drift.recorded, drift.asked))) > MAX_SHOWN:  # both sides must fit into one event
            stuck = RunStuck(reason=reason, step=drift.step, recorded=_brief(drift.recorded), asked=_brief(drift.asked))
        self._post(run, "stuck", stuck)

    # --- appending ---

    def _post(self, run: RunState, fact: str, event: Event) -> None:
        expected = run.last_sequence

        def done(_: int, error: CuebookError | None) -> None:
            if error is None:
                return
            run.pending = ""
            if not isinstance(error, ConcurrencyConflictError):
                logger.warning("could not append: %s", error, extra={"run_id": run.run_id})
                self._again(("run", run.run_id))
            elif run.last_sequence > expected:
                self.decide(run)

        try:
            run.pending = self._port.post(
                self.world.subjects.run(run.run_id, fact),
                event,
                scope=self.world.subjects.run_scope(run.run_id),
                expected=expected,
                correlation_id=run.correlation_id,
                causation_id=run.opened_id,
                traceparent=run.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            if fact == "failed":
                raise
            self._wind_down(run, f"{fact} cannot be stored: {error}", error_of(error))

    def _post_step(self, step: StepState, fact: str, event: Event) -> None:
        expected = step.last_sequence
        run = self.world.runs[step.run_id]
        subjects = self.world.subjects

        def done(_: int, error: CuebookError | None) -> None:
            if error is None:
                return
            step.pending = ""
            if isinstance(error, ConcurrencyConflictError) and step.last_sequence <= expected:
                return
            self._timers.set(("step", step.run_id, step.n), self._port.now() + REPEAT_AFTER_US)

        try:
            step.pending = self._port.post(
                subjects.step(step.run_id, step.n, fact),
                event,
                scope=subjects.step_scope(step.run_id, step.n),
                expected=expected,
                correlation_id=run.correlation_id,
                causation_id=run.opened_id,
                traceparent=run.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            if fact == "cancelled":
                raise
            self._post_step(step, "cancelled", StepCancelled(reason=f"{fact} cannot be stored: {error}"[:2000]))

    def _again(self, key: tuple[str | int, ...]) -> None:
        self._timers.set(key, self._port.now() + REPEAT_AFTER_US)


def _brief(data: Any) -> Any:
    """Data for people: what is long is cut."""
    text = repr(data)
    return data if len(text) <= MAX_SHOWN // 2 else f"{text[: MAX_SHOWN // 2]}..."


def _refuse_fork(forked: RunForked, drift: Drift) -> RunRejected:
    """The saga's present code would not have come where the fork is to begin."""
    where = f" at step {drift.step}" if drift.step is not None else ""
    recorded, asked = (repr(side)[:MAX_SHOWN_OF_FORK] for side in (drift.recorded, drift.asked))
    reason = (
        f"the saga's present code goes another way than {forked.fork_of} did{where}: {drift.reason} "
        f"(recorded: {recorded}; asked: {asked})"
    )
    if forked.changed and drift.step is not None and drift.step > min(forked.changed):
        remedy = (
            f"with another answer it goes on differently from there; fork at {forked.fork_of}/{min(forked.changed)}"
        )
    else:
        remedy = "see which runs differ with 'cuebook saga check MODULE:SAGA'; fork before that step"
    return RunRejected(reason=reason, remedy=remedy)


def _facts(saga: Saga[Any, Any]) -> dict[str, str]:
    return {"saga": saga.name, "version": saga.version, "on": saga.on, "key": saga.key}
