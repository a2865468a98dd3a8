"""Waiting in tests: for a condition, with a deadline, instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

__all__ = ["eventually"]

_POLL_S = 0.01

T = TypeVar("T")


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within_s: float = 60.0) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within_s: float = 60.0) -> T: ...
async def eventually(condition: Callable[[], T | Awaitable[T]], *, within_s: float = 60.0) -> T:
    """Ask until the answer is true, and give it. Raises AssertionError with the last answer after `within_s`."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        answer = condition()
        value = cast("T", await answer if inspect.isawaitable(answer) else answer)
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"still {value!r} after {within_s:g} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(_POLL_S)
