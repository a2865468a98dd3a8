"""One assignment while an instance has it: its handling, then its answer, until the log has decided."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from cuebook.events.envelope import Envelope
from cuebook.events.facts import TaskAssigned, TaskProgressed

if TYPE_CHECKING:
    from cuebook.telemetry.attempt import Attempt

__all__ = ["Work"]


class Work:
    """One assignment being handled."""

    __slots__ = (
        "answer_id",
        "answered",
        "assigned",
        "attempt",
        "began",
        "cancel_reason",
        "envelope",
        "event",
        "handing_back",
        "progress",
        "reported_at",
        "running",
        "task",
        "traceparent",
        "unwanted",
    )

    def __init__(self, envelope: Envelope, event: TaskAssigned) -> None:
        self.envelope, self.event = envelope, event
        self.assigned = envelope.sequence
        self.began = time.monotonic()
        self.cancel_reason: str | None = None
        self.handing_back = self.running = self.answered = self.unwanted = False
        self.task: asyncio.Task[None] | None = None
        self.progress: TaskProgressed | None = None
        self.reported_at = -math.inf
        self.attempt: Attempt | None = None
        self.traceparent = envelope.traceparent
        self.answer_id = ""

    def put_down(self) -> None:
        """Leave it as it is on the shelf: nothing is answered."""
        if self.task is not None:
            self.task.cancel()

    def cancel(self) -> None:
        """End the handling. A task that asyncio has not begun with yet would go without a word, so that one is told."""
        self.unwanted = True
        if self.running and self.task is not None:
            self.task.cancel()
