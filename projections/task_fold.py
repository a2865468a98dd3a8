"""How one task's row follows from its events. Pure and total: no event makes it raise, and what has ended stays ended.

The rules are those by which the orchestrator reads the same history: a fact that does not fit the task's status, such
as a duplicate or a late answer, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCopied,
    TaskEscalated,
    TaskFailed,
    TaskRejected,
    TaskRequested,
    TaskResolved,
    TaskRetried,
    TaskReverted,
)
from cuebook.events.subjects import task_id
from cuebook.projections.rows import FALSE, NULL, Row, flag, integer, jsonb, later, moment, number, text

__all__ = ["TASK_ENDED", "fold_task"]

TASK_ENDED: Final = frozenset({"completed", "cancelled", "aborted", "rejected"})
_ASSIGNABLE: Final = frozenset({"waiting", "assigned", "backoff", "failed"})
_RETRIABLE: Final = frozenset({"failed", "resolved", "assigned"})


def fold_task(status: str | None, envelope: Envelope) -> Row | None:
    """The columns that one event changes in the row of its task, or None when it does not count.

    `status` is the row's, or None when there is no row yet, which only a request or a copy opens.
    """
    fold = _FOLDS.get(type(envelope.event))
    if fold is None or (status is None) is not (fold in _OPENING) or (status in TASK_ENDED and fold is not _reverted):
        return None
    change = fold(status, envelope.event, envelope)
    if change is not None:
        change["last_sequence"] = str(envelope.sequence)
    return change


def _requested(_status: None, event: TaskRequested, envelope: Envelope) -> Row | None:
    address = envelope.address
    row = {
        "run_id": address.run_id,
        "n": str(address.n),
        "agent": address.agent or NULL,
        "status": "waiting",
        "handler": text(event.handler),
        "attempt": "0",
        "priority": integer(event.priority),
        "compensation": flag(event.compensation),
        "changed": FALSE,
        "input": jsonb(event.input),
        "outcome_unknown": FALSE,
        "requested_at": moment(envelope.recorded_at),
        "requested_by": text(envelope.source),
        "correlation_id": text(envelope.correlation_id),
        "first_sequence": str(envelope.sequence),
    }
    if event.affinity is not None:
        row["affinity"] = text(event.affinity)
    if event.labels:
        row["labels"] = jsonb(event.labels)
    if event.timeout_s is not None:
        row["timeout_s"] = number(event.timeout_s)
    if event.retry is not None:
        row["retry"] = jsonb(event.retry)
    if event.compensates is not None:
        row["compensates"] = integer(event.compensates)
    return row


def _copied(_status: None, event: TaskCopied, envelope: Envelope) -> Row | None:
    address = envelope.address
    row = {
        "run_id": address.run_id,
        "n": str(address.n),
        "agent": address.agent or NULL,
        "handler": text(event.handler),
        "attempt": integer(event.attempt),
        "priority": "0",
        "compensation": FALSE,
        "copied_from": text(task_id(event.origin.run_id, event.origin.n)),
        "changed": flag(event.changed),
        "input": jsonb(event.input),
        "output": jsonb(event.output),
        "outcome_unknown": FALSE,
        "requested_at": moment(envelope.recorded_at),
        "requested_by": text(envelope.source),
        "correlation_id": text(envelope.correlation_id),
        "first_sequence": str(envelope.sequence),
        "ended_by": text(envelope.source),
        **_ended(event.status, envelope),
    }
    if event.error is not None:
        row["error"] = jsonb(event.error)
    if event.compensates is not None:
        row["compensates"] = integer(event.compensates)
    return row


def _assigned(status: str, event: TaskAssigned, envelope: Envelope) -> Row | None:
    if status not in _ASSIGNABLE:
        return None
    return {
        "status": "assigned",
        "handler": text(event.handler),
        "attempt": integer(event.attempt),
        "instance": envelope.address.instance,
        "placement": jsonb(event.reason),
        "assigned_at": moment(envelope.recorded_at),
        "deadline": later(envelope.recorded_at, event.timeout_s),
    }


def _completed(_status: str, event: TaskCompleted, envelope: Envelope) -> Row | None:
    return {
        **_ended("completed", envelope),
        "output": jsonb(event.output),
        "duration_s": number(event.duration_s),
        "ended_by": text(event.by or envelope.source),
    }


def _failed(status: str, event: TaskFailed, envelope: Envelope) -> Row | None:
    if status != "assigned":
        return None
    return {
        "status": "failed",
        "error": jsonb(event.error),
        "failed_at": moment(envelope.recorded_at),
        "duration_s": number(event.duration_s),
    }


def _retried(status: str, event: TaskRetried, envelope: Envelope) -> Row | None:
    if status not in _RETRIABLE:
        return None
    return {"status": "backoff", "due": later(envelope.recorded_at, event.delay_s), "reason": text(event.reason)}


def _escalated(_status: str, event: TaskEscalated, envelope: Envelope) -> Row | None:
    row = {"status": "escalated", "escalated_at": moment(envelope.recorded_at), "reason": text(event.reason)}
    if event.error is not None:
        row["error"] = jsonb(event.error)
    return row


def _resolved(status: str, event: TaskResolved, envelope: Envelope) -> Row | None:
    if status != "escalated":
        return None
    return {
        "status": "resolved",
        "resolution": event.action,
        "resolved_at": moment(envelope.recorded_at),
        "resolved_by": text(event.by or envelope.source),
        "note": text(event.note),
    }


def _aborted(_status: str, event: TaskAborted, envelope: Envelope) -> Row | None:
    row = {**_ended("aborted", envelope), "reason": text(event.reason), "ended_by": text(envelope.source)}
    if event.error is not None:
        row["error"] = jsonb(event.error)
    return row


def _cancel_requested(_status: str, event: TaskCancelRequested, envelope: Envelope) -> Row | None:
    return {
        "cancel_requested_at": moment(envelope.recorded_at),
        "cancel_requested_by": text(event.by or envelope.source),
        "reason": text(event.reason),
    }


def _cancelled(_status: str, event: TaskCancelled, envelope: Envelope) -> Row | None:
    return {
        **_ended("cancelled", envelope),
        "reason": text(event.reason),
        "outcome_unknown": flag(event.outcome_unknown),
        "ended_by": text(envelope.source),
    }


def _rejected(_status: str, event: TaskRejected, envelope: Envelope) -> Row | None:
    return {**_ended("rejected", envelope), "reason": text(event.reason), "ended_by": text(envelope.source)}


def _reverted(status: str, event: TaskReverted, envelope: Envelope) -> Row | None:
    """The one fact that counts after the end: it tells what became of an answer that came too late."""
    if status not in TASK_ENDED or status == "completed":
        return None
    late = {"output": event.output, "attempt": event.attempt, "by": event.by, "error": event.error}
    return {"reverted": jsonb(late), "reverted_at": moment(envelope.recorded_at)}


def _ended(status: str, envelope: Envelope) -> Row:
    return {"status": status, "ended_at": moment(envelope.recorded_at)}


_Fold = Callable[[Any, Any, Envelope], Row | None]
_FOLDS: Final[dict[type, _Fold]] = {
    TaskRequested: _requested,
    TaskCopied: _copied,
    TaskAssigned: _assigned,
    TaskCompleted: _completed,
    TaskFailed: _failed,
    TaskRetried: _retried,
    TaskEscalated: _escalated,
    TaskResolved: _resolved,
    TaskAborted: _aborted,
    TaskCancelRequested: _cancel_requested,
    TaskCancelled: _cancelled,
    TaskRejected: _rejected,
    TaskReverted: _reverted,
}
_OPENING: Final = frozenset({_requested, _copied})
