"""Listing runs, from the projections or from the log. Both give the same fields."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cuebook.cli.history.points import find_place, find_range
from cuebook.cli.history.runfold import RunFold, fold_runs
from cuebook.cli.history.views import error_view
from cuebook.cli.moments import iso, parse_since, span
from cuebook.cli.options import Output, Target
from cuebook.cli.output import note, show_list, table
from cuebook.cli.session import session
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.facts import Error

if TYPE_CHECKING:
    from cuebook.projections.records import RunRecord

__all__ = ["COLUMNS", "Wanted", "list_runs", "run_cells"]

COLUMNS = ["RUN", "STATUS", "OF", "OPENED (UTC)", "TOOK", "TASKS", "WHY"]

_ERROR_FIELDS = frozenset({"type", "message", "retryable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which runs; what is empty means any. `since` as people say it; `at`: as they were then."""

    status: str
    saga: str
    since: str
    at: str
    limit: int


async def list_runs(target: Target, database_url: str, wanted: Wanted, output: Output) -> None:
    """Print runs, the newest first. Raises InputError, NotFoundError, ConfigurationError, UnavailableError."""
    since = parse_since(wanted.since) if wanted.since else None
    if database_url and not wanted.at:
        try:
            rows = await _from_tables(target.space, database_url, wanted, since)
        except (ConfigurationError, UnavailableError) as error:
            remedy = "; ".join(filter(None, [error.remedy, "--from-log does without"]))
            raise type(error)(str(error), remedy=remedy) from error
    else:
        rows = await _from_log(target, wanted, since, output)
    show_list(output, rows, lambda: table(COLUMNS, run_cells(rows), empty="no runs"))


async def _from_log(target: Target, wanted: Wanted, since: int | None, output: Output) -> list[dict[str, Any]]:
    def keep(row: dict[str, Any]) -> bool:
        return (not wanted.status or row["status"] == wanted.status) and (not wanted.saga or row["saga"] == wanted.saga)

    async with session(target) as client:
        until = None
        if wanted.at:
            after, _ = await find_range(client.log, wanted.since, wanted.at)
            place = await find_place(client.log, wanted.at)
            until = place.sequence
            note(f"as of sequence {place}", output)
        else:
            after = await client.log.sequence_at(since) if since is not None else 0
        fold = RunFold(wanted.limit, keep)
        return (await fold_runs(client.log, fold, after=after, until=until, silent=output.for_programs)).newest()


async def _from_tables(space: str, database_url: str, wanted: Wanted, since: int | None) -> list[dict[str, Any]]:
    from cuebook.projections import queries

    async with queries.reading(database_url, space) as connection:
        records = await queries.list_runs(
            connection,
            status=wanted.status or None,
            saga=wanted.saga or None,
            since=datetime.fromtimestamp(since / 1e6, UTC) if since is not None else None,
            limit=wanted.limit,
        )
    return [_row(record) for record in records]


def _row(record: RunRecord) -> dict[str, Any]:
    duration = record.ended_at - record.opened_at if record.ended_at is not None else None
    return {
        "run_id": record.run_id,
        "saga": record.saga,
        "agent": record.agent,
        "handler": record.handler or None,
        "status": record.status,
        "opened_at": iso(record.opened_at),
        "ended_at": iso(record.ended_at) if record.ended_at is not None else None,
        "duration_s": duration.total_seconds() if duration is not None else None,
        "tasks": record.tasks,
        "tasks_completed": record.tasks_completed,
        "tasks_failed": record.tasks_failed,
        "error": error_view(_error(record)),
        "reason": None if record.standalone else record.reason or None,
        "first_sequence": record.first_sequence,
    }


def _error(record: RunRecord) -> Error | None:
    """What went wrong, as the fold of the log has it: of a task that was ended, why it was."""
    if record.standalone and record.status in ("cancelled", "rejected"):
        return Error(type=record.status.capitalize(), message=record.reason or record.status)
    if record.error is not None:
        return Error(**{name: value for name, value in record.error.items() if name in _ERROR_FIELDS})
    if record.standalone and record.status == "failed":
        return Error(type="Aborted", message=record.reason or "")
    return None


def run_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Runs as the cells of a table under `COLUMNS`."""
    return [
        [
            row["run_id"],
            row["status"],
            row["saga"] or ".".join(filter(None, [row["agent"], row["handler"]])),
            str(row["opened_at"])[:19].replace("T", " "),
            span(row["duration_s"]) if row["duration_s"] is not None else "",
            f"{row['tasks_completed']}/{row['tasks']}",
            _why(row),
        ]
        for row in rows
    ]


def _why(row: dict[str, Any]) -> str:
    """Error or reason of a run, shortened for a list."""
    error = row["error"] if row["status"] != "completed" else None  # an attempt that failed before is history
    text = f"{error['type']}: {error['message']}" if error else row["reason"] or ""
    return text if len(text) <= 60 else text[:59] + "…"
