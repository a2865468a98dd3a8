"""Which event type belongs under which subject, and events to plain data and back."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cuebook.events.errors import PoisonMessageError, UnknownEventError
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    AnswerRefused,
    DrainRequested,
    Error,
    Event,
    HandlerSpec,
    MessageRejected,
    OutsideEvent,
    RetryPolicy,
    RetryRule,
    RunCancelled,
    RunCancelRequested,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunRejected,
    RunRequested,
    RunResumed,
    RunRetryRequested,
    RunStarted,
    RunStuck,
    SagaServed,
    StepAnswered,
    StepAsked,
    StepCancelled,
    StepExpired,
    StepMatched,
    StepSlept,
    StepWaiting,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskEscalated,
    TaskFailed,
    TaskProgressed,
    TaskRejected,
    TaskRequested,
    TaskResolved,
    TaskRetried,
    TaskReverted,
)
from cuebook.events.subjects import Address

__all__ = ["EVENT_TYPES", "event_type_of", "parse_event", "to_data"]

EVENT_TYPES: tuple[type[Event], ...] = (
    RunRequested, RunStarted, RunCompleted, RunFailed, RunCompensating, RunCompensated, RunCancelRequested,
    RunCancelled, RunStuck, RunRetryRequested, RunResumed, RunRejected,
    TaskRequested, TaskAssigned, TaskCompleted, TaskFailed, TaskRetried, TaskEscalated, TaskResolved, TaskAborted,
    TaskCancelRequested, TaskCancelled, TaskRejected, TaskReverted, TaskProgressed,
    StepSlept, StepWaiting, StepMatched, StepAsked, StepAnswered, AnswerRefused, StepExpired, StepCancelled,
    AgentRegistered, AgentSuspected, AgentLost, AgentRecovered, DrainRequested, AgentDraining, AgentStopped,
    SagaServed,
    MessageRejected,
)  # fmt: skip

_ADAPTERS = {cls.event_type: TypeAdapter(cls) for cls in EVENT_TYPES}
_VALIDATE = {event_type: adapter.validator.validate_python for event_type, adapter in _ADAPTERS.items()}
_REQUIRED = object()
_MANY = 1_000


def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (
            f.name,
            f.default
            if f.default is not MISSING
            else f.default_factory()
            if callable(f.default_factory)
            else _REQUIRED,
        )
        for f in fields(cls)
    )


_FIELDS = {cls: _defaults(cls) for cls in (*EVENT_TYPES, Error, RetryRule, RetryPolicy, HandlerSpec)}
_KNOWN = {cls.event_type.rpartition(".")[0]: cls.event_type for cls in EVENT_TYPES}


def event_type_of(address: Address) -> str:
    """The newest type for a subject, as a plain JSON message without an envelope is read. Raises UnknownEventError."""
    if address.kind == "event":
        return address.topic
    event_type = _KNOWN.get(f"{address.kind}.{address.fact}")
    if event_type is None:
        raise UnknownEventError(
            f"{address.kind} has no fact {address.fact!r}", remedy="docs/wire-format.md lists the facts"
        )
    return event_type


def parse_event(address: Address, event_type: str, data: Any) -> Event:
    """Turn decoded `data` into the typed event. Raises UnknownEventError, or PoisonMessageError for a wrong shape."""
    if address.kind == "event":
        return OutsideEvent(data=data)
    validate = _VALIDATE.get(event_type)
    if validate is None or not event_type.startswith(f"{address.kind}.{address.fact}.v"):
        if validate is None:
            raise UnknownEventError(
                f"event type {event_type!r} is not known to this release", remedy="read it with a newer release"
            )
        raise PoisonMessageError(f"an event of type {event_type!r} does not belong under fact {address.fact!r}")
    try:
        return validate(data if data is not None else {})  # type: ignore[no-any-return]
    except ValidationError as error:
        raise PoisonMessageError(f"{event_type}: {_first_of(error)}", remedy="correct the field") from error


def _first_of(error: ValidationError) -> str:
    if error.error_count() > _MANY:  # listing them all would take longer than the rest
        return f"{error.error_count()} fields are wrong"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "data"
    return f"{where}: {first['msg'][:200]}"


def to_data(event: Any) -> Any:
    """The fields of an event as plain data, ready for the codec. Fields at their default are left out."""
    if type(event) is OutsideEvent:
        return event.data
    data = {}
    for name, default in _FIELDS[type(event)]:
        value = getattr(event, name)
        if value is default or value == default:
            continue
        if type(value) in _FIELDS:
            value = to_data(value)
        elif type(value) is list and value and type(value[0]) in _FIELDS:
            value = [to_data(item) for item in value]
        elif name == "handlers":
            value = {key: to_data(item) for key, item in value.items()}
        data[name] = value
    return data
