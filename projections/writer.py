"""One projection on one connection: each batch and its checkpoint in one transaction, never lost and never twice.

- PostgreSQL is away: wait, look where the checkpoint stands, go on from there. That also settles a COMMIT whose answer
  never came.
- An event cannot be applied: the batch is halved until it stands alone, then it is put into `parked_events` with the
  reason and the projection goes on behind it.
- The checkpoint moved without us: another process writes this projection; stop.
- Another generation has taken the place of ours: say so, and go on with that one after `reload`.

The connection is a session with settings, temporary tables and a lock: no pooler may share it between clients.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

import psycopg
from psycopg import IsolationLevel

from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.projections.checkpoint import Checkpoint, ReadAgainError, position_of
from cuebook.projections.database import (
    UNHURRIED,
    Backoff,
    Outage,
    Transaction,
    connect,
    is_about_the_event,
    is_outage,
    path_of,
    schema_name,
)
from cuebook.projections.generations import Generation, generations_of, shown_of, written_by
from cuebook.projections.projection import Batch, Item, Projection

__all__ = ["Writer"]

REASON_CHARACTERS: Final = 2_000

# The tables follow from the log, so a commit need not wait for the disk: after a crash of PostgreSQL rows and
# checkpoint step back together. Each statement finds few rows by key in large tables: the planner needs no other way.
SETTINGS: Final = {
    "synchronous_commit": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    **UNHURRIED,
    # Rows in compressed chunks are rare to change, and then all that have to be; elsewhere it means nothing.
    "timescaledb.max_tuples_decompressed_per_dml_transaction": "0",
    # A process that vanished without a word gives up its claim soon.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
}

logger = logging.getLogger(__name__)


class Writer:
    """Writes one projection. Use `async with`; `position` is how far it has committed.

    Without a `generation` it is the one that a service with this version of the projection writes, looked up anew after
    every `reload`; `state` is the one in which a given generation has to be. `applies`: False where it is only shown,
    as it stands; then somebody else may write it, and it may be of another version.
    """

    def __init__(
        self,
        projection: Projection,
        database_url: str,
        space: str,
        outage: Outage,
        *,
        generation: Generation | None = None,
        state: str = "live",
        applies: bool = True,
    ) -> None:
        self._applies = applies
        self.projection = projection
        self.position = Position()
        self.parked = 0
        """Events parked since this process started."""
        self._url, self._outage, self._space = database_url, outage, space
        self._given, self._state = generation, state
        self._checkpoint: Checkpoint | None = None
        self._connection: Transaction | None = None
        self._within = False

    async def __aenter__(self) -> Self:
        await self.reload()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._disconnect()

    async def reload(self) -> None:
        """Begin again from the checkpoint as PostgreSQL has it, whatever became of the last batch."""
        await self._disconnect()
        self.position = await self._committed()

    @property
    def generation(self) -> Generation:
        """The one that is written, as it was when that began."""
        assert self._checkpoint is not None, "use 'async with'"
        return self._checkpoint.generation

    @asynccontextmanager
    async def transaction(self, isolation: IsolationLevel | None = None) -> AsyncIterator[Transaction]:
        """One transaction around everything that is done and applied in the block; if it fails, nothing was.

        What goes wrong with PostgreSQL in it is raised instead of waited for.
        """
        connection = self._connection or await self._connect()
        before = self.position
        await connection.set_isolation_level(isolation)
        self._within = True
        try:
            async with connection.transaction():
                yield connection
        except BaseException:
            self.position = before
            raise
        finally:
            self._within = False
            if not connection.closed:
                await connection.set_isolation_level(None)

    async def shown(self) -> Generation:
        """The generation that people read now. Looks on a connection of its own, and waits while PostgreSQL is away."""
        backoff = Backoff()
        while True:
            try:
                async with await connect(self._url, [schema_name(self._space)]) as connection:
                    found = shown_of(await generations_of(connection, self.projection.name))
            except psycopg.Error as error:
                if not is_outage(error):
                    raise
                self._outage.began(error)
                await backoff.pause()
            else:
                assert found is not None  # prepare_database shows one
                return found

    async def apply(self, batch: Batch) -> None:
        """Commit what the batch holds after `position`. Returns when that is done, however long PostgreSQL is away.

        Raises ReadAgainError when PostgreSQL came back with an earlier state or another generation is to be written,
        ConfigurationError when another process writes this projection or the role may not.
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
            if self._within and is_outage(error):
                raise
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
            assert self._checkpoint is not None
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
                assert self._checkpoint is not None
                async with connection.transaction():
                    await self._checkpoint.advance(connection, before=self.position, after=after)
                    await work(connection)
            except Exception as error:
                if self._within or not is_outage(error):
                    raise
                written = self.generation.number
                await self._wait(error, backoff)
                committed = await self._committed()
                if self.generation.number != written:
                    raise ReadAgainError(
                        f"PostgreSQL is back with another generation of projection {self.projection.name}"
                    ) from error
                if committed == after:
                    break  # the answer was lost, the commit was not
                if committed.sequence < self.position.sequence:
                    raise ReadAgainError(
                        f"PostgreSQL is back with projection {self.projection.name} at {committed.sequence} only"
                    ) from error
                if committed != self.position:
                    raise Checkpoint(self.generation, self._state).taken() from error
            else:
                break
        self._outage.ended()
        self.position = after

    async def _committed(self) -> Position:
        """The checkpoint as PostgreSQL has it, on a connection that works."""
        backoff = Backoff()
        while True:
            try:
                connection = self._connection or await self._connect()
                assert self._checkpoint is not None
                return await self._checkpoint.read(connection)
            except psycopg.Error as error:
                if not is_outage(error):
                    raise
                await self._wait(error, backoff)
            except ReadAgainError:
                if self._given is not None:
                    raise
                await self._disconnect()  # another one took its place just now
                await backoff.pause()

    async def _connect(self) -> Transaction:
        connection = await connect(self._url, [schema_name(self._space)], **SETTINGS)
        try:
            generation = self._given or await self._find(connection)
            schemas = [generation.tables_in, schema_name(self._space)]
            await connection.execute("SELECT set_config('search_path', %s, false)", [path_of(schemas)])
            self._checkpoint = Checkpoint(generation, self._state)
            if self._applies:
                await self._checkpoint.claim(connection)
                if self.projection.session:
                    await connection.execute(self.projection.session)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _find(self, connection: Transaction) -> Generation:
        found = written_by(await generations_of(connection, self.projection.name), self.projection.version)
        if found is None:
            raise ConfigurationError(
                f"projection {self.projection.name} version {self.projection.version} has no tables any more",
                remedy="start 'cuebook serve projections' again: it makes them",
            )
        return found

    async def _wait(self, error: BaseException, backoff: Backoff) -> None:
        self._outage.began(error)
        await self._disconnect()
        await backoff.pause()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
