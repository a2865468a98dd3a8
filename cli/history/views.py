"""Events, runs, tasks, steps and agents as plain data with field names that stay: what `-o json` prints.

Times are ISO 8601 in UTC by the server's clock; what has not happened is null.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.orchestrator.variants import Team
from cuebook.cli.moments import iso
from cuebook.events.catalogue import to_data
from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    Error,
    HandlerSpec,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskRetried,
)
from cuebook.events.log import Unreadable
from cuebook.events.subjects import task_id

__all__ = [
    "Item",
    "error_view",
    "event_view",
    "handlers_view",
    "instance_view",
    "item_view",
    "run_status",
    "run_summary",
    "run_view",
]

Item = Envelope | Unreadable
_STANDALONE = {"new": "requested", "waiting": "requested", "completed": "completed", "cancelled": "cancelled",
               "rejected": "rejected", "aborted": "failed"}  # fmt: skip
"""The status of a run that is one task, as the projections have it; all other statuses of the task mean `running`."""


def event_view(item: Item) -> dict[str, Any]:
    """One message of the log. One that is no event has `unreadable` with the reason, and its body in base64."""
    if isinstance(item, Unreadable):
        return {
            "sequence": item.sequence,
            "recorded_at": iso(item.recorded_at),
            "subject": item.subject,
            "unreadable": item.reason,
            "fix": item.remedy,
            "body": base64.b64encode(item.body).decode(),
        }
    address = item.address
    return {
        "sequence": item.sequence,
        "recorded_at": iso(item.recorded_at),
        "subject": item.subject,
        "type": item.event_type,
        "id": item.id,
        "kind": address.kind,
        "fact": address.fact,
        "run_id": address.run_id or None,
        "n": address.n if address.n >= 0 else None,
        "agent": address.agent or None,
        "instance": address.instance or None,
        "topic": address.topic or None,
        "time": iso(item.time),
        "source": item.source,
        "correlation_id": item.correlation_id,
        "causation_id": item.causation_id or None,
        "traceparent": item.traceparent or None,
        "data": item.data,
    }


def run_status(state: RunState) -> str:
    """One vocabulary for all runs, the same as in the projections."""
    if state.standalone:
        return _STANDALONE.get(state.outcome(), "running")
    return "requested" if state.status == "new" else state.status


def run_summary(state: RunState, opened_at: int) -> dict[str, Any]:
    """One run in a list. `opened_at`: when its first event was recorded."""
    tasks = [item for item in state.items.values() if isinstance(item, TaskState)]
    task = state.items.get(0) if state.standalone else None
    task = task if isinstance(task, TaskState) else None
    ended_at = task.ended_at if task is not None else state.ended_at
    error = task.error if task is not None else state.error
    return {
        "run_id": state.run_id,
        "saga": state.saga or None,
        "agent": task.agent if task is not None else None,
        "handler": (task.handler or None) if task is not None else None,
        "status": run_status(state),
        "opened_at": iso(opened_at),
        "ended_at": iso(ended_at),
        "duration_s": (ended_at - opened_at) / 1e6 if ended_at else None,
        "tasks": len(tasks),
        "tasks_completed": sum(one.status == "completed" for one in tasks),
        "tasks_failed": sum(one.closed and one.status != "completed" for one in tasks),
        "error": error_view(error),
        "reason": state.reason or None,
        "first_sequence": state.opened_sequence,
    }


def run_view(
    state: RunState, history: Sequence[Item], waiting: Mapping[str, str], progress: Mapping[int, TaskProgressed]
) -> dict[str, Any]:
    """Everything about a run. `waiting`: why its tasks wait, by number; `progress`: the last word of each task."""
    task = state.items.get(0) if state.standalone else None
    return {
        **run_summary(state, history[0].recorded_at if history else 0),
        "version": state.version or None,
        "input": task.input if isinstance(task, TaskState) else state.input,
        "result": task.output if isinstance(task, TaskState) else state.result,
        "cancel_requested": state.cancel_reason,
        "retry_of": state.retry_of,
        "fork_of": {"run_id": state.forked.fork_of, "sequence": state.forked.at} if state.forked is not None else None,
        "trigger": state.trigger or None,
        "undo": state.undo or [],
        "stuck": to_data(state.stuck) if state.stuck is not None else None,
        "waiting": waiting.get("run"),
        "correlation_id": state.correlation_id,
        "sequence": max((item.sequence for item in history), default=0),
        "items": [
            item_view(item, history, waiting.get(str(item.n), ""), progress.get(item.n))
            for _, item in sorted(state.items.items())
        ],
        "history": [event_view(item) for item in history],
    }


def item_view(
    item: TaskState | StepState, history: Iterable[Item], waiting: str = "", progress: TaskProgressed | None = None
) -> dict[str, Any]:
    """One task or step of a run."""
    if isinstance(item, StepState):
        return _step_view(item)
    return {
        "id": f"{item.run_id}/{item.n}",
        "n": item.n,
        "kind": "task",
        "status": item.status,
        "agent": item.agent,
        "handler": item.handler or None,
        "instance": item.instance or None,
        "attempt": item.attempt,
        "priority": item.priority,
        "affinity": item.affinity,
        "labels": item.labels,
        "timeout_s": item.timeout_s,
        "compensates": item.compensates,
        **_origin(item),
        "input": item.input,
        "output": item.output,
        "error": error_view(item.error),
        "requested_at": iso(item.requested_at),
        "assigned_at": iso(item.assigned_at),
        "due": iso(item.free_at) if item.status == "backoff" else None,
        "ended_at": iso(item.ended_at),
        "placed": item.reason or None,
        "waiting": waiting or None,
        "progress": to_data(progress) if progress is not None and not item.closed else None,
        "cancel_requested": item.cancel_reason,
        "attempts": _attempts(item.n, history),
    }


def _origin(item: TaskState | StepState) -> dict[str, Any]:
    """Of a step that a fork shares: where it was executed, and whether its answer is another one here."""
    origin = item.origin
    return {"copied_from": task_id(origin.run_id, origin.n) if origin is not None else None, "changed": item.changed}


def _step_view(step: StepState) -> dict[str, Any]:
    return {
        "id": f"{step.run_id}/{step.n}",
        "n": step.n,
        "kind": step.type or "step",
        "status": step.status,
        "question": step.question or None,
        "schema": step.schema or None,
        "context": step.context,
        "topic": step.topic or None,
        "match": step.match or None,
        "timeout_s": step.timeout_s,
        **_origin(step),
        "value": step.value,
        "by": step.by or None,
        "opened_at": iso(step.opened_at),
        "due": iso(step.due) if step.status == "open" else None,
        "ended_at": iso(step.ended_at),
    }


def _attempts(n: int, history: Iterable[Item]) -> list[dict[str, Any]]:
    """Each assignment of a task and what came of it."""
    attempts: list[dict[str, Any]] = []
    for item in history:
        if not isinstance(item, Envelope) or item.address.kind != "task" or item.address.n != n:
            continue
        event = item.event
        if isinstance(event, TaskAssigned):
            attempts.append({"attempt": event.attempt, "instance": item.address.instance, "outcome": "running",
                             "assigned_at": iso(item.recorded_at), "ended_at": None, "duration_s": None,
                             "error": None})  # fmt: skip
        elif attempts and attempts[-1]["ended_at"] is None:
            _end(attempts[-1], item)
    return attempts


def _end(attempt: dict[str, Any], item: Envelope) -> None:
    match item.event:
        case TaskCompleted() as event:
            attempt |= {"outcome": "completed", "duration_s": event.duration_s}
        case TaskFailed() as event:
            attempt |= {"outcome": "failed", "duration_s": event.duration_s, "error": error_view(event.error)}
        case TaskRetried() as event:
            attempt |= {"outcome": "lost" if event.lost else "handed back"}
        case TaskCancelled():
            attempt |= {"outcome": "cancelled"}
        case _:
            return
    attempt["ended_at"] = iso(item.recorded_at)


def error_view(error: Error | None) -> dict[str, Any] | None:
    """What went wrong."""
    return {"type": error.type, "message": error.message, "retryable": error.retryable} if error is not None else None


def instance_view(one: InstanceState, in_flight: dict[str, int] | None = None) -> dict[str, Any]:
    """One instance. `in_flight` is null where nobody counts."""
    return {
        "agent": one.agent,
        "instance": one.instance,
        "health": one.health,
        "version": one.version,
        "slots": one.slots,
        "in_flight": in_flight.get(one.instance, 0) if in_flight is not None else None,
        "labels": one.labels,
        "handlers": sorted(one.variant.handlers) if one.variant is not None else [],
        "host": one.host,
        "pid": one.pid,
        "registered_at": iso(one.registered_at),
        "changed_at": iso(one.changed_at),
        "reason": one.reason or None,
    }


def handlers_view(team: Team) -> dict[str, dict[str, Any]]:
    """Each handler by name, as the newest release that has it describes it.

    Where releases differ, `versions` says which have it so, and `others` how the rest have it: `differs` names fields.
    """
    view: dict[str, dict[str, Any]] = {}
    for name in sorted({name for variant in team.present for name in variant.handlers}):
        having = [variant for variant in reversed(team.present) if name in variant.handlers]
        specs: list[HandlerSpec] = []
        for variant in having:
            if variant.handlers[name] not in specs:
                specs.append(variant.handlers[name])
        told = [_handler_view(spec) for spec in specs]
        for spec, one in zip(specs, told, strict=True):
            one["versions"] = [team.name(variant) for variant in reversed(having) if variant.handlers[name] == spec]
            one["differs"] = [field for field in one if field != "versions" and one[field] != told[0][field]]
        view[name] = {**told[0], "everywhere": len(having) == len(team.present) and len(told) == 1, "others": told[1:]}
        del view[name]["differs"]
    return view


def _handler_view(spec: HandlerSpec) -> dict[str, Any]:
    return {
        "description": spec.description,
        "timeout_s": spec.timeout_s,
        "retry": {"attempts": spec.retry.attempts, "backoff_s": spec.retry.backoff_s, "factor": spec.retry.factor,
                  "max_s": spec.retry.max_s, "jitter": spec.retry.jitter,
                  "rules": [to_data(rule) for rule in spec.retry.rules]},
        "compensation": spec.compensation,
        "input_schema": spec.input_schema,
        "output_schema": spec.output_schema,
    }  # fmt: skip
