"""All programs of one space, each a process of its own, started in order and awaited until they take work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from cuebook.actors.client import Client
from cuebook.cli.children import Child, Program, Say, never, running
from cuebook.cli.interrupts import checkpoint
from cuebook.events.errors import UnavailableError

__all__ = ["Parts", "parts_of_a_space"]

_READY_DEADLINE_S: Final = 120.0
_POLL_S: Final = 0.05


class Parts:
    """The programs of a space, under way."""

    def __init__(self, client: Client, agents: Sequence[Child]) -> None:
        self._client, self._agents = client, agents

    async def ready(self) -> None:
        """Wait until an orchestrator decides and counts an instance of every agent as healthy.

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
        except TimeoutError as error:
            raise UnavailableError(f"not ready within {_READY_DEADLINE_S:g} s: {missing}") from error
        checkpoint()


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
) -> AsyncIterator[Parts]:
    """Run the orchestrator with `sagas`, the projections, and each of `agents` (all written MODULE:NAME).

    `sealer`: the flags of a sealer, which is run too if there are any. `lost`: as for `running`.

    At the end the agents finish what they have while the others still run. Raises ConfigurationError, out of the block,
    for a program that never stays up.
    """
    await client.log.ensure()  # agents and projections wait for the stream
    checkpoint()
    env = {**env, "PYTHONUNBUFFERED": "1"}
    core = [
        Program(name="orchestrator", argv=_serve("orchestrator", *sagas), env=env),
        Program(name="projections", argv=_serve("projections"), env=env),
    ]
    if sealer:
        core.append(Program(name="sealer", argv=_serve("sealer", *sealer), env=env))
    hosts = [Program(name=agent.rpartition(":")[2].lower(), argv=_serve("agents", agent), env=env) for agent in agents]
    async with running(core, say, lost=lost), running(hosts, say, lost=lost) as children:
        yield Parts(client, children)


def _serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cuebook.cli.main", "serve", *arguments]
