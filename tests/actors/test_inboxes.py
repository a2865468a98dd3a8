"""The consumer by which an instance gets its assignments is made anew only once the instance knows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from cuebook.actors.orchestrator import inboxes
from cuebook.actors.orchestrator.inboxes import Inboxes
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from tests.actors.cast import Bell
from tests.actors.desk import Desk


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "TELL_S", 0.2)


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Nats]:
    connection = await nats.connect(nats_url)
    yield connection
    await connection.close()


@pytest.fixture
async def log(nats_url: str, space: str) -> AsyncIterator[EventLog]:
    connection = await connect(nats_url, name="tests")
    async with EventLog(connection, space, source="tests") as opened:
        await opened.ensure()
        yield opened
    await connection.close()


async def test_an_instance_that_does_not_hear_it_is_told_again_before_anything_is_delivered(
    client: Nats, log: EventLog
) -> None:
    told: list[bool] = []

    async def hear(request: Msg) -> None:
        told.append(await is_there(client, log))
        if len(told) == 2:  # the first was lost on the way
            await request.respond(b"{}")

    await client.subscribe(log.subjects.control("till", "i1"), cb=hear)
    await client.flush()
    inboxes = Inboxes(log.connection, log.subjects)
    assert inboxes.want("till", "i1")
    await inboxes.open("till", "i1", 0, anew=True)
    assert told == [False, False]
    assert await is_there(client, log)


async def test_an_instance_of_a_release_that_does_not_answer_gets_its_consumer(client: Nats, log: EventLog) -> None:
    subscription = await client.subscribe(log.subjects.control("till", "i1"))
    await client.flush()
    inboxes = Inboxes(log.connection, log.subjects)
    inboxes.want("till", "i1")
    await inboxes.open("till", "i1", 0, anew=True)
    assert await is_there(client, log)
    assert {(await subscription.next_msg(timeout=10)).data for _ in range(3)} == {b'{"anew": true}'}


async def test_an_instance_that_is_away_gets_its_consumer_at_once(client: Nats, log: EventLog) -> None:
    inboxes = Inboxes(log.connection, log.subjects)
    inboxes.want("till", "i1")
    await inboxes.open("till", "i1", 0, anew=True)
    assert await is_there(client, log)


async def test_an_instance_says_that_it_knows(client: Nats, nats_url: str, space: str) -> None:
    async with Desk(nats_url, space) as desk:
        [instance] = (await desk.hire(Bell)).host.instances
        control = desk.client.log.subjects.control("bell", instance.id)
        assert (await client.request(control, b'{"anew": true}', timeout=10)).data == b"{}"


async def is_there(client: Nats, log: EventLog) -> bool:
    try:
        await client.jetstream().consumer_info(log.chain.stream, "till__i1")
    except NotFoundError:
        return False
    return True
