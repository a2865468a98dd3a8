"""What the author of a workflow writes: a plain async function over a Run.

    @saga(on="ticket.opened", key="id")
    async def support(run: Run, ticket: Ticket) -> Outcome:
        intent = await run.call(Classifier.classify, ticket)
        ...

The function is driven by replaying what the log has recorded, so it must ask for the same things every time: no clock,
no randomness, no I/O in it. Those belong in agents; `run.now` is the log's time. Every `run.call`, `sleep`, `wait_for`
and `ask_human` takes the next step number when it is *called*, and starts then; awaiting it gives the result. A step
that is never awaited is still waited for before the run completes.

A saga must come to an end: its run is stuck after 10,000 steps, 4,000 steps that can be undone, or 2 s of computing
between two awaits.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar, TypeVarTuple, cast, get_args, get_type_hints, overload

from pydantic import PydanticUserError, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from cuebook.actors.agent import Handler, Retry
from cuebook.actors.datatype import DataType
from cuebook.actors.schemas import compile_schema
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.facts import Error
from cuebook.events.subjects import MAX_TOPIC_LENGTH, check_token

__all__ = [
    "Ask",
    "Call",
    "EndlessSagaError",
    "NotDeterministicError",
    "Run",
    "RunAbortedError",
    "Saga",
    "Sleep",
    "Step",
    "StepExpiredError",
    "TaskFailedError",
    "Wait",
    "days",
    "hours",
    "minutes",
    "saga",
]

MAX_STEPS = 10_000
"""Of one run. All of it is in the orchestrator's memory, and is gone through again after each restart."""
MAX_VERSION_LENGTH = 64
MAX_UNDOABLE = 4_000
"""Calls of one run that can be undone; one event names them all."""

In = TypeVar("In")
Out = TypeVar("Out")
Outs = TypeVarTuple("Outs")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")


def minutes(count: float) -> float:
    """Minutes in seconds."""
    return count * 60


def hours(count: float) -> float:
    """Hours in seconds."""
    return count * 3600


def days(count: float) -> float:
    """Days in seconds."""
    return count * 86400


class TaskFailedError(CuebookError):
    """A step ended without a result: it was rejected, cancelled, or given up by a person. `error` has the cause."""

    def __init__(self, message: str, *, task: str, error: Error | None = None) -> None:
        super().__init__(message)
        self.task, self.error = task, error


class StepExpiredError(CuebookError):
    """Nobody answered, or no matching event came, in time."""


class RunAbortedError(CuebookError):
    """The saga ends its run on purpose; completed steps are undone."""


class NotDeterministicError(CuebookError):
    """The saga awaited something that the log cannot record."""


class EndlessSagaError(BaseException):
    """The saga goes on without end. Not for the author: no `except Exception` of his keeps the run from being stuck."""


# What a step asks for: compared with the log when the saga is replayed.


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A task for an agent. `input` is plain data."""

    agent: str
    handler: str
    input: Any
    priority: int = 0
    affinity: str | None = None
    labels: dict[str, str] | None = None
    timeout_s: float | None = None
    retry: Retry | None = None
    compensation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """A pause of `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """An outside event on `topic` whose data has all of `match`."""

    topic: str
    match: dict[str, Any]
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to a person."""

    question: str
    schema: dict[str, Any]
    context: Any
    timeout_s: float | None


class Step(Generic[Out]):
    """One thing a saga has asked for; await it for the result."""

    __slots__ = ("awaited", "error", "n", "request", "result", "settled", "type")

    def __init__(self, n: int, request: Call | Sleep | Wait | Ask, type_: DataType[Out] | None) -> None:
        self.n, self.request, self.type = n, request, type_
        self.settled = self.awaited = False
        self.result: Any = None
        self.error: CuebookError | None = None

    def __await__(self) -> Generator[Step[Out], None, Out]:
        self.awaited = True
        yield self  # always once: the driver sets the run's clock to the step's end, live and in replay alike
        while not self.settled:
            yield self
        if self.error is not None:
            raise self.error
        return cast(Out, self.result)

    def settle(self, value: Any) -> None:
        """Give the recorded result. A result that no longer fits the model is an error of the step."""
        if self.type is not None:
            try:
                value = self.type.read(value)
            except ValidationError as error:
                self.fail(TaskFailedError(f"the recorded result does not fit: {error}", task=str(self.n)))
                return
        self.result, self.settled = value, True

    def fail(self, error: CuebookError) -> None:
        """Give the recorded failure."""
        self.error, self.settled = error, True


class Run:
    """A run as its saga sees it. `id` is the run id; `now` the time of the last event that drove it (UTC)."""

    def __init__(self, run_id: str, now: datetime, correlation_id: str = "") -> None:
        self.id, self.now, self.correlation_id = run_id, now, correlation_id
        self.steps: list[Step[Any]] = []
        self._undoable = 0
        self.logger = logging.LoggerAdapter(logging.getLogger("cuebook.saga"), {"run_id": run_id})

    def call(
        self,
        handler: Handler[In, Out],
        input: In,  # noqa: A002 - the word authors expect
        *,
        priority: int = 0,
        affinity: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry: Retry | None = None,
    ) -> Step[Out]:
        """Ask an agent. Raises TaskFailedError, when awaited, if the task ended without a result.

        Higher `priority` is placed first (-100 to 100). Tasks of the same agent with the same `affinity` prefer the
        same instance. `labels` must all be present on it; `{"version": "2"}` is its agent's version.
        """
        if not isinstance(handler, Handler):
            raise ConfigurationError(
                f"run.call needs a handler such as Refunds.issue, not {handler!r}",
                remedy="pass the method of the agent class, decorated with @handler()",
            )
        try:
            data = handler.input_type.plain(handler.input_type.check(input))
        except ValidationError as error:
            raise TaskFailedError(f"input of {handler.agent_name}.{handler.name}: {error}", task=self.id) from error
        request = Call(
            agent=handler.agent_name,
            handler=handler.name,
            input=data,
            priority=_priority(priority),
            affinity=_checked(str, "affinity", affinity),
            labels=_labels(labels),
            timeout_s=_timeout(timeout_s),
            retry=_checked(Retry, "retry", retry),
            compensation=handler.undo is not None,
        )
        return self._step(request, handler.output_type)

    def sleep(self, seconds: float) -> Step[None]:
        """Pause. Survives restarts; ends at or shortly after the time."""
        return self._step(Sleep(seconds=_span(seconds) or 0.0), None)

    def wait_for(
        self, topic: str, model: type[Out], *, match: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> Step[Out]:
        """The first outside event on `topic` since the run started whose data has all of `match`.

        One that an earlier wait of this run for the same thing has got is not given again. Raises StepExpiredError,
        when awaited, after `timeout` seconds.
        """
        for token in topic.split("."):
            check_token(token, "topic part")
        if len(topic) > MAX_TOPIC_LENGTH:
            raise ConfigurationError(f"topic {topic[:40]!r}... is longer than {MAX_TOPIC_LENGTH} characters")
        wanted = _plain(dict(match or {}), "match")
        return self._step(Wait(topic=topic, match=wanted, timeout_s=_span(timeout)), DataType(model))

    def ask_human(
        self, question: str, model: type[Out], *, context: Any = None, timeout: float | None = None
    ) -> Step[Out]:
        """Ask a person, who answers with `cuebook escalation resolve`. `context`: plain data shown with the question.

        Raises StepExpiredError, when awaited, after `timeout` seconds.
        """
        answer: DataType[Out] = DataType(model)
        schema = answer.schema()
        compile_schema(schema)  # else no answer would ever fit
        shown = _plain(context, "context")
        asked = _checked(str, "question", question)
        request = Ask(question=asked, schema=schema, context=shown, timeout_s=_span(timeout))
        return self._step(request, answer)

    @overload
    async def gather(self, a: Step[T1], b: Step[T2], /) -> tuple[T1, T2]: ...
    @overload
    async def gather(self, a: Step[T1], b: Step[T2], c: Step[T3], /) -> tuple[T1, T2, T3]: ...
    @overload
    async def gather(self, a: Step[T1], b: Step[T2], c: Step[T3], d: Step[T4], /) -> tuple[T1, T2, T3, T4]: ...
    @overload
    async def gather(self, *steps: Step[T1]) -> tuple[T1, ...]: ...
    async def gather(self, *steps: Step[Any]) -> tuple[Any, ...]:
        """Wait for all of `steps`, which are already under way; then the results, or the first error by position."""
        for step in steps:
            if not isinstance(step, Awaitable):
                raise ConfigurationError(
                    f"run.gather takes steps, not {type(step).__name__}", remedy="write run.gather(*steps)"
                )
        results, errors = [], []
        for step in steps:
            try:
                results.append(await step)
            except CuebookError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return tuple(results)

    def abort(self, reason: str) -> RunAbortedError:
        """The error to raise to end the run on purpose: `raise run.abort("refund declined")`."""
        return RunAbortedError(reason)

    def _step(self, request: Call | Sleep | Wait | Ask, type_: DataType[Any] | None) -> Step[Any]:
        self._undoable += isinstance(request, Call) and request.compensation
        if len(self.steps) >= MAX_STEPS:
            raise EndlessSagaError(f"it asked for more than {MAX_STEPS} steps")
        if self._undoable > MAX_UNDOABLE:
            raise EndlessSagaError(f"it asked for more than {MAX_UNDOABLE} steps that can be undone")
        step: Step[Any] = Step(len(self.steps), request, type_)
        self.steps.append(step)
        return step


def _checked(kind: type[T1], name: str, value: T1) -> T1:
    """What a type checker would have said; a wrong value would make an event that nobody can read."""
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ConfigurationError(f"{name} must be of type {kind.__name__}, not {value!r}")
    return value


def _priority(priority: int) -> int:
    if not -100 <= _checked(int, "priority", priority) <= 100:
        raise ConfigurationError(f"priority must be from -100 to 100, not {priority}")
    return priority


def _labels(labels: Mapping[str, str] | None) -> dict[str, str] | None:
    if labels is not None and not isinstance(labels, Mapping):
        raise ConfigurationError(f"labels must be of type dict, not {labels!r}", remedy='such as {"gpu": "yes"}')
    return (
        {_checked(str, "a label", name): _checked(str, "a label", labels[name]) for name in labels} if labels else None
    )


def _timeout(seconds: float | None) -> float | None:
    """Of a task, which would have no time at all with 0."""
    span = _span(seconds)
    if span is not None and span <= 0:
        raise ConfigurationError(f"timeout_s must be more than 0, in seconds, not {seconds}")
    return span


def _span(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not isinstance(seconds, int | float):
        raise ConfigurationError(
            f"a time to wait is a number of seconds, not {seconds!r}",
            remedy="such as minutes(5); a timedelta has total_seconds()",
        )
    if not math.isfinite(seconds):
        raise ConfigurationError(f"{seconds} is no time to wait", remedy="leave the timeout out to wait for ever")
    return max(0.0, float(seconds))


def _plain(value: Any, name: str) -> Any:
    """As the log gives it back, so that a replay compares like with like."""
    try:
        return to_jsonable_python(value, by_alias=True)
    except PydanticSerializationError as error:
        raise ConfigurationError(f"{name} holds what no event can hold: {error}") from error


Since = Literal["now", "beginning"]
"""Which events a saga counts that is served for the first time: those from then on, or all that the log has."""


class Saga(Generic[In, Out]):
    """A workflow. Made by the `saga` decorator; `function` is the author's own."""

    def __init__(
        self,
        function: Callable[[Run, In], Coroutine[Any, Any, Out]],
        on: str,
        key: str,
        version: str,
        name: str,
        since: Since = "now",
        continues: tuple[str, ...] = (),
    ) -> None:
        self.function, self.on, self.key, self.version, self.name = function, on, key, version, name
        self.since: Since = since
        self.continues = continues
        self._types: tuple[DataType[In], DataType[Out]] | None = None
        self._schema: dict[str, Any] | None = None

    def __call__(self, run: Run, input: In) -> Coroutine[Any, Any, Out]:  # noqa: A002 - as in Run.call
        """The author's coroutine for one run, not begun."""
        return self.function(run, input)

    @property
    def input_type(self) -> DataType[In]:
        """Validates what starts a run."""
        return self._data_types()[0]

    @property
    def output_type(self) -> DataType[Out]:
        """Turns the saga's result into plain data."""
        return self._data_types()[1]

    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of what starts a run; empty where its type has none."""
        if self._schema is None:
            try:
                self._schema = self.input_type.schema()
            except PydanticUserError:
                self._schema = {}
        return self._schema

    def _data_types(self) -> tuple[DataType[In], DataType[Out]]:
        if self._types is None:
            hints = get_type_hints(self.function, include_extras=True)
            parameters = list(inspect.signature(self.function).parameters)
            if len(parameters) != 2 or parameters[1] not in hints:
                raise ConfigurationError(
                    f"saga {self.name} must look like async def {self.name}(run: Run, input: Model) -> Model"
                )
            self._types = DataType(hints[parameters[1]]), DataType(hints.get("return", Any))
        return self._types

    def run_id(self, data: Any, event_id: str) -> str:
        """The id of the run an event starts: the same event, or the same key, always gives the same id."""
        return derive_run_id(self.name, self.key, data) or _name_run(self.name, event_id)


def derive_run_id(saga: str, key: str, data: Any) -> str:
    """The id of the run that `data` starts, whoever sends it, or an empty string where the key does not tell."""
    if not key or not isinstance(data, dict) or data.get(key) is None:
        return ""
    return _name_run(saga, str(data[key]))


def _name_run(saga: str, basis: str) -> str:
    plain = f"{saga}-{basis}"
    try:
        return check_token(plain, "run id")
    except CuebookError:
        return f"{saga[:40]}-{hashlib.sha256(basis.encode(errors='surrogatepass')).hexdigest()[:20]}"


def saga(
    function: None = None,
    /,
    *,
    on: str = "",
    key: str = "",
    version: str | int = "1",
    name: str = "",
    since: Since = "now",
    continues: Sequence[str | int] = (),
) -> Callable[[Callable[[Run, In], Coroutine[Any, Any, Out]]], Saga[In, Out]]:
    """Make an async function a saga. An event on topic `on` starts a run; without `on` it is started by name only.

    `key`: the field of the input that identifies the run, so that a second event with the same value starts nothing;
    a run submitted by name counts like an event.
    `since` matters once, when a saga of this name is first served on this topic: with "now" older events start nothing,
    with "beginning" every event that the log has starts its run. From then on all count, also those that came while
    no orchestrator ran.
    A run goes on with the `version` that it started with, so serve the old code beside the new as long as it has open
    runs; new runs are of the newest version, by the numbers in it. `continues` names older versions whose open runs
    this code goes on with where theirs is not served: it must ask for the same steps as far as they have come.
    """
    if function is not None:
        raise ConfigurationError("@saga is called before it decorates", remedy="write @saga()")
    if not all(isinstance(text, str) for text in (on, key, name)):
        raise ConfigurationError("on, key and name of a saga are strings")
    if isinstance(continues, str):
        raise ConfigurationError(f"continues={continues!r} is one word", remedy='say continues=("1",)')
    older = cast(Any, continues)
    if not (isinstance(older, Sequence) and all(type(one) in (str, int) for one in (version, *older))):
        raise ConfigurationError("a version is text or a whole number", remedy="such as version=2, continues=(1,)")
    versions = [str(one) for one in (version, *continues)]
    if not all(one.isprintable() and 0 < len(one) <= MAX_VERSION_LENGTH for one in versions):
        raise ConfigurationError(f"a version is up to {MAX_VERSION_LENGTH} printable characters, such as 2 or 1.4")
    if since not in get_args(Since):
        raise ConfigurationError(f"since={since!r} is none of: {', '.join(get_args(Since))}")
    if since == "beginning" and not on:
        raise ConfigurationError("since= is about the events of a topic", remedy="name the topic with on=")

    def decorate(function: Callable[[Run, In], Coroutine[Any, Any, Out]]) -> Saga[In, Out]:
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"saga {function.__name__} must be an async def")
        for token in on.split(".") if on else ():
            check_token(token, "topic part")
        saga_name = check_token(name or function.__name__.strip("_").lower(), "saga")
        return Saga(function, on, key, versions[0], saga_name, since, tuple(versions[1:]))

    return decorate
