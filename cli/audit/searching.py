"""Searching the audit log in PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cuebook.cli.exits import InputError
from cuebook.cli.inputs import read_json
from cuebook.cli.moments import iso, parse_since
from cuebook.cli.options import Output
from cuebook.cli.output import compact, show_list, table
from cuebook.events.errors import ConfigurationError

if TYPE_CHECKING:
    from cuebook.projections.records import AuditRecord

__all__ = ["Wanted", "search"]

_COLUMNS = ["SEQ", "RECORDED (UTC)", "WHO", "WHAT", "SUBJECT", "WHY", "SAYS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to look for; what is empty means any."""

    who: str
    what: str
    since: str
    until: str
    why: str
    correlation: str
    event: str
    run: str
    subject: str
    contains: str
    text: str
    oldest: bool
    limit: int


async def search(space: str, database_url: str, wanted: Wanted, output: Output) -> None:
    """Print what was found. Raises InputError, ConfigurationError, UnavailableError."""
    from cuebook.projections import queries

    if not database_url:
        raise ConfigurationError(
            "the audit log is searched in PostgreSQL", remedy="set --database-url or CUEBOOK_DATABASE_URL"
        )
    since, until = _moment(wanted.since), _moment(wanted.until)
    if since is not None and until is not None and until <= since:
        raise InputError(f"nothing is from {wanted.since} and before {wanted.until}", remedy="exchange them")
    if since is not None and since > datetime.now(UTC):
        raise InputError(f"{wanted.since} is still to come", remedy="say a moment that has passed")
    contains = read_json(wanted.contains, "--contains") if wanted.contains else None
    async with queries.reading(database_url, space) as connection:
        records = await queries.search_audit(
            connection,
            who=wanted.who or None,
            what=wanted.what or None,
            since=since,
            until=until,
            causation_id=wanted.why or None,
            correlation_id=wanted.correlation or None,
            event_id=wanted.event or None,
            run_id=wanted.run or None,
            subject=wanted.subject or None,
            contains=contains,
            text=wanted.text or None,
            oldest_first=wanted.oldest,
            limit=wanted.limit,
        )
    rows = [_row(record) for record in records]
    show_list(output, rows, lambda: table(_COLUMNS, [_cells(row) for row in rows], empty="nothing is like that"))


def _moment(text: str) -> datetime | None:
    return datetime.fromtimestamp(parse_since(text) / 1_000_000, UTC) if text else None


def _row(record: AuditRecord) -> dict[str, Any]:
    row = asdict(record)
    row["recorded_at"] = iso(record.recorded_at)
    row["time"] = iso(record.time) if record.time is not None else None
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["sequence"]),
        str(row["recorded_at"])[:19].replace("T", " "),
        row["source"] or "",
        row["event_type"] or "unreadable",
        row["subject"].partition(".")[2],
        row["causation_id"] or "",
        compact(row["data"]) if row["reason"] is None else row["reason"],
    ]
