"""Time limits for many things at once, on one timer.

`asyncio.timeout` has a timer, a context and four more objects each: at 10,000 tasks in flight they are a fifth of what
the garbage collector has to look at.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from cuebook.events.errors import CuebookError

__all__ = ["Deadline", "Deadlines", "TaskTimeoutError"]


class TaskTimeoutError(CuebookError, TimeoutError):
    """The attempt took longer than the handler's timeout."""


class Deadline:
    """`with` around a piece of a task; when it takes too long the task is cancelled, and that is a TaskTimeoutError.

    As with `asyncio.timeout`, a cancellation by somebody else stays one, and so does an error of the piece's own.
    """

    __slots__ = ("_all", "_cancelling", "_task", "at", "span_s")
    at: float
    _task: asyncio.Task[object]
    _cancelling: int

    def __init__(self, everything: Deadlines, span_s: float) -> None:
        self._all, self.span_s = everything, span_s

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "there is something to cancel"
        self._task, self._cancelling = task, task.cancelling()
        self._all.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._all.discard(self):
            return
        ours = self._task.uncancel() <= self._cancelling  # else somebody else wants the task cancelled as well
        if kind is not None and (issubclass(kind, TimeoutError) or (ours and issubclass(kind, asyncio.CancelledError))):
            raise TaskTimeoutError(f"no result within {self.span_s:g} s") from error

    def expire(self) -> None:
        """Cancel the task."""
        self._task.cancel()


class Deadlines:
    """All time limits of one loop. They are few different spans, and those of one span end in the order they began."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_span: dict[float, dict[Deadline, None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def within(self, span_s: float) -> Deadline:
        """A limit of some seconds from when it is entered."""
        return Deadline(self, span_s)

    def add(self, deadline: Deadline) -> None:
        """Begin."""
        deadline.at = self._loop.time() + deadline.span_s
        same = self._by_span.get(deadline.span_s)
        if same is None:
            same = self._by_span[deadline.span_s] = {}
        same[deadline] = None
        if self._timer is None or deadline.at < self._timer.when():
            self._arm(deadline.at)

    def discard(self, deadline: Deadline) -> bool:
        """End. False: it has expired."""
        same = self._by_span.get(deadline.span_s)
        if same is None or deadline not in same:
            return False
        del same[deadline]
        if not same:
            del self._by_span[deadline.span_s]
        return True

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        for same in list(self._by_span.values()):
            while same and (first := next(iter(same))).at <= now:
                self.discard(first)
                first.expire()
        if self._by_span:
            self._arm(min(next(iter(same)).at for same in self._by_span.values()))
