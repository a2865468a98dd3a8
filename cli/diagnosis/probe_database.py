"""What PostgreSQL tells about itself and about the projections of a space."""

from __future__ import annotations

import shutil
import time

import psycopg

from cuebook.cli.checks.facts import Clock, DatabaseFacts, Disk, Facts
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.projections import queries
from cuebook.projections.database import connect, schema_name

__all__ = ["ask_database", "disk_of"]

_ITSELF = """
SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())::double precision,
       coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
       inet_server_addr() IS NULL OR inet_server_addr() << '127.0.0.0/8' OR inet_server_addr() = '::1'
"""
_FOLDER = "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
"""Shown to superusers and members of pg_read_all_settings."""
_MAY_READ = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) ORDER BY 1"


async def ask_database(facts: Facts, url: str) -> None:
    """Fill in `facts.database`. Raises UnavailableError, ConfigurationError."""
    try:
        facts.database = await _ask(url, facts.space)
    except psycopg.Error as error:
        raise UnavailableError(" ".join(str(error).split())) from error


async def _ask(url: str, space: str) -> DatabaseFacts:
    async with await connect(url, [schema_name(space)]) as connection:
        clock, latency_s, told = Clock(0.0, float("inf")), float("inf"), ("", 0.0, False, False)
        for _ in range(3):
            wall, began = time.time(), time.perf_counter()
            cursor = await connection.execute(_ITSELF)
            told = await cursor.fetchone() or told
            took = time.perf_counter() - began
            latency_s = min(latency_s, took)
            clock = min(clock, Clock(told[1] - wall - took / 2, took / 2), key=lambda one: one.error_s)
        database = DatabaseFacts(version=told[0], tls=told[2], local=told[3], latency_s=latency_s, clock=clock)
        folder = await (await connection.execute(_FOLDER)).fetchone()
        database.disk = disk_of(folder[0]) if folder is not None and database.local else None
        cursor = await connection.execute(_SCHEMAS, [schema_name(space) + "@"])
        schemas = [str(name) for (name,) in await cursor.fetchall()]
        may_read = await (await connection.execute(_MAY_READ, [schema_name(space)])).fetchone()
    if may_read == (False,):  # PostgreSQL says of what one may not see that it is not there
        database.why_not = f"the role may not read the projections of space {space!r}"
        database.remedy = "GRANT cuebook_reader TO the role"
        return database
    try:
        async with queries.reading(url, space) as reading:
            database.projections = await queries.list_projections(reading, last_sequence=0)
    except (ConfigurationError, UnavailableError) as error:
        database.why_not = str(error)
    known = {one.tables_in for one in database.projections or []}
    if database.projections is not None:
        database.orphans = [name for name in schemas if name not in known]
    return database


def disk_of(folder: str) -> Disk | None:
    """The disk that a server's folder is on, as this process sees it; None where it cannot."""
    if folder.startswith("/proc/"):  # an embedded server's, a name that means something else in each process
        return None
    try:
        usage = shutil.disk_usage(folder)
    except OSError:  # in a container, or not for us
        return None
    return Disk(folder, usage.total - usage.free, usage.total) if usage.total else None
