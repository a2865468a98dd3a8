"""Everything that a scenario needs, each in a process of its own on this machine."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Worker, cpu_s, worker
from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.embedded.postgres import Postgres, postgres

__all__ = ["Servers", "Stage", "servers", "stage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers that all scenarios share. `postgres` only where projections run."""

    nats: NatsServer
    postgres: Postgres | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The processes of one scenario, in a space of its own."""

    servers: Servers
    orchestrator: Worker
    agents: Worker
    client: Worker
    projections: Worker | None

    @property
    def workers(self) -> list[Worker]:
        """The Python processes."""
        always = [self.client, self.orchestrator, self.agents]
        return [*always, self.projections] if self.projections else always

    async def flush(self) -> None:
        """Send what waits to be sent to a collector: it is part of the cost."""
        for one in self.workers:
            await one.order("flush")

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by process."""
        pids = {one.role: one.pid for one in self.workers} | {"nats-server": self.servers.nats.pid}
        if self.servers.postgres:
            pids["postgresql"] = self.servers.postgres.pid
        return {name: cpu_s(pid) for name, pid in pids.items()}


@asynccontextmanager
async def servers(directory: Path, *, projections: bool, sync_always: bool) -> AsyncIterator[Servers]:
    """A nats-server and, for projections, a PostgreSQL with its own settings for durability."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres(directory / "postgres")) if projections else None
        broker = await stack.enter_async_context(nats_server(directory / "nats", sync_always=sync_always))
        yield Servers(nats=broker, postgres=database)


@asynccontextmanager
async def stage(on: Servers, env: Mapping[str, str]) -> AsyncIterator[Stage]:
    """Start the processes of a new space: orchestrator, agents, client and, where there is a database, projections.

    `env` is added to their environment.
    """
    space, url = f"bench{secrets.token_hex(3)}", on.nats.url
    async with AsyncExitStack() as stack:
        yield Stage(
            servers=on,
            orchestrator=await stack.enter_async_context(worker("orchestrator", url, space, env=env)),
            agents=await stack.enter_async_context(worker("agents", url, space, env=env)),
            projections=(
                await stack.enter_async_context(worker("projections", url, space, on.postgres.url, env=env))
                if on.postgres
                else None
            ),
            client=await stack.enter_async_context(worker("client", url, space, env=env)),
        )
