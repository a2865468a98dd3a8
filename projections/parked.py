"""Deciding about an event that a projection could not apply: apply it now, or leave it out for good.

Rows may follow from several events, and those that came after the parked one have been applied without it. So a retry
removes what follows from the history of its run or agent and applies that history again as a whole: the tables are then
as if the event had never been parked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from psycopg import errors

from cuebook.events.envelope import Envelope
from cuebook.events.errors import (
    CommandRejectedError,
    ConfigurationError,
    CuebookError,
    HistoryRegressedError,
    NotFoundError,
    UnavailableError,
)
from cuebook.events.log import EventLog
from cuebook.projections.database import Transaction, connect, is_about_the_event, path_of, schema_name
from cuebook.projections.projection import Item, Projection
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements
from cuebook.projections.writer import REASON_CHARACTERS, SETTINGS

__all__ = ["retry_parked", "skip_parked"]

LOCK_WAIT: Final = "30s"

_SQL = load_statements("parked.sql")


async def skip_parked(connection: Transaction, projection: str, sequence: int, *, by: str) -> None:
    """Leave an event out of the tables for good; it stays in the log. Raises NotFoundError."""
    cursor = await connection.execute(_SQL["skip"], [storable(by), projection, sequence])
    if cursor.rowcount != 1:
        raise _not_parked(projection, sequence)


async def retry_parked(log: EventLog, database_url: str, projection: Projection, sequence: int) -> int:
    """Apply a parked event now, with this release's code; gives how many events were applied again with it.

    The service need not be stopped: it waits for a moment. Raises NotFoundError, CommandRejectedError when the event
    still cannot be applied, ConfigurationError when this release has another version of the projection.
    """
    space = schema_name(log.subjects.space)
    async with await connect(database_url, [space], **SETTINGS) as connection:
        await connection.execute("SELECT set_config('lock_timeout', %s, false)", [LOCK_WAIT])
        try:
            async with connection.transaction():
                parked = await _find(connection, projection, sequence)
                item = await _item(log, sequence, parked.events[sequence])
                items = await _history(log, projection, item, parked)
                path = path_of([parked.tables_in, space])
                await connection.execute("SELECT set_config('search_path', %s, true)", [path])
                if projection.session:
                    await connection.execute(projection.session)
                async with _judged(connection, projection, parked, sequence):
                    await projection.forget(item, connection)
                    await projection.apply(items, connection)
                await connection.execute(_SQL["done"], [projection.name, parked.generation, sequence])
        except errors.LockNotAvailable as error:
            raise UnavailableError(
                f"projection {projection.name} is being written without a pause", remedy="try again"
            ) from error
        except _StillParkedError as error:
            await connection.execute(
                _SQL["failed"], [storable(error.reason), projection.name, error.generation, sequence]
            )
            raise
        return len(items)


class _StillParkedError(CommandRejectedError):
    def __init__(self, projection: str, generation: int, sequence: int, reason: str) -> None:
        super().__init__(
            f"event {sequence} still cannot be applied to {projection}: {reason}",
            remedy=f"correct the cause, or leave it out: 'cuebook projection skip {projection} {sequence}'",
        )
        self.generation, self.reason = generation, reason


@dataclass(frozen=True, slots=True)
class _Parked:
    """What is parked in the generation shown, which nobody else writes until the transaction ends."""

    generation: int
    tables_in: str
    position: int
    events: dict[int, str]


async def _find(connection: Transaction, projection: Projection, sequence: int) -> _Parked:
    cursor = await connection.execute(_SQL["lock"], [projection.name])
    found = await cursor.fetchone()
    if found is None:
        raise _not_parked(projection.name, sequence)
    generation, version, tables_in, position = found
    cursor = await connection.execute(_SQL["events"], [projection.name, generation])
    events: dict[int, str] = dict(await cursor.fetchall())
    if sequence not in events:
        raise _not_parked(projection.name, sequence)
    if version != projection.version:
        raise ConfigurationError(
            f"people read version {version} of {projection.name}, this release has version {projection.version}",
            remedy=f"'cuebook projection rebuild {projection.name}' applies every event again",
        )
    return _Parked(generation, tables_in, position, events)


@asynccontextmanager
async def _judged(
    connection: Transaction, projection: Projection, parked: _Parked, sequence: int
) -> AsyncIterator[None]:
    try:
        async with connection.transaction():
            yield
    except CuebookError:
        raise
    except Exception as error:
        if not is_about_the_event(error):
            raise
        reason = f"{type(error).__name__}: {error}"[:REASON_CHARACTERS]
        raise _StillParkedError(projection.name, parked.generation, sequence, reason) from error


async def _item(log: EventLog, sequence: int, event_id: str) -> Item:
    item = await log.at(sequence)
    if item is None or (event_id and (not isinstance(item, Envelope) or item.id != event_id)):
        raise HistoryRegressedError(f"the log no longer has event {event_id or '(unreadable)'} at {sequence}")
    return item


async def _history(log: EventLog, projection: Projection, item: Item, parked: _Parked) -> Sequence[Item]:
    """What the rows follow from, without what is parked otherwise."""
    subjects = projection.history(item)
    if not subjects:
        return [item]
    first = await log.first_sequence(subjects)
    async with aclosing(log.read(after=first - 1, until=parked.position, filters=[subjects])) as found:
        return [one async for one in found if one.sequence == item.sequence or one.sequence not in parked.events]


def _not_parked(projection: str, sequence: int) -> NotFoundError:
    return NotFoundError(
        f"no event {sequence} is parked in {projection}", remedy=f"see 'cuebook projection parked {projection}'"
    )
