"""A place at the edge in this process: agents and the forwarder on the leaf node, behind the link; and its work."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import msgpack
import nats.errors
from nats.aio.client import Client as Nats

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.actors.edge import Edge
from cuebook.actors.forwarder import Forwarder
from cuebook.actors.runtime import AgentHost
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import connect, ended
from cuebook.events.log import EventLog
from cuebook.events.lookup import matches
from tests.actors.cast import Number, note
from tests.actors.desk import Desk
from tests.waiting import eventually

__all__ = ["TASKS", "Site", "Till", "answers_stored", "copied", "give", "publish", "readings"]

TASKS = 12
OFFLINE_S = 600.0


class Till(Agent):
    """Adds one, and can take it back. Two at once, ten more in advance."""

    name = "till"
    concurrency = 2
    ahead = 10
    offline_for_s = OFFLINE_S
    heartbeat_s = 0.1
    gate = asyncio.Event()

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def add(self, number: Number, task: Task) -> Number:
        await type(self).gate.wait()
        note("add", task)
        return Number(n=number.n + 1)

    @add.compensation
    async def take(self, number: Number, result: Number, task: Task) -> None:
        note("take", task)


class Site:
    """Use `async with`; leaving it stops everything in good order, unless it has vanished."""

    def __init__(self, servers: NatsEdge, space: str, *agents: type[Agent], name: str = "shop-7") -> None:
        self._servers, self._space, self._agents, self._name = servers, space, list(agents), name
        self._left = AsyncExitStack()
        self.edge: Edge
        self.forwarder: Forwarder
        self.host: AgentHost

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            keeper = await connect(self._servers.keeper_url, name="keeper")
            stack.push_async_callback(keeper.close)
            uplink = await connect(self._servers.uplink_url, name="uplink")
            stack.push_async_callback(uplink.close)
            log = await stack.enter_async_context(EventLog(uplink, self._space, source="site"))
            self.edge, self.forwarder = Edge(self._name, keeper), Forwarder(keeper, log, self._name)
            self.host = AgentHost(uplink, self._space, self._agents, edge=self.edge)
            run = asyncio.create_task(self.host.run(drain_s=5))
            helpers = [asyncio.create_task(one) for one in (self.edge.watch(self.host.log), self.forwarder.run())]
            stack.push_async_callback(ended, *helpers)
            stack.push_async_callback(self._leave, run)
            if self._agents:
                await eventually(lambda: self.host.ready.is_set() or run.done())
                if run.done():
                    run.result()
            await self.forwarder.ready.wait()
            self._left = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._left.aclose()

    async def _leave(self, run: asyncio.Task[None]) -> None:
        self.host.stop()
        await run

    @property
    def kept(self) -> int:
        """Answers that the log does not have yet."""
        return sum(shelf.waiting for shelf in self.edge.shelves)


async def give(desk: Desk, count: int = TASKS) -> list[str]:
    names = [f"count-{n}" for n in range(count)]
    return [await desk.client.submit_task("till", {"n": n}, run_id=name) for n, name in enumerate(names)]


async def answers_stored(servers: NatsEdge, space: str, count: int = TASKS) -> None:
    """Wait until the edge's disk has so many answers; before, they are only in the memory of the process."""

    async def stored() -> bool:
        kept = await matches(keeper, f"{space.upper()}_EDGE", f"edge.{space}.*.*.task.*")
        return sum(bool(msgpack.unpackb(one.body)["fact"]) for one in kept) == count

    keeper = await connect(servers.keeper_url, name="looks")
    async with keeper:
        await eventually(stored)


async def publish(connection: Nats, space: str, *numbers: int) -> None:
    """As a device does that tries again until it is told that its event is stored."""
    for n in numbers:
        while True:
            try:
                answer = await connection.request(
                    f"{space}.event.meter.read",
                    json.dumps({"n": n}).encode(),
                    timeout=10,  # what is only slow is stored, and would be stored twice
                )
            except nats.errors.Error:
                await asyncio.sleep(0.05)
            else:
                assert "error" not in json.loads(answer.data)
                break


async def readings(desk: Desk) -> list[int]:
    return [one.event.data["n"] for one in await desk.events_on("meter.read")]  # type: ignore[attr-defined]


async def copied(servers: NatsEdge, source: Path, target: Path) -> None:
    """Put a copy of a folder in the place of another while the server at the edge stands still."""
    await servers.leaf.stop()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    await servers.leaf.restart()
