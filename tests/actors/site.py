"""A place at the edge in this process: agents and the forwarder on the leaf node, behind the link."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Self

from cuebook.actors import Agent
from cuebook.actors.edge import Edge
from cuebook.actors.forwarder import Forwarder
from cuebook.actors.runtime import AgentHost
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import connect, ended
from cuebook.events.log import EventLog
from tests.waiting import eventually

__all__ = ["Site"]


class Site:
    """Use `async with`; leaving it stops everything in good order, unless it has vanished."""

    def __init__(self, servers: NatsEdge, space: str, *agents: type[Agent], name: str = "shop-7") -> None:
        self._servers, self._space, self._agents, self._name = servers, space, list(agents), name
        self._stack = AsyncExitStack()
        self.edge: Edge
        self.forwarder: Forwarder
        self.host: AgentHost

    async def __aenter__(self) -> Self:
        keeper = await connect(self._servers.keeper_url, name="keeper")
        self._stack.push_async_callback(keeper.close)
        uplink = await connect(self._servers.uplink_url, name="uplink")
        self._stack.push_async_callback(uplink.close)
        log = await self._stack.enter_async_context(EventLog(uplink, self._space, source="site"))
        self.edge, self.forwarder = Edge(self._name, keeper), Forwarder(keeper, log, self._name)
        self.host = AgentHost(uplink, self._space, self._agents, edge=self.edge)
        self._run = asyncio.create_task(self.host.run(drain_s=5))
        helpers = [asyncio.create_task(one) for one in (self.edge.watch(self.host.log), self.forwarder.run())]
        self._stack.push_async_callback(ended, *helpers)
        if self._agents:
            await eventually(lambda: self.host.ready.is_set() or self._run.done())
            if self._run.done():
                self._run.result()
        await self.forwarder.ready.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if not self._run.done():
            self.host.stop()
        await self._run
        await self._stack.aclose()

    @property
    def kept(self) -> int:
        """Answers that the log does not have yet."""
        return sum(shelf.waiting for shelf in self.edge.shelves)
