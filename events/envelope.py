"""The envelope: an event plus what the log knows about it."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cuebook.events.facts import Event
from cuebook.events.subjects import Address

__all__ = ["Envelope", "EventIds", "Position", "to_datetime"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class Envelope:
    """One event as read from the log. Treat it as read-only; it is not frozen because freezing doubles its cost.

    `time` is the author's clock and `recorded_at` the server's, both in microseconds since 1970 UTC. `sequence` counts
    from 1 over the whole stream. `correlation_id` is the id of the message that began the conversation, copied
    unchanged; `causation_id` that of the message being handled when this one was written. `event_type` is
    `<family>.<fact>.v<n>` and `data` the event's plain data, both as stored; `event` is the same as a typed object of
    the newest version. `key_id` and `signature` are empty until signed. Ids, type and source are short and printable;
    see codec.
    """

    id: str
    event_type: str
    time: int
    source: str
    correlation_id: str
    data: Any
    event: Event
    address: Address
    subject: str
    sequence: int
    recorded_at: int
    causation_id: str = ""
    traceparent: str = ""
    key_id: str = ""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Position:
    """How far somebody has read: the last sequence and the id of the event there. Sequence 0 is before the first."""

    sequence: int = 0
    event_id: str = ""


class EventIds:
    """Ids for the events one process writes: unique over all processes, cheap, and tokens in the sense of subjects.

    A process that forks needs new ones in the child.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(10).hex()
        self._count = itertools.count(1)

    def __call__(self) -> str:
        """Give the next id: 80 random bits of this object, and a count."""
        return f"{self._prefix}-{next(self._count):x}"


def to_datetime(microseconds: int) -> datetime:
    """Microseconds since 1970 as an aware UTC datetime, exactly. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=microseconds)
