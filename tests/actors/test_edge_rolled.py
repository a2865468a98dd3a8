"""The log is rolled, and what was rolled dropped, while an edge is cut off with answers and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client as Nats

from cuebook.actors import forwarder
from cuebook.actors.rolling import Roller
from cuebook.embedded.nats_edge import NatsEdge, nats_edge
from cuebook.events.connection import Connection
from cuebook.events.generations import use_past_opener
from cuebook.events.jetstream import js_request
from cuebook.events.past import Generation, Past, StreamPast
from tests.actors.desk import Desk
from tests.actors.site import Site
from tests.actors.test_edge import TASKS, Till, give
from tests.actors.test_edge_disk import publish, readings
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _cast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Till.gate = asyncio.Event()
    monkeypatch.setattr(forwarder, "RETRY_S", 0.1)
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[NatsEdge]:
    async with nats_edge(tmp_path / "servers") as running:
        yield running


@pytest.fixture
async def sensor(servers: NatsEdge) -> AsyncIterator[Nats]:
    connection = await nats.connect(servers.url)
    yield connection
    await connection.close()


async def roll_and_drop(desk: Desk) -> None:
    """What was rolled is where only those at the hub can read it, as segments in a directory there are."""
    connection = desk.client.log.connection
    rolled = await Roller(desk.client.log, by="test", say=lambda text: None).roll()
    assert rolled is not None
    copy = f"COPY_{rolled.stream}"
    await js_request(
        connection, f"STREAM.CREATE.{copy}", {"name": copy, "mirror": {"name": rolled.stream}, "allow_direct": True}
    )

    async def copied() -> bool:
        info = await js_request(connection, f"STREAM.INFO.{copy}", {})
        return int(info["state"]["last_seq"]) == rolled.last

    await eventually(copied)

    async def opened(connection: Connection, space: str, about: Generation) -> Past:
        return StreamPast(connection, replace(about, stream=copy))

    for one in (connection, *(stage.connection for stage in desk.stages)):
        use_past_opener(one, opened)
    await js_request(connection, f"STREAM.DELETE.{rolled.stream}", {})


@pytest.mark.parametrize("restarted", [False, True], ids=["goes on", "restarted"])
async def test_what_waited_at_an_edge_comes_to_the_log_that_was_rolled_meanwhile(
    servers: NatsEdge, sensor: Nats, space: str, restarted: bool, expected_errors: list[str]
) -> None:
    expected_errors.append("up to where the log has the events of this edge cannot be read any more")
    async with Desk(servers.hub.url, space) as desk:
        site = await Site(servers, space, Till).__aenter__()
        [instance] = site.host.instances
        run_ids = await give(desk)
        await publish(sensor, space, 1, 2, 3)
        await eventually(lambda: instance.in_flight == TASKS and site.forwarder.forwarded == 3)
        servers.link.cut()
        await publish(sensor, space, 4, 5, 6)
        Till.gate.set()
        await eventually(lambda: site.kept == TASKS and site.forwarder.waiting == 3)
        await roll_and_drop(desk)
        if restarted:
            await site.__aexit__()
            site = await Site(servers, space, Till).__aenter__()
        servers.link.mend()
        for run_id in run_ids:
            outcome = await desk.client.wait(run_id, timeout_s=20)
            assert outcome.status == "completed"
        await eventually(lambda: site.kept == 0 and site.forwarder.waiting == 0)
        await publish(sensor, space, 7)
        await eventually(lambda: site.forwarder.waiting == 0)

        async def told() -> bool:
            return await readings(desk) == [1, 2, 3, 4, 5, 6, 7]

        await eventually(told)
        await site.__aexit__()
