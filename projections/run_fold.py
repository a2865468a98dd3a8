"""How one run's row follows from its events and those of its tasks. Pure and total, by the orchestrator's own rules.

A run without a saga is one standalone task: nothing is ever said about the run itself, task 0 is all that happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    RunCancelled,
    RunCancelRequested,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunForked,
    RunRejected,
    RunRequested,
    RunResumed,
    RunRetryRequested,
    RunStarted,
    RunStuck,
)
from cuebook.projections.rows import FALSE, NULL, TRUE, Row, integer, jsonb, moment, text
from cuebook.projections.task_fold import TASK_ENDED

__all__ = ["RUN_ENDED", "fold_run", "fold_task_into_run", "is_forking"]

RUN_ENDED: Final = frozenset({"completed", "failed", "compensated", "cancelled", "rejected"})
_MIRRORED: Final = {
    "waiting": "requested",
    "completed": "completed",
    "cancelled": "cancelled",
    "rejected": "rejected",
    "aborted": "failed",
}
"""The status of a standalone run for that of its task; any other is `running`."""


def fold_run(row: Row | None, envelope: Envelope) -> Row | None:
    """The columns that a fact about the run itself changes in its row, or None when it does not count."""
    fold = _FOLDS.get(type(envelope.event))
    if fold is None or (row is not None and row["status"] in RUN_ENDED):
        return None
    change = fold(row, envelope.event, envelope)
    if change is not None:
        change["last_sequence"] = str(envelope.sequence)
    return change


def fold_task_into_run(row: Row | None, before: str | None, task: Row, envelope: Envelope) -> Row:
    """The columns that a change of one of its tasks changes in the row of a run; its first task opens it.

    `before` is the task's status until now, None if the event opened it; `task` its changed columns.
    """
    if row is None:
        row = change = {**_opened(envelope, standalone=True), "status": "requested"}
    else:
        change = {"last_sequence": str(envelope.sequence)}
    status = task.get("status", before)
    ended = status in TASK_ENDED and before not in TASK_ENDED
    if before is None:
        change["tasks"] = _one_more(row, "tasks")
    if ended:
        counter = "tasks_completed" if status == "completed" else "tasks_failed"
        change[counter] = _one_more(row, counter)
    if envelope.address.n == 0 and row["standalone"] == TRUE and status is not None:
        change["status"] = _MIRRORED.get(status, "running")
        if status == "assigned" and before == "waiting":
            change["started_at"] = task["assigned_at"]
        elif ended:
            change["ended_at"] = task["ended_at"]
    return change


def is_forking(row: Row | None) -> bool:
    """Whether what a run shares with its origin is being copied: only then do copied facts count."""
    return row is not None and row["status"] == "requested" and row.get("fork_of", NULL) != NULL


def _one_more(row: Row, counter: str) -> str:
    return str(int(row[counter]) + 1)


def _opened(envelope: Envelope, *, standalone: bool) -> Row:
    return {
        "run_id": envelope.address.run_id,
        "standalone": TRUE if standalone else FALSE,
        "tasks": "0",
        "tasks_completed": "0",
        "tasks_failed": "0",
        "opened_at": moment(envelope.recorded_at),
        "opened_by": text(envelope.source),
        "correlation_id": text(envelope.correlation_id),
        "first_sequence": str(envelope.sequence),
        "last_sequence": str(envelope.sequence),
    }


def _requested(row: Row | None, event: RunRequested, envelope: Envelope) -> Row | None:
    if row is not None:
        return None
    change = {
        **_opened(envelope, standalone=False),
        "status": "requested",
        "saga": envelope.address.agent or NULL,
        "input": jsonb(event.input),
    }
    if event.retry_of is not None:
        change["retry_of"] = text(event.retry_of)
    return change


def _forked(row: Row | None, event: RunForked, envelope: Envelope) -> Row | None:
    if row is not None:
        return None
    return {
        **_opened(envelope, standalone=False),
        "status": "requested",
        "saga": text(event.saga),
        "input": jsonb(event.input),
        "fork_of": text(event.fork_of),
        "fork_at": integer(event.at),
    }


def _started(row: Row | None, event: RunStarted, envelope: Envelope) -> Row | None:
    if row is not None and (row["status"] != "requested" or row["standalone"] == TRUE):
        return None
    change = _opened(envelope, standalone=False) if row is None else {}
    change |= {
        "status": "running",
        "saga": text(event.saga),
        "version": text(event.version),
        "input": jsonb(event.input),
        "trigger": integer(event.trigger),
        "started_at": moment(envelope.recorded_at),
    }
    if event.retry_of is not None:
        change["retry_of"] = text(event.retry_of)
    return change


def _completed(row: Row | None, event: RunCompleted, envelope: Envelope) -> Row | None:
    return _ended("completed", row, envelope, result=jsonb(event.result))


def _failed(row: Row | None, event: RunFailed, envelope: Envelope) -> Row | None:
    return _ended("failed", row, envelope, error=jsonb(event.error))


def _compensating(row: Row | None, event: RunCompensating, envelope: Envelope) -> Row | None:
    if row is None or row["status"] not in ("running", "stuck") or row["standalone"] == TRUE:
        return None
    change = {
        "status": "compensating",
        "reason": text(event.reason),
        "compensating_at": moment(envelope.recorded_at),
        "undo": jsonb(event.steps),
    }
    if event.error is not None:
        change["error"] = jsonb(event.error)
    return change


def _compensated(row: Row | None, event: RunCompensated, envelope: Envelope) -> Row | None:
    return _ended("compensated", row, envelope, reason=text(event.reason))


def _cancelled(row: Row | None, event: RunCancelled, envelope: Envelope) -> Row | None:
    return _ended("cancelled", row, envelope, reason=text(event.reason))


def _rejected(row: Row | None, event: RunRejected, envelope: Envelope) -> Row | None:
    return _ended("rejected", row, envelope, reason=text(event.reason))


def _ended(status: str, row: Row | None, envelope: Envelope, **columns: str) -> Row | None:
    """Opens the row where there is none: the request may have been unreadable, and the id is used up all the same."""
    if row is not None and row["standalone"] == TRUE:
        return None
    change = _opened(envelope, standalone=False) if row is None else {}
    return {**change, "status": status, "ended_at": moment(envelope.recorded_at), **columns}


def _stuck(row: Row | None, event: RunStuck, envelope: Envelope) -> Row | None:
    if row is not None and row["standalone"] == TRUE:
        return None
    before = {**_opened(envelope, standalone=False), "status": "requested"} if row is None else row
    difference = {"step": event.step, "recorded": event.recorded, "asked": event.asked}
    return {
        **(before if row is None else {}),
        "status": "stuck",
        "stuck_from": before["stuck_from"] if before["status"] == "stuck" else before["status"],
        "stuck_at": moment(envelope.recorded_at),
        "stuck": jsonb(difference),
        "reason": text(event.reason),
    }


def _resumed(row: Row | None, _event: RunResumed, envelope: Envelope) -> Row | None:
    if row is None or row["status"] != "stuck":
        return None
    return {"status": row["stuck_from"], "resumed_at": moment(envelope.recorded_at)}


def _cancel_requested(row: Row | None, event: RunCancelRequested, envelope: Envelope) -> Row | None:
    if row is None:
        return None
    return {
        "cancel_requested_at": moment(envelope.recorded_at),
        "cancel_requested_by": text(event.by or envelope.source),
    }


def _retry_requested(row: Row | None, event: RunRetryRequested, envelope: Envelope) -> Row | None:
    if row is None or row["status"] != "stuck":
        return None
    return {
        "retry_requested_at": moment(envelope.recorded_at),
        "retry_requested_by": text(event.by or envelope.source),
    }


_Fold = Callable[[Row | None, Any, Envelope], Row | None]
_FOLDS: Final[dict[type, _Fold]] = {
    RunRequested: _requested,
    RunForked: _forked,
    RunStarted: _started,
    RunCompleted: _completed,
    RunFailed: _failed,
    RunCompensating: _compensating,
    RunCompensated: _compensated,
    RunCancelled: _cancelled,
    RunRejected: _rejected,
    RunStuck: _stuck,
    RunResumed: _resumed,
    RunCancelRequested: _cancel_requested,
    RunRetryRequested: _retry_requested,
}
