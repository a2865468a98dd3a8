"""What a client publishes, as a span of its own under whatever span is current in the program that uses it.

The program's own tracer is used, as an instrumented library does; where its sampler is one of the SDK's, a message that
is not sampled gets its `traceparent` and no span. A program that has not loaded OpenTelemetry pays for one look into a
dictionary.
"""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from cuebook.telemetry import attributes as names
from cuebook.telemetry.span import Value
from cuebook.telemetry.trace import format_traceparent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Span, TracerProvider

    from cuebook.telemetry.sampling import Selection

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


class _Drawn:
    """The ids of a program's tracer, but of the next trace in this thread the one that was drawn and selected."""

    def __init__(self, ids: IdGenerator) -> None:
        self._ids, self._drawn = ids, threading.local()
        self.generate_span_id, self.is_trace_id_random = ids.generate_span_id, ids.is_trace_id_random

    def draw(self) -> int:
        """An id for a trace."""
        return self._ids.generate_trace_id()

    def select(self, trace_id: int) -> None:
        """The next trace in this thread has this id."""
        self._drawn.id = trace_id

    def generate_trace_id(self) -> int:
        """See IdGenerator."""
        drawn: int | None = self._drawn.__dict__.pop("id", None)
        return drawn if drawn is not None else self._ids.generate_trace_id()


class _Source:
    """Where the spans of a program come from. `ids` and `selection` only where the provider is that of the SDK."""

    __slots__ = ("ids", "selection", "tracer")

    def __init__(self, provider: TracerProvider) -> None:
        self.tracer = cast("Any", provider.get_tracer("cuebook"))  # an object of our own, so its ids are too
        self.ids: _Drawn | None = None
        self.selection: Selection | None = None
        sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
        if sdk is not None and type(self.tracer) is sdk.Tracer:
            from cuebook.telemetry.sampling import Selection

            self.selection = Selection(self.tracer.sampler)
            if self.selection.bound is not None:
                self.ids = self.tracer.id_generator = _Drawn(self.tracer.id_generator)

    def unsampled(self, trace: Any) -> str:
        """The `traceparent` of a message that is not sampled; empty where it is, or where only the SDK knows."""
        if self.selection is None:
            return ""
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            if current.trace_flags.sampled or not self.selection.follows_parents:
                return ""
            return format_traceparent(current.trace_id, current.span_id, sampled=False)
        return self.unsampled_root()

    def unsampled_root(self) -> str:
        """The same for one that is under nothing."""
        if self.ids is None or self.selection is None:
            return ""
        trace_id = self.ids.draw()
        if self.selection.takes(trace_id):
            self.ids.select(trace_id)
            return ""
        return format_traceparent(trace_id, self.ids.generate_span_id(), sampled=False)


_source = lru_cache(maxsize=4)(_Source)  # to ask for a tracer takes longer than to begin a span


def publishing(destination: str, run_id: str, space: str, *, origin: tuple[int, int] | None = None) -> Publishing:
    """Begin a message for a saga, an agent or a topic. `origin`: root of the run it repeats, as trace and span id.

    A run that repeats another has a trace of its own, with a link to the other's.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    source = _source(trace.get_tracer_provider())
    unsampled = source.unsampled(trace) if origin is None else source.unsampled_root()
    if unsampled:
        return Publishing(unsampled)
    links: list[Any] = []
    if origin is not None:
        context = trace.SpanContext(*origin, is_remote=True, trace_flags=trace.TraceFlags(1))
        links.append(trace.Link(context, {names.LINK: "retry of another run"}))
    under = sys.modules["opentelemetry.context"].Context() if origin is not None else None
    span: Span = source.tracer.start_span(f"publish {destination}", under, trace.SpanKind.PRODUCER, links=links)
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
