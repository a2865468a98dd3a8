"""Generations: each filling of a projection's tables has a schema and a checkpoint of its own.

At most one is `shown`, that is, what the views give. In each state there is somebody who writes it, or nobody:

- `live`: the service whose code has that version. One for each version of a projection.
- `building`: a rebuild. Nobody sees it yet.
- `previous`: nobody. It stands as it was when another took its place, for the way back; a rollback updates it first.

Whoever writes holds the generation's claim, an advisory lock, and moves its checkpoint by compare and set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import Transaction, schema_name
from cuebook.projections.projection import Projection
from cuebook.projections.statements import load_statements
from cuebook.projections.timescale import make_tables
from cuebook.projections.timeseries import Timeseries

__all__ = [
    "Generation",
    "count_parked",
    "drop_generation",
    "drop_obsolete",
    "generations_of",
    "make_generation",
    "make_schema",
    "previous_of",
    "show_generation",
    "shown_of",
    "written_by",
]

OURS: Final = "cuebook"
"""The comment on every schema of ours; no other is ever dropped."""
DROP_WAIT: Final = "5s"

_SQL = load_statements("generations.sql")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One filling of a projection's tables, as it stood when it was looked up.

    `kept_from`: tables partitioned by time hold nothing recorded before. `hidden_at`: since when another one is shown.
    `claimed`: somebody writes it. `timeseries`: what its histories are made of, native or timescale, and why; None:
    it has none.
    """

    projection: str
    number: int
    version: int
    tables_in: str
    sequence: int
    event_id: str
    shown: bool
    state: str
    kept_from: datetime | None
    made_at: datetime
    hidden_at: datetime | None
    timeseries: str | None
    timeseries_why: str | None
    updated_at: datetime
    claimed: bool

    @property
    def position(self) -> Position:
        """How far it has read."""
        return Position(self.sequence, self.event_id)


async def generations_of(connection: Transaction, projection: str) -> list[Generation]:
    """All generations of a projection, by number; may be empty."""
    async with connection.cursor(row_factory=class_row(Generation)) as cursor:
        await cursor.execute(_SQL["all"], [projection])
        return await cursor.fetchall()


def shown_of(generations: Sequence[Generation]) -> Generation | None:
    """The one that the views show."""
    return next((one for one in generations if one.shown), None)


def written_by(generations: Sequence[Generation], version: int) -> Generation | None:
    """The one that a service with this version of the projection writes."""
    return next((one for one in generations if one.state == "live" and one.version == version), None)


def previous_of(generations: Sequence[Generation]) -> Generation | None:
    """The one that was shown before."""
    hidden = [one for one in generations if one.hidden_at is not None and one.state != "building"]
    return max(hidden, key=lambda one: (one.hidden_at, one.number), default=None)


async def make_generation(
    connection: Transaction,
    space: str,
    projection: Projection,
    state: str,
    *,
    timeseries: Timeseries = Timeseries.AUTO,
    kept_from: datetime | None = None,
) -> int:
    """Make the tables of a new generation, inside the caller's transaction; gives its number.

    Raises ConfigurationError when hypertables are wanted and cannot be had.
    """
    cursor = await connection.execute(_SQL["next_number"], [projection.name])
    found = await cursor.fetchone()
    assert found is not None
    number: int = found[0]
    tables_in = schema_name(space, projection.name, projection.version, number)
    await _drop_schema(connection, tables_in)  # tables without a checkpoint: nobody knows how far they are
    await make_schema(connection, tables_in)
    await connection.execute(_SQL["set_path"], [sql.Identifier(tables_in).as_string()])
    choice = await make_tables(connection, tables_in, projection, timeseries, at_work=state == "live")
    await connection.execute(_SQL["set_path"], [sql.Identifier(schema_name(space)).as_string()])
    kind, why = (None, None) if choice is None else (choice.kind.value, choice.why)
    values = [projection.name, projection.version, number, tables_in, state, kept_from, kind, why]
    await connection.execute(_SQL["register"], values)
    facts = {"projection": projection.name, "version": projection.version, "generation": number}
    if choice is not None:
        facts |= {"timeseries": kind, "why": why}
    logger.info("made the tables of a projection", extra=facts)
    return number


async def make_schema(connection: Transaction, schema: str) -> None:
    """Make a schema of ours if it is not there."""
    cursor = await connection.execute(_SQL["schema_comment"], [schema])
    if await cursor.fetchone() is None:
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        await connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(schema), OURS))


async def show_generation(connection: Transaction, before: Generation | None, after: Generation) -> None:
    """Let the views show another generation, inside the caller's transaction.

    Raises ConfigurationError when something of somebody else hangs on a view that has to change its columns.
    """
    await connection.execute(_SQL["space_only"])
    try:
        await connection.execute(_SQL["show"], [after.projection, after.number])
    except errors.DependentObjectsStillExist as error:
        raise ConfigurationError(
            f"views of {after.projection} change their columns, and something else is built on them: "
            f"{error.diag.message_detail}",
            remedy="drop that first and make it again afterwards; nothing was changed",
        ) from error
    if before is not None:
        values = {"projection": after.projection, "before": before.number, "after": after.number}
        await connection.execute(_SQL["carry_decisions"], values)


async def count_parked(connection: Transaction, generation: Generation) -> int:
    """How many events it could not apply, decided about or not."""
    cursor = await connection.execute(_SQL["count_parked"], [generation.projection, generation.number])
    found = await cursor.fetchone()
    return 0 if found is None else int(found[0])


async def drop_generation(connection: Transaction, generation: Generation) -> bool:
    """Drop tables, checkpoint and parked events of a generation that is not shown. False when somebody uses it."""
    keys = [generation.projection, generation.number]
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(DROP_WAIT))
            await connection.execute(_SQL["claim"], keys)  # a writer's connection may just be ending
            cursor = await connection.execute(_SQL["unregister"], keys)
            if cursor.rowcount != 1:
                return False
            await connection.execute(_SQL["forget_parked"], keys)
            await _drop_schema(connection, generation.tables_in)
    except (errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        return False
    facts = {"projection": generation.projection, "generation": generation.number}
    logger.info("dropped the tables of a projection", extra=facts)
    return True


async def drop_obsolete(connection: Transaction, projection: str, *, keep_previous: bool = True) -> list[int]:
    """Drop what is neither shown nor written nor the way back; gives the numbers. What is in use stays until next time.

    A generation that a rebuild has left half-way stays with the way back: the next rebuild goes on with it. One that a
    service with another version has begun, and that nobody has seen yet, stays in any case.
    """
    found = await generations_of(connection, projection)
    previous = previous_of(found) if keep_previous else None
    obsolete = [
        one
        for one in found
        if (
            one.state == "previous"
            or (one.state == "live" and one.hidden_at is not None)
            or (one.state == "building" and not keep_previous and not one.claimed)
        )
        and not one.shown
        and (previous is None or one.number != previous.number)
    ]
    return [one.number for one in obsolete if await drop_generation(connection, one)]


async def _drop_schema(connection: Transaction, schema: str) -> None:
    cursor = await connection.execute(_SQL["schema_comment"], [schema])
    found = await cursor.fetchone()
    if found is None:
        return
    if found[0] != OURS:
        raise ConfigurationError(
            f"schema {schema} is not cuebook's", remedy="rename or drop it, or use another database"
        )
    await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
