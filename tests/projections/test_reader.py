"""How much of the log is taken at a time."""

from __future__ import annotations

import pytest

from cuebook.events.envelope import Position
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog
from cuebook.projections import reader
from cuebook.projections.reader import LogReader
from tests.waiting import eventually


async def test_a_batch_of_large_messages_has_fewer(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 1_000_000)
    for _ in range(40):
        await log.append(log.subjects.event("large"), OutsideEvent(data="x" * 100_000))
    sizes: list[int] = []
    async with LogReader(log, after=Position(), batch_size=10_000) as reading:
        await eventually(lambda: reading.backlog == len(reading._waiting) == 40)
        while sum(sizes) < 40:
            sizes.append(len(await reading.next_batch()))
    assert max(sizes) <= 10
    assert len(sizes) <= 5


async def test_small_messages_after_large_ones_are_taken_together(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BATCH_BYTES", 1_000_000)
    async with LogReader(log, after=Position(), batch_size=10_000) as reading:
        for size, count in ((100_000, 40), (10, 100)):
            before = reading.end
            for _ in range(count):
                await log.append(log.subjects.event("t"), OutsideEvent(data="x" * size))
            await eventually(lambda: len(reading._waiting) == count)  # noqa: B023 - awaited at once
            while reading.end - reading.backlog < before + count:
                batch = await reading.next_batch()
        assert len(batch) == 100
