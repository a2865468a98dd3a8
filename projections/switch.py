"""Bringing a generation that nobody sees up to the one that is shown, and letting it take its place.

The switch is one transaction: it holds the shown generation's checkpoint, so that its writer waits for a moment,
applies what that one has and this one has not, and shows this one. Readers see the rows of either, at the same event or
a later one, never a mixture and never an earlier state; killed anywhere before the commit, nothing has happened. The
service that wrote the old one finds by NOTIFY, or at its next commit, that it is another one's turn, and goes on with
the new one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import psycopg
from psycopg import errors

from cuebook.events.errors import UnavailableError
from cuebook.events.log import EventLog
from cuebook.projections.database import is_outage
from cuebook.projections.generations import Generation, generations_of, show_generation, shown_of
from cuebook.projections.reader import LogReader
from cuebook.projections.statements import load_statements
from cuebook.projections.writer import Writer

__all__ = ["catch_up", "switch"]

LOCK_WAIT: Final = "500ms"
"""Whoever reads a view holds it; while we wait for the view new readers wait for us."""
SWITCH_WITHIN_S: Final = 5.0
PAUSE_S: Final = 0.5
ATTEMPTS: Final = 60

_SQL = load_statements("generations.sql")

logger = logging.getLogger(__name__)


async def catch_up(log: EventLog, writer: Writer, until: int, *, batch_size: int) -> int:
    """Apply the log up to and including `until`; gives how many messages that were."""
    began = writer.position.sequence
    if began >= until:
        return 0
    async with LogReader(log, after=writer.position, batch_size=batch_size) as reader:
        while writer.position.sequence < until:
            batch = [item for item in await reader.next_batch() if item.sequence <= until]
            await writer.apply(batch)
    return until - began


async def switch(log: EventLog, writer: Writer, *, batch_size: int, follow: bool = True) -> Generation:
    """Show the writer's generation, at the event of the shown one or later; gives the one that was shown before.

    Without `follow` it is shown as it stands. Where the answer of the COMMIT is lost, it is looked up what was done.
    Raises UnavailableError when somebody reads the views for so long that they cannot be changed, ConfigurationError
    when something is built on one that changes its columns.
    """
    before, reached = None, writer.position
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_S)
            shown = await writer.shown()
            if before is not None and shown.number == writer.generation.number:
                break  # it took too long, but it was done
            if follow:  # outside of the transaction, so that each attempt has less to do than the one before
                await catch_up(log, writer, shown.sequence, batch_size=batch_size)
        try:
            async with asyncio.timeout(SWITCH_WITHIN_S), writer.transaction() as tx:
                await tx.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_WAIT])
                cursor = await tx.execute(_SQL["lock_shown"], [writer.projection.name])
                found = await cursor.fetchone()
                before = shown_of(await generations_of(tx, writer.projection.name))
                assert found is not None
                assert before is not None
                if follow:
                    await catch_up(log, writer, found[0], batch_size=batch_size)
                await show_generation(tx, before, writer.generation)
                reached = writer.position
        except (errors.LockNotAvailable, errors.DeadlockDetected, TimeoutError) as error:
            logger.info("the views are in use; trying again", extra={"reason": str(error).strip()})
        except psycopg.Error as error:
            if before is None or not is_outage(error):
                raise
            if (await writer.shown()).number != writer.generation.number:
                raise
            break  # only the answer was lost
        else:
            return before
    else:
        raise UnavailableError(
            f"the views of {writer.projection.name} were in use all the time",
            remedy="look in pg_stat_activity for whoever reads them for so long, then run the same command again",
        )
    writer.position = reached
    return before
