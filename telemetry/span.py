"""A span as we make them from the log: plain data, before any exporter has seen it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cuebook.telemetry.trace import SpanId

__all__ = ["Author", "Kind", "Link", "Span", "SpanEvent", "Value"]

Value = str | int | float | bool | list[str]
Kind = Literal["internal", "producer", "consumer"]
Author = Literal["client", "orchestrator", "agent"]


@dataclass(slots=True)
class SpanEvent:
    """Something at one moment of a span. `at`: microseconds since 1970."""

    name: str
    at: int
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """Another span that this one has to do with. `why`: retry, undo or origin."""

    trace_id: int
    span_id: SpanId
    why: str


@dataclass(slots=True, kw_only=True)
class Span:
    """`begin` and `end` in microseconds since 1970, `end` 0 while it goes on. `parent_id` 0: the root of its trace.

    `author`: whose business it is to send it. `error`: the kind of error it ended with; empty when with none.
    """

    name: str
    trace_id: int
    span_id: SpanId
    parent_id: SpanId
    begin: int
    end: int = 0
    kind: Kind = "internal"
    author: Author = "orchestrator"
    error: str = ""
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[SpanEvent] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
