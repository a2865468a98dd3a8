"""Which trace a run belongs to, and the ids of its spans: they follow from the log, so every process knows them.

A run belongs to the trace that its opening message names. Where that names none, the trace id follows from correlation
and run id, which every event of the run has. Ids of spans that are made from the log follow from what they are about:
a span made twice, by the orchestrator that died and by the one that took over, is the same span. So an agent knows the
parent of what it does without being told, and nothing has to be added to the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from cuebook.events.envelope import Envelope

__all__ = [
    "SpanId",
    "TraceContext",
    "context_of",
    "execute_span",
    "find_context",
    "format_traceparent",
    "parse_traceparent",
    "publish_span",
    "run_span",
    "span_id",
    "task_span",
]

SpanId = int
"""64 bits, never 0."""

_TRACEPARENT: Final = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The trace of a run. `parent_id` is the span that the whole run is under, 0 when there is none.

    `sampled` None: nobody has decided, and the sampler does, by the trace id.
    """

    trace_id: int
    parent_id: SpanId
    sampled: bool | None


def parse_traceparent(text: str) -> TraceContext | None:
    """A `traceparent`, or None for one that does not count. Source: W3C Trace Context, section 3.2.2."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    trace_id, parent_id = int(trace, 16), int(parent, 16)
    if version == "ff" or not trace_id or not parent_id or (version == "00" and more):
        return None
    return TraceContext(trace_id, parent_id, bool(int(flags, 16) & 1))


def format_traceparent(trace_id: int, parent_id: SpanId, *, sampled: bool) -> str:
    """As it is sent."""
    return f"00-{trace_id:032x}-{parent_id:016x}-{int(sampled):02x}"


def find_context(run_id: str, traceparent: str, correlation_id: str) -> TraceContext:
    """The trace of a run, by what any of its events says that follows from its opening."""
    found = parse_traceparent(traceparent) if traceparent else None
    if found is not None:
        return found
    digest = blake2b(f"{correlation_id}\0{run_id}".encode(), digest_size=16).digest()
    return TraceContext(int.from_bytes(digest) or 1, 0, None)


def context_of(envelope: Envelope) -> TraceContext:
    """The trace of the run that this event is of, and follows from its opening."""
    return find_context(envelope.address.run_id, envelope.traceparent, envelope.correlation_id)


def span_id(trace_id: int, *about: str | int) -> SpanId:
    """The id of the span in a trace that is about this."""
    text = "\0".join(map(str, about))
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=trace_id.to_bytes(16)).digest()) or 1


def publish_span(trace_id: int, event_id: str) -> SpanId:
    """Of the message that began it all, where its author has not made a span."""
    return span_id(trace_id, "publish", event_id)


def run_span(trace_id: int, run_id: str) -> SpanId:
    """Of a whole run of a saga."""
    return span_id(trace_id, "run", run_id)


def task_span(trace_id: int, run_id: str, n: int) -> SpanId:
    """Of a task or another step of a saga, or of a standalone task."""
    return span_id(trace_id, "task", run_id, n)


def execute_span(trace_id: int, assigned_id: str) -> SpanId:
    """Of one attempt, by the id of the event that assigned it."""
    return span_id(trace_id, "execute", assigned_id)
