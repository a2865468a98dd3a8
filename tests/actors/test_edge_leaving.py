"""An instance at the edge leaves or is renewed while something is under way: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import StreamConfig

from cuebook.actors import Agent, handler
from cuebook.actors import instance as instance_module
from cuebook.actors.work import Work
from cuebook.embedded.nats_edge import NatsEdge, nats_edge
from cuebook.events.facts import TaskAssigned
from tests.actors.cast import Number, lines
from tests.actors.desk import Desk
from tests.actors.site import Site, Till, give
from tests.waiting import eventually


@pytest.fixture
async def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsEdge]:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    Till.gate = asyncio.Event()
    async with nats_edge(tmp_path / "servers") as running:
        yield running


async def test_who_could_not_say_that_it_leaves_keeps_its_name_for_what_is_on_its_way(
    servers: NatsEdge, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "SAY_S", 0.3)
    monkeypatch.setattr(instance_module, "DRAIN_SIGNAL_S", 0.1)
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till) as site:
            [instance] = site.host.instances
            await eventually(lambda: site.edge.linked)
            servers.link.cut()
            run_id = await desk.client.submit_task("till", {"n": 1}, run_id="on-its-way")
            site.edge.linked = True  # it has not noticed
        async with Site(servers, space, Till) as again:
            assert [one.id for one in again.host.instances] == [instance.id]
            Till.gate.set()
            servers.link.mend()
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"


async def test_an_answer_that_is_being_stored_when_the_process_ends_is_stored(
    servers: NatsEdge, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, may_store = asyncio.Event(), asyncio.Event()
    Till.gate.set()
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till) as site:
            [shelf] = site.edge.shelves
            store = shelf.answer

            async def answer(sequence: int, fact: str, body: bytes) -> None:
                storing.set()
                await may_store.wait()
                await store(sequence, fact, body)

            monkeypatch.setattr(shelf, "answer", answer)
            [run_id] = await give(desk, 1)
            await storing.wait()
            servers.link.cut()
            await eventually(lambda: site.edge.linked is False)
            leave = asyncio.create_task(site.__aexit__())
            await eventually(lambda: site.host.instances[0].draining)
            may_store.set()
            await leave
        async with Site(servers, space, Till) as again:
            assert again.kept == 1
            servers.link.mend()
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
    assert Counter(key for _, key, *_ in lines(tmp_path / "ledger")) == {f"{run_id}/0": 1}


async def test_an_agent_whose_shelf_has_no_room_for_its_name_stops_when_it_is_told_to(
    servers: NatsEdge, space: str, caplog: pytest.LogCaptureFixture, expected_errors: list[str]
) -> None:
    expected_errors.append("the edge's JetStream does not take what is to be kept")
    async with await nats.connect(servers.keeper_url) as keeper:
        full = StreamConfig(name=f"{space.upper()}_EDGE", subjects=[f"edge.{space}.>"], max_bytes=1, discard="new")  # type: ignore[arg-type]
        await keeper.jetstream().add_stream(full)
    async with Desk(servers.hub.url, space) as desk:
        site = Site(servers, space, Till)
        entering = asyncio.create_task(site.__aenter__())
        await eventually(lambda: any(one.message.startswith(expected_errors[0]) for one in caplog.records))
        site.host.stop()
        await entering
        await site.__aexit__()
        assert [fact for fact in await desk.facts() if fact.endswith("registered")] == []


class WithoutAdd(Agent):
    """The next release of the till, which has another handler in place of `add`."""

    name = "till"
    offline_for_s = 600.0

    @handler()
    async def subtract(self, number: Number) -> Number:
        return Number(n=number.n - 1)


async def test_a_late_effect_of_a_handler_that_the_next_release_has_not_is_on_record(
    servers: NatsEdge, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Till, "offline_for_s", 1.0)
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till) as site:
            [instance] = site.host.instances
            [run_id] = await give(desk, 1)
            await eventually(lambda: instance.in_flight == 1)
            servers.link.cut()
            await desk.client.cancel(run_id)
            await desk.sees(lambda: desk.health(instance.id) == "lost")
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "cancelled"
            Till.gate.set()
            await eventually(lambda: site.kept == 1)
            await eventually(lambda: site.edge.linked is False)
        async with Site(servers, space, WithoutAdd) as site:
            servers.link.mend()
            await eventually(lambda: site.kept == 0)
        [reverted] = await desk.events(run_id, "reverted")
        assert reverted.error is not None
        assert reverted.error.type == "NoCompensationError"
        assert "no handler 'add' any more" in reverted.error.message


async def test_the_step_to_undo_is_looked_up_when_the_link_is_back(servers: NatsEdge, space: str) -> None:
    """A compensation that names its step, since input and output are too large for its own event."""
    Till.gate.set()
    async with Desk(servers.hub.url, space) as desk, Site(servers, space, Till) as site:
        [instance] = site.host.instances
        [run_id] = await give(desk, 1)
        assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
        [assigned] = [one for one in await desk.log(run_id) if one.address.fact == "assigned"]
        assert isinstance(assigned.event, TaskAssigned)
        servers.link.cut()
        looking: asyncio.Task[dict[str, Any]] = asyncio.create_task(
            instance._done_before(Work(assigned, assigned.event), 0)
        )
        await eventually(lambda: site.edge.linked is False)
        assert not looking.done()
        servers.link.mend()
        assert await looking == {"input": {"n": 0}, "output": {"n": 1}}
