"""What the author of an agent writes: a class with typed handlers.

    class Refunds(Agent):
        name = "refund"
        concurrency = 16

        @handler(timeout_s=30, retry=Retry(attempts=3))
        async def issue(self, charge: Charge, task: Task) -> Refund: ...

        @issue.compensation
        async def reverse(self, charge: Charge, refund: Refund, task: Task) -> None: ...

The first parameter and the result are pydantic models, or anything else pydantic can validate. A plain `def` handler runs in a
thread, so it may block; an `async def` one must not.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints, overload

from pydantic import BaseModel, TypeAdapter

from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.facts import HandlerSpec, RetryPolicy, RetryRule
from cuebook.events.subjects import check_token

__all__ = ["Agent", "Approval", "Handler", "PermanentError", "Retry", "Task", "handler"]

In = TypeVar("In")
Out = TypeVar("Out")
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RECYCLE_AFTER = 100


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

    `attempts` counts the first one. The n-th pause is `backoff_s * factor**(n-1)`, at most `max_s`, spread by `jitter` (a
    fraction). `never` names errors that no repetition mends; `on` gives classes of error a policy of their own.
    """

    attempts: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    never: tuple[type[BaseException], ...] = ()
    on: Mapping[type[BaseException], Retry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff_s < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ConfigurationError(
                "Retry needs attempts >= 1, backoff_s >= 0, factor >= 1 and jitter between 0 and 1"
            )

    def policy(self) -> RetryPolicy:
        """The same as data, as the registration event carries it."""
        rules = [RetryRule(error=cls.__name__, attempts=1) for cls in self.never]
        rules += [
            RetryRule(error=cls.__name__, attempts=retry.attempts, backoff_s=retry.backoff_s)
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
    report: Callable[[str, float | None], None] = field(repr=False)

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.step}"

    async def progress(self, message: str, fraction: float | None = None) -> None:
        """Say how the work goes; `fraction` from 0 to 1. Stored at most once a second, the latest wins."""
        self.report(message, fraction)


class Handler(Generic[In, Out]):
    """One handler of an agent class. `Agent.method` is this object, which a saga passes to `run.call`."""

    def __init__(
        self, function: Callable[..., Any], timeout_s: float, retry: Retry, owner: type[Agent] | None = None
    ) -> None:
        self.function, self.timeout_s, self.retry, self.owner = function, timeout_s, retry, owner
        self.name = function.__name__.replace("__", "-").strip("_")
        self.undo: Callable[..., Any] | None = None
        self._types: tuple[TypeAdapter[Any], TypeAdapter[Any]] | None = None
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
        bound: Handler[In, Out] = Handler(self.function, self.timeout_s, self.retry, owner)
        bound.undo, bound._types = self.undo, self._types
        return bound

    def compensation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function(self, input, output, task)` undoes what the handler did. It must be safe to repeat."""
        self.undo = function
        return function

    @property
    def agent_name(self) -> str:
        assert self.owner is not None
        return self.owner.name

    @property
    def input_type(self) -> TypeAdapter[Any]:
        return self._adapters()[0]

    @property
    def output_type(self) -> TypeAdapter[Any]:
        return self._adapters()[1]

    def _adapters(self) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
        if self._types is None:
            hints = get_type_hints(self.function)
            parameters = list(inspect.signature(self.function).parameters)[1:]
            if not 1 <= len(parameters) <= 2 or parameters[0] not in hints or "return" not in hints:
                raise ConfigurationError(
                    f"handler {self.function.__qualname__} must look like "
                    "(self, input: Model, task: Task) -> Model, with both types annotated"
                )
            self._types = TypeAdapter(hints[parameters[0]]), TypeAdapter(hints["return"])
        return self._types

    @property
    def wants_task(self) -> bool:
        return len(inspect.signature(self.function).parameters) > 2

    def spec(self) -> HandlerSpec:
        """What the registration event says about this handler."""
        return HandlerSpec(
            input_schema=self.input_type.json_schema(),
            output_schema=self.output_type.json_schema(mode="serialization"),
            timeout_s=self.timeout_s,
            retry=self.retry.policy(),
            compensation=self.undo is not None,
            description=inspect.getdoc(self.function) or "",
        )


def handler(*, timeout_s: float = DEFAULT_TIMEOUT_S, retry: Retry | None = None) -> _HandlerDecorator:
    """Make a method of an Agent a handler. One attempt may take `timeout_s` seconds."""
    if timeout_s <= 0:
        raise ConfigurationError("timeout_s must be more than 0")
    return _HandlerDecorator(timeout_s, retry or Retry())


class _HandlerDecorator:
    """Typed so that `Refunds.issue` knows its input and output models."""

    def __init__(self, timeout_s: float, retry: Retry) -> None:
        self._timeout_s, self._retry = timeout_s, retry

    @overload
    def __call__(self, function: Callable[[Any, In, Task], Coroutine[Any, Any, Out]]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In], Coroutine[Any, Any, Out]]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In, Task], Out]) -> Handler[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[Any, In], Out]) -> Handler[In, Out]: ...
    def __call__(self, function: Callable[..., Any]) -> Handler[Any, Any]:
        return Handler(function, self._timeout_s, self._retry)


class Agent:
    """Base class of agents. `name` is how tasks are addressed to it; all its instances share its work.

    `concurrency`: tasks one instance handles at once. `labels`: what placement may require. After `recycle_after` tasks
    the instance is replaced by a fresh one (0: never). `heartbeat_s`: how often it says that it lives.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    concurrency: ClassVar[int] = 1
    labels: ClassVar[dict[str, str]] = {}
    recycle_after: ClassVar[int] = DEFAULT_RECYCLE_AFTER
    heartbeat_s: ClassVar[float] = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            check_token(cls.name, f"name of agent {cls.__name__}")
        if cls.concurrency < 1 or cls.recycle_after < 0 or cls.heartbeat_s <= 0:
            raise ConfigurationError(
                f"agent {cls.__name__} needs concurrency >= 1, recycle_after >= 0 and heartbeat_s > 0"
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
        found = {}
        for attribute in dir(cls):
            value = inspect.getattr_static(cls, attribute)
            if isinstance(value, Handler):
                bound = getattr(cls, attribute)
                found[bound.name] = bound
        if not found:
            raise ConfigurationError(f"agent {cls.__name__} has no handler", remedy="decorate a method with @handler()")
        return found
