"""A roll in a log that ends with a marker already, of a roll that was undone or of nobody's: all readers go over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cuebook.actors import rolling
from cuebook.actors.rolling import Rolled, Roller
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import ConfigurationError
from cuebook.events.generations import marker_of
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.waiting import eventually


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


async def roll(url: str, space: str) -> Rolled | None:
    """As the command does: over a connection of its own."""
    connection = await connect(url, name="operator")
    try:
        async with EventLog(connection, space, source="operator") as log:
            return await Roller(log, by="test", say=lambda text: None).roll()
    finally:
        await connection.close()


async def publish(log: EventLog, subject: str) -> int:
    answer = await log.connection.request(subject, b"{}", timeout=10)
    assert b'"seq"' in answer.data
    return (await log.verify()).last_sequence


@pytest.mark.parametrize("whose", ["undone", "foreign"])
async def test_who_follows_goes_over_where_the_log_ends_with_an_older_marker(
    log: EventLog, nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    followed: list[int] = []
    await publish(log, f"{space}.event.a")

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    async with log.feed(receive) as feed:
        if whose == "undone":
            with monkeypatch.context() as patched:
                patched.setattr(rolling, "js_request", refusing_to_end)
                with pytest.raises(ConfigurationError, match="refused"):
                    await roll(nats_url, space)
        else:
            await publish(log, marker_of(log.subjects))
        facts = await log.verify()
        assert (facts.generation, facts.rolling, facts.last_sequence) == (1, False, 2)
        await eventually(lambda: followed == [1, 2])
        rolled = await roll(nats_url, space)
        assert rolled is not None
        last = await publish(log, f"{space}.event.b")
        await eventually(lambda: followed[-1:] == [last])
        assert not feed.failure.done()
    assert followed == list(range(1, last + 1))


async def refusing_to_end(connection: Connection, subject: str, request: Any, *args: Any, **options: Any) -> Any:
    """The server does all but let go of the old stream."""
    if subject.startswith("STREAM.UPDATE") and request["subjects"][0].startswith("rolled."):
        raise ConfigurationError("refused")
    return await js_request(connection, subject, request, *args, **options)
