"""Facts about runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cuebook.events.facts.base import Error, Event, ListOf

__all__ = [
    "TERMINAL_RUN_FACTS",
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
]


TERMINAL_RUN_FACTS = frozenset({"completed", "failed", "compensated", "cancelled", "rejected"})


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
    changed: ListOf[int] = field(default_factory=list)
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
    steps: ListOf[int] = field(default_factory=list)


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
