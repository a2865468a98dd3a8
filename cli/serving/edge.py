"""`cuebook serve edge`, wired: agents that work on while the link to the log is cut, and the events of their place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cuebook.actors.agent import Agent
from cuebook.actors.edge import Edge
from cuebook.actors.forwarder import Forwarder
from cuebook.actors.runtime import AgentHost
from cuebook.cli.durability import report_durability
from cuebook.cli.loading import load_agents
from cuebook.cli.serving.lifecycle import Running, Serving
from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token

__all__ = ["EdgePlan", "serve"]

LABEL: Final = "edge"
"""Every instance at an edge has its name as this label, so that tasks can be asked for there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePlan:
    """What `serve edge` is told. `slots` and `ahead`: None leaves each class its own."""

    name: str
    agents: Sequence[str]
    url: str
    offline_s: float
    slots: int | None
    ahead: int | None


async def serve(serving: Serving, plan: EdgePlan) -> None:
    """Serve the edge until told to stop. Nothing here waits for the link, except an agent that was never here."""
    space = check_token(serving.settings.target.space, "space")
    name = check_token(plan.name, "edge")
    if not plan.url:
        raise ConfigurationError(
            "the edge needs a JetStream of its own", remedy="set --edge-url or CUEBOOK_EDGE_URL; see nats/leaf.conf"
        )
    agents = load_agents(plan.agents) if plan.agents else []
    for agent in agents:
        _prepare(agent, plan)
    keeper = await serving.connect("edge keeper", url=plan.url)
    uplink = await serving.connect("edge uplink") if keeper is not None else None
    if keeper is None or uplink is None:
        return
    async with keeper, uplink, EventLog(uplink, space, source=f"edge-{name}") as log:
        await report_durability(keeper, serving.settings.monitor_url)
        edge, forwarder = Edge(name, keeper), Forwarder(keeper, log, name)
        host = AgentHost(uplink, space, agents, tracing=serving.tracing, edge=edge) if agents else None
        serves = _Serves(edge, forwarder, host, log)
        running = Running(
            run=serves.run(serving.settings.drain_s),
            stop=serves.stop,
            ready=serves.ready,
            facts={"edge": name, "agents": ",".join(agent.name for agent in agents), "space": space},
            status=serves.status,
            stuck=lambda: ", ".join(task for one in (host.instances if host else []) for task in one.stuck),
        )
        await serving.serve(running, uplink)


def _prepare(agent: type[Agent], plan: EdgePlan) -> None:
    agent.labels = {**agent.labels, LABEL: plan.name}
    agent.offline_for_s = agent.offline_for_s or plan.offline_s
    agent.concurrency = plan.slots or agent.concurrency
    agent.ahead = agent.ahead if plan.ahead is None else plan.ahead


class _Serves:
    def __init__(self, edge: Edge, forwarder: Forwarder, host: AgentHost | None, log: EventLog) -> None:
        self._edge, self._forwarder, self._host, self._log = edge, forwarder, host, log
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()
        if self._host is not None:
            self._host.stop()

    def status(self) -> str:
        instances = self._host.instances if self._host is not None else []
        slots, in_flight = sum(one.slots for one in instances), sum(one.in_flight for one in instances)
        done = self._host.handled if self._host is not None else 0
        parts = [f"slots {slots}, in flight {in_flight}, done {done}", self._edge.status]
        if self._forwarder.waiting:
            parts.append(f"{self._forwarder.waiting} events wait")
        return ", ".join(part for part in parts if part)

    async def run(self, drain_s: float) -> None:
        log = self._host.log if self._host is not None else self._log
        async with contextlib.AsyncExitStack() as stack:
            helpers = [asyncio.ensure_future(one) for one in (self._edge.watch(log), self._forwarder.run())]
            for helper in helpers:
                stack.push_async_callback(_end, helper)
            announcing = asyncio.ensure_future(self._announce())
            stack.push_async_callback(_end, announcing)
            serving = asyncio.ensure_future(
                self._host.run(drain_s=drain_s) if self._host is not None else self._stopping.wait()
            )
            await asyncio.wait([serving, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for helper in helpers:
                if helper.done():  # they end only by an error
                    self.stop()
                    await asyncio.wait([serving])
                    helper.result()
            serving.result()

    async def _announce(self) -> None:
        await self._forwarder.ready.wait()
        if self._host is not None:
            await self._host.ready.wait()
        self.ready.set()


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
