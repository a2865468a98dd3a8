"""`cuebook serve edge`, wired: agents that work on while the link to the log is cut, and the events of their place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cuebook.actors.agent import Agent
from cuebook.actors.edge import Edge
from cuebook.actors.forwarder import Forwarder
from cuebook.actors.runtime import AgentHost
from cuebook.cli.durability import report_durability
from cuebook.cli.exits import InputError
from cuebook.cli.loading import load_agents
from cuebook.cli.options import DEFAULT_DRAIN_S
from cuebook.cli.serving.lifecycle import Running, Serving
from cuebook.cli.serving.metrics import handling_of, watch_agents, watch_edge
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token

__all__ = ["EdgePlan", "serve"]

LABEL: Final = "edge"
"""Every instance at an edge has its name as this label, so that tasks can be asked for there."""

logger = logging.getLogger(__name__)


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
    if not plan.name:
        raise InputError("the edge has no name", remedy="'cuebook units install --edge NAME --hub URL' writes one")
    name = check_token(plan.name, "edge")
    if not plan.url:
        raise InputError(
            "the edge needs a JetStream of its own", remedy="set --edge-url or CUEBOOK_EDGE_URL; see nats/leaf.conf"
        )
    agents = load_agents(plan.agents) if plan.agents else []
    for agent in agents:
        _prepare(agent, plan)
    serving.say("starting")
    keeper = await serving.connect("edge keeper", url=plan.url)
    uplink = await serving.connect("edge uplink") if keeper is not None else None
    if keeper is None or uplink is None:
        return
    async with keeper, uplink, EventLog(uplink, space, source=f"edge-{name}") as log:
        await report_durability(keeper, serving.settings.monitor_url)
        edge, forwarder = Edge(name, keeper), Forwarder(keeper, log, name)
        handling = handling_of(serving.metrics)
        host = AgentHost(uplink, space, agents, tracing=serving.tracing, edge=edge, handling=handling)
        watch_agents(serving.metrics, host, handling)
        watch_edge(serving.metrics, edge, forwarder)
        serves = _Serves(edge, forwarder, host)
        running = Running(
            run=serves.run(serving.settings.drain_s),
            stop=serves.stop,
            ready=serves.ready,
            facts={"edge": name, "agents": ",".join(agent.name for agent in agents), "space": space},
            status=serves.status,
            stuck=lambda: ", ".join(task for one in host.instances for task in one.stuck),
            reload=serves.reload,
        )
        await serving.serve(running, uplink)


def _prepare(agent: type[Agent], plan: EdgePlan) -> None:
    agent.labels = {**agent.labels, LABEL: plan.name}
    agent.offline_for_s = agent.offline_for_s or plan.offline_s
    agent.concurrency = plan.slots or agent.concurrency
    agent.ahead = agent.ahead if plan.ahead is None else plan.ahead


class _Serves:
    def __init__(self, edge: Edge, forwarder: Forwarder, host: AgentHost) -> None:
        self._edge, self._forwarder, self._host = edge, forwarder, host
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()
        self._host.stop()

    def reload(self, values: Mapping[str, str], changed: set[str]) -> None:
        if "CUEBOOK_DRAIN_S" in changed:
            self._host.drain_s = float(values.get("CUEBOOK_DRAIN_S") or DEFAULT_DRAIN_S)

    def status(self) -> str:
        instances = self._host.instances
        slots, in_flight = sum(one.slots for one in instances), sum(one.in_flight for one in instances)
        parts = [f"slots {slots}, in flight {in_flight}, done {self._host.handled}", self._edge.status]
        if self._forwarder.waiting:
            parts.append(f"{self._forwarder.waiting} events wait")
        return ", ".join(part for part in parts if part)

    async def run(self, drain_s: float) -> None:
        async with contextlib.AsyncExitStack() as stack:
            helpers = [asyncio.ensure_future(one) for one in (self._edge.watch(self._host.log), self._forwarder.run())]
            for helper in helpers:
                stack.push_async_callback(_end, helper)
            announcing = asyncio.ensure_future(self._announce())
            stack.push_async_callback(_end, announcing)
            serving = asyncio.ensure_future(self._serve(drain_s))
            await asyncio.wait([serving, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for helper in helpers:
                if helper.done():  # they end only by an error
                    self.stop()
                    await asyncio.wait([serving])
                    helper.result()
            serving.result()

    async def _serve(self, drain_s: float) -> None:
        """Serve the agents, and without them go on until we are to stop: the events of the place want to be told."""
        await self._host.run(drain_s=drain_s)
        if not self._stopping.is_set():
            logger.warning("no agent is served here any more; events are forwarded", extra={"edge": self._edge.name})
            await self._stopping.wait()

    async def _announce(self) -> None:
        await self._forwarder.ready.wait()
        await self._host.ready.wait()
        self.ready.set()


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
