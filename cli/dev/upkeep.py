"""The servers that are ours, kept running for as long as an `async with` block lasts.

One that ends is started again on its port and its data, after pauses that grow; one that cannot be started again, or
does not stay up, ends the block. Programs that use them see no more than a pause,
since they connect again by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from cuebook.cli.serving.children import Restarts, Say
from cuebook.embedded.process import how_it_ended
from cuebook.events.errors import ConfigurationError

__all__ = ["Server", "Upkeep", "kept_up"]

PATIENCE_S: Final = 3.0
"""So long may a server be away before nobody waits for it who is to end."""
LAST_GRACE_S: Final = 1.0
"""What a program gets to end in when it is told to only after that."""


class Server(Protocol):
    """An embedded server that runs."""

    @property
    def title(self) -> str:
        """What messages call it."""

    @property
    def log(self) -> Path:
        """The file that takes what it prints."""

    async def ended(self) -> int:
        """Wait until it has ended; return its status."""

    async def restart(self) -> None:
        """Start it again where it was. Raises ConfigurationError when it refuses."""

    def failure(self) -> ConfigurationError:
        """How it ended, with its last words."""


class Upkeep:
    """Servers under watch."""

    def __init__(self, say: Say) -> None:
        """Begin with none away; `kept_up` is the way to watch some."""
        self._say = say
        self._away: dict[str, float] = {}  # since when, by title
        self._changed = asyncio.Condition()

    async def lost(self) -> None:
        """Wait until one of the servers has been away for `PATIENCE_S`; from now on, for `LAST_GRACE_S` at least."""
        clock = asyncio.get_running_loop().time
        earliest = clock() + LAST_GRACE_S
        while True:
            since = min(self._away.values(), default=None)
            until = None if since is None else max(since + PATIENCE_S, earliest)
            if until is not None and clock() >= until:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until), self._changed:
                    await self._changed.wait()

    async def keep(self, server: Server) -> None:
        """Start the server again whenever it ends. Raises ConfigurationError when that does not help.

        Raises UnavailableError when it runs again but does not answer.
        """
        clock = asyncio.get_running_loop().time
        restarts, began = Restarts(), clock()
        while True:
            status = await server.ended()
            await self._note(server, away_since=clock())
            await self._start_again(server, f"ended {how_it_ended(status)}", restarts, ran_s=clock() - began)
            began = clock()
            await self._note(server, away_since=None)
            self._say(server.title, "runs again")

    async def _start_again(self, server: Server, how: str, restarts: Restarts, *, ran_s: float) -> None:
        failure = server.failure()
        while True:
            pause_s = restarts.pause_s(ran_s)
            if pause_s is None:
                raise failure
            self._say(server.title, f"{how}; starts again in {pause_s:g} s; its log: {server.log}")
            await asyncio.sleep(pause_s)
            try:
                return await server.restart()
            except ConfigurationError as error:
                failure, ran_s = error, 0.0
                how = str(error).partition("\n")[0].removeprefix(f"{server.title} ").removesuffix(":")

    async def _note(self, server: Server, *, away_since: float | None) -> None:
        async with self._changed:
            if away_since is None:
                del self._away[server.title]
            else:
                self._away[server.title] = away_since
            self._changed.notify_all()


@contextlib.asynccontextmanager
async def kept_up(servers: Sequence[Server], say: Say) -> AsyncIterator[Upkeep]:
    """Keep servers running that run already; leaving leaves them as they are, for their own block to stop.

    Raises ConfigurationError or UnavailableError, out of the block, for a server that cannot be brought back.
    """
    upkeep = Upkeep(say)
    try:
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(upkeep.keep(server), name=server.title) for server in servers]
            yield upkeep
            for keeper in keepers:
                keeper.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # what went wrong first; the rest followed from it
