"""A log, and the tables of its space, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cuebook.events.connection import Connection, connect
from cuebook.events.log import EventLog
from tests.projections.tables import Tables


@pytest.fixture
def tables(database_url: str, space: str) -> Tables:
    return Tables(database_url, space)


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
