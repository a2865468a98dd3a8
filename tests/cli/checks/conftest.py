"""A space with everything in place, in this process, and a doctor for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from cuebook.actors import Agent, handler
from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.cli.checks.areas import AREAS, LIMITS, look
from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import Finding, Level, Limits
from cuebook.cli.diagnosis.probe import Sources, gather
from cuebook.cli.options import Target
from cuebook.events.connection import Connection, connect
from cuebook.events.facts import AgentRegistered, HandlerSpec
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.projections.runner import Runner
from tests.cli import desk
from tests.waiting import eventually


class Quick(Agent):
    """An agent that is heard often."""

    name = "quick"
    heartbeat_s = 0.5
    concurrency = 2

    @handler()
    async def add(self, given: desk.In) -> desk.Out:
        return desk.Out(n=given.n + 1)


@dataclass
class Doctor:
    """Looks at one space, as `cuebook doctor` does."""

    nats_url: str
    space: str
    database_url: str = ""
    monitor_url: str = ""
    timeout_s: float = 3.0
    limits: dict[str, Limits] = field(default_factory=lambda: {"projections.storage": Limits()})
    """However full the disk of the machine is that runs the tests."""

    async def facts(self, *areas: str) -> Facts:
        target = Target(nats_url=self.nats_url, space=self.space)
        return await gather(
            Sources(
                target=target,
                database_url=self.database_url,
                monitor_url=self.monitor_url,
                timeout_s=self.timeout_s,
                areas=areas or AREAS,
            )
        )

    def findings(self, facts: Facts, *areas: str) -> list[Finding]:
        reports = look(facts, areas or AREAS, {**LIMITS, **self.limits})
        return [one for report in reports for one in report.findings]

    async def finds(self, *areas: str) -> dict[str, Finding]:
        """What is found, by code."""
        return {one.code: one for one in self.findings(await self.facts(*areas), *areas)}

    async def until(self, code: str, *areas: str) -> Finding:
        """Wait until something is found."""

        async def found() -> Finding | None:
            return (await self.finds(*areas)).get(code)

        finding = await eventually(found, within_s=60)
        assert finding is not None
        return finding

    async def agrees(self, codes: list[str], *areas: str) -> dict[str, Finding]:
        """Wait until this and nothing else is wrong: what has just begun or ended may be noticed a moment later."""

        findings: dict[str, Finding] = {}

        async def found() -> bool:
            nonlocal findings
            findings = await self.finds(*areas)
            return wrong(findings) == codes

        with suppress(AssertionError):
            await eventually(found, within_s=60)
        assert wrong(findings) == codes
        return findings

    async def facts_when_well(self, *areas: str) -> Facts:
        """Wait until there is nothing to say, and give the facts."""

        async def found() -> Facts | None:
            facts = await self.facts(*areas)
            return None if facts.failures or self.findings(facts, *areas) else facts

        facts = await eventually(found, within_s=60)
        assert facts is not None
        return facts


def wrong(findings: dict[str, Finding]) -> list[str]:
    """The codes of what is wrong."""
    return sorted(code for code, one in findings.items() if one.level > Level.UNKNOWN)


@dataclass
class System:
    """What a test may start of a space, as often as it likes. Everything ends with the test."""

    nats_url: str
    space: str
    client: Client
    stack: AsyncExitStack

    @property
    def log(self) -> EventLog:
        return self.client.log

    async def connection(self) -> Connection:
        opened = await connect(self.nats_url, name="tests")
        self.stack.push_async_callback(opened.close)
        return opened

    async def orchestrator(self, *sagas: Any, deciding: bool = True) -> OrchestratorService:
        service = OrchestratorService(await self.connection(), self.space, sagas)
        await self._run(service.run(), service.stop, service.deciding if deciding else service.in_place)
        return service

    async def agents(self, *classes: type[Agent]) -> AgentHost:
        host = AgentHost(await self.connection(), self.space, list(classes) or [Quick])
        await self._run(host.run(drain_s=1), host.stop, host.ready)
        return host

    async def projections(self, database_url: str, **options: Any) -> Runner:
        runner = Runner(self.log, database_url, **options)
        await self._run(runner.run(), runner.drain, runner.ready)
        doctor = Doctor(self.nats_url, self.space, database_url)

        async def are_written() -> bool:
            return "projections.stopped" not in await doctor.finds("projections")

        await eventually(are_written)
        return runner

    async def register(self, agent: str, instance: str, **facts: Any) -> None:
        """Say that an instance is there, which is not."""
        event = AgentRegistered(**{"slots": 1, "handlers": {"add": HandlerSpec()}, **facts})
        await self.log.append(self.log.subjects.agent(agent, instance, "registered"), event)

    async def change(self, stream: str, **settings: Any) -> None:
        """Change settings of a stream, as 'nats stream edit' does."""
        info = await js_request(self.log.connection, f"STREAM.INFO.{stream}", {})
        await js_request(self.log.connection, f"STREAM.UPDATE.{stream}", info["config"] | settings)

    async def _run(self, running: Any, stop: Callable[[], None], ready: asyncio.Event) -> None:
        task = asyncio.ensure_future(running)

        async def end() -> None:
            stop()
            await task

        self.stack.push_async_callback(end)
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait([task, waiting], return_when="FIRST_COMPLETED")
        if task.done():
            waiting.cancel()
            task.result()


@asynccontextmanager
async def opened(nats_url: str, space: str, *, replicas: int = 1) -> AsyncIterator[System]:
    """A space whose stream is there, and nothing else."""
    async with AsyncExitStack() as stack:
        connection = await connect(nats_url, name="tests")
        stack.push_async_callback(connection.close)
        client = await stack.enter_async_context(Client(connection, space, by="tests"))
        await client.log.ensure(replicas=replicas)
        yield System(nats_url, space, client, stack)


@pytest.fixture
async def system(nats_url: str, space: str) -> AsyncIterator[System]:
    async with opened(nats_url, space) as there:
        yield there


@pytest.fixture
def doctor(nats_url: str, space: str) -> Doctor:
    return Doctor(nats_url, space)
