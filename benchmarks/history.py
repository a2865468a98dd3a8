"""A log as it looks after much work: finished runs of a saga with three steps, many at once, appended at full speed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from cuebook.events.errors import CuebookError
from cuebook.events.facts import (
    AgentRegistered,
    Event,
    HandlerSpec,
    RunCompleted,
    RunRequested,
    RunStarted,
    TaskAssigned,
    TaskCompleted,
    TaskRequested,
)
from cuebook.events.log import EventLog
from cuebook.events.subjects import Subjects

__all__ = ["fill", "history"]

STEPS: Final = 3
AGENTS: Final = 20
AT_ONCE: Final = 100
"""Runs whose events lie between each other in the log."""
_OUTSTANDING: Final = 4_000


async def fill(log: EventLog, events: int) -> int:
    """Append so many events; gives the last sequence."""
    last = under_way = count = 0
    room = asyncio.Event()
    failures: list[CuebookError] = []

    def done(sequence: int, error: CuebookError | None) -> None:
        nonlocal last, under_way
        if error is not None:
            failures.append(error)
        last, under_way = max(last, sequence), under_way - 1
        room.set()

    for subject, event in history(log.subjects):
        if count == events or failures:
            break
        count, under_way = count + 1, under_way + 1
        log.post(subject, event, done=done, correlation_id=f"c{count // 1000}")
        while under_way >= _OUTSTANDING:
            room.clear()
            await room.wait()
    await log.appender.flushed()
    if failures:
        raise failures[0]
    return last


def history(subjects: Subjects) -> Iterator[tuple[str, Event]]:
    """Subjects and events of a space at work, without end."""
    for number in range(AGENTS):
        registered = AgentRegistered(slots=16, handlers={"issue": HandlerSpec(timeout_s=30)}, version="1", host="h")
        yield subjects.agent("refund", f"i{number}", "registered"), registered
    block = 0
    while True:
        yield from _runs(subjects, block)
        block += 1


def _runs(subjects: Subjects, block: int) -> Iterator[tuple[str, Event]]:
    ids = [f"order-{block * AT_ONCE + number}" for number in range(AT_ONCE)]
    given = {"order_id": f"o-{block}", "text": "my blender arrived broken", "amount_cents": 8_990, "currency": "EUR"}
    for run_id in ids:
        yield subjects.run(run_id, "requested", "support"), RunRequested(input=given)
        yield subjects.run(run_id, "started"), RunStarted(saga="support", version="1", input=given)
    for n in range(STEPS):
        for run_id in ids:
            yield subjects.task(run_id, n, "requested", "refund"), TaskRequested(handler="issue", input=given)
        for number, run_id in enumerate(ids):
            instance = f"i{number % AGENTS}"
            assigned = TaskAssigned(handler="issue", attempt=1, timeout_s=30, reason={"free": 3, "of": 5})
            yield subjects.task(run_id, n, "assigned", "refund", instance), assigned
            output = {"refund_id": f"re_{block}_{n}", "status": "succeeded"}
            yield (
                subjects.task(run_id, n, "completed"),
                TaskCompleted(output=output, attempt=1, duration_s=0.2, by=f"refund/{instance}"),
            )
    for run_id in ids:
        yield subjects.run(run_id, "completed"), RunCompleted(result={"ok": True})
