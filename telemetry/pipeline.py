"""From spans to a collector, as the standard `OTEL_*` variables say; a collector that is dead or slow holds up nothing.

Ended spans wait in a bounded queue for a thread of their own. What does not fit is dropped at once, what the collector
does not take is dropped too, and both are counted and said in the process' log.

Everything here is imported only where telemetry is on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from opentelemetry import trace as api
from opentelemetry.context import Context, attach, set_value
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.re import parse_env_headers

from cuebook.events.errors import ConfigurationError
from cuebook.events.release import release
from cuebook.telemetry import attributes as names
from cuebook.telemetry.sampling import Selection
from cuebook.telemetry.settings import is_on
from cuebook.telemetry.span import Span

__all__ = ["SpanQueue", "Tracing", "exporter_of", "remote_parent", "tracing_of"]

SCOPE: Final = "cuebook"
FLUSH_S: Final = 2.0
"""So long the end of a process waits for the collector."""
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
REPORT_EVERY_S: Final = 60.0
_KINDS: Final = {"internal": SpanKind.INTERNAL, "producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)

logger = logging.getLogger(__name__)


def exporter_of(environ: Mapping[str, str] = os.environ) -> SpanExporter:
    """The exporter that the variables name; it reads the others, such as the endpoint, by itself.

    Raises ConfigurationError for one that there is not.
    """
    chosen = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if chosen == "console":
        return ConsoleSpanExporter()
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if chosen != "otlp" or protocol not in ("grpc", "http/protobuf"):
        what = f"OTEL_TRACES_EXPORTER={chosen}" if chosen != "otlp" else f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}"
        raise ConfigurationError(
            f"{what} is not supported", remedy="choose otlp with grpc or http/protobuf, console, or none"
        )
    headers = _secret_headers(environ)
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

            return GrpcExporter(headers=headers)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(headers=headers)
    except ImportError as error:
        raise ConfigurationError(
            "traces are to be sent, but the exporters are not installed",
            remedy="install 'cuebook[otlp]', or set OTEL_TRACES_EXPORTER=none",
        ) from error


def _secret_headers(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Headers that the variables do not say themselves, for they are a secret, but by `@FILE`; None where they do.

    Raises ConfigurationError for a file that cannot be read, or holds no headers.
    """
    variable = next((one for one in _HEADERS if environ.get(one)), "")
    if not environ.get(variable, "").startswith("@"):
        return None
    name = environ[variable].removeprefix("@")
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{variable}: {name!r} cannot be read: {error}", remedy="correct the file") from error
    headers = dict(parse_env_headers(text, liberal=True))
    if text and not headers:  # not shown: it is meant to be secret
        raise ConfigurationError(
            f"{variable}: {name!r} holds no headers", remedy="write NAME=VALUE, with commas between"
        )
    for one in _HEADERS:
        os.environ.pop(one, None)  # or the exporter would read the file's name as a header
    return headers


class SpanQueue(SpanProcessor):
    """Spans on their way out. Takes those of the SDK and ours; sizes and delays are those of `OTEL_BSP_*`.

    `dropped`: for want of room, or at the end. `refused`: not taken by the collector. `sent`: taken.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource) -> None:
        self.dropped = self.refused = self.sent = 0
        self._exporter = exporter
        self._steady = Resource({key: value for key, value in resource.attributes.items() if key not in _OF_A_PROCESS})
        """What spans made from the log say about where they come from: the same whoever makes them."""
        self._own = resource
        self._scope = InstrumentationScope(SCOPE, release())
        self._most = max(_number("OTEL_BSP_MAX_QUEUE_SIZE", 2048), 1)
        self._batch = max(min(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), self._most), 1)
        self._delay_s = max(_number("OTEL_BSP_SCHEDULE_DELAY", 5000), 1) / 1000
        self._waiting: deque[Span | ReadableSpan] = deque()
        self._wake, self._end = threading.Event(), False
        self._counting = threading.Lock()
        self._reported, self._reported_at = 0, 0.0
        self._thread = threading.Thread(target=self._work, name="cuebook spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """See SpanProcessor."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.put(span)

    def put(self, span: Span | ReadableSpan) -> None:
        """Take one that has ended, or drop it; never waits."""
        if len(self._waiting) >= self._most or self._end:
            with self._counting:
                self.dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) >= self._batch and not self._wake.is_set():
            self._wake.set()

    def shutdown(self) -> None:
        """Send what waits, for at most FLUSH_S; what is left is dropped."""
        if self._end:
            return
        self._end = True
        self._wake.set()
        self._thread.join(FLUSH_S)
        with self._counting:
            self.dropped += len(self._waiting)
        self._waiting.clear()
        ending = threading.Thread(target=self._exporter.shutdown, daemon=True)  # may wait for what is under way
        ending.start()
        ending.join(FLUSH_S / 4)
        self._report(at_once=True)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether all that waits now has left the queue in time."""
        by = time.monotonic() + timeout_millis / 1000
        while self._waiting and time.monotonic() < by:
            self._wake.set()
            time.sleep(0.01)
        return not self._waiting

    def _work(self) -> None:
        attach(set_value("suppress_instrumentation", True))  # what we send makes no spans
        while not self._end:
            self._wake.wait(self._delay_s)
            self._wake.clear()
            self._send()
        self._send()

    def _send(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            try:
                spans = [self._readable(span) if isinstance(span, Span) else span for span in batch]
                taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the work goes on
                logger.debug("an exporter failed: %s", error)
                taken = False
            if taken:
                self.sent += len(batch)
            else:
                self.refused += len(batch)
            self._report()

    def _report(self, *, at_once: bool = False) -> None:
        lost = self.dropped + self.refused
        if lost > self._reported and (at_once or time.monotonic() - self._reported_at >= REPORT_EVERY_S):
            logger.warning(
                "spans were lost; the work is not held up",
                extra={"dropped": self.dropped, "refused": self.refused, "sent": self.sent},
            )
            self._reported, self._reported_at = lost, time.monotonic()

    def _readable(self, span: Span) -> ReadableSpan:
        parent = SpanContext(span.trace_id, span.parent_id, True, _SAMPLED) if span.parent_id else None
        return ReadableSpan(
            name=span.name,
            context=SpanContext(span.trace_id, span.span_id, False, _SAMPLED),
            parent=parent,
            resource=self._own if span.author == "agent" else self._steady,
            attributes=span.attributes,
            events=[Event(one.name, one.attributes, one.at * 1000) for one in span.events],
            links=[_link(one.trace_id, one.span_id, one.why) for one in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.begin * 1000,
            end_time=span.end * 1000,
            instrumentation_scope=self._scope,
        )


class _Ids(RandomIdGenerator):
    """Random ids, but for the next span in this thread the one that is asked for."""

    def __init__(self) -> None:
        self.wanted = threading.local()

    def generate_span_id(self) -> int:
        found: int | None = self.wanted.__dict__.pop("id", None)
        return found if found is not None else super().generate_span_id()


class Tracing:
    """Traces of this process. `emit` sends spans made from the log, `start` begins one of what happens now.

    `skips` and `samples` are those of the `selection`. Use `close` at the end of the process.
    """

    def __init__(self, service: str, exporter: SpanExporter) -> None:
        resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or service, **_process()})
        self._ids = _Ids()
        self.provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self.queue = SpanQueue(exporter, resource)
        self.provider.add_span_processor(self.queue)
        self._tracer = self.provider.get_tracer(SCOPE, release())
        self.selection = Selection(self.provider.sampler)
        self.skips, self.samples = self.selection.skips, self.selection.samples

    def close(self) -> None:
        """Send what waits, for a moment; see SpanQueue."""
        self.provider.shutdown()

    def emit(self, spans: Sequence[Span]) -> None:
        """Send what has ended. Never waits."""
        for span in spans:
            self.queue.put(span)

    def start(
        self, name: str, kind: SpanKind, parent: NonRecordingSpan, span_id: int, attributes: Mapping[str, object]
    ) -> api.Span:
        """Begin a span with this id, now; it is recorded where the sampler wants it."""
        self._ids.wanted.id = span_id
        context: Context = set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context, kind, dict(attributes))  # type: ignore[arg-type]


def remote_parent(trace_id: int, span_id: int, *, sampled: bool) -> NonRecordingSpan:
    """A span somewhere else, as the parent of spans here."""
    return NonRecordingSpan(SpanContext(trace_id, span_id, True, _SAMPLED if sampled else _NOT_SAMPLED))


def tracing_of(service: str) -> Tracing | None:
    """What the environment asks for; the process' own provider for everybody who uses the API of OpenTelemetry.

    Raises ConfigurationError.
    """
    if not is_on():
        return None
    for noisy in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # the queue says what was lost, once a minute
    tracing = Tracing(service, exporter_of())
    api.set_tracer_provider(tracing.provider)
    return tracing


def _link(trace_id: int, span_id: int, why: str) -> Link:
    return Link(SpanContext(trace_id, span_id, True, _SAMPLED), {names.LINK: why})


_OF_A_PROCESS: Final = frozenset({SERVICE_INSTANCE_ID, "host.name", "process.pid"})


def _process() -> dict[str, str | int]:
    return {"host.name": os.uname().nodename, "process.pid": os.getpid()}


def _number(variable: str, default: int) -> int:
    try:
        return int(os.environ.get(variable, "") or default)
    except ValueError:
        logger.warning("not a number, using the default", extra={"variable": variable, "default": default})
        return default
