"""What the tables hold, as typed rows; `queries` returns them. Times are aware datetimes in UTC.

The columns are described where they are made, in `runs.sql`, `agents.sql` and `audit.sql`, and in the database itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

__all__ = [
    "AgentRecord",
    "AuditRecord",
    "HealthRecord",
    "ParkedRecord",
    "ProjectionRecord",
    "RunRecord",
    "TableRecord",
    "TaskRecord",
]

BEHIND: Final = 1_000
"""Messages that a projection may lag before its health says so: a busy log's last tenth of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. A standalone one has `input`, `result`, `error`, `reason`, `agent` and `handler` of its task."""

    run_id: str
    saga: str | None
    version: str | None
    status: str
    standalone: bool
    input: Any
    result: Any
    error: dict[str, Any] | None
    reason: str | None
    agent: str | None
    handler: str | None
    trigger: int | None
    retry_of: str | None
    fork_of: str | None
    fork_at: int | None
    tasks: int
    tasks_completed: int
    tasks_failed: int
    undo: list[int] | None
    stuck: dict[str, Any] | None
    stuck_from: str | None
    opened_at: datetime
    opened_by: str
    started_at: datetime | None
    compensating_at: datetime | None
    stuck_at: datetime | None
    resumed_at: datetime | None
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    retry_requested_at: datetime | None
    retry_requested_by: str | None
    correlation_id: str
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task."""

    run_id: str
    n: int
    agent: str | None
    handler: str
    status: str
    attempt: int
    instance: str | None
    priority: int
    affinity: str | None
    labels: dict[str, str] | None
    timeout_s: float | None
    retry: dict[str, Any] | None
    compensation: bool
    compensates: int | None
    copied_from: str | None
    changed: bool
    input: Any
    output: Any
    error: dict[str, Any] | None
    reason: str | None
    placement: dict[str, Any] | None
    duration_s: float | None
    requested_at: datetime
    requested_by: str
    assigned_at: datetime | None
    deadline: datetime | None
    failed_at: datetime | None
    due: datetime | None
    escalated_at: datetime | None
    resolution: str | None
    resolved_at: datetime | None
    resolved_by: str | None
    note: str | None
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    ended_at: datetime | None
    ended_by: str | None
    outcome_unknown: bool
    reverted: dict[str, Any] | None
    reverted_at: datetime | None
    correlation_id: str
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """One agent instance. `busy`: tasks that are assigned to it now."""

    agent: str
    instance: str
    version: str
    description: str
    labels: dict[str, str]
    slots: int
    handlers: dict[str, Any]
    heartbeat_s: float
    recycle_after: int
    host: str
    pid: int
    health: str
    wants_drain: bool
    reason: str | None
    registered_at: datetime
    changed_at: datetime
    handled: int | None
    busy: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecord:
    """One change of an instance's health."""

    recorded_at: datetime
    sequence: int
    agent: str
    instance: str
    health: str
    previous: str | None
    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One message of the log. `raw` and `reason` are filled where it could not be read or not be shown exactly."""

    sequence: int
    recorded_at: datetime
    time: datetime | None
    event_id: str | None
    event_type: str | None
    subject: str
    kind: str | None
    fact: str | None
    run_id: str | None
    n: int | None
    agent: str | None
    instance: str | None
    topic: str | None
    source: str | None
    correlation_id: str | None
    causation_id: str | None
    traceparent: str | None
    data: Any
    raw: bytes | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionRecord:
    """One generation of a projection.

    `shown`: this is what people read. `written`: a process keeps it up to date at this moment. `lag`: messages it has
    still to apply. `parked`: events that it could not apply and about which nobody has decided. `kept_from`: tables
    partitioned by time hold nothing older. `keep_months`: what they are to keep; None: everything. `timeseries`: what
    those tables are made of, native or timescale, and why; None: it has none.
    """

    projection: str
    generation: int
    version: int
    state: str
    shown: bool
    tables_in: str
    sequence: int
    event_id: str
    kept_from: datetime | None
    made_at: datetime
    updated_at: datetime
    hidden_at: datetime | None
    written: bool
    lag: int
    parked: int
    keep_months: int | None
    timeseries: str | None
    timeseries_why: str | None

    @property
    def health(self) -> str:
        """healthy, behind, parked or stopped; of one that is not shown: building, abandoned, beside or kept.

        behind: by more than a busy log's last moment; parked: events wait for a decision; stopped: nobody writes what
        people read; abandoned: a rebuild has ended half-way, and the next one goes on with it; beside: a service fills
        it, with another version of the projection than people read; kept: as it was when another took its place.
        """
        if self.state == "building":
            return "building" if self.written else "abandoned"
        if not self.shown:
            return "beside" if self.state == "live" and self.written else "kept"
        if not self.written:
            return "stopped"
        if self.parked:
            return "parked"
        return "behind" if self.lag > BEHIND else "healthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecord:
    """One table of a generation; `rows` as PostgreSQL last estimated them, `bytes` with indexes.

    `partitions`: native ones or chunks; `compressed`: how many of the chunks are.
    """

    name: str
    partitioned: bool
    rows: int
    bytes: int
    partitions: int
    compressed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedRecord:
    """An event that a projection could not apply and went past. `skipped_at`: when somebody decided to leave it out."""

    projection: str
    generation: int
    version: int
    sequence: int
    recorded_at: datetime
    event_id: str
    subject: str
    reason: str
    parked_at: datetime
    skipped_at: datetime | None
    skipped_by: str | None
