"""Ends a saga that computes without end, so that it costs its own run and not everybody's.

The orchestrator drives all sagas on one thread. Another one looks now and then whether it is still at the same
stretch, and after a while raises an error in it, wherever the saga is at that moment. It counts the processor time of
the driving thread: a machine that is busy elsewhere, or a process that was stopped, makes no saga a hanging one. What
waits inside a call of C, such as `time.sleep`, cannot be ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cuebook.actors.saga import EndlessSagaError

__all__ = ["STRETCH_S", "watched"]

STRETCH_S: Final = 2.0
"""Seconds of processor time that a saga may take from one await to the next."""
LOOK_EVERY_S: Final = 0.25
_STUBBORN: Final = 20
"""After as many errors that a saga has swallowed, a person is told."""

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def watched(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a saga's code. Raises EndlessSagaError when it has not ended after `STRETCH_S`, and what the code raises."""
    watchdog = getattr(_own, "watchdog", None)
    if watchdog is None:
        watchdog = _own.watchdog = _Watchdog()
    return watchdog.call(function, arguments)  # type: ignore[no-any-return]


_own = threading.local()
"""One watchdog for each thread that drives sagas."""


class _Watchdog:
    def __init__(self) -> None:
        self._watched = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._watched)
        self._lock = threading.Lock()
        self._turn = self._last_turn = 0
        """The number of the call under way, or 0; and that of the last one."""
        self._bites = 0
        threading.Thread(target=self._watch, name="saga watchdog", daemon=True).start()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._last_turn = self._turn = self._last_turn + 1
        try:
            try:
                return function(*arguments)
            finally:
                self._leave()
        except EndlessSagaError:
            self._leave()  # it may have come in the middle of leaving
            raise

    def _leave(self) -> None:
        """Afterwards no error comes any more. Raises EndlessSagaError where one was due, whatever came of it."""
        with self._lock:
            self._turn = 0
            if not self._bites:
                return
            self._bites = 0
        _take_what_is_on_its_way()
        raise EndlessSagaError(f"it computed for {STRETCH_S:g} s without awaiting anything")

    def _watch(self) -> None:
        seen, began = 0, 0.0
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                if not self._turn:
                    continue
                try:
                    now = time.clock_gettime(self._clock)
                except OSError:  # the thread has ended
                    return
                if self._turn != seen:
                    seen, began = self._turn, now
                elif now - began >= STRETCH_S:
                    self._bites += 1
                    _raise_in(self._watched, EndlessSagaError)
                    if self._bites == _STUBBORN:
                        logger.error("a saga computes without end and swallows every error; this process must be ended")


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise an error in another thread at its next step."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _take_what_is_on_its_way() -> None:
    """Let an error that another thread has raised here come, if it has not yet.

    To withdraw it instead would leave the interpreter believing that something is pending: each call would be slower
    from then on, and under a profiler or debugger the next one would never begin. Source: CPython 3.11,
    `eval_frame_handle_pending`, which lowers that flag only when it raises.
    """
    with contextlib.suppress(EndlessSagaError):
        for _ in range(100):  # it comes at a jump back
            pass
