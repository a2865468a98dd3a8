"""The disk of an edge is lost while it serves: it goes on with what it has in memory, and nothing is told twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client as Nats
from nats.js.errors import NotFoundError

from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events import feed
from tests.actors.cast import lines
from tests.actors.desk import Desk
from tests.actors.site import TASKS, Site, Till, answers_stored, copied, give, publish, readings
from tests.waiting import eventually

LOST = ["the edge's JetStream "]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Till.gate = asyncio.Event()
    monkeypatch.setattr(feed, "HEARTBEAT_S", 0.5)
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))


@pytest.fixture
async def keeper(servers: NatsEdge) -> AsyncIterator[Nats]:
    connection = await nats.connect(servers.keeper_url)
    yield connection
    await connection.close()


async def lose_the_disk(keeper: Nats, space: str) -> None:
    for stream in ("EDGE", "EVENTS"):
        with contextlib.suppress(NotFoundError):  # without agents only events are kept
            await keeper.jetstream().delete_stream(f"{space.upper()}_{stream}")


async def test_what_an_edge_has_in_memory_outlives_its_disk(
    servers: NatsEdge, keeper: Nats, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors += LOST
    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        [instance] = site.host.instances
        run_ids = await give(desk)
        await publish(keeper, space, 1, 2, 3)
        await eventually(lambda: instance.in_flight == TASKS and site.forwarder.forwarded == 3)
        servers.link.cut()
        await publish(keeper, space, 4, 5, 6)
        await eventually(lambda: site.forwarder.in_memory == 3)
        await lose_the_disk(keeper, space)
        Till.gate.set()
        await eventually(lambda: site.kept == TASKS)
        await publish(keeper, space, 7, 8)

        async def all_is_kept() -> bool:
            with contextlib.suppress(NotFoundError):
                info = await keeper.jetstream().stream_info(f"{space.upper()}_EDGE")
                return int(info.state.messages) == TASKS + 1  # and under which name it goes on
            return False

        await eventually(all_is_kept)
        await answers_stored(servers, space)
        await site.__aexit__()  # and this is what the next process finds
        async with Site(servers, space, Till) as again:
            assert [one.id for one in again.host.instances] == [instance.id]
            servers.link.mend()
            for run_id in run_ids:
                assert (await desk.client.wait(run_id, timeout_s=20)).status == "completed"
            await eventually(lambda: again.kept == 0 and again.forwarder.waiting == 0)
    assert Counter(key for _, key, *_ in lines(tmp_path / "ledger")) == {f"{run_id}/0": 1 for run_id in run_ids}


async def test_events_before_and_after_the_loss_are_told_once_each(
    servers: NatsEdge, keeper: Nats, space: str, expected_errors: list[str]
) -> None:
    expected_errors += LOST
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        await publish(keeper, space, 1, 2, 3)
        await eventually(lambda: site.forwarder.forwarded == 3)
        servers.link.cut()
        await publish(keeper, space, 4, 5, 6)
        await eventually(lambda: site.forwarder.in_memory == 3)
        await lose_the_disk(keeper, space)
        await publish(keeper, space, 7, 8)
        await eventually(lambda: site.forwarder.in_memory == 5)
        servers.link.mend()

        async def told() -> bool:
            return await readings(desk) == [1, 2, 3, 4, 5, 6, 7, 8]

        await eventually(told, within_s=20)
        await lose_the_disk(keeper, space)  # while nothing waits
        await publish(keeper, space, 9)
        await eventually(lambda: site.forwarder.forwarded == 9)
        assert await readings(desk) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        ids = [one.id for one in await desk.events_on("meter.read")]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("waiting", [[], [4, 5]], ids=["nothing waited", "two waited"])
async def test_what_comes_after_the_disk_was_put_back_to_an_older_copy_is_told(
    servers: NatsEdge, space: str, tmp_path: Path, waiting: list[int], expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream was put back to an older copy")
    store, copy = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "copy"
    expected = [1, 2, 3, 4, 5, 6]

    async def told(desk: Desk) -> bool:
        return await readings(desk) == expected

    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space) as site:
            await appear(servers, space, 1, 2, 3)
            await eventually(lambda: site.forwarder.forwarded == 3)
        await appear(servers, space, *waiting)
        await copied(servers, store, copy)
        await appear(servers, space, *({4, 5, 6} - set(waiting)))
        async with Site(servers, space):
            await eventually(lambda: told(desk))
        for number in (7, 9):
            await copied(servers, copy, store)
            await appear(servers, space, number)
            expected.append(number)
            async with Site(servers, space):
                await eventually(lambda: told(desk))
            await appear(servers, space, number + 1)
            expected.append(number + 1)
            async with Site(servers, space) as site:
                await eventually(lambda: told(desk))
                await eventually(lambda: site.forwarder.waiting == 0)
        ids = [one.id for one in await desk.events_on("meter.read")]
        assert len(set(ids)) == len(ids)


async def test_a_restart_of_the_server_at_the_edge_is_no_loss(servers: NatsEdge, space: str) -> None:
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        for number in range(1, 4):
            await appear(servers, space, number)
            await eventually(lambda number=number: site.forwarder.forwarded == number)  # type: ignore[misc]
            await servers.leaf.restart()
        await appear(servers, space, 4)
        await eventually(lambda: site.forwarder.forwarded == 4)
        assert await readings(desk) == [1, 2, 3, 4]


@pytest.mark.parametrize("since", [[], [4]], ids=["copy of what was told", "copy with one that waits"])
async def test_what_was_read_before_the_disk_was_put_back_under_it_is_told(
    servers: NatsEdge, space: str, tmp_path: Path, since: list[int], expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream was put back to an older copy")
    store, copy = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "copy"
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        await appear(servers, space, 1, 2, 3)
        await eventually(lambda: site.forwarder.forwarded == 3)
        servers.link.cut()
        await appear(servers, space, *since)
        await eventually(lambda: site.forwarder.in_memory == len(since))
        await copied(servers, store, copy)
        await appear(servers, space, *range(4 + len(since), 7))
        await eventually(lambda: site.forwarder.in_memory == 3)
        await copied(servers, copy, store)
        await appear(servers, space, 7)
        await eventually(lambda: site.forwarder.in_memory == 4)
        servers.link.mend()

        async def told(last: int) -> bool:
            return await readings(desk) == list(range(1, last + 1))

        await eventually(lambda: told(7))
        await appear(servers, space, 8)
        await eventually(lambda: told(8))


async def test_what_has_come_since_the_disk_was_put_back_is_not_removed_for_what_stood_in_its_place(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before is told while the edge's stream is not read again yet."""
    expected_errors.append("the edge's JetStream was put back to an older copy")
    store, copy = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "copy"
    gate, reopen = asyncio.Event(), feed.Feed._reopen
    gate.set()

    async def reopen_when_let(self: feed.Feed, following: str = "") -> None:
        await gate.wait()
        await reopen(self, following)

    monkeypatch.setattr(feed.Feed, "_reopen", reopen_when_let)
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        await appear(servers, space, 1, 2, 3)
        await eventually(lambda: site.forwarder.forwarded == 3)
        servers.link.cut()
        await copied(servers, store, copy)
        await appear(servers, space, 4, 5, 6)
        await eventually(lambda: site.forwarder.in_memory == 3)
        gate.clear()
        await copied(servers, copy, store)
        await appear(servers, space, 7, 8, 9, 10)
        servers.link.mend()
        await eventually(lambda: site.forwarder.forwarded == 6)
        gate.set()

        async def told() -> bool:
            return await readings(desk) == list(range(1, 11))

        await eventually(told)


async def test_a_copy_that_was_made_of_a_disk_that_was_put_back_is_no_worse(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream was put back to an older copy")
    store, first, second = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "first", tmp_path / "second"

    async with Desk(servers.hub.url, space) as desk:

        async def told(last: int) -> None:
            async with Site(servers, space) as site:
                await eventually(lambda: site.forwarder.waiting == 0)
                await eventually(lambda: reads(range(1, last + 1)))

        async def reads(wanted: Sequence[int]) -> bool:
            return await readings(desk) == list(wanted)

        async with Site(servers, space):
            await appear(servers, space, 1, 2, 3)
            await eventually(lambda: reads([1, 2, 3]))
        await copied(servers, store, first)
        await appear(servers, space, 4, 5, 6)
        await told(6)
        await copied(servers, first, store)
        await appear(servers, space, 7, 8)
        await copied(servers, store, second)
        await told(8)
        await copied(servers, second, store)
        await appear(servers, space, 9)
        await told(9)


async def test_who_ends_before_it_has_told_what_is_in_an_older_copy_leaves_it_to_the_next(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream was put back to an older copy")
    store, copy = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "copy"
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space) as site:
            await appear(servers, space, 1, 2)
            await eventually(lambda: site.forwarder.forwarded == 2)
            servers.link.cut()
            await appear(servers, space, 3)
            await eventually(lambda: site.forwarder.in_memory == 1)
            await copied(servers, store, copy)
            await appear(servers, space, 4)
            await eventually(lambda: site.forwarder.in_memory == 2)
            await copied(servers, copy, store)
            await appear(servers, space, 5)
            await eventually(lambda: site.forwarder.in_memory == 3)
        servers.link.mend()
        async with Site(servers, space) as site:
            await eventually(lambda: site.forwarder.forwarded == 2)
            assert await readings(desk) == [1, 2, 3, 5]  # the disk has lost 4, and so has the memory


@pytest.mark.parametrize("left", [True, False], ids=["in good order", "without a word"])
async def test_what_was_answered_since_the_copy_to_which_the_disk_was_put_back_counts_once(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str], left: bool
) -> None:
    expected_errors += LOST
    store, copy = tmp_path / "servers" / "edge" / "jetstream", tmp_path / "copy"
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till) as site:
            [instance] = site.host.instances
            early = await give(desk)
            await eventually(lambda: instance.in_flight == TASKS)
            await copied(servers, store, copy)
            Till.gate.set()
            late = [await desk.client.submit_task("till", {"n": n}, run_id=f"late-{n}") for n in range(TASKS)]
            for run_id in early + late:
                assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
            if not left:
                servers.link.cut()
                await eventually(lambda: site.edge.linked is False)
        await copied(servers, copy, store)
        servers.link.mend()
        async with Site(servers, space, Till) as site:
            outcome = await desk.client.run_task("till", {"n": 41}, timeout_s=30)
            assert outcome.result == {"n": 42}
            await eventually(lambda: site.kept == 0)
        facts = Counter(item.address.fact for item in await desk.log())
    assert facts["completed"] == 2 * TASKS + 1
    assert facts["reverted"] == 0


@pytest.mark.parametrize(
    "mark",
    [
        b"",
        b"[]",
        b'{"stream": 7, "through": 1}',
        b'{"stream": "x", "through": "y"}',
        b'{"stream": "x+y", "through": 1}',
    ],
)
async def test_what_a_stranger_says_in_place_of_a_mark_holds_nobody_up(
    servers: NatsEdge, space: str, mark: bytes
) -> None:
    async with Desk(servers.hub.url, space) as desk:
        await desk.client.log.connection.publish(f"{space}.event.cuebook.edge.shop-7", mark)
        async with Site(servers, space):
            await appear(servers, space, 1, 2)

            async def told() -> bool:
                return await readings(desk) == [1, 2]

            await eventually(told)


async def appear(servers: NatsEdge, space: str, *numbers: int) -> None:
    async with await nats.connect(servers.url) as connection:
        await publish(connection, space, *numbers)
