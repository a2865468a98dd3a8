"""Traces of a process of ours, where the environment asks for them; else nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cuebook.telemetry.settings import is_on

if TYPE_CHECKING:
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["traced"]


@contextmanager
def traced(service: str) -> Iterator[Tracing | None]:
    """Traces until the end of the block, which sends what waits. Raises ConfigurationError.

    `service` is the `service.name`, unless OTEL_SERVICE_NAME says another.
    """
    if not is_on():
        yield None
        return
    from cuebook.telemetry.pipeline import tracing_of

    tracing = tracing_of(service)
    try:
        yield tracing
    finally:
        if tracing is not None:
            tracing.close()
