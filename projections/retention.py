"""Retention: tables partitioned by time keep whole months, and what is older is dropped with its partition or chunk.

First the generation's `kept_from` moves, which every batch obeys, then the partitions go. So a month that was dropped
does not come back by itself: late events are not written into it, and a rebuild leaves it out unless it is told to
bring everything back. The log itself keeps everything; only the tables forget.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final, TypeAlias

from psycopg import errors, sql

from cuebook.projections.database import Transaction
from cuebook.projections.generations import Generation, generations_of
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements
from cuebook.projections.timescale import drop_chunks
from cuebook.projections.timeseries import Timeseries

__all__ = ["keep_months", "retire"]

LOCK_WAIT: Final = "5s"

_Drop: TypeAlias = Callable[[Transaction, str, datetime], AsyncIterator[str]]
"""Drops what a schema holds from before a moment; gives the names of what was dropped."""

_SQL = load_statements("retention.sql")

logger = logging.getLogger(__name__)


async def keep_months(connection: Transaction, projection: str, months: int | None, *, by: str) -> None:
    """Say how many whole months before the present one a projection keeps; None: all that it has and will have."""
    if months is None:
        await connection.execute(_SQL["unset"], [projection])
    else:
        await connection.execute(_SQL["set"], [projection, months, storable(by)])


async def retire(connection: Transaction, projection: str) -> list[str]:
    """Drop what is older than the projection is to keep, in all its generations; gives the partitions dropped.

    Readers are not waited for longer than a moment: what they hold is dropped the next time. `connection` is in no
    transaction.
    """
    cursor = await connection.execute(_SQL["horizon"], [projection])
    found = await cursor.fetchone()
    dropped = []
    for generation in await generations_of(connection, projection):
        if found is not None:
            await connection.execute(_SQL["advance"], [found[0], projection, generation.number, found[0]])
            kept_from = max(found[0], generation.kept_from or found[0])
        elif generation.kept_from is None:
            continue
        else:
            kept_from = generation.kept_from
        drop = drop_chunks if generation.timeseries == Timeseries.TIMESCALE else _drop_months
        dropped += await _unless_in_use(connection, generation, kept_from, drop)
    return dropped


async def _unless_in_use(
    connection: Transaction, generation: Generation, kept_from: datetime, drop: _Drop
) -> list[str]:
    dropped: list[str] = []
    await connection.execute("SELECT set_config('lock_timeout', %s, false)", [LOCK_WAIT])
    try:
        async for name in drop(connection, generation.tables_in, kept_from):
            dropped.append(name)
            facts = {"projection": generation.projection, "generation": generation.number, "partition": name}
            logger.info("dropped what is over", extra=facts)
    except (errors.LockNotAvailable, errors.DeadlockDetected, errors.ObjectNotInPrerequisiteState) as error:
        logger.info("a month that is over is still in use", extra={"reason": str(error).strip()})
    finally:
        await connection.execute("SELECT set_config('lock_timeout', '0', false)")
    return dropped


async def _drop_months(connection: Transaction, schema: str, kept_from: datetime) -> AsyncIterator[str]:
    cursor = await connection.execute(_SQL["outdated"], [schema, kept_from])
    for _, parent, partition, pending in await cursor.fetchall():
        how = sql.SQL("FINALIZE" if pending else "CONCURRENTLY")
        # Concurrently: neither the writer nor readers of other months wait.
        await connection.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(
                sql.Identifier(schema, parent), sql.Identifier(schema, partition), how
            )
        )
    cursor = await connection.execute(_SQL["left_behind"], [schema])
    for (partition,) in await cursor.fetchall():
        await connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, partition)))
        yield partition
