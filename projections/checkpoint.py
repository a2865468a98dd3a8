"""How far a projection has read: moved in the transaction that writes its rows, by compare and set."""

from __future__ import annotations

from cuebook.events.envelope import Envelope, Position, to_datetime
from cuebook.events.errors import ConfigurationError, CuebookError, HistoryRegressedError
from cuebook.events.log import EventLog, Unreadable
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Item
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements

__all__ = ["Checkpoint", "ReadAgainError", "position_of", "verify_position"]

_SQL = load_statements("checkpoint.sql")


class ReadAgainError(CuebookError):
    """What was read may not be what is to be applied next: read the log again from the checkpoints."""


class Checkpoint:
    """The checkpoint of one version of a projection. The connection looks names up in the schema of its space."""

    def __init__(self, projection: str, version: int) -> None:
        self._projection, self._version = projection, version

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
            raise self.taken(before)

    async def park(self, tx: Transaction, item: Item, reason: str) -> None:
        """Note an event that is passed over."""
        event_id = item.id if isinstance(item, Envelope) else ""
        recorded_at = to_datetime(item.recorded_at)
        texts = [storable(value) for value in (event_id, item.subject, reason)]
        await tx.execute(_SQL["park"], [self._projection, self._version, item.sequence, recorded_at, *texts])

    def taken(self, before: Position) -> ConfigurationError:
        """The error for a checkpoint that moved without us."""
        return ConfigurationError(
            f"projection {self._projection} is not at sequence {before.sequence} any more: another process writes it",
            remedy="run 'cuebook serve projections' once for each space and database",
        )


def position_of(item: Item) -> Position:
    """The position after an item. Its event id is empty where it has none, or none that PostgreSQL can hold."""
    if isinstance(item, Unreadable) or not item.id.isprintable():
        return Position(item.sequence)
    return Position(item.sequence, item.id)


async def verify_position(log: EventLog, position: Position) -> None:
    """Raise HistoryRegressedError unless the log still holds what was read up to `position`.

    Where it has no event id only the place is compared: a newer release may well read what an older one could not.
    Raises UnavailableError too.
    """
    if position.event_id or not position.sequence:
        await log.verify_position(position)
        return
    stream = await log.verify()
    if stream.last_sequence < position.sequence:
        raise HistoryRegressedError(
            f"stream {stream.name} ends at {stream.last_sequence}, but {position.sequence} was already read"
        )
