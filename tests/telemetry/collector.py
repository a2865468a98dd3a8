"""A collector for tests: takes OTLP over grpc or http and decodes it with the official messages, nothing of ours."""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

__all__ = ["Collected", "Collector", "collector"]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One span as it came. Times in nanoseconds since 1970."""

    service: str
    resource: dict[str, Any]
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    begin: int
    end: int
    attributes: dict[str, Any]
    events: list[str]
    links: list[tuple[str, str]]
    error: str


@dataclass
class Collector:
    """What has come so far; `endpoint` and `protocol` are for the environment of who sends."""

    protocol: str
    endpoint: str = ""
    spans: list[Collected] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    """What came as the header `authorization`."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process sends its traces here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        }

    def take(self, request: Any) -> None:
        """One request of an exporter."""
        for group in request.resource_spans:
            resource = _plain(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Collected(
                            service=resource["service.name"],
                            resource=resource,
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            begin=span.start_time_unix_nano,
                            end=span.end_time_unix_nano,
                            attributes=_plain(span.attributes),
                            events=[event.name for event in span.events],
                            links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                            error=span.status.message if span.status.code == 2 else "",
                        )
                    )

    def paths(self) -> Counter[str]:
        """Each span by the names from its root to it, with how many of them there are. A lost parent shows as `?`."""
        known = {span.span_id: span for span in self.spans}

        def path(span: Collected) -> str:
            if not span.parent_id:
                return span.name
            parent = known.get(span.parent_id)
            return f"{path(parent) if parent else '?'} > {span.name}"

        return Counter(map(path, self.spans))

    def named(self, name: str) -> list[Collected]:
        """Those of a name, by when they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.begin)


@contextmanager
def collector(protocol: str) -> Iterator[Collector]:
    """A running collector; `protocol` as in OTEL_EXPORTER_OTLP_PROTOCOL."""
    found = Collector(protocol)
    with _over_grpc(found) if protocol == "grpc" else _over_http(found):
        yield found


@contextmanager
def _over_grpc(found: Collector) -> Iterator[None]:
    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the protocol
            found.tokens |= {value for name, value in context.invocation_metadata() if name == "authorization"}
            found.take(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(Service(), server)
    found.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _over_http(found: Collector) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = trace_service_pb2.ExportTraceServiceRequest()
            request.ParseFromString(body)
            found.tokens |= {self.headers["authorization"]} if "authorization" in self.headers else set()
            if self.path == "/v1/traces":
                found.take(request)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _plain(attributes: Any) -> dict[str, Any]:
    found = {}
    for one in attributes:
        which = one.value.WhichOneof("value")
        value = getattr(one.value, which)
        found[one.key] = [item.string_value for item in value.values] if which == "array_value" else value
    return found
