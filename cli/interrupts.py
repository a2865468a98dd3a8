"""Ctrl-C and SIGTERM as a cancellation: every `async with` unwinds in order, and a second one unwinds faster.

A library may swallow a cancellation (nats-py while it flushes, `asyncio.wait_for` of Python 3.11 when its answer comes
at the same moment), so what runs for long asks now and then with `checkpoint`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["checkpoint", "run_until_interrupted"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORABLE: Final = signal.SIGHUP  # nohup wants it ignored, and so it stays

T = TypeVar("T")


def run_until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own. Raises KeyboardInterrupt when a signal has ended it."""
    return asyncio.run(_interruptible(main))


def checkpoint() -> None:
    """Raise CancelledError if the running task was cancelled, even where something has swallowed it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _interruptible(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)
    if threading.current_thread() is not threading.main_thread():
        return await task  # no signal ever comes here
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
