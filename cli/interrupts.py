"""Ctrl-C and SIGTERM as a cancellation: every `async with` unwinds in order, and a second one unwinds faster."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["run_until_interrupted"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORABLE: Final = signal.SIGHUP  # nohup wants it ignored, and so it stays

T = TypeVar("T")


def run_until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own. Raises KeyboardInterrupt when a signal has ended it."""
    return asyncio.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)
    ignores = signal.getsignal(_IGNORABLE) is signal.SIG_IGN
    taken = [number for number in _SIGNALS if number is not _IGNORABLE or not ignores]
    for number in taken:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
