"""Reading the log for the projections: once, in order, in batches that grow with the backlog."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Self

from cuebook.events.envelope import Position
from cuebook.events.errors import HistoryRegressedError
from cuebook.events.log import EventLog, Unreadable
from cuebook.projections.checkpoint import position_of
from cuebook.projections.projection import Item

__all__ = ["BATCH_SIZE", "LogReader"]

BATCH_SIZE: Final = 2_000
BATCH_BYTES: Final = 32 * 1024 * 1024
"""Of bodies, about; what is made of them takes several times as much memory, here and in PostgreSQL."""
LINGER_S: Final = 0.01
"""An event waits this long for others: a busy log then costs 100 commits a second at most, not one for each event."""


class LogReader:
    """Everything in the log after a position. Use `async with`.

    While a batch is being written the next one is received and decoded; beyond two batches the server has to wait.
    """

    def __init__(self, log: EventLog, *, after: Position, batch_size: int = BATCH_SIZE) -> None:
        self._log, self._batch_size = log, batch_size
        self._taken = after
        self._interruption: Exception | None = None
        self._waiting: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._bytes = 0
        self._feed = log.feed(self._receive, after=after.sequence, held=lambda: self._holds_over(2))
        self._feed.failure.add_done_callback(lambda _: self._arrived.set())

    async def __aenter__(self) -> Self:
        await self._feed.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._feed.__aexit__(*exc_info)

    @property
    def backlog(self) -> int:
        """Messages that were stored and not taken yet, as far as the server has told."""
        return len(self._waiting) + self._feed.pending

    @property
    def end(self) -> int:
        """Sequence of the last message in the log, as far as the server has told."""
        return self._taken.sequence + self.backlog

    @property
    def oldest_waiting(self) -> int:
        """When the first of those was recorded that have come and were not taken, in microseconds since 1970; or 0."""
        return self._waiting[0].recorded_at if self._waiting else 0

    async def next_batch(self) -> list[Item]:
        """The next messages, at least one; waits for it.

        Raises HistoryRegressedError, ConfigurationError, UnavailableError when the connection was closed for good, and
        what `interrupt` was given.
        """
        while not self._waiting:
            if self._interruption is not None:
                raise self._interruption
            if self._feed.failure.done():
                self._feed.failure.result()
            self._feed.resume()
            self._arrived.clear()
            await self._arrived.wait()
        if len(self._waiting) < self._batch_size:
            await asyncio.sleep(LINGER_S)
        waiting = self._waiting
        count = min(len(waiting), self._batch_size)
        if self._bytes > BATCH_BYTES:  # as many as if all were of one size: to know that of each costs more
            count = min(count, max(1, len(waiting) * BATCH_BYTES // self._bytes))
        self._bytes -= self._bytes * count // len(waiting)
        batch = [waiting.popleft() for _ in range(count)]
        if not self._holds_over(1):
            self._feed.resume()
        self._check_gaps(batch)
        self._taken = position_of(batch[-1])
        return batch

    def interrupt(self, reason: Exception) -> None:
        """Let `next_batch` raise this as soon as it would wait."""
        self._interruption = reason
        self._arrived.set()

    def _holds_over(self, batches: int) -> bool:
        return len(self._waiting) > batches * self._batch_size or self._bytes > batches * BATCH_BYTES

    def _receive(self, subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        try:
            item = self._log.decode(subject, body, sequence, recorded_at, headers)
        except Exception as error:  # noqa: BLE001 - whatever the bytes do to the decoder, they keep their place
            item = Unreadable(
                subject=subject,
                sequence=sequence,
                recorded_at=recorded_at,
                body=body,
                reason=f"{type(error).__name__}: {error}",
            )
        self._waiting.append(item)
        self._bytes += len(body)
        self._arrived.set()

    def _check_gaps(self, batch: list[Item]) -> None:
        """Nothing is ever deleted from the log, so its sequences have no gaps; one means that messages were lost."""
        expected = self._taken.sequence + 1
        if batch[0].sequence == expected and batch[-1].sequence == expected + len(batch) - 1:
            return
        for item in batch:
            if item.sequence != expected:
                raise HistoryRegressedError(
                    f"stream {self._log.subjects.stream} holds nothing from {expected} to {item.sequence - 1}"
                )
            expected += 1
