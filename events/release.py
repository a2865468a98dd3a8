"""Which release of cuebook this process runs."""

from __future__ import annotations

import functools
from importlib import metadata

__all__ = ["release"]


@functools.cache
def release() -> str:
    """Its version; empty in a checkout that was never installed."""
    try:
        return metadata.version("cuebook")
    except metadata.PackageNotFoundError:
        return ""
