"""All programs of one space, each a process of its own, started in order and awaited until they take work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from cuebook.actors.client import Client
from cuebook.cli.interrupts import checkpoint
from cuebook.cli.serving.children import Child, Program, Say, never, running
from cuebook.cli.serving.metrics import following
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.projections import queries
from cuebook.projections.runner import ALL

__all__ = ["Parts", "parts_of_a_space"]

_READY_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.05


class Parts:
    """The programs of a space, under way."""

    def __init__(self, client: Client, agents: Sequence[Child], database_url: str) -> None:
        self._client, self._agents, self._database_url = client, agents, database_url

    async def ready(self) -> None:
        """Wait until an orchestrator decides and counts an instance of every agent as healthy, and tables are there.

        Raises UnavailableError when that takes too long.
        """
        missing, here = "the orchestrator", os.uname().nodename
        try:
            async with asyncio.timeout(_READY_DEADLINE_S):
                while missing:
                    await asyncio.sleep(_POLL_S)
                    checkpoint()
                    with contextlib.suppress(UnavailableError):
                        found = (await self._client.ask("agents"))["agents"]
                        healthy = {one["pid"] for one in found if one["health"] == "healthy" and one["host"] == here}
                        missing = ", ".join(agent.name for agent in self._agents if agent.pid not in healthy)
                        if not missing and not await self._has_tables():
                            missing = "the projections"
        except TimeoutError as error:
            raise UnavailableError(f"not ready within {_READY_DEADLINE_S:g} s: {missing}") from error
        checkpoint()

    async def _has_tables(self) -> bool:
        try:
            async with queries.reading(self._database_url, self._client.log.subjects.space) as reading:
                shown = {
                    one.projection for one in await queries.list_projections(reading, last_sequence=0) if one.shown
                }
        except ConfigurationError:  # none of them yet
            return False
        return shown >= {one.name for one in ALL}


@contextlib.asynccontextmanager
async def parts_of_a_space(
    client: Client,
    *,
    sagas: Sequence[str],
    agents: Sequence[str],
    env: Mapping[str, str],
    say: Say,
    sealer: Sequence[str] = (),
    lost: Callable[[], Awaitable[None]] = never,
    metrics: str = "",
) -> AsyncIterator[Parts]:
    """Run the orchestrator with `sagas`, the projections, and each of `agents` (all written MODULE:NAME).

    `sealer`: the flags of a sealer, which is run too if there are any. `lost`: as for `running`.
    `metrics`: HOST:PORT of the orchestrator's; the others have the ports after it, in the order of their start.

    At the end the agents finish what they have while the others still run. Raises ConfigurationError, out of the block,
    for a program that never stays up.
    """
    await client.log.ensure()  # agents and projections wait for the stream
    checkpoint()
    env = {**env, "PYTHONUNBUFFERED": "1"}
    core = [("orchestrator", _serve("orchestrator", *sagas)), ("projections", _serve("projections"))]
    if sealer:
        core.append(("sealer", _serve("sealer", *sealer)))
    hosts = [(agent.rpartition(":")[2].lower(), _serve("agents", agent)) for agent in agents]
    programs = [
        Program(name=name, argv=argv, env={**env, "CUEBOOK_METRICS": following(metrics, n)})
        for n, (name, argv) in enumerate([*core, *hosts])
    ]
    first, then = programs[: len(core)], programs[len(core) :]
    async with running(first, say, lost=lost), running(then, say, lost=lost) as children:
        yield Parts(client, children, env["CUEBOOK_DATABASE_URL"])


def _serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cuebook.cli.main", "serve", *arguments]
