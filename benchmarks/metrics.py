"""What metrics cost: the processes serve them, and somebody scrapes them all once a second."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from cuebook.embedded.process import free_port

__all__ = ["metrics_address", "metrics_environment", "scraped"]

EVERY_S: Final = 1.0
"""Fifteen times as often as Prometheus usually does."""
ROLES: Final = ("orchestrator", "agents", "projections")
_VARIABLE: Final = "BENCHMARK_METRICS_{}"


def metrics_environment() -> dict[str, str]:
    """An address for each process."""
    return {_VARIABLE.format(role.upper()): f"127.0.0.1:{free_port()}" for role in ROLES}


def metrics_address(role: str) -> str:
    """Where the process in this role serves them; empty: nowhere."""
    return os.environ.get(_VARIABLE.format(role.upper()), "")


@contextmanager
def scraped(env: Mapping[str, str]) -> Iterator[None]:
    """Scrape whoever has an address there, until the end of the block, in a thread of this process."""
    ended = threading.Event()
    urls = [f"http://{env[name]}/metrics" for role in ROLES if (name := _VARIABLE.format(role.upper())) in env]

    def scrape() -> None:
        while not ended.wait(EVERY_S):
            for url in urls:
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        answer.read()
                except OSError:
                    pass  # no projections, or not yet

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
