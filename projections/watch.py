"""What the service notices while it writes: that a rebuild or a rollback has shown another generation; and the time.

The database tells of the first by NOTIFY; the next commit would notice too, but on a quiet log that may be long, and
until then the old generation would stay claimed. The second is for retention: a month that is over is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, Self

import psycopg

from cuebook.events.errors import CuebookError
from cuebook.projections.database import Backoff, Transaction, connect, is_outage, schema_name
from cuebook.projections.generations import generations_of, written_by
from cuebook.projections.projection import Projection
from cuebook.projections.retention import retire

__all__ = ["Watch"]

RETIRE_EVERY_S: Final = 3600.0

logger = logging.getLogger(__name__)


class Watch:
    """Calls `on_change` with the generations to be written, by projection, whenever they may have changed.

    Use `async with`; the tables have to be there. It has a connection of its own and waits while PostgreSQL is away.
    """

    def __init__(
        self,
        database_url: str,
        space: str,
        projections: Sequence[Projection],
        on_change: Callable[[dict[str, int]], None],
    ) -> None:
        self._url, self._schema, self._projections = database_url, schema_name(space), projections
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        backoff, said = Backoff(), ""
        while True:
            try:
                async with await connect(self._url, [self._schema]) as connection:
                    await connection.execute("LISTEN cuebook")
                    await self._listen(connection)
            except (psycopg.Error, CuebookError) as error:
                if not is_outage(error) and said != (said := str(error)):
                    logger.exception("cannot watch for other generations; the next commit will notice them")
                await backoff.pause()

    async def _listen(self, connection: Transaction) -> None:
        while True:
            await self._look(connection)
            for projection in self._projections:
                await retire(connection, projection.name)
            # Of other spaces' notices too: to look is cheap, and while the generator runs the connection is taken.
            async with contextlib.aclosing(connection.notifies(timeout=RETIRE_EVERY_S, stop_after=1)) as notices:
                async for _ in notices:
                    pass

    async def _look(self, connection: Transaction) -> None:
        shown = {}
        for projection in self._projections:
            found = written_by(await generations_of(connection, projection.name), projection.version)
            if found is not None:
                shown[projection.name] = found.number
        self._on_change(shown)
