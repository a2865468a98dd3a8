"""What handlers say while they work: at most once a second for each task, the latest of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeGuard

from cuebook.actors.attempt import MAX_MESSAGE
from cuebook.actors.work import Work
from cuebook.events.errors import CuebookError, PoisonMessageError
from cuebook.events.facts import TaskProgressed
from cuebook.events.log import EventLog

__all__ = ["Progress"]

PROGRESS_EVERY_S = 1.0


class Progress:
    """The progress of an instance's tasks, on the running loop. Nothing is said of those that it has lost."""

    def __init__(
        self,
        log: EventLog,
        *,
        is_ours: Callable[[Work], bool],
        on_progress: Callable[[], None],
        agent_logger: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        """`on_progress` is called whenever a handler says something."""
        self._log, self._is_ours, self._on_progress, self._logger = log, is_ours, on_progress, agent_logger
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def report(self, work: Work, message: str, fraction: float | None) -> None:
        """Store progress, at most once a second per task: later words replace earlier ones. From any thread."""
        share = min(1.0, max(0.0, fraction)) if _is_number(fraction) else None
        if share is None and fraction is not None:
            self._logger.warning("progress of %r is no fraction from 0 to 1", fraction)
        progress = TaskProgressed(message=str(message)[:MAX_MESSAGE], fraction=share, attempt=work.event.attempt)
        if threading.get_ident() == self._thread:
            self._progress(work, progress)
        else:
            self._loop.call_soon_threadsafe(self._progress, work, progress)

    def _progress(self, work: Work, progress: TaskProgressed) -> None:
        scheduled, work.progress = work.progress is not None, progress
        self._on_progress()
        if not scheduled:
            wait_s = max(0.0, work.reported_at + PROGRESS_EVERY_S - time.monotonic())
            self._loop.call_later(wait_s, self._send_progress, work)

    def _send_progress(self, work: Work) -> None:
        progress, work.progress = work.progress, None
        work.reported_at = time.monotonic()
        address = work.envelope.address
        if progress is None or not self._is_ours(work):
            return

        def done(_: int, error: CuebookError | None) -> None:
            if error is not None:
                self._logger.warning("progress was not stored: %s", error)

        try:
            self._log.post(
                self._log.subjects.progress(address.run_id, address.n),
                progress,
                correlation_id=work.envelope.correlation_id,
                causation_id=work.envelope.id,
                done=done,
            )
        except PoisonMessageError as error:
            self._logger.warning("progress cannot be stored: %s", error)


def _is_number(value: object) -> TypeGuard[float]:
    """What an author says may be anything; what no event can hold would have to be refused by whoever reads it."""
    return isinstance(value, int | float) and value == value  # NaN is not
