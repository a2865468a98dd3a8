"""Facts about tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cuebook.events.facts.base import Error, Event, Origin, RetryPolicy

__all__ = [
    "TERMINAL_TASK_FACTS",
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


TERMINAL_TASK_FACTS = frozenset({"completed", "cancelled", "aborted", "rejected"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequested(Event):
    """Somebody asks the agent named in the subject to handle `input`. Higher `priority` goes first.

    `priority` is from -100 to 100; beyond, the task is rejected. `handler` may be empty where the agent has just
    one. `labels` must all be present on the instance, whose `version` counts as a label too. Tasks with the same
    `affinity` prefer the same instance. `timeout_s` and `retry` replace the handler's own. `compensation`: the step
    can be undone. `compensates`: this task undoes that step; its input is `{"input": ..., "output": ...}` of it, or
    absent where both together are too large for an event: then the log has them, under that step.
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
