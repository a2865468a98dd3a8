"""Two machines that call themselves the same edge; each is a nats-server of its own with a forwarder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats

from cuebook.actors.forwarder import Forwarder
from cuebook.cli.checks import agents
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect, ended
from cuebook.events.log import EventLog
from tests.actors.site import publish
from tests.cli.checks.conftest import Doctor, System, wrong
from tests.waiting import eventually


class Place:
    """A machine at the edge."""

    def __init__(self, url: str, space: str, log: EventLog, forwarder: Forwarder) -> None:
        self._url, self._space, self._log, self._forwarder = url, space, log, forwarder
        self._measured = 0

    async def measure(self) -> None:
        """A device publishes, and its event comes to the log."""
        self._measured += 1
        async with await nats.connect(self._url) as device:
            await publish(device, self._space, self._measured)
        await eventually(lambda: self._forwarder.forwarded == self._measured)

    async def lose_the_disk(self) -> None:
        async with await nats.connect(self._url) as keeper:
            await keeper.jetstream().delete_stream(f"{self._space.upper()}_EVENTS")


@asynccontextmanager
async def place(folder: Path, system: System, name: str) -> AsyncIterator[Place]:
    async with nats_server(folder) as server:
        keeper = await connect(server.url, name="keeper")
        log = EventLog(await system.connection(), system.space, source=f"edge-{name}")
        async with keeper, log:
            forwarder = Forwarder(keeper, log, name)
            running = asyncio.create_task(forwarder.run())
            await forwarder.ready.wait()
            yield Place(server.url, system.space, log, forwarder)
            await ended(running)


async def test_two_machines_with_the_name_of_one_edge_are_a_finding(
    system: System, doctor: Doctor, tmp_path: Path
) -> None:
    async with place(tmp_path / "one", system, "shop-7") as one, place(tmp_path / "two", system, "shop-7") as two:
        await one.measure()
        await two.measure()
        assert "agents.edge_shared" not in wrong(await doctor.finds("agents"))  # one may have taken the other's place
        await one.measure()
        finding = (await doctor.finds("agents"))["agents.edge_shared"]
        assert (finding.about, finding.message) == (
            "shop-7",
            "two machines forward events under the name of edge 'shop-7', by turns",
        )
        facts = await doctor.facts("agents")
        facts.now += agents.SHARED_IS_NEWS_S * 1_000_000
        assert "agents.edge_shared" not in {found.code for found in doctor.findings(facts, "agents")}


async def test_edges_of_their_own_names_and_a_disk_that_is_lost_are_none(
    system: System, doctor: Doctor, tmp_path: Path
) -> None:
    async with place(tmp_path / "one", system, "shop-7") as one, place(tmp_path / "two", system, "shop-8") as two:
        for _ in range(2):
            await one.measure()
            await two.measure()
        await one.lose_the_disk()
        await one.measure()
        await one.measure()
        facts = await doctor.facts("agents")
        assert {edge: len(those) for edge, those in facts.forwarding.items()} == {"shop-7": 2, "shop-8": 1}
        assert "agents.edge_shared" not in {found.code for found in doctor.findings(facts, "agents")}
