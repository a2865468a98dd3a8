"""Which event type belongs under which subject, in which versions, and events to plain data and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cuebook.events.errors import ConfigurationError, PoisonMessageError, UnknownEventError
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    AnswerDropped,
    AnswerRefused,
    DrainRequested,
    Error,
    Event,
    HandlerSpec,
    MessageRejected,
    Origin,
    OutsideEvent,
    RetryPolicy,
    RetryRule,
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
    SagaServed,
    SpaceRolled,
    StepAnswered,
    StepAsked,
    StepCancelled,
    StepCopied,
    StepExpired,
    StepMatched,
    StepSlept,
    StepWaiting,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCopied,
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

__all__ = ["CATALOGUE", "EVENT_TYPES", "UPCASTERS", "Catalogue", "Upcast", "to_data", "version_of"]

EVENT_TYPES: tuple[type[Event], ...] = (
    RunRequested, RunForked, RunStarted, RunCompleted, RunFailed, RunCompensating, RunCompensated, RunCancelRequested,
    RunCancelled, RunStuck, RunRetryRequested, RunResumed, RunRejected,
    TaskRequested, TaskCopied, TaskAssigned, TaskCompleted, TaskFailed, TaskRetried, TaskEscalated, TaskResolved,
    TaskAborted, TaskCancelRequested, TaskCancelled, TaskRejected, TaskReverted, TaskProgressed,
    StepSlept, StepCopied, StepWaiting, StepMatched, StepAsked, StepAnswered, AnswerRefused, StepExpired, StepCancelled,
    AgentRegistered, AgentSuspected, AgentLost, AgentRecovered, DrainRequested, AgentDraining, AgentStopped,
    AnswerDropped, SagaServed, SpaceRolled,
    MessageRejected,
)  # fmt: skip

_REQUIRED = object()
_MANY = 1_000

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
"""The data of one version as that of the next. Pure; it may change what it is given, which is a copy."""

UPCASTERS: dict[str, Upcast] = {}
"""By the older type: what makes the data of `task.completed.v1` that of `task.completed.v2`, and so on, step by step.

A class is only kept for the newest version of a type; its older ones are a step each in here. See docs/versioning.md.
"""


class Catalogue:
    """The event types of a release: the newest version of each as a class, and the way there from every older one.

    Raises ConfigurationError where a version could not be read: a step is missing, or a type has two classes.
    """

    def __init__(self, types: Iterable[type[Event]], upcasters: Mapping[str, Upcast]) -> None:
        self.types = {cls.event_type: cls for cls in types}
        self.newest = {event_type.rpartition(".")[0]: event_type for event_type in self.types}
        """By family and fact, such as `task.completed`."""
        if len(self.newest) != len(self.types):
            raise ConfigurationError("a fact has two classes", remedy="keep the newest, and an upcaster for each older")
        self.upcasters = dict(upcasters)
        self._read: dict[str, Callable[[Any], Any]] = {}
        for event_type, cls in self.types.items():
            validate = TypeAdapter(cls).validator.validate_python
            self._read[event_type] = validate
            for older in self.older(event_type):
                self._read[older] = partial(_upcast_and_read, older, self._steps_from(older), validate)
        if stray := sorted(self.upcasters.keys() - (self._read.keys() - self.types.keys())):
            raise ConfigurationError(f"the upcaster of {stray[0]} leads nowhere", remedy="its fact has no class here")

    def older(self, event_type: str) -> list[str]:
        """The versions of a newest type that came before it, the first one first; each can be read."""
        name, _, version = event_type.rpartition(".")
        found = [f"{name}.v{number}" for number in range(1, version_of(event_type))]
        if missing := [older for older in found if older not in self.upcasters]:
            raise ConfigurationError(
                f"stored events of {missing[0]} could not be read", remedy=f"add its upcaster on the way to {version}"
            )
        return found

    def _steps_from(self, event_type: str) -> list[Upcast]:
        name, _, _ = event_type.rpartition(".")
        numbers = range(version_of(event_type), version_of(self.newest[name]))
        return [self.upcasters[f"{name}.v{number}"] for number in numbers]

    def event_type_of(self, address: Address) -> str:
        """The newest type for a subject, as plain JSON without an envelope is read. Raises UnknownEventError."""
        if address.kind == "event":
            return address.topic
        event_type = self.newest.get(f"{address.kind}.{address.fact}")
        if event_type is None:
            raise UnknownEventError(
                f"{address.kind} has no fact {address.fact!r}", remedy="docs/wire-format.md lists the facts"
            )
        return event_type

    def parse(self, address: Address, event_type: str, data: Any) -> Event:
        """Turn decoded `data` of any version into the event of the newest; `data` stays as it is.

        Raises UnknownEventError, or PoisonMessageError for a wrong shape.
        """
        if address.kind == "event":
            return OutsideEvent(data=data)
        read = self._read.get(event_type)
        if read is None or not event_type.startswith(f"{address.kind}.{address.fact}.v"):
            if read is None:
                raise UnknownEventError(
                    f"event type {event_type!r} is not known to this release", remedy="read it with a newer release"
                )
            raise PoisonMessageError(f"an event of type {event_type!r} does not belong under fact {address.fact!r}")
        try:
            return read(data if data is not None else {})  # type: ignore[no-any-return]
        except ValidationError as error:
            raise PoisonMessageError(f"{event_type}: {_first_of(error)}", remedy="correct the field") from error


def version_of(event_type: str) -> int:
    """The number in `<family>.<fact>.v<number>`. Raises ConfigurationError for a type of another form."""
    number = event_type.rpartition(".v")[2]
    if not (number.isascii() and number.isdigit() and int(number) > 0) or event_type.count(".") != 2:
        raise ConfigurationError(f"{event_type!r} is not <family>.<fact>.v<number>")
    return int(number)


def _upcast_and_read(event_type: str, steps: Sequence[Upcast], validate: Callable[[Any], Any], data: Any) -> Any:
    if type(data) is not dict:
        raise PoisonMessageError(f"{event_type}: its data is no map", remedy="correct the field")
    data = deepcopy(data)
    try:
        for step in steps:
            data = step(data)
    except Exception as error:  # whatever a step meets: anybody may have written the data
        raise PoisonMessageError(
            f"{event_type} has no newer form: {type(error).__name__}: {str(error)[:200]}", remedy="correct the field"
        ) from error
    return validate(data)


def _first_of(error: ValidationError) -> str:
    if error.error_count() > _MANY:  # listing them all would take longer than the rest
        return f"{error.error_count()} fields are wrong"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "data"
    return f"{where}: {first['msg'][:200]}"


CATALOGUE = Catalogue(EVENT_TYPES, UPCASTERS)


# --- writing --------------------------------------------------------------------------------------------------------


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


_FIELDS = {cls: _defaults(cls) for cls in (*EVENT_TYPES, Error, Origin, RetryRule, RetryPolicy, HandlerSpec)}


def to_data(event: Any) -> Any:
    """The fields of an event as plain data, ready for the codec. Fields at their default are left out."""
    if type(event) is OutsideEvent:
        return event.data
    known = _FIELDS.get(type(event))
    if known is None:
        known = _FIELDS[type(event)] = _defaults(type(event))
    data = {}
    for name, default in known:
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
