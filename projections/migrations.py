"""Bringing a database to what this release needs: bookkeeping, and the tables of each projection's version.

Several processes may do it at once: an advisory lock lets them pass one by one, and each step happens once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from psycopg import errors, sql

from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import Transaction, schema_name
from cuebook.projections.projection import Projection
from cuebook.projections.statements import load_statements, migration_files

__all__ = ["prepare_database"]

_SQL = load_statements("migrations.sql")

logger = logging.getLogger(__name__)


async def prepare_database(connection: Transaction, space: str, projections: Sequence[Projection]) -> None:
    """Make what is missing. `connection` looks names up in the schema of the space.

    The first version of a projection is shown to readers at once; a later one is filled beside it until `show_version`.
    Raises ConfigurationError when the role lacks a right, or the database is one of a newer release.
    """
    schema = schema_name(space)
    try:
        async with connection.transaction():
            await connection.execute(_SQL["lock"], [schema])
            await _require_utf8(connection)
            await _make_schema(connection, schema)
            await connection.execute(_SQL["table"])
            await _migrate(connection, schema)
            for projection in projections:
                await _make_tables(connection, space, projection)
            await connection.execute(_SQL["let_readers_in"])
    except (errors.InsufficientPrivilege, errors.InvalidSchemaName) as error:
        raise ConfigurationError(
            f"the role may not set up schema {schema}: {error.diag.message_primary}",
            remedy="GRANT CREATE ON DATABASE to the role of the projections; all others need only cuebook_reader",
        ) from error


async def _require_utf8(connection: Transaction) -> None:
    cursor = await connection.execute(_SQL["encoding"])
    found = await cursor.fetchone()
    if found is None or found[0] != "UTF8":
        raise ConfigurationError(
            f"the database's encoding is {found and found[0]}, not UTF8", remedy="CREATE DATABASE ... ENCODING 'UTF8'"
        )


async def _make_schema(connection: Transaction, schema: str) -> None:
    cursor = await connection.execute(_SQL["schema_exists"], [schema])
    if await cursor.fetchone() is None:
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))


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


async def _make_tables(connection: Transaction, space: str, projection: Projection) -> None:
    name, version = projection.name, projection.version
    cursor = await connection.execute(_SQL["versions"], [name])
    versions: dict[int, bool] = dict(await cursor.fetchall())
    if version not in versions:
        tables_in = schema_name(space, name, version)
        # Tables without a checkpoint are of no use to anybody: nobody knows how far they are.
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(tables_in)))
        await _make_schema(connection, tables_in)
        await connection.execute(_SQL["set_path"], [sql.Identifier(tables_in).as_string()])
        await connection.execute(projection.tables)
        await connection.execute(_SQL["set_path"], [sql.Identifier(schema_name(space)).as_string()])
        await connection.execute(_SQL["register"], [name, version, tables_in])
        logger.info("made the tables of a projection", extra={"projection": name, "version": version})
    shown = [number for number, is_shown in versions.items() if is_shown]
    if not shown:
        await connection.execute(_SQL["show"], [name, version])
    elif shown != [version]:
        logger.warning(
            "this release writes another version of a projection than the one that is shown",
            extra={"projection": name, "version": version, "shown": shown[0]},
        )
