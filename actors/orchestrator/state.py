"""Runs, tasks and steps as folded from the log. Pure: no clock, no I/O, and total: no history makes `apply` raise.

A message that decides nothing (a duplicate, a late answer, a fact after the end) moves `last_sequence` only, because
the next append under the same scope has to name it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Final

from cuebook.actors.orchestrator.variants import Variant
from cuebook.actors.schemas import find_error
from cuebook.events.codec import MAX_TIME
from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    AnswerRefused,
    Error,
    Origin,
    RetryPolicy,
    RunCancelled,
    RunCancelRequested,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunForked,
    RunRejected,
    RunRequested,
    RunResumed,
    RunRetryRequested,
    RunStarted,
    RunStuck,
    StepAnswered,
    StepAsked,
    StepCancelled,
    StepCopied,
    StepExpired,
    StepMatched,
    StepSlept,
    StepWaiting,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCopied,
    TaskEscalated,
    TaskFailed,
    TaskRejected,
    TaskRequested,
    TaskResolved,
    TaskRetried,
)
from cuebook.events.log import Unreadable

__all__ = [
    "RUN_CLOSED",
    "TASK_CLOSED",
    "TIMEOUT",
    "RunState",
    "StepState",
    "TaskState",
    "fold_run",
    "place_of",
    "span_us",
]

RUN_CLOSED: Final = frozenset({"completed", "failed", "compensated", "cancelled", "rejected"})
TASK_CLOSED: Final = frozenset({"completed", "cancelled", "aborted", "rejected"})
STEP_CLOSED: Final = frozenset({"matched", "answered", "expired", "cancelled"})
_COPIES: Final = frozenset({TaskCopied, StepCopied})
_OPENING: Final = frozenset({TaskRequested, StepSlept, StepWaiting, StepAsked}) | _COPIES
TIMEOUT: Final = "TaskTimeoutError"
"""The type of error of an attempt that outlived its deadline."""
_MAX_TEXT: Final = 2_000
"""Characters of what people and agents say that is kept; it is repeated in other events, which have to fit."""
_LONGEST_S: Final = 1e9
"""Thirty years: longer spans are cut, so that every moment is a number the clocks of all systems can show."""


class TaskState:
    """One task. `status`: new, waiting, assigned, failed, backoff, escalated, resolved, or one of TASK_CLOSED.

    `failures` counts failed attempts since a person last said retry, `losses` the instances that died under it.
    Moments are microseconds since 1970 by the server's clock. Defaults stand on the class, so that making one is cheap.
    """

    kind: ClassVar = "task"
    status: str = "new"
    agent: str = ""
    handler: str = ""
    instance: str = ""
    input: Any = None
    output: Any = None
    priority: int = 0
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    affinity: str | None = None
    labels: dict[str, str] | None = None
    timeout_s: float | None = None
    """Of the latest attempt; before there was one, what was asked for."""
    asked_timeout_s: float | None = None
    retry: RetryPolicy | None = None
    compensation: bool = False
    compensates: int | None = None
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""
    last_sequence: int = 0
    assigned_sequence: int = 0
    requested_sequence: int = 0
    requested_at: int = 0
    assigned_at: int = 0
    free_at: int = 0
    escalated_at: int = 0
    ended_at: int = 0
    reason: dict[str, Any] | None = None
    error: Error | None = None
    resolution: TaskResolved | None = None
    cancel_reason: str | None = None
    origin: Origin | None = None
    """Where it was executed, when this run was forked from another and shares it; this run undoes nothing of it."""
    changed: bool = False
    """Its output is not the recorded one but somebody's own, said when the run was forked."""
    in_doubt: bool = False
    """An attempt may have had its effect: it is under way, or it ended without a word from the agent."""
    # Not folded but kept beside the fold by the orchestrator that runs it:
    pending: str = ""
    queued: bool = False
    gone: bool = False
    """Its run has ended, whatever became of the task."""
    takers: frozenset[Variant] | None = None
    """While it is queued: the variants of its agent that can take it; None when all can that are there."""

    def __init__(self, run_id: str, n: int) -> None:
        self.run_id, self.n = run_id, n

    @property
    def closed(self) -> bool:
        """Nothing about it can change any more."""
        return self.status in TASK_CLOSED

    @property
    def ready(self) -> bool:
        """May be placed: nobody has it, and no decision about it is under way."""
        return self.status in ("waiting", "backoff") and not self.pending and not self.gone

    def apply(self, envelope: Envelope) -> None:  # noqa: C901 - one branch a fact
        """Fold one event of this task."""
        self.last_sequence = envelope.sequence
        event = envelope.event
        if self.status in TASK_CLOSED:
            return
        match event:
            case TaskAssigned():
                if self.status in ("waiting", "assigned", "backoff", "failed"):
                    self.status, self.attempt, self.instance = "assigned", event.attempt, envelope.address.instance
                    self.assigned_sequence, self.assigned_at = envelope.sequence, envelope.recorded_at
                    self.timeout_s, self.reason = event.timeout_s, event.reason
                    self.handler, self.in_doubt = event.handler, True
            case TaskCompleted():
                if self.status != "new":
                    self._close("completed", envelope)
                    self.output = event.output
            case TaskRequested():
                if self.status == "new":
                    self._open(event, envelope)
            case TaskFailed():
                if self.status == "assigned":
                    self.status, self.error = "failed", _brief(event.error)
                    self.in_doubt = event.error.type == TIMEOUT
                    self.failures += 1
                    self.free_at = envelope.recorded_at
            case TaskRetried():
                if self.status in ("failed", "resolved", "assigned"):
                    if self.status == "resolved":
                        self.failures = self.losses = 0
                    elif event.lost:
                        self.losses += 1
                    self.status, self.instance = "backoff", ""
                    self.free_at = envelope.recorded_at + span_us(event.delay_s)
            case TaskEscalated():
                self.status, self.instance, self.escalated_at = "escalated", "", envelope.recorded_at
                self.error = _brief(event.error) if event.error is not None else self.error
            case TaskResolved():
                if self.status == "escalated":
                    self.status, self.resolution = "resolved", event
            case TaskAborted():
                self._close("aborted", envelope)
                self.error = _brief(event.error or self.error or Error(type="Aborted", message=event.reason))
            case TaskCancelRequested():
                self.cancel_reason = event.reason[:_MAX_TEXT] or "cancelled"
            case TaskCancelled():
                self._close("cancelled", envelope)
                self.error = Error(type="Cancelled", message=event.reason[:_MAX_TEXT] or "cancelled")
            case TaskRejected():
                self._close("rejected", envelope)
                self.error = Error(type="Rejected", message=event.reason[:_MAX_TEXT])
            case TaskCopied() if self.status == "new":
                self._copy(event, envelope)
            case _:
                pass

    def _copy(self, event: TaskCopied, envelope: Envelope) -> None:
        self.agent, self.handler, self.input = envelope.address.agent, event.handler, event.input
        self.attempt, self.compensates = event.attempt, event.compensates
        self.correlation_id, self.causation_id = envelope.correlation_id, envelope.id
        self.requested_at, self.requested_sequence = envelope.recorded_at, envelope.sequence
        self._close(event.status, envelope)
        self.output, self.error = event.output, _brief(event.error) if event.error is not None else None
        self.origin, self.changed, self.ended_at = event.origin, event.changed, _moment(event.origin.recorded_at)

    def _open(self, event: TaskRequested, envelope: Envelope) -> None:
        self.status, self.agent = "waiting", envelope.address.agent
        self.handler, self.input, self.priority = event.handler, event.input, event.priority
        self.affinity, self.labels = event.affinity, event.labels
        self.timeout_s = self.asked_timeout_s = event.timeout_s
        self.retry = event.retry
        self.compensation, self.compensates = event.compensation, event.compensates
        self.correlation_id, self.causation_id = envelope.correlation_id, envelope.id
        self.traceparent = envelope.traceparent
        self.requested_at = self.free_at = envelope.recorded_at
        self.requested_sequence = envelope.sequence

    def _close(self, status: str, envelope: Envelope) -> None:
        self.status, self.ended_at = status, envelope.recorded_at


class StepState:
    """A sleep, a wait or a question. `status`: new, open, or one of STEP_CLOSED. `due`: 0 when it may stay open."""

    kind: ClassVar = "step"
    status: str = "new"
    type: str = ""
    last_sequence: int = 0
    opened_at: int = 0
    ended_at: int = 0
    due: int = 0
    timeout_s: float | None = None
    topic: str = ""
    match: dict[str, Any] | None = None
    question: str = ""
    schema: dict[str, Any] | None = None
    context: Any = None
    value: Any = None
    by: str = ""
    taken: int = 0
    """Where the event stands that a wait has got."""
    origin: Origin | None = None
    """As for a task."""
    changed: bool = False
    refused: tuple[int, str] | None = None
    """An answer that does not fit, and is not recorded as refused yet: sequence and reason."""
    # Not folded but kept beside the fold by the orchestrator that runs it:
    pending: str = ""

    def __init__(self, run_id: str, n: int) -> None:
        self.run_id, self.n = run_id, n

    @property
    def closed(self) -> bool:
        """Nothing about it can change any more."""
        return self.status in STEP_CLOSED

    def apply(self, envelope: Envelope) -> None:
        """Fold one event of this step."""
        self.last_sequence = envelope.sequence
        event = envelope.event
        if self.status in STEP_CLOSED:
            return
        match event:
            case StepSlept():
                self._open("sleep", event.seconds, envelope)
            case StepWaiting():
                self._open("wait", event.timeout_s, envelope)
                self.topic, self.match = event.topic, event.match
            case StepAsked():
                self._open("ask", event.timeout_s, envelope)
                self.question, self.schema, self.context = event.question, event.schema, event.context
            case StepMatched() if self.type == "wait":
                self._close("matched", event.data, envelope)
                self.taken = event.sequence
            case StepAnswered() if self.type == "ask":
                wrong = find_error(self.schema or {}, event.value)
                if wrong:
                    self.refused = (envelope.sequence, wrong)
                else:
                    self._close("answered", event.value, envelope)
                    self.by = event.by or envelope.source
            case AnswerRefused():
                self.refused = None
            case StepExpired() if self.status == "open":
                self._close("expired", None, envelope)
            case StepCancelled():
                self._close("cancelled", None, envelope)
            case StepCopied() if self.status == "new":
                self._copy(event, envelope)
            case _:
                pass

    def _copy(self, event: StepCopied, envelope: Envelope) -> None:
        self.type, self.timeout_s, self.opened_at = event.kind, event.timeout_s, envelope.recorded_at
        self.topic, self.match, self.taken = event.topic, event.match, event.taken
        self.question, self.schema, self.context, self.by = event.question, event.schema, event.context, event.by
        self._close(event.status, event.value, envelope)
        self.origin, self.changed, self.ended_at = event.origin, event.changed, _moment(event.origin.recorded_at)

    def _open(self, type_: str, seconds: float | None, envelope: Envelope) -> None:
        if self.status == "new":
            self.status, self.type, self.timeout_s = "open", type_, seconds
            self.opened_at = envelope.recorded_at
            self.due = 0 if seconds is None else envelope.recorded_at + span_us(seconds)

    def _close(self, status: str, value: Any, envelope: Envelope) -> None:
        self.status, self.value, self.ended_at = status, value, envelope.recorded_at


class RunState:
    """One run with its tasks and steps. A run without a saga is one standalone task.

    `status`: new, requested, running, compensating, stuck, or one of RUN_CLOSED. `moment` is the server's time of the
    last event folded.
    """

    status: str = "new"
    saga: str = ""
    version: str = ""
    reason: str = ""
    correlation_id: str = ""
    opened_id: str = ""
    traceparent: str = ""
    cause: str = ""
    retry_of: str | None = None
    forked: RunForked | None = None
    """What it was forked from, and how."""
    input: Any = None
    result: Any = None
    error: Error | None = None
    last_sequence: int = 0
    started_sequence: int = 0
    opened_sequence: int = 0
    resumed_sequence: int = 0
    trigger: int = 0
    started_at: int = 0
    stuck_at: int = 0
    ended_at: int = 0
    moment: int = 0
    undo: list[int] | None = None
    cancel_reason: str | None = None
    retry_requested: bool = False
    stuck: RunStuck | None = None
    stuck_from: str = ""
    strays: dict[str, int] | None = None
    """Facts about tasks and steps that nobody has asked for: the last sequence by scope, such as `task.3`."""
    # Not folded but kept beside the fold by the orchestrator that runs it:
    pending: str = ""
    winding: str = ""
    """Why open tasks and steps are being cancelled, once the saga has raised or a person wants the run to end."""
    verified: bool = False
    """It was opened without naming an expected sequence, and was looked up: there was nothing about it before."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.items: dict[int, TaskState | StepState] = {}

    @property
    def closed(self) -> bool:
        """Nothing about it can change any more."""
        return self.status in RUN_CLOSED

    @property
    def standalone(self) -> bool:
        """One task, no saga."""
        return not self.saga and self.status == "new"

    @property
    def complete(self) -> bool:
        """Everything that it shares with the run it was forked from is here; true of a run that was not forked."""
        return self.forked is None or len(self.items) >= self.forked.copied

    @property
    def began_at(self) -> int:
        """When the run began as its saga sees it: with a fork, when the first of its ancestors did."""
        return _moment(self.forked.started_at) if self.forked is not None else self.started_at

    @property
    def listens_after(self) -> int:
        """The sequence from which on outside events count for its waits."""
        return max(0, self.forked.started_sequence) if self.forked is not None else self.started_sequence

    @property
    def _is_over(self) -> bool:
        """Whatever is asked for now is asked too late: nobody will do it."""
        only = self.items.get(0) if self.standalone else None
        return self.closed or (only is not None and only.kind == "task" and only.closed)

    def apply(self, envelope: Envelope) -> TaskState | StepState | None:
        """Fold one event of this run.

        Returns the task or step it was about; None for the run itself, or when nobody has asked for such a task or
        step.
        """
        address = envelope.address
        self.moment = envelope.recorded_at
        if not self.opened_sequence:
            self.opened_sequence, self.opened_id = envelope.sequence, envelope.id
            self.correlation_id, self.traceparent = envelope.correlation_id, envelope.traceparent
        if address.kind == "run":
            self._apply_own(envelope)
            return None
        item = self.items.get(address.n)
        too_late = type(envelope.event) in _COPIES and (self.forked is None or self.status != "requested")
        if item is None and type(envelope.event) in _OPENING and not too_late and not self._is_over:
            kind = TaskState if address.kind == "task" else StepState
            item = self.items[address.n] = kind(self.run_id, address.n)
        if item is None or item.kind != address.kind:
            self.skip(address.kind, address.n, envelope.sequence)
            return None
        item.apply(envelope)
        return item

    def skip(self, kind: str, n: int, sequence: int) -> TaskState | StepState | RunState | None:
        """A message under this run that is no event: it counts for the expected sequence and for nothing else."""
        if kind == "run":
            self.last_sequence = sequence
            return self
        item = self.items.get(n)
        if item is None or item.kind != kind:
            self.strays = {**(self.strays or {}), f"{kind}.{n}": sequence}
            return None
        item.last_sequence = sequence
        return item

    def last_stray(self, kind: str, n: int) -> int:
        """What to expect under the scope of a task or step that nobody has asked for yet."""
        return self.strays.get(f"{kind}.{n}", 0) if self.strays else 0

    def _apply_own(self, envelope: Envelope) -> None:  # noqa: C901 - one branch a fact
        event = envelope.event
        if not envelope.address.agent:  # `requested.<saga>` has a token more and is outside the run's scope
            self.last_sequence = envelope.sequence
        if self.status in RUN_CLOSED or (self.items and self.standalone and type(event) is not RunCancelRequested):
            return
        match event:
            case RunRequested():
                if self.status == "new":
                    self.status, self.saga, self.input = "requested", envelope.address.agent, event.input
                    self.retry_of = event.retry_of
            case RunForked():
                if self.status == "new":
                    self.status, self.saga, self.input, self.forked = "requested", event.saga, event.input, event
            case RunStarted():
                if self.status in ("new", "requested"):
                    self.status, self.saga, self.version = "running", event.saga, event.version
                    self.input, self.trigger, self.retry_of = event.input, event.trigger, event.retry_of
                    self.started_at, self.started_sequence = envelope.recorded_at, envelope.sequence
                    if self.forked is not None and self.cancel_reason is None:
                        self.cancel_reason = self.forked.cancelled
                    self.cause = envelope.causation_id
            case RunCompleted():
                self.result = event.result
                self._close("completed", envelope)
            case RunFailed():
                self.error = event.error
                self._close("failed", envelope)
            case RunCompensating():
                if self.status in ("running", "stuck"):
                    self.status, self.reason, self.undo = "compensating", event.reason, event.steps
                    self.error = event.error
            case RunCompensated():
                self._close("compensated", envelope)
            case RunCancelled():
                self.reason = event.reason
                self._close("cancelled", envelope)
            case RunRejected():
                self.reason = event.reason
                self._close("rejected", envelope)
            case RunStuck():
                if self.status != "stuck":
                    self.stuck_from, self.stuck_at = self.status, envelope.recorded_at
                self.status, self.stuck, self.reason = "stuck", event, event.reason
            case RunResumed():
                if self.status == "stuck":
                    self.status, self.stuck = self.stuck_from, None
                    self.retry_requested, self.resumed_sequence = False, envelope.sequence
            case RunCancelRequested():
                self.cancel_reason = event.reason[:_MAX_TEXT] or "cancelled"
            case RunRetryRequested():
                self.retry_requested = self.status == "stuck"
            case _:
                pass

    def _close(self, status: str, envelope: Envelope) -> None:
        self.status, self.ended_at = status, envelope.recorded_at

    def outcome(self) -> str:
        """The status a person would name: that of the one task where there is no saga."""
        if self.standalone:
            task = self.items.get(0)
            return task.status if task is not None else "new"
        return self.status

    def completed_steps(self) -> list[int]:
        """Completed tasks that can be undone and have not been, in the order of their undoing: last completed first.

        What was done and undone in the run that this one was forked from comes last, since nothing is left to do there.
        """
        tasks = [item for item in self.items.values() if isinstance(item, TaskState)]
        undone = {item.compensates for item in tasks}
        before = [item for item in tasks if item.origin is not None and item.status == "completed"]
        steps = [
            (item.ended_at, item.last_sequence, n)
            for n, item in self.items.items()
            if isinstance(item, TaskState) and item.status == "completed" and item.compensation and n not in undone
        ]
        undone_before = sorted((item.n, item.compensates) for item in before if item.compensates is not None)
        return [n for _, _, n in sorted(steps, reverse=True)] + [n for _, n in undone_before]


def _brief(error: Error) -> Error:
    if len(error.message) + len(error.type) <= _MAX_TEXT and len(error.classes) <= 100:
        return error
    classes = [name[:200] for name in error.classes[:100]]
    return replace(error, type=error.type[:200], message=error.message[:_MAX_TEXT], classes=classes)


def span_us(seconds: float) -> int:
    """A span in microseconds, whatever an event says: none that is negative or longer than a life."""
    return int(min(max(0.0, seconds), _LONGEST_S) * 1_000_000)


def _moment(microseconds: int) -> int:
    """A moment in microseconds, whatever an event says: one that all clocks can show."""
    return min(max(0, microseconds), MAX_TIME)


def fold_run(run_id: str, history: Iterable[Envelope | Unreadable]) -> RunState:
    """The state of a run after `history`, which may be cut anywhere."""
    state = RunState(run_id)
    for item in history:
        if isinstance(item, Unreadable):
            place = place_of(item.subject)
            if place is not None and place[1] == run_id:
                state.skip(place[0], place[2], item.sequence)
        elif item.address.run_id == run_id and item.address.kind in ("run", "task", "step"):
            state.apply(item)
    return state


def place_of(subject: str) -> tuple[str, str, int] | None:
    """Under which scope of a run something unreadable stands: kind, run id and number (-1 for the run itself)."""
    match subject.split(".")[1:]:
        case ["run", run_id, "task" | "step" as kind, number, _, *_] if number == _canonical(number):
            return kind, run_id, int(number)
        case ["run", run_id, _]:
            return "run", run_id, -1
    return None


def _canonical(number: str) -> str:
    """How subjects write a number that they count; others stand under a scope of their own."""
    return str(int(number)) if number.isascii() and number.isdigit() and len(number) < 10 else ""
