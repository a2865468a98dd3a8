"""Whether telemetry is wanted, without loading any of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["is_on"]


def is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether traces are wanted: an endpoint is set, or an exporter is chosen, and the SDK is not disabled."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter != "none"
    return bool(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
