"""How far a projection has read: moved in the transaction that writes its rows, by compare and set."""

from __future__ import annotations

from typing import Final

from psycopg import errors

from cuebook.events.envelope import Envelope, Position, to_datetime
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.log import Unreadable
from cuebook.projections.database import Transaction
from cuebook.projections.generations import Generation
from cuebook.projections.projection import Item
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements

__all__ = ["Checkpoint", "ReadAgainError", "position_of"]

CLAIM_WAIT: Final = "30s"
"""Our own last connection may have broken without the server knowing yet: by keepalives it finds out after 20 s."""

_SQL = load_statements("checkpoint.sql")


class ReadAgainError(CuebookError):
    """PostgreSQL came back with an earlier state, or another generation is ours to write: begin at the checkpoints."""


class Checkpoint:
    """The checkpoint of one generation of a projection. The connection looks names up in the schema of its space.

    `state`: the one in which we write it; once it is in another, it is somebody else's turn.
    """

    def __init__(self, generation: Generation, state: str) -> None:
        self.generation = generation
        self._state = state
        self._keys = [generation.projection, generation.number]

    async def claim(self, connection: Transaction) -> None:
        """Make this connection the one that writes, until it ends. Raises ConfigurationError when another one is.

        This only spares the loser a start; what keeps two writers from mixing is `advance`.
        """
        await connection.execute(_SQL["wait_for_claim"], [CLAIM_WAIT])
        try:
            await connection.execute(_SQL["claim"], self._keys)
        except errors.LockNotAvailable as error:
            raise self.taken() from error
        await connection.execute(_SQL["wait_for_claim"], ["0"])

    async def read(self, connection: Transaction) -> Position:
        """The checkpoint as committed. Raises ReadAgainError when it is no longer ours to write."""
        cursor = await connection.execute(_SQL["read"], self._keys)
        found = await cursor.fetchone()
        if found is None or found[2] != self._state:
            raise ReadAgainError(
                f"generation {self.generation.number} of projection {self.generation.projection} is written no more"
            )
        return Position(found[0], found[1])

    async def advance(self, tx: Transaction, *, before: Position, after: Position) -> None:
        """Move it; until the transaction ends nobody else can.

        Raises ReadAgainError when another generation has taken its place, ConfigurationError when another process has
        moved it.
        """
        values = [after.sequence, after.event_id, *self._keys, before.sequence, before.event_id, self._state]
        cursor = await tx.execute(_SQL["advance"], values)
        if cursor.rowcount != 1:
            await self.read(tx)
            raise self.taken()

    async def park(self, tx: Transaction, item: Item, reason: str) -> None:
        """Note an event that is passed over."""
        event_id = item.id if isinstance(item, Envelope) else ""
        recorded_at = to_datetime(item.recorded_at)
        texts = [storable(value) for value in (event_id, item.subject, reason)]
        one = self.generation
        values = [one.projection, one.version, one.number, item.sequence, recorded_at, *texts]
        await tx.execute(_SQL["park"], values)

    def taken(self) -> ConfigurationError:
        """The error for a projection that somebody else writes."""
        if self._state == "live":
            return ConfigurationError(
                f"another process writes projection {self.generation.projection}",
                remedy="run 'cuebook serve projections' once for each space and database",
            )
        return ConfigurationError(
            f"another process brings generation {self.generation.number} of projection "
            f"{self.generation.projection} up to date",
            remedy="wait for it to end: 'cuebook projection list' shows how far it is",
        )


def position_of(item: Item) -> Position:
    """The position after an item."""
    return Position(item.sequence, "" if isinstance(item, Unreadable) else item.id)
