"""One space with its orchestrators, agents and a client, all in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from cuebook.actors import Agent, Saga
from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.events.connection import Connection, connect, ended
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Event
from tests.waiting import eventually

__all__ = ["Crew", "Desk", "Stage"]

START_S = 60.0


class Stage:
    """A running orchestrator."""

    def __init__(self, connection: Connection, service: OrchestratorService) -> None:
        self.connection, self.service = connection, service
        self.task = asyncio.create_task(service.run())

    async def stop(self) -> None:
        """End it in good order."""
        self.service.stop()
        await self.task
        await self.connection.close()

    async def die(self) -> None:
        """End it as a crash would: nothing more is written, whatever was under way stays open."""
        _forget_to_write(self.connection)
        await ended(self.task)
        await self.connection.close()


class Crew:
    """A running host of agents."""

    def __init__(self, connection: Connection, host: AgentHost, drain_s: float) -> None:
        self.connection, self.host = connection, host
        self.task = asyncio.create_task(host.run(drain_s=drain_s))

    async def stop(self) -> None:
        """Drain every instance."""
        self.host.stop()
        await self.task
        await self.connection.close()

    async def die(self) -> None:
        """End it as a crash would: it falls silent."""
        _forget_to_write(self.connection)
        await self.connection.close()
        self.host.stop()
        await self.task


class Desk:
    """Use `async with`; whatever still runs at its end is stopped in good order."""

    def __init__(
        self,
        url: str,
        space: str,
        *,
        sagas: Sequence[Saga[Any, Any]] = (),
        agents: Sequence[type[Agent]] = (),
        replicas: int = 1,
    ) -> None:
        self.url, self.space, self._sagas, self._agents, self._replicas = url, space, sagas, agents, replicas
        self.stages: list[Stage] = []
        self.crews: list[Crew] = []
        self._stack = AsyncExitStack()
        self.client: Client

    async def __aenter__(self) -> Self:
        connection = await connect(self.url, name="client")
        self._stack.push_async_callback(connection.close)
        self.client = await self._stack.enter_async_context(Client(connection, self.space, by="test"))
        await self.direct()
        if self._agents:
            await self.hire(*self._agents)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(crew.stop() for crew in self.crews if not crew.task.done()))
        await asyncio.gather(*(stage.stop() for stage in self.stages if not stage.task.done()))
        await self._stack.aclose()

    async def direct(self, *sagas: Saga[Any, Any], standby: bool = False) -> Stage:
        """Start an orchestrator and wait until it decides, or as a standby until it has folded the log."""
        stage = await self.prepare(*sagas)
        ready = stage.service.caught_up if standby else stage.service.deciding
        await _ready(stage.task, ready.wait())
        return stage

    async def prepare(
        self, *sagas: Saga[Any, Any], service: Callable[..., OrchestratorService] = OrchestratorService
    ) -> Stage:
        """Start an orchestrator and wait for nothing."""
        connection = await connect(self.url, name="orchestrator")
        stage = Stage(connection, service(connection, self.space, sagas or self._sagas, replicas=self._replicas))
        self.stages.append(stage)
        return stage

    async def hire(self, *agents: type[Agent], drain_s: float = 5.0) -> Crew:
        """Start a host with one instance of each agent and wait until all of them are known as healthy."""
        connection = await connect(self.url, name="agents")
        crew = Crew(connection, AgentHost(connection, self.space, list(agents)), drain_s)
        self.crews.append(crew)
        await _ready(crew.task, crew.host.ready.wait())
        for instance in crew.host.instances:
            await self.sees(lambda name=instance.id: self.health(name) == "healthy")  # type: ignore[misc]
        return crew

    @property
    def stage(self) -> Stage:
        """The orchestrator started last."""
        return self.stages[-1]

    def health(self, instance: str) -> str:
        """What the orchestrator started last thinks of an instance; empty for one it does not know."""
        for one in self.stage.service.core.world.registry.instances.values():
            if one.instance == instance:
                return one.health
        return ""

    async def sees(self, condition: Callable[[], Any], *, within_s: float = 30.0) -> Any:
        """Wait until the orchestrator's fold is as wanted; fails at once when the orchestrator has ended."""
        return await eventually(lambda: self.stage.task.done() or condition(), within_s=within_s)

    async def seen(self) -> None:
        """Wait until the orchestrator started last has folded all that the log has by now."""
        last = (await self.client.log.verify()).last_sequence
        await self.sees(lambda: self.stage.service.core.world.position.sequence >= last)

    async def facts(self, run_id: str = "") -> list[str]:
        """What the log says about a run, or about everything: subjects without the space."""
        return [item.subject.partition(".")[2] for item in await self.log(run_id)]

    async def events(self, run_id: str, fact: str) -> list[Any]:
        """The events of a run with this fact, in order."""
        return [item.event for item in await self.log(run_id) if item.address.fact == fact]

    async def log(self, run_id: str = "") -> list[Envelope]:
        """The readable part of the log, or of the history of a run."""
        log = self.client.log
        filters = [log.subjects.everything_of(run_id)] if run_id else []
        return [item async for item in log.read(filters=filters) if isinstance(item, Envelope)]

    async def events_on(self, topic: str) -> list[Envelope]:
        """The outside events on a topic, in order."""
        log = self.client.log
        filters = [log.subjects.event(topic)]
        return [item async for item in log.read(filters=filters) if isinstance(item, Envelope)]

    async def saw(self, run_id: str, fact: str, times: int = 1) -> list[Any]:
        """Wait until the run has a fact, so many times; gives the events."""

        async def enough() -> list[Event]:
            found = await self.events(run_id, fact)
            return found if len(found) >= times else []

        return await eventually(enough)

    async def rejections(self) -> list[Envelope]:
        """The messages that were refused."""
        return [item for item in await self.log() if item.address.kind == "rejected"]


async def _ready(task: asyncio.Task[None], condition: Awaitable[Any]) -> None:
    """Wait for `condition`; when the task ends before, that is its failure."""
    waiting = asyncio.ensure_future(condition)
    await asyncio.wait([task, waiting], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        if task.done():
            task.result()
        raise AssertionError("it did not start")


def _forget_to_write(connection: Connection) -> None:
    connection.write = lambda frame: None  # type: ignore[method-assign]
