"""What can be asked of the tables. Each function takes a connection from `reading` and returns typed rows.

Filters left out mean: any. What PostgreSQL cannot hold finds what is stored in its place; see `rows`. Lists come newest
first where nothing else is said, at most `limit` rows after `offset`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from cuebook.events.errors import ConfigurationError, NotFoundError, UnavailableError
from cuebook.projections import timescale
from cuebook.projections.database import Transaction, connect, is_outage, schema_name
from cuebook.projections.records import (
    AgentRecord,
    AuditRecord,
    HealthRecord,
    ParkedRecord,
    ProjectionRecord,
    RunRecord,
    TableRecord,
    TaskRecord,
)
from cuebook.projections.rows import storable
from cuebook.projections.statements import load_statements
from cuebook.projections.timeseries import Timeseries

__all__ = [
    "find_run",
    "health_history",
    "list_agents",
    "list_parked",
    "list_projections",
    "list_runs",
    "list_tables",
    "list_tasks",
    "reading",
    "search_audit",
    "writing",
]

_SQL: Final = load_statements("queries.sql")
_OLDEST_FIRST: Final = _SQL["audit"].replace(b"sequence DESC", b"sequence")
_LIMIT: Final = 50
_MOST: Final = 2**63 - 1
_R = TypeVar("_R")


@asynccontextmanager
async def reading(database_url: str, space: str) -> AsyncIterator[Transaction]:
    """A connection that reads the tables of one space and can change nothing.

    Raises UnavailableError when PostgreSQL does not answer, ConfigurationError when the space has no projections there.
    """
    settings = {"default_transaction_read_only": "on", "plan_cache_mode": "force_custom_plan"}
    async with _told(space, "read"), await connect(database_url, [schema_name(space)], **settings) as connection:
        yield connection


@asynccontextmanager
async def writing(database_url: str, space: str) -> AsyncIterator[Transaction]:
    """A connection that may change the bookkeeping of one space. Raises as `reading`."""
    async with _told(space, "change"), await connect(database_url, [schema_name(space)]) as connection:
        yield connection


@asynccontextmanager
async def _told(space: str, what: str) -> AsyncIterator[None]:
    try:
        yield
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as error:
        raise ConfigurationError(
            f"the database holds no projections of space {space!r} that this release can read",
            remedy="start 'cuebook serve projections' (or 'cuebook dev'): it makes them",
        ) from error
    except errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role may not {what} the projections of space {space!r}",
            remedy="GRANT cuebook_reader TO the role" if what == "read" else "use the role that the projections run as",
        ) from error
    except psycopg.Error as error:
        if not is_outage(error):
            raise
        raise UnavailableError(
            f"PostgreSQL is unavailable: {str(error).strip()}",
            remedy="see that it runs and CUEBOOK_DATABASE_URL is right",
        ) from error


async def list_runs(
    connection: Transaction,
    *,
    status: str | None = None,
    saga: str | None = None,
    since: datetime | None = None,
    open_only: bool = False,
    limit: int = _LIMIT,
    offset: int = 0,
) -> list[RunRecord]:
    """Runs, by when they were opened; `since` means opened at or after."""
    values = {"run_id": None, "status": status, "saga": saga, "since": since, "open_only": open_only}
    return await _fetch(connection, RunRecord, _SQL["runs"], values, limit, offset)


async def find_run(connection: Transaction, run_id: str) -> RunRecord:
    """One run. Raises NotFoundError."""
    values = {"run_id": run_id, "status": None, "saga": None, "since": None, "open_only": False}
    found = await _fetch(connection, RunRecord, _SQL["runs"], values, 1, 0)
    if not found:
        raise NotFoundError(f"there is no run {run_id!r}", remedy="see 'cuebook run list'")
    return found[0]


async def list_tasks(
    connection: Transaction,
    *,
    run_id: str | None = None,
    n: int | None = None,
    status: str | None = None,
    agent: str | None = None,
    instance: str | None = None,
    since: datetime | None = None,
    open_only: bool = False,
    limit: int = _LIMIT,
    offset: int = 0,
) -> list[TaskRecord]:
    """Tasks, by when they were requested; `since` means requested at or after."""
    values = {
        "run_id": run_id,
        "n": n,
        "status": status,
        "agent": agent,
        "instance": instance,
        "since": since,
        "open_only": open_only,
    }
    return await _fetch(connection, TaskRecord, _SQL["tasks"], values, limit, offset)


async def list_agents(
    connection: Transaction,
    *,
    agent: str | None = None,
    instance: str | None = None,
    health: str | None = None,
    stopped: bool = True,
    limit: int = 1_000,
    offset: int = 0,
) -> list[AgentRecord]:
    """Agent instances by name; without those that stopped unless `stopped`."""
    values = {"agent": agent, "instance": instance, "health": health, "stopped": stopped}
    return await _fetch(connection, AgentRecord, _SQL["agents"], values, limit, offset)


async def health_history(
    connection: Transaction,
    *,
    agent: str | None = None,
    instance: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = _LIMIT,
    offset: int = 0,
) -> list[HealthRecord]:
    """Changes of health recorded at or after `since` and before `until`."""
    values = {"agent": agent, "instance": instance, "since": since, "until": until}
    return await _fetch(connection, HealthRecord, _SQL["health"], values, limit, offset)


async def search_audit(
    connection: Transaction,
    *,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    event_id: str | None = None,
    run_id: str | None = None,
    n: int | None = None,
    agent: str | None = None,
    instance: str | None = None,
    event_type: str | None = None,
    kind: str | None = None,
    topic: str | None = None,
    subject: str | None = None,
    source: str | None = None,
    who: str | None = None,
    what: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: int | None = None,
    contains: Any = None,
    text: str | None = None,
    unreadable_only: bool = False,
    oldest_first: bool = False,
    limit: int = _LIMIT,
    offset: int = 0,
) -> list[AuditRecord]:
    """Messages of the log by sequence. All filters must match.

    `who` is the author, the agent or instance in the subject, or the person that the data names under `by`. `what` is a
    type without its version if one likes, with `*` for any characters. `subject` may hold the wildcards of NATS.
    `contains` is data that must be within an event's own, such as `{"order": 8812}`. `text` is looked for in data and
    reason, whatever the case. `after` is a sequence. There are indexes for correlation, causation, run, data and times;
    with any other filter alone the log is searched from its end until `limit` messages are found.
    """
    values = {
        "correlation_id": correlation_id,
        "causation_id": causation_id,
        "event_id": event_id,
        "run_id": run_id,
        "n": n,
        "agent": agent,
        "instance": instance,
        "event_type": event_type,
        "kind": kind,
        "topic": topic,
        "subject": None if subject is None else _subject_pattern(subject),
        "source": source,
        "who": who,
        "what": None if what is None else _type_pattern(what),
        "since": since,
        "until": until,
        "after": after,
        "contains": None if contains is None else Jsonb(storable(contains)),
        "text": None if text is None else _substring(text),
        "unreadable_only": unreadable_only,
    }
    async with connection.transaction():
        if all(given is None for given in (correlation_id, causation_id, run_id, contains, since)):
            # Follow the sequence; the planner would rather read everything and sort it.
            await connection.execute(_SQL["no_sorting"])
        statement = _OLDEST_FIRST if oldest_first else _SQL["audit"]
        return await _fetch(connection, AuditRecord, statement, values, limit, offset)


async def list_projections(
    connection: Transaction, *, last_sequence: int, projection: str | None = None
) -> list[ProjectionRecord]:
    """Every generation of every projection with how far behind `last_sequence`, the log's end, it is."""
    values = {"last_sequence": last_sequence, "projection": projection}
    return await _fetch(connection, ProjectionRecord, _SQL["projections"], values, 0, 0)


async def list_tables(
    connection: Transaction, tables_in: str, *, timeseries: str | None = Timeseries.NATIVE
) -> list[TableRecord]:
    """The tables of one generation; `timeseries`: what its histories are made of."""
    if timeseries == Timeseries.TIMESCALE:
        return await timescale.list_tables(connection, tables_in)
    return await _fetch(connection, TableRecord, _SQL["tables_of"], {"tables_in": tables_in}, 0, 0)


async def list_parked(
    connection: Transaction,
    *,
    projection: str | None = None,
    everywhere: bool = False,
    skipped: bool = False,
    limit: int = _LIMIT,
    offset: int = 0,
) -> list[ParkedRecord]:
    """Events that a projection could not apply, by sequence; of the generations shown, or `everywhere`.

    Without those that somebody decided to leave out, unless `skipped`.
    """
    values = {"projection": projection, "everywhere": everywhere, "skipped": skipped}
    return await _fetch(connection, ParkedRecord, _SQL["parked"], values, limit, offset)


async def _fetch(
    connection: Transaction, record: type[_R], statement: bytes, values: dict[str, Any], limit: int, offset: int
) -> list[_R]:
    async with connection.cursor(row_factory=class_row(record)) as cursor:
        values = {name: storable(value) for name, value in values.items()}
        await cursor.execute(statement, {**values, "limit": min(limit, _MOST), "offset": offset})
        return await cursor.fetchall()


def _subject_pattern(subject: str) -> str:
    """A NATS subject filter as a regular expression; without wildcards the plain text, which an index may know."""
    parts = [{"*": r"[^.]+", ">": ".+"}.get(token, re.escape(token)) for token in subject.split(".")]
    return "^" + r"\.".join(parts) + "$"


def _type_pattern(what: str) -> str:
    return "^" + ".*".join(re.escape(part) for part in what.split("*")) + r"(\.v[0-9]+)?$"


def _substring(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{escaped}%"
