"""How far a projection has read: moved in the transaction that writes its rows, by compare and set."""

from __future__ import annotations

from typing import Final

from psycopg import errors

from cuebook.events.envelope import Envelope, Position, to_datetime
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.log import Unreadable
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Item
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements

__all__ = ["Checkpoint", "ReadAgainError", "position_of"]

CLAIM_WAIT: Final = "10s"
"""Our own last connection may have broken without the server knowing yet."""

_SQL = load_statements("checkpoint.sql")


class ReadAgainError(CuebookError):
    """PostgreSQL came back with an earlier state: read the log again from its checkpoints."""


class Checkpoint:
    """The checkpoint of one version of a projection. The connection looks names up in the schema of its space."""

    def __init__(self, projection: str, version: int) -> None:
        self._projection, self._version = projection, version

    async def claim(self, connection: Transaction) -> None:
        """Make this connection the one that writes, until it ends. Raises ConfigurationError when another one is.

        This only spares the loser a start; what keeps two writers from mixing is `advance`.
        """
        await connection.execute(_SQL["wait_for_claim"], [CLAIM_WAIT])
        try:
            await connection.execute(_SQL["claim"], [self._projection, self._version])
        except errors.LockNotAvailable as error:
            raise self.taken() from error
        await connection.execute(_SQL["wait_for_claim"], ["0"])

    async def read(self, connection: Transaction) -> Position:
        """The checkpoint as committed. Raises ConfigurationError when this version has no tables."""
        cursor = await connection.execute(_SQL["read"], [self._projection, self._version])
        found = await cursor.fetchone()
        if found is None:
            raise ConfigurationError(f"projection {self._projection} version {self._version} has no tables any more")
        return Position(*found)

    async def advance(self, tx: Transaction, *, before: Position, after: Position) -> None:
        """Move it; until the transaction ends nobody else can. Raises ConfigurationError when somebody else has."""
        values = [after.sequence, after.event_id, self._projection, self._version, before.sequence, before.event_id]
        cursor = await tx.execute(_SQL["advance"], values)
        if cursor.rowcount != 1:
            raise self.taken()

    async def park(self, tx: Transaction, item: Item, reason: str) -> None:
        """Note an event that is passed over."""
        event_id = item.id if isinstance(item, Envelope) else ""
        recorded_at = to_datetime(item.recorded_at)
        texts = [storable(value) for value in (event_id, item.subject, reason)]
        await tx.execute(_SQL["park"], [self._projection, self._version, item.sequence, recorded_at, *texts])

    def taken(self) -> ConfigurationError:
        """The error for a projection that somebody else writes."""
        return ConfigurationError(
            f"another process writes projection {self._projection}",
            remedy="run 'cuebook serve projections' once for each space and database",
        )


def position_of(item: Item) -> Position:
    """The position after an item."""
    return Position(item.sequence, "" if isinstance(item, Unreadable) else item.id)
