"""One attempt at a task as it happens: the span under which the agent's own spans lie, also those of its threads.

It is sent when the log has taken the answer. An answer that came too late is not the outcome of the attempt: what was
made of it says the orchestrator's span, which has the same id.
"""

from __future__ import annotations

import time
from contextvars import Token
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)

from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskAssigned
from cuebook.telemetry import attributes as names
from cuebook.telemetry.life import execute_attributes, message_attributes
from cuebook.telemetry.pipeline import Tracing, remote_parent
from cuebook.telemetry.span import Span
from cuebook.telemetry.trace import TraceContext, context_of, execute_span, format_traceparent, span_id, task_span

__all__ = ["Attempt", "begin_attempt"]


def begin_attempt(tracing: Tracing, assigned: Envelope, event: TaskAssigned, space: str) -> tuple[Attempt | None, str]:
    """Make what the handler does in this asyncio task, which is the attempt's own, a part of the run's trace.

    Returns the attempt, None where the run is not sampled, and the `traceparent` for whatever the handler calls that
    has no instrumentation of its own.
    """
    if tracing.skips(assigned.traceparent):
        contexts.attach(set_span_in_context(_Unsampled(assigned)))  # what is under it is not sampled either
        return None, assigned.traceparent
    trace = context_of(assigned)
    if not tracing.samples(trace, f"execute {assigned.address.agent}.{event.handler}"):
        contexts.attach(set_span_in_context(_Unsampled(assigned)))
        return None, format_traceparent(trace.trace_id, trace.parent_id or 1, sampled=False)
    attempt = Attempt(tracing, assigned, event, trace, space)
    return attempt, attempt.traceparent


class _Unsampled(NonRecordingSpan):
    """The current span of a handler whose run is not sampled: most look at it no further, so it is made when asked."""

    def __init__(self, assigned: Envelope) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self._assigned: Envelope | None = assigned

    def get_span_context(self) -> SpanContext:
        """See Span."""
        if self._assigned is not None:
            trace = context_of(self._assigned)
            parent = remote_parent(trace.trace_id, trace.parent_id or 1, sampled=False)
            self._context, self._assigned = parent.get_span_context(), None
        return self._context


class Attempt:
    """Begins when made, and is current from then on until `leave`; then `answered`, then perhaps `accepted`."""

    __slots__ = ("_assigned", "_ended_ns", "_fact", "_handler", "_span", "_token", "_tracing")

    def __init__(
        self, tracing: Tracing, assigned: Envelope, event: TaskAssigned, trace: TraceContext, space: str
    ) -> None:
        self._tracing, self._assigned = tracing, assigned
        self._ended_ns, self._fact, self._handler = 0, "", event.handler
        address = assigned.address
        parent = remote_parent(trace.trace_id, task_span(trace.trace_id, address.run_id, address.n), sampled=True)
        about = {names.SPACE: space, names.RUN_ID: address.run_id, names.STEP: address.n}
        self._span = tracing.start(
            f"execute {address.agent}.{event.handler}",
            SpanKind.CONSUMER,
            parent,
            execute_span(trace.trace_id, assigned.id),
            about | execute_attributes(assigned, event),
        )
        self._token: Token[Any] = contexts.attach(set_span_in_context(self._span))

    @property
    def traceparent(self) -> str:
        """Of the attempt."""
        context = self._span.get_span_context()
        return format_traceparent(context.trace_id, context.span_id, sampled=context.trace_flags.sampled)

    def leave(self) -> None:
        """From here on it is not the current span."""
        contexts.detach(self._token)

    def answered(self, fact: str, wrong: str) -> None:
        """The handler is done; `wrong` is the kind of error, if there was one."""
        self._ended_ns, self._fact = time.time_ns(), fact
        if wrong and self._span.is_recording():
            self._span.set_attribute(names.ERROR_TYPE, wrong)
            self._span.set_status(Status(StatusCode.ERROR, wrong))

    def accepted(self, event_id: str) -> None:
        """The log has the answer, under this id."""
        if not self._span.is_recording():
            return
        self._span.end(self._ended_ns)
        address, context = self._assigned.address, self._span.get_span_context()
        complete = Span(
            name=f"complete {address.agent}.{self._handler}",
            kind="producer",
            author="agent",
            trace_id=context.trace_id,
            span_id=span_id(context.trace_id, "complete", event_id),
            parent_id=context.span_id,
            begin=self._ended_ns // 1000,
            end=time.time_ns() // 1000,
        )
        complete.attributes = message_attributes("complete", "send", address.agent, self._assigned) | {
            names.MESSAGE_ID: event_id,
            names.OUTCOME: self._fact,
            names.RUN_ID: address.run_id,
            names.STEP: address.n,
        }
        self._tracing.emit([complete])
