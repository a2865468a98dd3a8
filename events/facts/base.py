"""What the event types have in common, and the parts that several of them are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import FailFast

__all__ = ["Error", "Event", "HandlerSpec", "ListOf", "Origin", "RetryPolicy", "RetryRule"]


_T = TypeVar("_T")
ListOf = Annotated[list[_T], FailFast()]
"""A list that is refused at its first wrong item; the errors of a hostile one would take seconds to collect."""


class Event:
    """Base of all event types. `event_type` is `<family>.<fact>.v<version>`, stored for ever."""

    __slots__ = ()
    event_type: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """What went wrong in a handler. `classes`: the exception's class names, most specific first, for retry rules."""

    type: str
    message: str
    classes: ListOf[str] = field(default_factory=list)
    retryable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """Overrides the policy for one class of error, by class name. `attempts` 1 means: do not try again."""

    error: str
    attempts: int
    backoff_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` in all; the n-th pause is `backoff_s * factor**(n-1)`, at most `max_s`, plus or minus `jitter`."""

    attempts: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    rules: ListOf[RetryRule] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """What an agent says about one handler. Schemas are JSON Schema 2020-12."""

    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    compensation: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a copied fact stands: under which run and number, at which stream sequence, recorded when.

    `recorded_at`: microseconds since 1970 by the server's clock. Both are those of the fact that ended the step there;
    of one that had not ended and got an answer of somebody's own, those of the last fact about it.
    """

    run_id: str
    n: int
    sequence: int
    recorded_at: int
