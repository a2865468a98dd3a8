"""What the author of an agent writes: a class with typed handlers.

    class Refunds(Agent):
        name = "refund"
        concurrency = 16

        @handler(timeout_s=30, retry=Retry(attempts=3))
        async def issue(self, charge: Charge, task: Task) -> Refund: ...

        @issue.compensation
        async def reverse(self, charge: Charge, refund: Refund, task: Task) -> None: ...

The first parameter and the result are pydantic models, or anything else pydantic can validate. A plain `def` handler
runs in a thread, so it may block; an `async def` one must not.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar, cast, get_type_hints, overload

from pydantic import BaseModel, PydanticUserError

from cuebook.actors.datatype import DataType
from cuebook.actors.schemas import compile_schema
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.facts import HandlerSpec, RetryPolicy, RetryRule
from cuebook.events.subjects import check_token

__all__ = ["Agent", "Approval", "Handler", "PermanentError", "Retry", "Task", "handler"]

In = TypeVar("In")
Out = TypeVar("Out")
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RECYCLE_AFTER = 100
_LARGEST_COUNT = 2**31


class PermanentError(CuebookError):
    """Raise this in a handler when another attempt cannot help: the task goes to a person at once."""


class Approval(BaseModel):
    """A person's yes or no; true in a condition when approved."""

    approved: bool
    note: str = ""

    def __bool__(self) -> bool:
        return self.approved


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how soon a failed attempt is repeated before a person is asked.

    `attempts` counts the first one. The n-th pause is `backoff_s * factor**(n-1)`, at most `max_s`, spread by `jitter`
    (a fraction). `never` names errors that no repetition mends; `on` gives classes of error `attempts` and
    `backoff_s` of their own. The most specific class counts.
    """

    attempts: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    never: tuple[type[BaseException], ...] = ()
    on: Mapping[type[BaseException], Retry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = all(map(_is_number, (self.backoff_s, self.max_s, self.factor, self.jitter)))
        if (
            not (numbers and _is_count(self.attempts))
            or self.attempts < 1
            or min(self.backoff_s, self.max_s) < 0
            or self.factor < 1
            or not 0 <= self.jitter <= 1
        ):
            raise ConfigurationError(
                "Retry needs attempts >= 1, backoff_s >= 0, max_s >= 0, factor >= 1 and jitter between 0 and 1",
                remedy="attempts is a whole number, the others are numbers, in seconds",
            )
        never, on = cast(Any, self.never), cast(Any, self.on)
        if not (isinstance(never, Collection) and isinstance(on, Mapping)):
            raise ConfigurationError(
                f"Retry has never={never!r} and on={on!r}",
                remedy="write them as never=(KeyError,) and on={TimeoutError: Retry(attempts=9)}",
            )
        for cls in (*never, *on):
            if not (inspect.isclass(cls) and issubclass(cls, BaseException)):
                raise ConfigurationError(f"Retry takes classes of errors, not {cls!r}")
        if any(not isinstance(retry, Retry) or retry.never or retry.on for retry in on.values()):
            raise ConfigurationError("what stands for one class of error is a Retry without rules of its own")

    def policy(self) -> RetryPolicy:
        """The same as data, as the registration event carries it."""
        rules = [RetryRule(error=class_names(cls)[0], attempts=1) for cls in self.never]
        rules += [
            RetryRule(error=class_names(cls)[0], attempts=retry.attempts, backoff_s=retry.backoff_s)
            for cls, retry in self.on.items()
        ]
        return RetryPolicy(
            attempts=self.attempts,
            backoff_s=self.backoff_s,
            factor=self.factor,
            max_s=self.max_s,
            jitter=self.jitter,
            rules=rules,
        )


def class_names(error: type[BaseException]) -> list[str]:
    """How retry rules and failures name an error: its class, then what it inherits from."""
    return [cls.__name__.strip("_") for cls in error.__mro__ if issubclass(cls, Exception)] or [error.__name__]


@dataclass(slots=True, kw_only=True)
class Task:
    """What a handler knows about its call. `deadline` is UTC; `attempt` counts from 1.

    `idempotency_key` is the same on every attempt: hand it to whatever outside system the handler changes.
    """

    run_id: str
    step: int
    attempt: int
    deadline: datetime
    correlation_id: str
    agent: str
    instance: str
    logger: logging.LoggerAdapter[logging.Logger]
    traceparent: str = ""
    reverting: bool = False
    """A compensation of an effect that came too late, when nobody wanted it any more, not one that a saga asked for."""
    report: Callable[[str, float | None], None] = field(repr=False)

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt, and for nothing else."""
        return f"{self.run_id}/{self.step}" + ("/reverted" if self.reverting else "")

    async def progress(self, message: str, fraction: float | None = None) -> None:
        """Say how the work goes; `fraction` from 0 to 1. Stored at most once a second, the latest wins."""
        self.report(message, fraction)


class Handler(Generic[In, Out]):
    """One handler of an agent class. `Agent.method` is this object, which a saga passes to `run.call`."""

    def __init__(
        self,
        function: Callable[..., Any],
        timeout_s: float,
        retry: Retry,
        owner: type[Agent] | None = None,
        *,
        pure: bool = False,
    ) -> None:
        if not inspect.isfunction(inspect.unwrap(function)) or isinstance(function, staticmethod | classmethod):
            raise ConfigurationError(f"@handler() decorates a method, not {function!r}")
        self.function, self.timeout_s, self.retry, self.owner, self.pure = function, timeout_s, retry, owner, pure
        self.name = function.__name__.replace("__", "-").strip("_")
        self.undo: Callable[..., Any] | None = None
        self._types: tuple[DataType[Any], DataType[Any]] | None = None
        check_token(self.name, "handler name")

    def __set_name__(self, owner: type[Agent], name: str) -> None:
        self.owner = owner

    @overload
    def __get__(self, instance: None, owner: type[Agent]) -> Handler[In, Out]: ...
    @overload
    def __get__(self, instance: Agent, owner: type[Agent]) -> Callable[..., Any]: ...
    def __get__(self, instance: Agent | None, owner: type[Agent]) -> Any:
        if instance is not None:
            return self.function.__get__(instance, owner)
        return self if owner is self.owner else self._bound_to(owner)

    def _bound_to(self, owner: type[Agent]) -> Handler[In, Out]:
        """An agent that inherits the handler answers under its own name."""
        bound: Handler[In, Out] = Handler(self.function, self.timeout_s, self.retry, owner, pure=self.pure)
        bound.undo, bound._types = self.undo, self._types
        return bound

    def compensation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function(self, input, output, task)` undoes what the handler did. It must be safe to repeat."""
        if self.undo is not None:
            raise ConfigurationError(f"handler {self.name} has two compensations", remedy="leave one of them out")
        self.undo = function
        return function

    @property
    def agent_name(self) -> str:
        """How tasks are addressed to it."""
        assert self.owner is not None
        return self.owner.name

    @property
    def input_type(self) -> DataType[Any]:
        """What comes in. Raises ConfigurationError for a function that is no handler."""
        return self._data_types()[0]

    @property
    def output_type(self) -> DataType[Any]:
        """What comes out. Raises ConfigurationError for a function that is no handler."""
        return self._data_types()[1]

    def _data_types(self) -> tuple[DataType[Any], DataType[Any]]:
        if self._types is None:
            name, hints = self.function.__qualname__, _hints(self.function)
            parameters = _parameters(self.function)
            if (
                not 1 <= len(parameters) <= 2
                or parameters[0] not in hints
                or "return" not in hints
                or (len(parameters) == 2 and hints.get(parameters[1], Task) is not Task)
                or hints[parameters[0]] is Task
                or inspect.isasyncgenfunction(self.function)
                or inspect.isgeneratorfunction(self.function)
            ):
                raise ConfigurationError(
                    f"handler {name} must look like (self, input: Model, task: Task) -> Model",
                    remedy="annotate both types; the task may be left out; what has no result returns None",
                )
            self._types = _data_type(hints[parameters[0]], "input", name), _data_type(hints["return"], "output", name)
        return self._types

    @property
    def wants_task(self) -> bool:
        """Whether the function takes the task beside its input."""
        return len(_parameters(self.function)) > 1

    @property
    def undo_wants_task(self) -> bool:
        """Whether the compensation takes the task beside input and output."""
        return self.undo is not None and len(_parameters(self.undo)) > 2

    def check(self) -> None:
        """Raise ConfigurationError for a handler or a compensation that could not be called."""
        self._data_types()
        if self.undo is not None and not 2 <= len(_parameters(self.undo)) <= 3:
            raise ConfigurationError(
                f"compensation {self.undo.__qualname__} must look like (self, input, output, task)",
                remedy="the task may be left out",
            )
        if self.undo is not None and (
            inspect.isasyncgenfunction(self.undo) or inspect.isgeneratorfunction(self.undo)
        ):  # it would be called, and nothing of it would run
            raise ConfigurationError(f"compensation {self.undo.__qualname__} is a generator", remedy="remove its yield")

    def spec(self) -> HandlerSpec:
        """What the registration event says about this handler. Raises ConfigurationError for types without a schema."""
        try:
            input_schema = self.input_type.schema()
            output_schema = self.output_type.schema("serialization")
        except PydanticUserError as error:
            raise ConfigurationError(f"handler {self.function.__qualname__} has no JSON Schema: {error}") from error
        try:
            compile_schema(input_schema)  # else each of its tasks would be refused
        except ConfigurationError as error:
            raise ConfigurationError(f"input of handler {self.function.__qualname__}: {error}") from error
        return HandlerSpec(
            input_schema=input_schema,
            output_schema=output_schema,
            timeout_s=self.timeout_s,
            retry=self.retry.policy(),
            compensation=self.undo is not None,
            description=inspect.getdoc(self.function) or "",
        )


def handler(
    function: None = None,
    /,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: Retry | None = None,
    pure: bool = False,
) -> _HandlerDecorator:
    """Make a method of an Agent a handler. One attempt may take `timeout_s` seconds.

    `pure` says that it changes nothing outside, though it may ask there, such as a model: `cuebook replay diff` may run
    it again on recorded inputs, without a fake.
    """
    if function is not None:
        raise ConfigurationError("@handler is called before it decorates", remedy="write @handler()")
    if not _is_number(timeout_s) or timeout_s <= 0:
        raise ConfigurationError(f"timeout_s must be more than 0, in seconds, not {timeout_s!r}")
    if not isinstance(retry, Retry | None):
        raise ConfigurationError(f"retry must be a Retry, not {retry!r}", remedy="write it as retry=Retry(attempts=5)")
    return _HandlerDecorator(timeout_s, retry or Retry(), pure=pure)


class _HandlerDecorator:
    """Typed so that `Refunds.issue` knows its input and output models."""

    def __init__(self, timeout_s: float, retry: Retry, *, pure: bool) -> None:
        self._timeout_s, self._retry, self._pure = timeout_s, retry, pure

    @overload
    def __call__(self, function: Callable[[Any, In, Task], Coroutine[Any, Any, Out]]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In], Coroutine[Any, Any, Out]]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In, Task], Out]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In], Out]) -> Handler[In, Out]: ...
    def __call__(self, function: Callable[..., Any]) -> Handler[Any, Any]:
        return Handler(function, self._timeout_s, self._retry, pure=self._pure)


class Agent:
    """Base class of agents. `name` is how tasks are addressed to it; all its instances share its work.

    `concurrency`: tasks one instance handles at once. `labels`: what placement may require, beside the `version`. After
    `recycle_after` tasks the instance is replaced by a fresh one (0: never). `heartbeat_s`: how often it says that it
    lives.

    At the edge (see `cuebook serve edge`): `offline_for_s`: for how long the link may be cut before its tasks go to
    others. `ahead`: tasks beyond `concurrency` that an instance is given in advance, so that it has work meanwhile.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    concurrency: ClassVar[int] = 1
    labels: ClassVar[dict[str, str]] = {}
    recycle_after: ClassVar[int] = DEFAULT_RECYCLE_AFTER
    heartbeat_s: ClassVar[float] = 1.0
    offline_for_s: ClassVar[float] = 0.0
    ahead: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            if not isinstance(cls.name, str):
                raise ConfigurationError(f"name of agent {cls.__name__} must be a string, not {cls.name!r}")
            check_token(cls.name, f"name of agent {cls.__name__}")
        counts = all(map(_is_count, (cls.concurrency, cls.recycle_after, cls.ahead)))
        if not counts or not all(map(_is_number, (cls.heartbeat_s, cls.offline_for_s))):
            raise ConfigurationError(
                f"agent {cls.__name__} needs whole numbers for concurrency, recycle_after and ahead, "
                "and numbers of seconds for heartbeat_s and offline_for_s"
            )
        if cls.concurrency < 1 or cls.recycle_after < 0 or cls.heartbeat_s <= 0:
            raise ConfigurationError(
                f"agent {cls.__name__} needs concurrency >= 1, recycle_after >= 0 and heartbeat_s > 0"
            )
        if cls.ahead < 0 or cls.offline_for_s < 0 or (cls.ahead and not cls.offline_for_s):
            raise ConfigurationError(
                f"agent {cls.__name__} needs offline_for_s >= 0 and ahead >= 0, and ahead only with offline_for_s",
                remedy="a task waits in advance for at most offline_for_s; without it, it would run out of time",
            )
        labels: Any = cls.labels
        if not isinstance(labels, Mapping) or not all(
            isinstance(text, str) for text in (cls.version, *labels, *labels.values())
        ):
            raise ConfigurationError(
                f"version and labels of agent {cls.__name__} must be strings",
                remedy='write them as version = "2" and labels = {"gpu": "yes"}',
            )
        for attribute, value in vars(cls).items():
            if isinstance(value, Handler) and hasattr(Agent, attribute):
                raise ConfigurationError(
                    f"{cls.__name__}.{attribute} hides what every agent has", remedy="give the handler another name"
                )

    async def start(self) -> None:
        """Open what the handlers need. Called once, before the instance registers."""

    async def stop(self) -> None:
        """Close it again. Called once, after the last task."""

    @classmethod
    def handlers(cls) -> dict[str, Handler[Any, Any]]:
        """The handlers by name. Raises ConfigurationError for an agent without a name or a handler."""
        if not getattr(cls, "name", ""):
            raise ConfigurationError(f"agent {cls.__name__} has no name", remedy='add name = "..." to the class')
        for hook in (cls.start, cls.stop):
            if not inspect.iscoroutinefunction(inspect.unwrap(hook)) or _needs_arguments(hook, cls):
                raise ConfigurationError(f"{hook.__qualname__} must look like async def {hook.__name__}(self)")
        if _needs_arguments(cls):
            raise ConfigurationError(
                f"agent {cls.__name__} cannot be made without arguments",
                remedy="take no arguments in __init__, and open what it needs in async def start(self)",
            )
        found: dict[str, Handler[Any, Any]] = {}
        for attribute in dir(cls):
            if not any(isinstance(vars(base).get(attribute), Handler) for base in cls.__mro__):
                continue
            bound = getattr(cls, attribute)
            if not isinstance(bound, Handler):
                raise ConfigurationError(
                    f"{cls.__name__}.{attribute} hides a handler", remedy="decorate it with @handler() as well"
                )
            if bound.name in found:
                raise ConfigurationError(f"agent {cls.__name__} has two handlers called {bound.name!r}")
            bound.check()
            found[bound.name] = bound
        if not found:
            raise ConfigurationError(f"agent {cls.__name__} has no handler", remedy="decorate a method with @handler()")
        return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < _LARGEST_COUNT


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _needs_arguments(function: Callable[..., Any], *given: Any) -> bool:
    """Whether it cannot be called with what is given."""
    try:
        inspect.signature(function).bind(*given)
    except (TypeError, ValueError):
        return True
    return False


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"the annotations of {function.__qualname__} cannot be read: {error}",
            remedy="its types must be names that its module knows",
        ) from error


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of what a method takes by position, without `self`."""
    found = list(inspect.signature(function).parameters.values())[1:]
    if any(one.kind not in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in found):
        raise ConfigurationError(f"{function.__qualname__} must take its parameters by position, one by one")
    return [one.name for one in found]


def _data_type(hint: Any, which: str, name: str) -> DataType[Any]:
    try:
        found: DataType[Any] = DataType(hint)
    except PydanticUserError as error:
        raise ConfigurationError(f"handler {name} cannot take or give {hint!r}: {error}") from error
    found.check_round_trip(f"the {which} of handler {name}")
    return found
