"""Bringing a database to what this release needs: bookkeeping, and tables for each projection's version.

Several processes may do it at once: an advisory lock lets them pass one by one, and each step happens once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from psycopg import errors

from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import Transaction, schema_name
from cuebook.projections.generations import (
    generations_of,
    make_generation,
    make_schema,
    show_generation,
    shown_of,
    written_by,
)
from cuebook.projections.projection import Projection
from cuebook.projections.statements import load_statements, migration_files
from cuebook.projections.timescale import add_missing_views, require_preloaded
from cuebook.projections.timeseries import Timeseries

__all__ = ["lock_space", "prepare_database"]

_ELSEWHERE = "use another database or space, or move those away"
LOCK_WAIT: Final = "500ms"
_SQL = load_statements("migrations.sql")

logger = logging.getLogger(__name__)


async def prepare_database(
    connection: Transaction,
    space: str,
    projections: Sequence[Projection],
    *,
    timeseries: Timeseries = Timeseries.AUTO,
) -> None:
    """Make what is missing. `connection` looks names up in the schema of the space.

    `timeseries`: what histories are made of, where they have to be made; those that are there stay as they are.

    The first generation of a projection is shown to readers at once; one of a later version is filled beside it until
    a rebuild or a rollback shows it. Raises ConfigurationError when the role lacks a right, the database is one of a
    newer release, somebody else's tables stand where ours would, or hypertables cannot be had or read.
    """
    schema = schema_name(space)
    try:
        async with connection.transaction():
            await lock_space(connection, space)
            await _require_utf8(connection)
            await require_preloaded(connection)
            await _require_ours(connection, schema)
            await make_schema(connection, schema)
            await connection.execute(_SQL["table"])
            await _migrate(connection, schema)
            for projection in projections:
                await _make_tables(connection, space, projection, timeseries)
            await connection.execute(_SQL["let_readers_in"])
    except (errors.InsufficientPrivilege, errors.InvalidSchemaName) as error:
        owner = await _other_owner(connection, schema)
        raise ConfigurationError(
            f"the role may not set up schema {schema}: {error.diag.message_primary}",
            remedy=f"it belongs to {owner}: use that role, or GRANT {owner} to this one"
            if owner
            else "GRANT CREATE ON DATABASE to the role of the projections; all others need only cuebook_reader",
        ) from error
    except (errors.DuplicateTable, errors.WrongObjectType, errors.UndefinedColumn, errors.DuplicateFunction) as error:
        raise ConfigurationError(
            f"schema {schema} holds something that is not cuebook's: {error.diag.message_primary}", remedy=_ELSEWHERE
        ) from error


async def lock_space(connection: Transaction, space: str) -> None:
    """Let nobody else make tables in a space until the transaction ends."""
    await connection.execute(_SQL["lock"], [schema_name(space)])


async def _other_owner(connection: Transaction, schema: str) -> str | None:
    cursor = await connection.execute(_SQL["other_owner"], [schema])
    found = await cursor.fetchone()
    return None if found is None else str(found[0])


async def _require_utf8(connection: Transaction) -> None:
    cursor = await connection.execute(_SQL["encoding"])
    found = await cursor.fetchone()
    if found is None or found[0] != "UTF8":
        raise ConfigurationError(
            f"the database's encoding is {found and found[0]}, not UTF8", remedy="CREATE DATABASE ... ENCODING 'UTF8'"
        )


async def _require_ours(connection: Transaction, schema: str) -> None:
    cursor = await connection.execute(_SQL["foreign_tables"], [schema])
    found = await cursor.fetchone()
    if found is not None and found[0] is not None:
        raise ConfigurationError(f"schema {schema} holds tables that are not cuebook's: {found[0]}", remedy=_ELSEWHERE)


async def _migrate(connection: Transaction, schema: str) -> None:
    cursor = await connection.execute(_SQL["done"])
    done = {name for (name,) in await cursor.fetchall()}
    files = migration_files()
    if unknown := done - {name for name, _ in files}:
        raise ConfigurationError(
            f"schema {schema} was set up by a newer release: {', '.join(sorted(unknown))}", remedy="upgrade this one"
        )
    for name, content in files:
        if name not in done:
            await connection.execute(content)
            await connection.execute(_SQL["record"], [name])
            logger.info("migrated the database", extra={"schema": schema, "migration": name})


async def _make_tables(connection: Transaction, space: str, projection: Projection, timeseries: Timeseries) -> None:
    name, version = projection.name, projection.version
    found = await generations_of(connection, name)
    shown = shown_of(found)
    if written_by(found, version) is None:
        kept_from = shown.kept_from if shown else None
        await make_generation(connection, space, projection, "live", timeseries=timeseries, kept_from=kept_from)
        found = await generations_of(connection, name)
    for number in await add_missing_views(connection, projection):
        # Who reads a view for long is not waited for: all who want to read it then would wait for us.
        await connection.execute(_SQL["wait_for_views"], [LOCK_WAIT])
        await show_generation(connection, None, next(one for one in found if one.number == number))
    mine = written_by(found, version)
    assert mine is not None
    if shown is None:
        await show_generation(connection, None, mine)
    elif shown.number != mine.number:
        logger.warning(
            "readers see another version of a projection than the one that this release writes",
            extra={"projection": name, "version": version, "shown": shown.version},
        )
