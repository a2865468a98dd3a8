"""The projections as people see them: how far each is, what is parked, and how long it is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from cuebook.cli.directory import nearest
from cuebook.cli.exits import InputError
from cuebook.cli.moments import iso
from cuebook.cli.options import Output, Target, login_name
from cuebook.cli.output import fields, line, note, section, show_list, show_one, table
from cuebook.cli.session import session
from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, NotFoundError
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token
from cuebook.projections import queries
from cuebook.projections.database import Transaction
from cuebook.projections.generations import drop_obsolete
from cuebook.projections.parked import retry_parked, skip_parked
from cuebook.projections.projection import Projection
from cuebook.projections.records import ProjectionRecord
from cuebook.projections.retention import keep_months, retire
from cuebook.projections.runner import ALL

__all__ = [
    "KINDS",
    "Retention",
    "find",
    "prune",
    "require_url",
    "retention",
    "retry",
    "show",
    "show_all",
    "show_parked",
    "skip",
]

_COLUMNS = [
    "PROJECTION",
    "GENERATION",
    "VERSION",
    "HEALTH",
    "READ BY PEOPLE",
    "SEQUENCE",
    "LAG",
    "PARKED",
    "HISTORIES",
    "UPDATED (UTC)",
]
_PARKED_COLUMNS = ["PROJECTION", "SEQUENCE", "RECORDED (UTC)", "SUBJECT", "WHY"]
_ALSO_CALLED = {"tasks": "runs", "agent_health": "agents", "health": "agents", "registry": "agents"}
"""Their other tables, and what people call them."""
KINDS: Final = {"native": "native partitions", "timescale": "hypertables"}
_PARTITIONED = ("audit", "agents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What to keep; without `months` and `keep_all` nothing is changed."""

    name: str
    months: int | None
    keep_all: bool
    by: str


def find(names: Sequence[str]) -> list[Projection]:
    """The projections of these names, each once. Raises NotFoundError with the nearest name."""
    known = {one.name: one for one in ALL}
    for name in names:
        if name not in known:
            meant = _ALSO_CALLED.get(name)
            remedy = f"did you mean {meant!r}?" if meant else nearest(name, known, "projection")
            raise NotFoundError(f"there is no projection {name!r}", remedy=remedy)
    return [one for one in ALL if one.name in names]


def require_url(database_url: str) -> str:
    """The URL, if there is one. Raises ConfigurationError."""
    if not database_url:
        raise ConfigurationError("which PostgreSQL?", remedy="set --database-url or CUEBOOK_DATABASE_URL")
    return database_url


@asynccontextmanager
async def _reading(space: str, database_url: str) -> AsyncIterator[Transaction]:
    async with queries.reading(require_url(database_url), check_token(space, "space")) as connection:
        yield connection


@asynccontextmanager
async def _writing(space: str, database_url: str) -> AsyncIterator[Transaction]:
    async with queries.writing(require_url(database_url), check_token(space, "space")) as connection:
        yield connection


async def show_all(target: Target, database_url: str, output: Output) -> None:
    """Print all generations. Raises ConfigurationError, UnavailableError."""
    require_url(database_url)
    async with session(target) as client, _reading(target.space, database_url) as connection:
        rows = await _rows(client.log, connection, None)
    show_list(output, rows, lambda: table(_COLUMNS, _cells(rows), empty="no projections"))


async def show(target: Target, database_url: str, name: str, output: Output) -> None:
    """Print one projection. Raises NotFoundError, ConfigurationError, UnavailableError."""
    find([name])
    require_url(database_url)
    async with session(target) as client, _reading(target.space, database_url) as connection:
        rows = await _rows(client.log, connection, name)
        for row in rows:
            found = await queries.list_tables(connection, row["schema"], timeseries=row["timeseries"])
            row["tables"] = [asdict(one) for one in found]
        parked = [_plain(asdict(one)) for one in await queries.list_parked(connection, projection=name)]
    value = {
        "projection": name,
        "keep_months": rows[0]["keep_months"] if rows else None,
        "generations": rows,
        "parked": parked,
    }
    show_one(output, value, lambda: _print(value))


async def _rows(log: EventLog, connection: Transaction, name: str | None) -> list[dict[str, Any]]:
    last = (await log.verify()).last_sequence
    records = await queries.list_projections(connection, last_sequence=last, projection=name)
    return [_row(one, await _is_regressed(log, one)) for one in records]


async def _is_regressed(log: EventLog, record: ProjectionRecord) -> bool:
    try:
        await log.verify_position(Position(record.sequence, record.event_id))
    except HistoryRegressedError:
        return True
    return False


def _row(record: ProjectionRecord, regressed: bool) -> dict[str, Any]:
    return _plain({
        "projection": record.projection,
        "generation": record.generation,
        "version": record.version,
        "state": record.state,
        "shown": record.shown,
        "health": "regressed" if regressed else record.health,
        "written": record.written,
        "sequence": record.sequence,
        "event_id": record.event_id or None,
        "lag": record.lag,
        "parked": record.parked,
        "schema": record.tables_in,
        "made_at": record.made_at,
        "updated_at": record.updated_at,
        "hidden_at": record.hidden_at,
        "kept_from": record.kept_from,
        "keep_months": record.keep_months,
        "timeseries": record.timeseries,
        "timeseries_why": record.timeseries_why,
    })  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: iso(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["projection"],
            str(row["generation"]),
            str(row["version"]),
            row["health"],
            "yes" if row["shown"] else "no",
            str(row["sequence"]),
            str(row["lag"]),
            str(row["parked"]),
            row["timeseries"] or "",
            _second(row["updated_at"]),
        ]
        for row in rows
    ]


def _print(value: dict[str, Any]) -> None:
    months = value["keep_months"]
    fields([("projection", value["projection"]), ("keeps", f"{months} months" if months else "everything")])
    for row in value["generations"]:
        if row["timeseries"]:
            kind = KINDS[row["timeseries"]]
            line(f"generation {row['generation']}: its histories are {kind}: {row['timeseries_why']}")
    section("generations", _COLUMNS, _cells(value["generations"]))
    tables = [
        [
            str(row["generation"]),
            one["name"],
            str(one["rows"]),
            str(one["bytes"] // 1024),
            str(one["partitions"] or ""),
            str(one["compressed"] or ""),
        ]
        for row in value["generations"]
        for one in row["tables"]
    ]
    section(
        "tables, rows as last estimated", ["GENERATION", "TABLE", "ROWS", "KIB", "PARTITIONS", "COMPRESSED"], tables
    )
    section("parked", _PARKED_COLUMNS, _parked_cells(value["parked"]))


async def show_parked(
    space: str, database_url: str, name: str, output: Output, *, everything: bool, limit: int
) -> None:
    """Print what is parked. Raises NotFoundError, ConfigurationError, UnavailableError."""
    find([name] if name else [])
    async with _reading(space, database_url) as connection:
        found = await queries.list_parked(
            connection, projection=name or None, everywhere=everything, skipped=everything, limit=limit
        )
    rows = [_plain(asdict(one)) for one in found]
    show_list(output, rows, lambda: table(_PARKED_COLUMNS, _parked_cells(rows), empty="nothing is parked"))


def _parked_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["projection"],
            str(row["sequence"]),
            _second(row["recorded_at"]),
            row["subject"],
            (f"left out by {row['skipped_by']}: " if row["skipped_at"] else "") + row["reason"],
        ]
        for row in rows
    ]


def _second(moment: str | None) -> str:
    return (moment or "")[:19].replace("T", " ")


async def retry(target: Target, database_url: str, name: str, sequence: int, output: Output) -> None:
    """Apply a parked event. Raises NotFoundError, CommandRejectedError when it still cannot be applied."""
    (projection,) = find([name])
    require_url(database_url)
    async with session(target) as client, _writing(target.space, database_url):
        count = await retry_parked(client.log, database_url, projection, sequence)
    value = {"projection": name, "sequence": sequence, "applied": count}
    with_it = f" again with all {count} events of its history" if count > 1 else ""
    show_one(output, value, lambda: note(f"event {sequence} is applied to {name}{with_it}"))


async def skip(space: str, database_url: str, name: str, sequence: int, output: Output, *, by: str) -> None:
    """Leave a parked event out. Raises NotFoundError."""
    find([name])
    by = by or login_name()
    async with _writing(space, database_url) as connection:
        await skip_parked(connection, name, sequence, by=by)
    value = {"projection": name, "sequence": sequence, "skipped_by": by}
    show_one(output, value, lambda: note(f"event {sequence} stays out of {name}; the log keeps it"))


async def prune(space: str, database_url: str, names: Sequence[str], output: Output) -> None:
    """Drop generations that are neither shown nor written. Raises NotFoundError."""
    projections = find(names) if names else list(ALL)
    rows: list[dict[str, Any]] = []
    async with _writing(space, database_url) as connection:
        for projection in projections:
            dropped = await drop_obsolete(connection, projection.name, keep_previous=False)
            rows += [{"projection": projection.name, "generation": number} for number in dropped]
    cells = [[row["projection"], str(row["generation"])] for row in rows]
    show_list(output, rows, lambda: table(["PROJECTION", "DROPPED"], cells, empty="nothing to drop"))


async def retention(space: str, database_url: str, wanted: Retention, output: Output) -> None:
    """Show for how long projections keep rows, or say so for one. Raises InputError, NotFoundError."""
    changes = wanted.months is not None or wanted.keep_all
    projections = find([wanted.name]) if wanted.name else list(ALL)
    if wanted.months is not None and wanted.keep_all:
        raise InputError("--keep-months and --keep-all say both what to keep", remedy="say one of them")
    if changes and not wanted.name:
        raise InputError("which projection?", remedy=f"name one of {', '.join(_PARTITIONED)}")
    if changes and wanted.name not in _PARTITIONED:
        raise InputError(
            f"no table of {wanted.name} is partitioned by time", remedy=f"name one of {', '.join(_PARTITIONED)}"
        )
    dropped: list[str] = []
    if changes:
        async with _writing(space, database_url) as connection:
            await keep_months(connection, wanted.name, wanted.months, by=wanted.by or login_name())
            dropped = await retire(connection, wanted.name)
    async with _reading(space, database_url) as connection:
        names = {one.name for one in projections} & set(_PARTITIONED)
        records = [
            one for one in await queries.list_projections(connection, last_sequence=0) if one.projection in names
        ]
    rows = [
        _plain({"projection": one.projection, "keep_months": one.keep_months, "kept_from": one.kept_from})
        | ({"dropped": dropped} if changes else {})
        for one in records
        if one.shown
    ]
    cells = [
        [row["projection"], str(row["keep_months"] or "all"), _second(row["kept_from"]) or "the beginning"]
        for row in rows
    ]
    show_list(output, rows, lambda: table(["PROJECTION", "MONTHS", "HOLDS ROWS SINCE (UTC)"], cells, empty="nothing"))
    if dropped:
        note(f"dropped {', '.join(dropped)}", output)
