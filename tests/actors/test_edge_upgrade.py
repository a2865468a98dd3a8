"""Two agents of an edge, one of them upgraded while the link is cut: both go on with what they have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuebook.actors import Retry, Task, handler
from cuebook.embedded.nats_edge import NatsEdge, nats_edge
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.actors.site import TASKS, Site, Till, give
from tests.waiting import eventually


class Door(Till):
    """Another agent of the same place."""

    name = "door"


class Till2(Till):
    """The next release of the till: fewer slots, and another result."""

    name = "till"
    version = "2"
    ahead = 0

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def add(self, number: Number, task: Task) -> Number:
        return Number(n=number.n + 100)


@pytest.fixture
async def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsEdge]:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    Till.gate = Door.gate = asyncio.Event()
    async with nats_edge(tmp_path / "servers") as running:
        yield running


async def test_what_the_old_release_was_given_the_new_one_does_under_the_same_name(
    servers: NatsEdge, space: str
) -> None:
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till, Door) as old:
            names = {one.agent_class.name: one.id for one in old.host.instances}
            tills = await give(desk)
            door = await desk.client.submit_task("door", {"n": 1}, run_id="door-0")
            await eventually(lambda: sum(one.in_flight for one in old.host.instances) == TASKS + 1)
            servers.link.cut()
            await eventually(lambda: old.edge.linked is False)
            old.host.drain_s = 0.0
        async with Site(servers, space, Till2, Door) as new:
            assert {one.agent_class.name: one.id for one in new.host.instances} == names
            Till.gate.set()
            await eventually(lambda: new.kept == TASKS + 1)
            servers.link.mend()
            outcomes = [await desk.client.wait(run_id, timeout_s=20) for run_id in tills]
            assert [(one.status, one.result) for one in outcomes] == [
                ("completed", {"n": n + 100}) for n in range(TASKS)
            ]
            assert (await desk.client.wait(door, timeout_s=20)).result == {"n": 2}
            late = await desk.client.submit_task("till", {"n": 1}, run_id="late")
            assert (await desk.client.wait(late, timeout_s=20)).result == {"n": 101}
            [state] = [
                one for one in desk.stages[0].service.core.world.registry.instances.values() if one.agent == "till"
            ]
            assert (state.version, state.slots) == ("2", 2)


async def test_an_agent_that_is_served_no_more_and_has_work_there_is_named(
    servers: NatsEdge, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Desk(servers.hub.url, space) as desk:
        async with Site(servers, space, Till, Door) as old:
            await desk.client.submit_task("door", {"n": 1}, run_id="door-0")
            await eventually(lambda: sum(one.in_flight for one in old.host.instances) == 1)
            servers.link.cut()
            await eventually(lambda: old.edge.linked is False)
            old.host.drain_s = 0.0
        async with Site(servers, space, Till):
            servers.link.mend()
            [told] = [one for one in caplog.records if "nobody serves an agent that has work here" in one.getMessage()]
            assert (vars(told)["agent"], vars(told)["tasks"]) == ("door", 1)
        Till.gate.set()
        async with Site(servers, space, Till, Door):
            assert (await desk.client.wait("door-0", timeout_s=20)).status == "completed"
