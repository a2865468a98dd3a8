"""Facts about sagas as such and the space, refused messages, and what is published by others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cuebook.events.facts.base import Event, ListOf

__all__ = ["MessageRejected", "OutsideEvent", "SagaServed", "SpaceRolled"]


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
    sagas: ListOf[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideEvent(Event):
    """A fact from anybody under `<space>.event.<topic>`. Its type is the author's own business."""

    event_type: ClassVar[str] = "event"
    data: Any = None
