"""Facts about steps that are no tasks: timers, waits, questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cuebook.events.facts.base import Event, Origin

__all__ = [
    "AnswerRefused",
    "StepAnswered",
    "StepAsked",
    "StepCancelled",
    "StepCopied",
    "StepExpired",
    "StepMatched",
    "StepSlept",
    "StepWaiting",
]


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
