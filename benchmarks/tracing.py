"""What tracing costs: who is traced, and a collector that takes everything and does nothing with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc

__all__ = ["OFF", "environment_of", "sink"]

OFF: Final = "off"
_QUEUE: Final = 1_000_000
"""Spans: none is dropped, so that the cost of all of them is measured."""


def environment_of(tracing: str, endpoint: str) -> dict[str, str]:
    """For the processes of a scenario; `tracing` is `off` or a share such as `1%`. Raises ValueError."""
    if tracing == OFF:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(float(tracing.removesuffix("%")) / 100),
        "OTEL_BSP_MAX_QUEUE_SIZE": str(_QUEUE),
    }


_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"


@contextmanager
def sink(shares: Sequence[str]) -> Iterator[str]:
    """A collector over grpc, if any of the shares needs one; gives its endpoint.

    It runs in this process, whose CPU time is nobody's.
    """
    if set(shares) == {OFF}:
        yield ""
        return

    taking = grpc.unary_unary_rpc_method_handler(_take)
    methods = grpc.method_handlers_generic_handler(_SERVICE, {"Export": taking})
    server = grpc.server(ThreadPoolExecutor(2), handlers=[methods])
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield endpoint
    finally:
        server.stop(None).wait()


def _take(*_: Any) -> bytes:
    return b""  # a response with nothing in it
