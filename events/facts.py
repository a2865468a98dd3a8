"""The event types of the log.

Each class is the newest version of its type. A stored version is never edited: a change of meaning or of a required
field is the next number, and a step in catalogue.UPCASTERS that reads the older one; `cuebook events schema check`
watches over that. Fields unknown to this release are ignored when reading, so adding an optional field is
not a new version. `data` of an event is exactly the fields below. Spans of time count in seconds from when the event
was recorded, by the server's clock; no event carries a due time by its author's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import FailFast

__all__ = [
    "TERMINAL_RUN_FACTS",
    "TERMINAL_TASK_FACTS",
    "AgentDraining",
    "AgentLost",
    "AgentRecovered",
    "AgentRegistered",
    "AgentStopped",
    "AgentSuspected",
    "AnswerDropped",
    "AnswerRefused",
    "DrainRequested",
    "Error",
    "Event",
    "HandlerSpec",
    "MessageRejected",
    "Origin",
    "OutsideEvent",
    "RetryPolicy",
    "RetryRule",
    "RunCancelRequested",
    "RunCancelled",
    "RunCompensated",
    "RunCompensating",
    "RunCompleted",
    "RunFailed",
    "RunForked",
    "RunRejected",
    "RunRequested",
    "RunResumed",
    "RunRetryRequested",
    "RunStarted",
    "RunStuck",
    "SagaServed",
    "SpaceRolled",
    "StepAnswered",
    "StepAsked",
    "StepCancelled",
    "StepCopied",
    "StepExpired",
    "StepMatched",
    "StepSlept",
    "StepWaiting",
    "TaskAborted",
    "TaskAssigned",
    "TaskCancelRequested",
    "TaskCancelled",
    "TaskCompleted",
    "TaskCopied",
    "TaskEscalated",
    "TaskFailed",
    "TaskProgressed",
    "TaskRejected",
    "TaskRequested",
    "TaskResolved",
    "TaskRetried",
    "TaskReverted",
]


_T = TypeVar("_T")
_ListOf = Annotated[list[_T], FailFast()]
"""A list that is refused at its first wrong item; the errors of a hostile one would take seconds to collect."""


class Event:
    """Base of all event types. `event_type` is `<family>.<fact>.v<version>`, stored for ever."""

    __slots__ = ()
    event_type: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """What went wrong in a handler. `classes`: the exception's class names, most specific first, for retry rules."""

    type: str
    message: str
    classes: _ListOf[str] = field(default_factory=list)
    retryable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """Overrides the policy for one class of error, by class name. `attempts` 1 means: do not try again."""

    error: str
    attempts: int
    backoff_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` in all; the n-th pause is `backoff_s * factor**(n-1)`, at most `max_s`, plus or minus `jitter`."""

    attempts: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    rules: _ListOf[RetryRule] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """What an agent says about one handler. Schemas are JSON Schema 2020-12."""

    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    compensation: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a copied fact stands: under which run and number, at which stream sequence, recorded when.

    `recorded_at`: microseconds since 1970 by the server's clock. Both are those of the fact that ended the step there;
    of one that had not ended and got an answer of somebody's own, those of the last fact about it.
    """

    run_id: str
    n: int
    sequence: int
    recorded_at: int


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequested(Event):
    """Somebody asks for a run of the saga named in the subject. `retry_of`: the ended run it repeats."""

    event_type: ClassVar[str] = "run.requested.v1"
    input: Any = None
    retry_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForked(Event):
    """Somebody asks for a run that shares the history of the run `fork_of` up to the stream sequence `at`.

    It waits until the facts `copied` of so many tasks and steps are there, and then goes on with the saga's present
    code. `changed`: the steps with an answer other than the recorded one. `started_at` (microseconds since 1970, the
    server's clock) and `started_sequence`: when and where the origin began, which is the time the saga sees and the
    place from which its waits look for outside events. `cancelled`: why the origin was to end by then.
    """

    event_type: ClassVar[str] = "run.forked.v1"
    saga: str
    fork_of: str
    at: int
    copied: int
    started_at: int
    started_sequence: int
    input: Any = None
    changed: _ListOf[int] = field(default_factory=list)
    cancelled: str | None = None
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run began. `trigger`: stream sequence of the message that asked for it; `retry_of`: the run it repeats."""

    event_type: ClassVar[str] = "run.started.v1"
    saga: str
    version: str = ""
    input: Any = None
    trigger: int = 0
    retry_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompleted(Event):
    """The saga returned."""

    event_type: ClassVar[str] = "run.completed.v1"
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(Event):
    """The saga raised and nothing had to be undone."""

    event_type: ClassVar[str] = "run.failed.v1"
    error: Error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompensating(Event):
    """The run will be undone: `steps` are the completed steps with a compensation, in the order of their undoing."""

    event_type: ClassVar[str] = "run.compensating.v1"
    reason: str
    error: Error | None = None
    steps: _ListOf[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCompensated(Event):
    """Every compensation has a recorded result of its own."""

    event_type: ClassVar[str] = "run.compensated.v1"
    reason: str
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelRequested(Event):
    """Somebody wants the run to end; what it did is undone."""

    event_type: ClassVar[str] = "run.cancel_requested.v1"
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled(Event):
    """The run ended on request and nothing had to be undone."""

    event_type: ClassVar[str] = "run.cancelled.v1"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStuck(Event):
    """The run waits for a person: its saga and its history disagree, or it has no end, or a compensation was given up.

    `recorded` is what the log says about step `step`, `asked` what the saga's present code asks for.
    """

    event_type: ClassVar[str] = "run.stuck.v1"
    reason: str
    step: int | None = None
    recorded: Any = None
    asked: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRetryRequested(Event):
    """A person says: go on with a stuck run, with the saga's present code."""

    event_type: ClassVar[str] = "run.retry_requested.v1"
    by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed(Event):
    """A stuck run goes on."""

    event_type: ClassVar[str] = "run.resumed.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRejected(Event):
    """The request for a run was refused; nothing was done."""

    event_type: ClassVar[str] = "run.rejected.v1"
    reason: str
    remedy: str = ""


# --- tasks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequested(Event):
    """Somebody asks the agent named in the subject to handle `input`. Higher `priority` goes first (-100 to 100).

    `handler` may be empty where the agent has just one. `labels` must all be present on the instance, whose `version`
    counts as a label too. Tasks with the same `affinity` prefer the same instance. `timeout_s` and `retry` replace the
    handler's own. `compensation`: the step can be undone. `compensates`: this task undoes that step; its input is
    `{"input": ..., "output": ...}` of it, or absent where both together are too large for an event: then the log has
    them, under that step.
    """

    event_type: ClassVar[str] = "task.requested.v1"
    handler: str = ""
    input: Any = None
    priority: int = 0
    affinity: str | None = None
    labels: dict[str, str] | None = None
    timeout_s: float | None = None
    retry: RetryPolicy | None = None
    compensation: bool = False
    compensates: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCopied(Event):
    """A task as it had ended in the run that this one was forked from. Nothing is executed, and nothing undone.

    The subject names its agent. `status` is how it had ended, `changed` says that the output is somebody's own.
    `compensates`: the task undid that step, where it was executed.
    """

    event_type: ClassVar[str] = "task.copied.v1"
    origin: Origin
    status: Literal["completed", "aborted", "cancelled", "rejected"]
    handler: str = ""
    input: Any = None
    output: Any = None
    error: Error | None = None
    attempt: int = 0
    compensates: int | None = None
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAssigned(Event):
    """The instance named in the subject was given the task. `reason`: why this one, for people.

    The attempt is over `timeout_s` after the event was recorded, whatever the agent does. `input` of a task that
    `compensates` a step may be absent, as in its request.
    """

    event_type: ClassVar[str] = "task.assigned.v1"
    handler: str
    attempt: int
    timeout_s: float
    input: Any = None
    reason: dict[str, Any] = field(default_factory=dict)
    compensates: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCompleted(Event):
    """The task's one result. `by`: the agent instance, or the person who supplied it."""

    event_type: ClassVar[str] = "task.completed.v1"
    output: Any = None
    attempt: int = 0
    duration_s: float = 0.0
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(Event):
    """One attempt failed; `retried`, `escalated` or `aborted` follows."""

    event_type: ClassVar[str] = "task.failed.v1"
    error: Error
    attempt: int = 0
    duration_s: float = 0.0
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRetried(Event):
    """The task is free again `delay_s` after this was recorded. `lost`: because its instance was lost."""

    event_type: ClassVar[str] = "task.retried.v1"
    delay_s: float = 0.0
    reason: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEscalated(Event):
    """A person must decide: supply the result, retry or abort."""

    event_type: ClassVar[str] = "task.escalated.v1"
    reason: str
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResolved(Event):
    """A person decided about an escalated task. `output` counts only with the action `supply`."""

    event_type: ClassVar[str] = "task.resolved.v1"
    action: Literal["supply", "retry", "abort"]
    output: Any = None
    by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAborted(Event):
    """The task ended without a result; in a saga its call raises."""

    event_type: ClassVar[str] = "task.aborted.v1"
    reason: str
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCancelRequested(Event):
    """Somebody no longer wants this task."""

    event_type: ClassVar[str] = "task.cancel_requested.v1"
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCancelled(Event):
    """The task ended on request. `outcome_unknown`: the agent did not confirm, so its effect may have happened."""

    event_type: ClassVar[str] = "task.cancelled.v1"
    reason: str = ""
    outcome_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRejected(Event):
    """The request was refused before anything was done."""

    event_type: ClassVar[str] = "task.rejected.v1"
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReverted(Event):
    """An answer came after the task had ended without a result, so the agent undid its own effect.

    With an `error` the undoing failed, or the handler has no compensation: a person must look at `output`.
    """

    event_type: ClassVar[str] = "task.reverted.v1"
    output: Any = None
    attempt: int = 0
    by: str = ""
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgressed(Event):
    """What a handler says about its work. `fraction` from 0 to 1, where it knows."""

    event_type: ClassVar[str] = "progress.progress.v1"
    message: str = ""
    fraction: float | None = None
    attempt: int = 0


# --- steps that are not tasks -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSlept(Event):
    """The saga sleeps for `seconds` from when this was recorded."""

    event_type: ClassVar[str] = "step.slept.v1"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWaiting(Event):
    """The saga waits for an outside event on `topic` whose data has all of `match`.

    Events recorded since the run started count, so that one which came early is not missed. `timeout_s` runs from when
    this was recorded.
    """

    event_type: ClassVar[str] = "step.waiting.v1"
    topic: str
    match: dict[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMatched(Event):
    """The awaited event came; it stands in the stream at `sequence`."""

    event_type: ClassVar[str] = "step.matched.v1"
    sequence: int
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCopied(Event):
    """A sleep, a wait or a question as it had ended in the run that this one was forked from.

    The other fields are those of `slept`, `waiting` or `asked`, and of what ended it; `taken` is the stream sequence of
    the outside event that a wait had got. `changed` says that the value is somebody's own.
    """

    event_type: ClassVar[str] = "step.copied.v1"
    origin: Origin
    kind: Literal["sleep", "wait", "ask"]
    status: Literal["matched", "answered", "expired", "cancelled"]
    timeout_s: float | None = None
    topic: str = ""
    match: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    schema: dict[str, Any] = field(default_factory=dict)
    context: Any = None
    value: Any = None
    by: str = ""
    taken: int = 0
    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAsked(Event):
    """The saga asks a person. `schema`: what an answer looks like, as JSON Schema; it is too late after `timeout_s`."""

    event_type: ClassVar[str] = "step.asked.v1"
    question: str
    schema: dict[str, Any] = field(default_factory=dict)
    context: Any = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAnswered(Event):
    """A person answered."""

    event_type: ClassVar[str] = "step.answered.v1"
    value: Any = None
    by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRefused(Event):
    """The answer at stream sequence `sequence` does not fit the question's schema; the question stands."""

    event_type: ClassVar[str] = "step.refused.v1"
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExpired(Event):
    """The time is over: a sleep has ended, or nothing came and nobody answered."""

    event_type: ClassVar[str] = "step.expired.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCancelled(Event):
    """The run ended while the step was open."""

    event_type: ClassVar[str] = "step.cancelled.v1"
    reason: str = ""


# --- agents -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRegistered(Event):
    """An instance offers `slots` tasks at a time. `labels`: what it has; `recycle_after`: tasks until it is renewed.

    `offline_for_s`: it may be silent for so long, and goes on working, before its tasks go to others.
    """

    event_type: ClassVar[str] = "agent.registered.v1"
    slots: int
    handlers: dict[str, HandlerSpec]
    version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    recycle_after: int = 0
    heartbeat_s: float = 1.0
    description: str = ""
    host: str = ""
    pid: int = 0
    offline_for_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSuspected(Event):
    """Heartbeats are missing; nothing new is placed there."""

    event_type: ClassVar[str] = "agent.suspected.v1"
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLost(Event):
    """Heartbeats were missing for too long; its tasks go to others."""

    event_type: ClassVar[str] = "agent.lost.v1"
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecovered(Event):
    """A suspected or lost instance is heard again."""

    event_type: ClassVar[str] = "agent.recovered.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDropped(Event):
    """An answer of this instance to task `n` of a run came when the task had moved on; it changed nothing.

    The instance worked on while nobody heard it. `fact`: what the answer was; `attempt`: the one it answered. Whether
    an effect was undone says `task.reverted`.
    """

    event_type: ClassVar[str] = "agent.dropped.v1"
    run_id: str
    n: int
    attempt: int = 0
    fact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Event):
    """Somebody asks the instance to finish what it has and stop."""

    event_type: ClassVar[str] = "agent.drain_requested.v1"
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDraining(Event):
    """The instance takes nothing new and finishes what it has."""

    event_type: ClassVar[str] = "agent.draining.v1"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStopped(Event):
    """The instance is gone, in good order; whatever it still had was handed back."""

    event_type: ClassVar[str] = "agent.stopped.v1"
    reason: str = ""
    handled: int = 0


# --- sagas as such, the space, others ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaServed(Event):
    """The saga named in the subject is served for the first time on topic `on`.

    Outside events on that topic start runs of it from here on: those with a stream sequence greater than `after`.
    """

    event_type: ClassVar[str] = "saga.served.v1"
    on: str
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceRolled(Event):
    """The last message in `stream`: the log goes on in `into`, unless the roll was undone; the streams say so."""

    event_type: ClassVar[str] = "space.rolled.v1"
    generation: int
    stream: str
    into: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRejected(Event):
    """The message at the stream sequence named in the subject was refused and has no effect.

    With `sagas` that is so for these only: an outside event that others may have begun a run with.
    """

    event_type: ClassVar[str] = "rejected.rejected.v1"
    subject: str
    reason: str
    remedy: str = ""
    sagas: _ListOf[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideEvent(Event):
    """A fact from anybody under `<space>.event.<topic>`. Its type is the author's own business."""

    event_type: ClassVar[str] = "event"
    data: Any = None


TERMINAL_TASK_FACTS = frozenset({"completed", "cancelled", "aborted", "rejected"})
TERMINAL_RUN_FACTS = frozenset({"completed", "failed", "compensated", "cancelled", "rejected"})
