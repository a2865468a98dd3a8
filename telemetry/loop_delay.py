"""How late an event loop is: a timer ten times a second, and how long after its time it was heard."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import Histogram, Sample

__all__ = ["LoopDelay"]

EVERY_S: Final = 0.1


class LoopDelay:
    """Watches one loop, from `start` on and for as long as that runs."""

    def __init__(self) -> None:
        self._times = Histogram()
        self._due = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, in the thread of the loop; it need not run yet."""
        self._loop = loop
        self._again()

    def blocked_s(self) -> float:
        """For how long the loop has not come round to it, now; from any thread."""
        return max(0.0, time.monotonic() - self._due) if self._due else 0.0

    def samples(self) -> list[Sample]:
        """What was seen so far."""
        return [Sample(names.LOOP_DELAY, (), self._times.now())]

    def _again(self) -> None:
        self._due = time.monotonic() + EVERY_S
        self._loop.call_later(EVERY_S, self._tick)

    def _tick(self) -> None:
        self._times.record(time.monotonic() - self._due)
        self._again()
