"""One attempt at a task as it happens: the span under which the agent's own spans lie, also those of its threads.

It is sent when the log has taken the answer. An answer that came too late is not the outcome of the attempt: what was
made of it says the orchestrator's span, which has the same id.
"""

from __future__ import annotations

import time
from contextvars import Token
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.trace import Span as LiveSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskAssigned
from cuebook.telemetry import attributes as names
from cuebook.telemetry.life import execute_attributes, message_attributes
from cuebook.telemetry.pipeline import Tracing, remote_parent
from cuebook.telemetry.span import Span
from cuebook.telemetry.trace import context_of, execute_span, format_traceparent, span_id, task_span

__all__ = ["Attempt"]


class Attempt:
    """Begins when made. `enter` and `leave` go around the handler, then `answered`, then perhaps `accepted`."""

    __slots__ = ("_assigned", "_ended_ns", "_fact", "_handler", "_span", "_token", "_tracing")

    def __init__(self, tracing: Tracing, assigned: Envelope, event: TaskAssigned, space: str) -> None:
        self._tracing, self._assigned = tracing, assigned
        self._ended_ns, self._fact, self._handler = 0, "", event.handler
        self._token: Token[Any] | None = None
        address, trace = assigned.address, context_of(assigned)
        name = f"execute {address.agent}.{event.handler}"
        if tracing.skips(assigned.traceparent) or not tracing.samples(trace, name):  # what is under it is not either
            self._span: LiveSpan = remote_parent(trace.trace_id, trace.parent_id or 1, sampled=False)
            return
        parent = remote_parent(trace.trace_id, task_span(trace.trace_id, address.run_id, address.n), sampled=True)
        about = {names.SPACE: space, names.RUN_ID: address.run_id, names.STEP: address.n}
        self._span = tracing.start(
            name,
            SpanKind.CONSUMER,
            parent,
            execute_span(trace.trace_id, assigned.id),
            about | execute_attributes(assigned, event),
        )

    @property
    def traceparent(self) -> str:
        """For whatever the handler calls that has no instrumentation of its own."""
        context = self._span.get_span_context()
        return format_traceparent(context.trace_id, context.span_id, sampled=context.trace_flags.sampled)

    def enter(self) -> None:
        """From here on it is the current span."""
        self._token = contexts.attach(set_span_in_context(self._span))

    def leave(self) -> None:
        """No more."""
        if self._token is not None:
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
