"""Making the tables of a projection, its histories from native partitions or from hypertables of TimescaleDB.

Which of the two is decided when a generation is made, and noted with it: another process, or the same one after the
extension came or went, finds what is there. A rebuild decides anew, so it is the way from one to the other.

Source: TimescaleDB 2.29.2, sql/ddl_api.sql, sql/policy_api.sql and src/with_clause/alter_table_with_clause.c. The names
of the columnstore came with 2.18.0 (its CHANGELOG.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import Transaction, is_outage
from cuebook.projections.projection import Projection
from cuebook.projections.records import TableRecord
from cuebook.projections.statements import load_statements
from cuebook.projections.timeseries import Aggregate, History, Timeseries

__all__ = [
    "Choice",
    "add_missing_views",
    "drop_chunks",
    "list_tables",
    "make_tables",
    "require_extension",
    "require_preloaded",
    "settle",
]

MIN_VERSION: Final = (2, 18)
CHUNK: Final = "7 days"
COMPRESS_AFTER: Final = "7 days"
"""Since the end of a chunk. The server gives the times, so what comes later is rare; it can still be written."""
COMPRESS_EVERY: Final = "1 hour"
REFRESH_AFTER: Final = "1 hour"
REFRESH_EVERY: Final = "30 minutes"
NATIVE_HOUR: Final = b"date_trunc('hour', recorded_at, 'UTC')"

_VERSION = re.compile(r"(\d+)\.(\d+)")
_INSTALL: Final = "install TimescaleDB 2.18 or later for this PostgreSQL, or say --timeseries auto"
_PRELOAD: Final = "put timescaledb into shared_preload_libraries and restart PostgreSQL"
_SQL = load_statements("timescale.sql")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What histories are made of, and why. `schema`: that of the extension; `remedy`: how to get hypertables."""

    kind: Timeseries
    why: str
    schema: str = ""
    remedy: str = ""


async def make_tables(
    connection: Transaction, tables_in: str, projection: Projection, wanted: Timeseries, *, at_work: bool
) -> Choice | None:
    """Make the tables and views in the schema, which is the one that names are looked up in; None: no histories.

    `at_work`: let the database compress them and add them up from now on; else `settle` does. Raises ConfigurationError
    when hypertables are wanted and cannot be had.
    """
    if not projection.histories:
        await connection.execute(projection.tables)
        return None
    choice = await _choose(connection, wanted)
    if choice.kind is Timeseries.TIMESCALE:
        try:
            async with connection.transaction():
                await _make_hypertables(connection, tables_in, projection, choice.schema)
                if at_work:
                    await _add_policies(connection, tables_in, projection, choice.schema)
        except psycopg.Error as error:
            if is_outage(error):
                raise
            choice = _native(f"TimescaleDB refuses: {error.diag.message_primary}", "see the log of PostgreSQL")
    if choice.kind is Timeseries.NATIVE:
        if wanted is Timeseries.TIMESCALE:
            raise ConfigurationError(f"hypertables are wanted, but {choice.why}", remedy=choice.remedy)
        await connection.execute(projection.tables)
        await _make_views(connection, projection.aggregates)
    return choice


async def add_missing_views(connection: Transaction, projection: Projection) -> list[int]:
    """Make the views that this release adds to generations of its version: they hold no rows, so nothing is read again.

    Gives the numbers of generations that are shown and have got one.
    """
    shown = []
    path = await _path(connection)
    for one in projection.aggregates:
        cursor = await connection.execute(_SQL["needing"], [projection.name, projection.version, one.name])
        for number, tables_in, is_shown in await cursor.fetchall():
            await connection.execute(_SQL["set_path"], [sql.Identifier(tables_in).as_string()])
            await _make_views(connection, [one])
            if is_shown:
                shown.append(number)
    await connection.execute(_SQL["set_path"], [path])
    return shown


async def _path(connection: Transaction) -> str:
    cursor = await connection.execute("SELECT current_setting('search_path')")
    found = await cursor.fetchone()
    assert found is not None
    return str(found[0])


async def _make_views(connection: Transaction, aggregates: Sequence[Aggregate]) -> None:
    for one in aggregates:
        query = one.query.replace(b"{hour}", NATIVE_HOUR)
        await connection.execute(b"CREATE VIEW " + one.name.encode() + b" AS " + query)
        await connection.execute(one.comments)


async def settle(connection: Transaction, tables_in: str, projection: Projection) -> None:
    """Compress what is old, add up what is there, and let the database go on with that by itself.

    For tables that a rebuild has filled with years at once. `connection` is in no transaction. What fails is only
    logged: the rows are right without it, and the database tries again.
    """
    try:
        extension = await _extension_schema(connection)
        await _add_policies(connection, tables_in, projection, extension)
        cursor = await connection.execute(_SQL["jobs"], [tables_in])
        for (job,) in await cursor.fetchall():
            await connection.execute(_statement("run", ext=sql.Identifier(extension), job=sql.Literal(job)))
    except psycopg.Error as error:
        logger.warning(
            "hypertables could not be compressed at once; the database does it later",
            extra={"projection": projection.name, "reason": str(error).strip()},
        )


async def _extension_schema(connection: Transaction) -> str:
    """The schema of the functions of TimescaleDB. Raises ConfigurationError when the database does not have it."""
    found = await _state(connection)
    if found.schema is None:
        raise _gone([])
    return found.schema


async def drop_chunks(connection: Transaction, tables_in: str, kept_from: datetime) -> AsyncIterator[str]:
    """Drop what was recorded before, and what was added up from it; gives the names of the chunks, by their first day.

    Of the chunk in which that moment lies only rows go. `connection` is in no transaction.
    """
    extension, moment = sql.Identifier(await _extension_schema(connection)), sql.Literal(kept_from)
    cursor = await connection.execute(_SQL["histories"], [tables_in])
    changed = False
    for table, time in await cursor.fetchall():
        name = sql.Identifier(tables_in, table)
        values = {"kept_from": kept_from, "schema": tables_in, "table": table}
        cursor = await connection.execute(_SQL["outdated"], values)
        found = await cursor.fetchall()
        whole = [f"{table}_{start:%Y_%m_%d}" for start, is_whole in found if is_whole]
        if whole:
            text = sql.Literal(name.as_string())
            await connection.execute(_statement("drop_chunks", ext=extension, table=text, kept_from=moment))
            for one in whole:
                yield one
        cut = 0
        if len(found) > len(whole):
            cursor = await connection.execute(
                _statement("drop_rows", table=name, time=sql.Identifier(time), kept_from=moment)
            )
            cut = cursor.rowcount
        changed = changed or bool(whole) or cut > 0
    cursor = await connection.execute(_SQL["aggregates"], [tables_in])
    for (view,) in await cursor.fetchall() if changed else []:
        text = sql.Literal(sql.Identifier(tables_in, view).as_string())
        await connection.execute(_statement("add_up_again", ext=extension, table=text, kept_from=moment))
        await connection.execute(_statement("drop_chunks", ext=extension, table=text, kept_from=moment))


async def list_tables(connection: Transaction, tables_in: str) -> list[TableRecord]:
    """The tables of a generation with hypertables."""
    statement = _statement("tables_of", ext=sql.Identifier(await _extension_schema(connection)))
    async with connection.cursor(row_factory=class_row(TableRecord)) as cursor:
        await cursor.execute(statement, {"tables_in": tables_in})
        return await cursor.fetchall()


async def require_preloaded(connection: Transaction) -> None:
    """See that a database with the extension has its library: without it, it refuses the next change of any table.

    Raises ConfigurationError.
    """
    found = await _state(connection)
    if found.schema is not None and not found.preloaded:
        raise ConfigurationError(
            "the database has the extension timescaledb, and PostgreSQL has not preloaded it", remedy=_PRELOAD
        )


async def require_extension(connection: Transaction, projections: Sequence[Projection]) -> None:
    """See that the hypertables of these projections are hypertables still. Raises ConfigurationError."""
    cursor = await connection.execute(_SQL["used"], [[one.name for one in projections]])
    used = [name for (name,) in await cursor.fetchall()]
    if used and (await _state(connection)).schema is None:
        raise _gone(used)


def _gone(used: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"hypertables of {', '.join(used) or 'a projection'} are there, and TimescaleDB is not any more",
        remedy=f"fill them again from the log: cuebook projection rebuild {' '.join(used) or '--all'}",
    )


@dataclass(frozen=True, slots=True)
class _State:
    available: str | None
    installed: str | None
    schema: str | None
    preloaded: bool
    license: str | None


async def _state(connection: Transaction) -> _State:
    cursor = await connection.execute(_SQL["state"])
    found = await cursor.fetchone()
    assert found is not None
    return _State(*found)


async def _choose(connection: Transaction, wanted: Timeseries) -> Choice:
    """Hypertables where they can be had, unless native partitions are wanted. Makes the extension if it may."""
    if wanted is Timeseries.NATIVE:
        return _native("as asked for", "")
    found = await _state(connection)
    if found.available is None and found.installed is None:
        return _native("TimescaleDB is not installed on the server", _INSTALL)
    if not found.preloaded:  # its first use would end the connection
        return _native("TimescaleDB is not preloaded", _PRELOAD)
    if found.installed is None:
        if _is_old(found.available or ""):
            return _native(f"TimescaleDB {found.available} is older than 2.18", _INSTALL)
        try:
            await connection.execute(_SQL["one_at_a_time"])
            async with connection.transaction():
                # Its functions are for everybody; our own schemas hold nothing but our tables.
                await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public")
        except psycopg.Error as error:
            if is_outage(error):
                raise
            return _native(
                f"the extension cannot be made: {error.diag.message_primary}",
                "let an administrator say CREATE EXTENSION timescaledb in this database",
            )
        found = await _state(connection)
    if _is_old(found.installed or ""):
        return _native(f"TimescaleDB {found.installed} is older than 2.18", "ALTER EXTENSION timescaledb UPDATE")
    assert found.schema is not None
    await connection.execute(_statement("load", ext=sql.Identifier(found.schema)))
    found = await _state(connection)
    if found.license != "timescale":
        return _native(
            f"TimescaleDB under the license {found.license!r} has no compression",
            "take the community edition, with timescaledb.license = 'timescale'",
        )
    return Choice(kind=Timeseries.TIMESCALE, why=f"TimescaleDB {found.installed}", schema=found.schema or "")


def _native(why: str, remedy: str) -> Choice:
    return Choice(kind=Timeseries.NATIVE, why=why, remedy=remedy)


def _is_old(version: str) -> bool:
    match = _VERSION.match(version)
    return match is None or (int(match[1]), int(match[2])) < MIN_VERSION


async def _make_hypertables(connection: Transaction, tables_in: str, projection: Projection, extension: str) -> None:
    ext = sql.Identifier(extension)
    await connection.execute(_unpartitioned(projection))
    for history in projection.histories:
        table = sql.Identifier(tables_in, history.table)
        values: dict[str, sql.Composable] = {
            "table": sql.Literal(table.as_string()), "time": sql.Literal(history.time), "chunk": sql.Literal(CHUNK),
        }  # fmt: skip
        await connection.execute(_statement("hypertable", ext=ext, **values))
        segment_by, order_by = sql.Literal(history.segment_by), sql.Literal(history.order_by)
        await connection.execute(_statement("columnstore", table=table, segment_by=segment_by, order_by=order_by))
    for one in projection.aggregates:
        hour = sql.SQL("{}.time_bucket(INTERVAL '1 hour', recorded_at)").format(ext).as_bytes(None)
        query = sql.SQL(one.query.replace(b"{hour}", hour).decode())
        await connection.execute(_statement("aggregate", name=sql.Identifier(tables_in, one.name), query=query))
        await connection.execute(one.comments)


async def _add_policies(connection: Transaction, tables_in: str, projection: Projection, extension: str) -> None:
    for name, tables, after, every in (
        ("compress", [one.table for one in projection.histories], COMPRESS_AFTER, COMPRESS_EVERY),
        ("refresh", [one.name for one in projection.aggregates], REFRESH_AFTER, REFRESH_EVERY),
    ):
        for table in tables:
            values = {
                "ext": sql.Identifier(extension),
                "table": sql.Literal(sql.Identifier(tables_in, table).as_string()),
                "after": sql.Literal(after),
                "every": sql.Literal(every),
            }
            await connection.execute(_statement(name, **values))


def _unpartitioned(projection: Projection) -> bytes:
    tables = projection.tables
    for history in projection.histories:
        tables = _without_partitions(tables, history)
    return tables


def _without_partitions(tables: bytes, history: History) -> bytes:
    pattern = rb"(CREATE TABLE %s \(.*?\n\)) PARTITION BY RANGE \(%s\);" % (
        history.table.encode(), history.time.encode()
    )  # fmt: skip
    changed, count = re.subn(pattern, rb"\1;", tables, count=1, flags=re.DOTALL)
    assert count == 1, f"{history.table} is not partitioned by {history.time}"
    return changed


def _statement(name: str, /, **values: Any) -> sql.Composed:
    return sql.SQL(_SQL[name].decode()).format(**values)
