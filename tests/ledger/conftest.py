"""A log for each test on the shared server, and a key."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cuebook.events.connection import Connection, connect
from cuebook.events.log import EventLog
from cuebook.ledger.notes import PrivateKey


@pytest.fixture
async def connection(nats_url: str) -> AsyncIterator[Connection]:
    opened = await connect(nats_url, name="tests")
    yield opened
    await opened.close()


@pytest.fixture
async def log(connection: Connection, space: str) -> AsyncIterator[EventLog]:
    async with EventLog(connection, space, source="tests") as opened:
        await opened.ensure()
        yield opened


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey("example.com/cue", b"\x07" * 32)
