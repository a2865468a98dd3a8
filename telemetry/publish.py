"""What a client publishes, as a span of its own under whatever span is current in the program that uses it.

The program's own tracer is used, as an instrumented library does. A program that has not loaded OpenTelemetry pays for
one look into a dictionary.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cuebook.telemetry import attributes as names
from cuebook.telemetry.span import Value
from cuebook.telemetry.trace import format_traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["Publishing", "publishing"]


class Publishing:
    """One message on its way into the log; `traceparent` goes with it, empty where there is nothing to say."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, traceparent: str = "", span: Span | None = None) -> None:
        self.traceparent, self._span = traceparent, span

    def done(self, error: BaseException | None = None) -> None:
        """It is stored, or it is not."""
        span = self._span
        if span is None or not span.is_recording():
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            span.set_attribute(names.ERROR_TYPE, type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end()


_NOTHING = Publishing()


@lru_cache(maxsize=4)  # to ask for one takes longer than to begin a span
def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("cuebook")


def publishing(destination: str, run_id: str, space: str, *, origin: tuple[int, int] | None = None) -> Publishing:
    """Begin a message for a saga, an agent or a topic. `origin`: root of the run it repeats, as trace and span id.

    A run that repeats another has a trace of its own, with a link to the other's.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    links: list[Any] = []
    if origin is not None:
        context = trace.SpanContext(*origin, is_remote=True, trace_flags=trace.TraceFlags(1))
        links.append(trace.Link(context, {names.LINK: "retry of another run"}))
    under = sys.modules["opentelemetry.context"].Context() if origin is not None else None
    span: Span = _tracer(trace.get_tracer_provider()).start_span(
        f"publish {destination}", under, trace.SpanKind.PRODUCER, links=links
    )
    if span.is_recording():
        about: dict[str, Value] = {
            names.SYSTEM: "nats",
            names.OPERATION: "publish",
            names.OPERATION_TYPE: "send",
            names.DESTINATION: destination,
            names.SPACE: space,
        }
        if run_id:
            about[names.RUN_ID] = run_id
        span.set_attributes(about)
    context = span.get_span_context()
    if not context.is_valid:
        return _NOTHING
    return Publishing(format_traceparent(context.trace_id, context.span_id, sampled=context.trace_flags.sampled), span)
