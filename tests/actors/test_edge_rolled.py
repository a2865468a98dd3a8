"""The log is rolled, and what was rolled dropped, while an edge is cut off with answers and events."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client as Nats

from cuebook.actors import Run, edge, forwarder, saga
from cuebook.actors.rolling import Roller
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import Connection, connect
from cuebook.events.generations import use_past_opener
from cuebook.events.jetstream import js_request
from cuebook.events.past import Generation, Past, StreamPast
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.actors.site import TASKS, Site, Till, answers_stored, give, publish, readings
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _cast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Till.gate = asyncio.Event()
    monkeypatch.setattr(forwarder, "RETRY_S", 0.1)
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))


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
    async with Desk(servers.hub.url, space) as desk, AsyncExitStack() as places:
        site = await places.enter_async_context(Site(servers, space, Till))
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
            await answers_stored(servers, space)
            await removed(servers, space, through=3)  # which is all that the next process knows of what was told
            await places.aclose()
            site = await places.enter_async_context(Site(servers, space, Till))
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


async def removed(servers: NatsEdge, space: str, *, through: int) -> None:
    """Wait until the edge's disk has its events from after there only."""

    async def gone() -> bool:
        info = await js_request(keeper, f"STREAM.INFO.{space.upper()}_EVENTS", {})
        return int(info["state"]["first_seq"]) == through + 1

    keeper = await connect(servers.keeper_url, name="looks")
    async with keeper:
        await eventually(gone)


@saga()
async def adding(run: Run, number: Number) -> None:
    await run.call(Till.add, number)
    await run.wait_for("go", Number)


@pytest.mark.parametrize("is_open", [False, True], ids=["its run is over", "its run is open"])
async def test_an_answer_that_was_taken_without_a_word_is_settled_although_the_old_stream_is_gone(
    servers: NatsEdge, space: str, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_comes_back(block: bytes, *, to_hub: bool) -> bool:
        return not to_hub

    async with Desk(servers.hub.url, space, sagas=[adding]) as desk, Site(servers, space, Till) as site:
        site.host.log.appender.give_up_s = 1.0
        [instance] = site.host.instances
        if is_open:
            run_id = await desk.client.submit_run("adding", {"n": 1})
        else:
            run_id = await desk.client.submit_task("till", {"n": 1})
        await eventually(lambda: instance.in_flight == 1)
        with monkeypatch.context() as patched:
            patched.setattr(servers.link, "is_lost", nothing_comes_back)
            Till.gate.set()
            await desk.saw(run_id, "completed")
            servers.link.cut()
        await roll_and_drop(desk)
        servers.link.mend()
        await eventually(lambda: site.kept == 0 and instance.in_flight == 0)
        log = await desk.log()
        facts = Counter(item.address.fact for item in log)
        assert (facts["completed"], facts["dropped"], facts["reverted"]) == (1, 0 if is_open else 1, 0)
        late = await desk.client.submit_task("till", {"n": 2})
        assert (await desk.client.wait(late, timeout_s=20)).result == {"n": 3}


async def test_events_that_come_while_the_log_is_rolled_are_told_soon(
    servers: NatsEdge, sensor: Nats, space: str
) -> None:
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        enough, count = asyncio.Event(), 0

        async def flow() -> int:
            nonlocal count
            while not enough.is_set():
                count += 1
                await publish(sensor, space, count)
            return count

        flowing = asyncio.create_task(flow())
        for _ in range(2):
            before = site.forwarder.forwarded
            await eventually(lambda before=before: site.forwarder.forwarded > before + 20)  # type: ignore[misc]
            await Roller(desk.client.log, by="test", say=lambda text: None).roll()
        before = site.forwarder.forwarded
        await eventually(lambda: site.forwarder.forwarded > before + 20, within_s=25)
        enough.set()
        last = await flowing

        async def told() -> bool:
            return await readings(desk) == list(range(1, last + 1))

        await eventually(told)


async def is_reached(probe: Nats, space: str) -> bool:
    with contextlib.suppress(nats.errors.Error):
        await probe.request("$JS.API.STREAM.NAMES", b"", timeout=2)
        return True
    return False


@pytest.mark.parametrize("dropped", [False, True], ids=["old stream there", "old stream dropped"])
async def test_what_comes_to_an_edge_that_heard_nothing_of_a_roll_is_told(
    servers: NatsEdge,
    sensor: Nats,
    space: str,
    dropped: bool,
    expected_errors: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "LOOK_EVERY_S", 600.0)  # it does not see that the link is cut either
    expected_errors.append("up to where the log has the events of this edge cannot be read any more")
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        await publish(sensor, space, 1, 2, 3)
        await eventually(lambda: site.forwarder.forwarded == 3)
        servers.link.cut()
        if dropped:
            await roll_and_drop(desk)
        else:
            await Roller(desk.client.log, by="test", say=lambda text: None).roll()
        servers.link.mend()
        async with await connect(servers.uplink_url, name="looks") as probe:
            await eventually(lambda: is_reached(probe, space))
        await publish(sensor, space, 4)

        async def told() -> bool:
            return await readings(desk) == [1, 2, 3, 4]

        await eventually(told, within_s=20)
