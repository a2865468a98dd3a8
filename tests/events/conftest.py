"""A connection and a log for each test on the shared server, or a server of its own for those that kill it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.events.connection import Connection, connect
from cuebook.events.log import EventLog
from tests.events.proxy import Proxy, proxy


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
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server that the test may kill and restart."""
    async with nats_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def own_log(server: NatsServer, space: str) -> AsyncIterator[EventLog]:
    """A log on `server`."""
    connection = await connect(server.url, name="tests")
    async with EventLog(connection, space, source="tests") as opened:
        await opened.ensure()
        yield opened
    await connection.close()


@pytest.fixture
async def line(server: NatsServer) -> AsyncIterator[Proxy]:
    """What stands between `server` and `far_log`."""
    async with proxy(server.url) as running:
        yield running


@pytest.fixture
async def far_log(line: Proxy, space: str) -> AsyncIterator[EventLog]:
    """A log on `server`, at the other end of `line`."""
    connection = await connect(line.url, name="tests")
    async with EventLog(connection, space, source="tests") as opened:
        await opened.ensure()
        yield opened
    await connection.close()
