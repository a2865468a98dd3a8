"""The link between the edge and the log is cut: work goes on there, and all is told, once, when the link is back."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import nats.errors
import pytest

from cuebook.actors import shelf as shelf_module
from cuebook.actors.agent import Agent
from cuebook.actors.forwarder import Forwarder
from cuebook.actors.orchestrator import dispatcher, liveness, registry
from cuebook.actors.shelf import KeptTask, open_shelf
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import connect
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import AgentStopped
from cuebook.events.generations import BEFORE
from cuebook.events.jetstream import js_request
from cuebook.events.lookup import matches
from tests.actors.cast import lines
from tests.actors.desk import Desk
from tests.actors.processes import Cast, Service
from tests.actors.site import TASKS, Site, Till, answers_stored, give
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _gate(monkeypatch: pytest.MonkeyPatch) -> None:
    Till.gate = asyncio.Event()
    monkeypatch.setattr(shelf_module, "_ASK_S", 10.0)  # who has a shelf says so, and may be slow


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


async def test_what_was_given_is_done_while_the_link_is_cut_and_told_once_it_is_back(
    servers: NatsEdge, space: str, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_GRACE_S", 0.0)
    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        [instance] = site.host.instances
        run_ids = await give(desk)
        await eventually(lambda: instance.in_flight == TASKS)
        servers.link.cut()
        await desk.sees(lambda: desk.health(instance.id) == "suspect")
        assert lines(ledger) == []
        Till.gate.set()
        await eventually(lambda: site.kept == TASKS)
        await eventually(lambda: site.edge.linked is False)
        assert site.edge.status.startswith("cut off from the log for ")
        assert site.edge.status.endswith(f", {TASKS} answers kept")
        assert not [fact for fact in await desk.facts() if fact.endswith("completed")]
        servers.link.mend()
        outcomes = [await desk.client.wait(run_id, timeout_s=20) for run_id in run_ids]
        assert [(one.status, one.result) for one in outcomes] == [("completed", {"n": n + 1}) for n in range(TASKS)]
        await desk.sees(lambda: desk.health(instance.id) == "healthy")
        await eventually(lambda: site.kept == 0 and site.edge.linked)
        facts = Counter(item.address.fact for item in await desk.log())
    assert [key for _, key, *_ in lines(ledger)] == sorted({f"{one}/0" for one in run_ids}, key=run_order)
    assert (facts["assigned"], facts["completed"], facts["lost"], facts["retried"]) == (TASKS, TASKS, 0, 0)
    assert await left_behind(servers, space) == 0


def run_order(key: str) -> int:
    return int(key.removeprefix("count-").removesuffix("/0"))


async def left_behind(servers: NatsEdge, space: str) -> int:
    """Messages that a site that has left in good order has still on its shelf."""
    connection = await nats.connect(servers.keeper_url)
    info = await connection.jetstream().stream_info(f"{space.upper()}_EDGE")
    await connection.close()
    return int(info.state.messages)


async def test_wherever_in_a_message_the_link_breaks_each_task_has_one_outcome(
    servers: NatsEdge, space: str, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "INBOX_STALLED_S", 0.3)
    Till.gate.set()
    chance = random.Random(7)
    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        run_ids: list[str] = []
        for turn in range(5):
            servers.link.cut_after(chance.randrange(1, 4_000))
            names = [f"turn-{turn}-{n}" for n in range(8)]
            run_ids += [await desk.client.submit_task("till", {"n": 1}, run_id=name) for name in names]
            await eventually(lambda: servers.link.is_cut)
            servers.link.mend()
        for run_id in run_ids:
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
        log = await desk.log()
        await eventually(lambda: site.kept == 0)
    completed = Counter(item.address.run_id for item in log if item.address.fact == "completed")
    assert completed == dict.fromkeys(run_ids, 1)
    assert Counter(key for _, key, *_ in lines(ledger)) == {f"{run_id}/0": 1 for run_id in run_ids}


async def test_an_agent_that_is_cut_off_while_it_registers_serves_once_the_link_is_back(
    servers: NatsEdge, space: str, ledger: Path
) -> None:
    starts: list[Agent] = []

    class Late(Till):
        async def start(self) -> None:
            starts.append(self)
            if len(starts) == 1:
                servers.link.cut()
            site.host.log.appender.give_up_s = 0.2 if len(starts) == 1 else 30

    Till.gate.set()
    Late.gate = Till.gate
    async with Desk(servers.hub.url, space) as desk, AsyncExitStack() as places:
        site = Site(servers, space, Late)
        entering = asyncio.create_task(places.enter_async_context(site))
        await eventually(lambda: len(starts) == 2, within_s=60)
        servers.link.mend()
        await entering
        [instance] = site.host.instances
        await desk.sees(lambda: desk.health(instance.id) == "healthy")
        for run_id in await give(desk):
            assert (await desk.client.wait(run_id, timeout_s=60)).status == "completed"
        with pytest.raises(ConfigurationError, match="is served by another process already"):
            async with Site(servers, space, Till):
                pass

        async def nothing_is_kept() -> bool:
            return await left_behind(servers, space) <= 1  # under which name it goes on

        await eventually(nothing_is_kept, within_s=60)
    assert len(lines(ledger)) == TASKS


async def test_a_task_that_others_have_done_meanwhile_is_refused_and_that_is_on_record(
    servers: NatsEdge, space: str, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Till, "offline_for_s", 3.0)

    class Indoors(Till):
        name = "till"
        gate = asyncio.Event()
        offline_for_s = 0.0
        heartbeat_s = 1.0
        ahead = 0

    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        [instance] = site.host.instances
        run_ids = await give(desk, 2)
        await eventually(lambda: instance.in_flight == 2)
        servers.link.cut()
        await desk.hire(Indoors)
        await desk.client.cancel(run_ids[1])
        await desk.sees(lambda: desk.health(instance.id) == "lost")
        Indoors.gate.set()
        outcome = await desk.client.wait(run_ids[0], timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 1})
        assert (await desk.client.wait(run_ids[1], timeout_s=30)).status == "cancelled"
        Till.gate.set()
        await eventually(lambda: site.kept == 2)
        servers.link.mend()
        await eventually(lambda: site.kept == 0, within_s=30)
        log = await desk.log()
        dropped = [item.event for item in log if item.address.fact == "dropped"]
        assert {(one.run_id, one.fact) for one in dropped} == {(run_id, "completed") for run_id in run_ids}  # type: ignore[attr-defined]
        [reverted] = await desk.events(run_ids[1], "reverted")
        assert (reverted.output, reverted.error) == ({"n": 2}, None)
        assert await desk.events(run_ids[0], "reverted") == []
    assert [(what, key) for what, key, *_ in lines(ledger) if what == "take"] == [("take", f"{run_ids[1]}/0/reverted")]


async def test_an_agent_that_was_lost_for_so_long_that_it_is_forgotten_serves_again(
    servers: NatsEdge, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REMEMBERED_GONE", 0)
    monkeypatch.setattr(liveness, "UNKNOWN_S", 0.3)
    monkeypatch.setattr(Till, "offline_for_s", 1.0)
    Till.gate.set()
    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        [instance] = site.host.instances
        await desk.sees(lambda: desk.health(instance.id) == "healthy")
        servers.link.cut()
        await desk.sees(lambda: desk.health(instance.id) == "")
        servers.link.mend()
        assert (await desk.client.run_task("till", {"n": 1}, timeout_s=30)).result == {"n": 2}
        assert desk.health(instance.id) == "healthy"
        facts = Counter(item.address.fact for item in await desk.log() if item.address.instance == instance.id)
    assert (facts["registered"], facts["lost"], facts["assigned"]) == (2, 1, 1)


async def test_an_agent_that_goes_on_registers_again_although_the_log_cannot_be_read_at_first(
    servers: NatsEdge, space: str, caplog: pytest.LogCaptureFixture, expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream was put back to an older copy: an instance had left since")
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till) as site:
            [first] = site.host.instances
            servers.link.cut()
            await eventually(lambda: site.edge.linked is False)
        log = desk.client.log
        await log.append(log.subjects.agent("till", first.id, "stopped"), AgentStopped(reason="test", handled=0))
        await say_before(desk, "no list")
        async with Site(servers, space, Till) as site:
            servers.link.mend()
            await eventually(lambda: "cannot register again yet" in caplog.text)
            await say_before(desk, "[]")
            await eventually(lambda: [one.id for one in site.host.instances] not in ([], [first.id]))


async def say_before(desk: Desk, generations: str) -> None:
    """What the hub's stream says came before it, as a person may set it by mistake."""
    connection, stream = desk.client.log.connection, desk.client.log.subjects.stream
    config = (await js_request(connection, f"STREAM.INFO.{stream}", {}))["config"]
    config["metadata"] = {**(config.get("metadata") or {}), BEFORE: generations}
    await js_request(connection, f"STREAM.UPDATE.{stream}", config)


# --- a process of its own ---


async def serve(cast: Cast, servers: NatsEdge) -> Service:
    return await cast.edge("shop-7", servers.keeper_url, servers.uplink_url, "Counter")


async def test_a_process_that_is_killed_while_the_link_is_cut_goes_on_where_it_was(
    servers: NatsEdge, space: str, tmp_path: Path
) -> None:
    async with Desk(servers.hub.url, space) as desk, Cast(servers.hub.url, space, tmp_path) as cast:
        first = await serve(cast, servers)
        await first.says("ready")
        run_ids = [await give_to_hold(desk, n) for n in range(10)]
        await received(desk, 10)
        servers.link.cut()
        for count in (2, 4):  # two at once
            await eventually(lambda count=count: len(begun(cast)) == count)  # type: ignore[misc]
            let_end(tmp_path, begun(cast))
        await eventually(lambda: len(begun(cast)) == 6)
        await answers_stored(servers, space, 4)
        await first.kill()
        let_end(tmp_path, run_ids)
        second = await serve(cast, servers)
        await second.says("goes on with")
        await second.says("the link to the log is cut")
        await answers_stored(servers, space, 10)
        assert await second.stop() == 0
        third = await serve(cast, servers)
        await third.says("ready")
        servers.link.mend()
        for run_id in run_ids:
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
        log = await desk.log()
        assert await third.stop() == 0
    completed = Counter(item.address.run_id for item in log if item.address.fact == "completed")
    assert completed == dict.fromkeys(run_ids, 1)
    assert {item.address.instance for item in log if item.address.fact == "registered"} == {
        item.address.instance for item in log if item.address.fact == "assigned"
    }
    assert len(begun(cast)) == 12, "again are only those that were under way at the kill"
    assert len(set(begun(cast))) == 10


async def give_to_hold(desk: Desk, n: int) -> str:
    return await desk.client.submit_task("counter", {"n": n}, handler="hold", run_id=f"held-{n}")


def begun(cast: Cast) -> list[str]:
    """The runs whose task was begun, each time."""
    return [key.removesuffix("/0") for what, key, *_ in lines(cast.ledger) if what == "hold"]


def let_end(folder: Path, run_ids: list[str]) -> None:
    for run_id in run_ids:
        (folder / f"{run_id}.open").touch()


async def received(desk: Desk, count: int) -> None:
    """Wait until an edge says that it has so many assignments on its disk."""
    beats = await desk.client.log.connection.subscribe(f"heartbeat.{desk.client.log.subjects.space}.>")

    async def all_assigned() -> int:
        assigned = [item.sequence for item in await desk.log() if item.address.fact == "assigned"]
        return assigned[-1] if len(assigned) == count else 0

    newest = await eventually(all_assigned)
    while json.loads((await beats.next_msg(timeout=30)).data)["received"] < newest:
        pass
    await beats.unsubscribe()


async def test_only_one_process_serves_an_agent_of_an_edge(servers: NatsEdge, space: str) -> None:
    async with Desk(servers.hub.url, space), Site(servers, space, Till):
        with pytest.raises(ConfigurationError, match="is served by another process already"):
            async with Site(servers, space, Till):
                pass
        async with Site(servers, space, Till, name="shop-8"):
            pass


async def test_what_was_removed_from_a_shelf_is_known_to_have_come(nats_url: str, space: str) -> None:
    """Else it would be delivered and done again after a restart."""
    connection = await connect(nats_url, name="tests")
    shelf = await open_shelf(connection, space, "shop-7", "till")
    await shelf.claim("i1")
    for sequence in (7, 9):
        await shelf.keep(KeptTask(subject="s", body=b"b", sequence=sequence, recorded_at=1))
    shelf.settle(7, 8)
    await eventually(lambda: list(shelf._kept) == [9])
    await shelf.close()
    again = await open_shelf(connection, space, "shop-7", "till")
    assert (again.instance, again.received, [one.sequence for one in again.tasks]) == ("i1", 8, [9])
    await again.close()
    await connection.close()


async def test_what_is_on_its_way_to_a_shelf_when_that_is_emptied_is_removed_too(nats_url: str, space: str) -> None:
    """The server takes a purge before what it was sent to be stored, else."""
    connection = await connect(nats_url, name="tests")
    shelf = await open_shelf(connection, space, "shop-7", "till")
    await shelf.claim("i1")
    kept = [KeptTask(subject="s", body=bytes(20_000), sequence=n, recorded_at=1) for n in range(200)]
    keeping = [asyncio.create_task(shelf.keep(one)) for one in kept]
    await asyncio.sleep(0)
    for one in keeping:
        one.cancel()
    assert await shelf.forget()
    await shelf.close()
    await connection.request(f"edge.{space}.shop-7.other", b"", timeout=10)  # stored behind all that was on its way
    assert await matches(connection, f"{space.upper()}_EDGE", f"edge.{space}.*.till.>") == []
    await connection.close()


async def test_what_is_kept_under_no_name_is_removed(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is when a disk is lost and the process is killed before it has written its name again."""
    connection = await connect(nats_url, name="tests")
    shelf = await open_shelf(connection, space, "shop-7", "till")
    await shelf.keep(KeptTask(subject="s", body=b"b", sequence=7, recorded_at=1))
    await shelf.answer(7, "completed", b"answer")
    await shelf.close()
    again = await open_shelf(connection, space, "shop-7", "till")
    assert (again.waiting, again.tasks, again.instance) == (0, [], "")
    assert await matches(connection, f"{space.upper()}_EDGE", f"edge.{space}.>") == []
    assert [one.message for one in caplog.records if "under no instance's name" in one.message]
    await again.close()
    await connection.close()


# --- events ---


async def test_an_event_that_the_log_has_already_holds_up_none_that_came_with_it(servers: NatsEdge, space: str) -> None:
    sensor = await nats.connect(servers.url)
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        servers.link.cut()
        for n in range(3):
            headers = {"Nats-Msg-Id": f"e{n}"}
            await sensor.request(
                f"{space}.event.meter.read", json.dumps({"n": n}).encode(), timeout=10, headers=headers
            )
        await desk.client.publish("meter.read", {"n": 1}, event_id="e1")
        servers.link.mend()

        async def all_of_it() -> bool:
            events = await desk.events_on("meter.read")
            return [one.event.data["n"] for one in events] == [1, 0, 2]  # type: ignore[attr-defined]

        await eventually(all_of_it)
        await eventually(lambda: site.forwarder.waiting == 0)
        assert await all_of_it()
    await sensor.close()


async def test_events_of_the_edge_come_to_the_log_in_order_and_once_wherever_the_link_breaks(
    servers: NatsEdge, space: str
) -> None:
    chance, total = random.Random(11), 400
    sensor = await nats.connect(servers.url)
    async with Desk(servers.hub.url, space) as desk:
        sent = 0
        for turn in range(5):
            async with Site(servers, space) as site:
                servers.link.cut_after(chance.randrange(1, 6_000))
                for _ in range(total // 5):
                    headers = {"ce-specversion": "1.0", "ce-id": f"e{sent}", "ce-source": "s", "ce-type": "read"}
                    answer = await sensor.request(
                        f"{space}.event.meter.read",
                        json.dumps({"n": sent}).encode(),
                        timeout=10,
                        headers=headers if sent % 2 else None,
                    )
                    assert "error" not in json.loads(answer.data)
                    sent += 1
                await eventually(lambda: servers.link.is_cut or site.forwarder.waiting == 0)
                if turn % 2:  # with the link cut the process ends, with it the next one begins
                    servers.link.mend()
                else:
                    servers.link.cut()
        servers.link.mend()
        async with Site(servers, space) as site:
            await eventually(lambda: site.forwarder.waiting == 0, within_s=30)

            async def all_of_it() -> bool:
                return len(await desk.events_on("meter.read")) >= total

            await eventually(all_of_it)
        events = await desk.events_on("meter.read")
        assert [one.event.data["n"] for one in events] == list(range(total))  # type: ignore[attr-defined]
        assert [one.id for one in events if one.id.startswith("e")] == [f"e{n}" for n in range(1, total, 2)]
        assert len({one.id for one in events}) == total
    await sensor.close()


async def test_an_edge_that_is_there_before_the_log_waits_for_it(servers: NatsEdge, space: str) -> None:
    sensor = await nats.connect(servers.url)
    async with Site(servers, space) as site:
        await sensor.request(f"{space}.event.meter.read", b'{"n": 1}', timeout=10)
        async with Desk(servers.hub.url, space) as desk:

            async def forwarded() -> bool:
                return len(await desk.events_on("meter.read")) == 1

            await eventually(forwarded)
            await eventually(lambda: site.forwarder.waiting == 0)
    await sensor.close()


async def test_two_edges_with_one_name_are_told_and_neither_forwards_an_event_twice(
    servers: NatsEdge, space: str, expected_errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def later(*_: object) -> None:
        """What was forwarded is still there, as when the process is killed before it is removed."""

    monkeypatch.setattr(Forwarder, "_purge", later)
    expected_errors.append("another machine forwards events under the name of this edge")
    sensor = await nats.connect(servers.url)
    hub = await nats.connect(servers.hub.url)
    async with Desk(servers.hub.url, space) as desk:

        async def send(*numbers: int) -> None:
            for n in numbers:
                await sensor.request(f"{space}.event.meter.read", json.dumps({"n": n}).encode(), timeout=10)

        async def here(count: int) -> bool:
            return len(await desk.events_on("meter.read")) >= count

        async def the_other_forwards() -> None:
            told = {"edge": "shop-7", "stream": "2026-01-01T00:00:00Z", "through": 900, "events": 1}
            await hub.jetstream().publish(f"{space}.event.cuebook.edge.shop-7", json.dumps(told).encode(), timeout=10)

        async with Site(servers, space) as site:
            await send(1, 2, 3)
            await eventually(lambda: here(3))
            await the_other_forwards()
            await send(4, 5)
            await eventually(lambda: here(5))
            await eventually(lambda: site.forwarder.waiting == 0)
            await the_other_forwards()
        async with Site(servers, space) as site:
            await send(6)
            await eventually(lambda: here(6))
            await eventually(lambda: site.forwarder.forwarded and site.forwarder.waiting == 0)
            assert site.forwarder.forwarded == 1
        assert [one.event.data["n"] for one in await desk.events_on("meter.read")] == [1, 2, 3, 4, 5, 6]  # type: ignore[attr-defined]
    await sensor.close()
    await hub.close()


async def test_a_sensor_may_publish_events_and_nothing_else(servers: NatsEdge, space: str) -> None:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    async with Desk(servers.hub.url, space), Site(servers, space):
        sensor = await nats.connect(servers.url, error_cb=on_error)
        answer = await sensor.request(f"{space}.event.door.opened", b"{}", timeout=10)
        assert json.loads(answer.data)["stream"] == f"{space.upper()}_EVENTS"
        for subject in (f"edge.{space}.shop-7.till.task.1", f"$JS.API.STREAM.PURGE.{space.upper()}_EVENTS"):
            with pytest.raises((TimeoutError, nats.errors.Error)):
                await sensor.request(subject, b"{}", timeout=0.2)
        await eventually(lambda: sum("permissions violation" in one for one in refused) == 2)
        await sensor.close()
