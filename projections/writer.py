"""One projection on one connection: each batch and its checkpoint in one transaction, never lost and never twice.

- PostgreSQL is away: wait, look where the checkpoint stands, go on from there. That also settles a COMMIT whose answer
  never came.
- An event cannot be applied: the batch is halved until it stands alone, then it is put into `parked_events` with the
  reason and the projection goes on behind it.
- The checkpoint moved without us: another process writes this projection; stop.

The connection is a session with settings, temporary tables and a lock: no pooler may share it between clients.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Self

import psycopg

from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.projections.checkpoint import Checkpoint, ReadAgainError, position_of
from cuebook.projections.database import (
    Backoff,
    Outage,
    Transaction,
    connect,
    is_about_the_event,
    is_outage,
    schema_name,
)
from cuebook.projections.projection import Batch, Item, Projection

__all__ = ["Writer"]

REASON_CHARACTERS: Final = 2_000

# The tables follow from the log, so a commit need not wait for the disk: after a crash of PostgreSQL rows and
# checkpoint step back together. Each statement finds few rows by key in large tables: the planner needs no other way.
_SETTINGS: Final = {
    "synchronous_commit": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A process that vanished without a word gives up its claim soon.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}

logger = logging.getLogger(__name__)


class Writer:
    """Writes one projection. Use `async with`; `position` is how far it has committed."""

    def __init__(self, projection: Projection, database_url: str, space: str, outage: Outage) -> None:
        self.projection = projection
        self.position = Position()
        self.parked = 0
        """Events parked since this process started."""
        self._url, self._outage = database_url, outage
        self._schemas = [schema_name(space, projection.name, projection.version), schema_name(space)]
        self._checkpoint = Checkpoint(projection.name, projection.version)
        self._connection: Transaction | None = None

    async def __aenter__(self) -> Self:
        await self.reload()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._disconnect()

    async def reload(self) -> None:
        """Begin again from the checkpoint as PostgreSQL has it, whatever became of the last batch."""
        await self._disconnect()
        self.position = await self._committed()

    async def apply(self, batch: Batch) -> None:
        """Commit what the batch holds after `position`. Returns when that is done, however long PostgreSQL is away.

        Raises ReadAgainError when PostgreSQL came back with an earlier state, ConfigurationError when another process
        writes this projection or the role may not.
        """
        done = self.position.sequence
        if batch[0].sequence <= done:
            batch = [item for item in batch if item.sequence > done]
        if batch:
            await self._apply(batch)

    async def _apply(self, batch: Batch) -> None:
        async def work(tx: Transaction) -> None:
            await self.projection.apply(batch, tx)

        try:
            await self._commit(work, position_of(batch[-1]))
        except CuebookError:
            raise
        except Exception as error:
            if not is_about_the_event(error):
                raise ConfigurationError(
                    f"PostgreSQL refuses projection {self.projection.name}: {type(error).__name__}: {error}",
                    remedy="check the rights of the role and that nobody changed the tables; else build them again",
                ) from error
            if len(batch) == 1:
                await self._park(batch[0], error)
                return
            middle = len(batch) // 2
            await self._apply(batch[:middle])
            await self._apply(batch[middle:])

    async def _park(self, item: Item, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"[:REASON_CHARACTERS]

        async def work(tx: Transaction) -> None:
            await self._checkpoint.park(tx, item, reason)

        await self._commit(work, position_of(item))
        self.parked += 1
        logger.error(
            "parked an event that a projection cannot apply",
            extra={
                "projection": self.projection.name,
                "sequence": item.sequence,
                "subject": item.subject,
                "error": type(error).__name__,
            },
        )

    async def _commit(self, work: Callable[[Transaction], Awaitable[None]], after: Position) -> None:
        """Run `work` and move the checkpoint, in one transaction, exactly once."""
        backoff = Backoff()
        while True:
            try:
                connection = self._connection or await self._connect()
                async with connection.transaction():
                    await self._checkpoint.advance(connection, before=self.position, after=after)
                    await work(connection)
            except Exception as error:
                if not is_outage(error):
                    raise
                await self._wait(error, backoff)
                committed = await self._committed()
                if committed == after:
                    break  # the answer was lost, the commit was not
                if committed.sequence < self.position.sequence:
                    raise ReadAgainError(
                        f"PostgreSQL is back with projection {self.projection.name} at {committed.sequence} only"
                    ) from error
                if committed != self.position:
                    raise self._checkpoint.taken() from error
            else:
                break
        self._outage.ended()
        self.position = after

    async def _committed(self) -> Position:
        """The checkpoint as PostgreSQL has it, on a connection that works."""
        backoff = Backoff()
        while True:
            try:
                return await self._checkpoint.read(self._connection or await self._connect())
            except psycopg.Error as error:
                if not is_outage(error):
                    raise
                await self._wait(error, backoff)

    async def _connect(self) -> Transaction:
        connection = await connect(self._url, self._schemas, **_SETTINGS)
        try:
            await self._checkpoint.claim(connection)
            if self.projection.session:
                await connection.execute(self.projection.session)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _wait(self, error: BaseException, backoff: Backoff) -> None:
        self._outage.began(error)
        await self._disconnect()
        await backoff.pause()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
