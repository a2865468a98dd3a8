"""Every test here also fails on what nobody awaits and nobody reads: errors that are only logged."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cuebook.actors import instance
from cuebook.actors.orchestrator import lease
from cuebook.embedded.nats_edge import NatsEdge, nats_edge


@pytest.fixture
def expected_errors() -> list[str]:
    """Beginnings of messages that a test expects to be logged as errors."""
    return []


@pytest.fixture(autouse=True)
def no_error_is_only_logged(caplog: pytest.LogCaptureFixture, expected_errors: list[str]) -> Iterator[None]:
    """Exceptions that end in a callback, in a task or in an errand of the orchestrator."""
    yield
    gc.collect()
    wrong = [
        record
        for record in caplog.get_records("call")
        if record.levelno >= logging.ERROR and not record.getMessage().startswith(tuple(expected_errors or ["\0"]))
    ]
    assert not wrong, "\n".join(logging.Formatter().format(record) for record in wrong)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What production waits for out of prudence would add up over the tests."""
    monkeypatch.setattr(instance, "LINGER_S", 0.05)
    monkeypatch.setattr(lease, "TRY_S", 0.1)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[NatsEdge]:
    """A hub and an edge of its own, with a link that can be cut."""
    async with nats_edge(tmp_path / "servers") as running:
        yield running
