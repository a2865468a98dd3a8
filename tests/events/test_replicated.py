"""Three replicas: the leader may be the last to have what an author has read, and refuses what follows on that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cuebook.embedded.nats_cluster import nats_cluster
from cuebook.events.append import Appender
from cuebook.events.connection import connect
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, UnavailableError
from cuebook.events.facts import Event, TaskCompleted, TaskProgressed
from cuebook.events.log import EventLog


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    async with nats_cluster(tmp_path / "nats") as cluster:
        connection = await connect(cluster.url, name="tests")
        async with connection, EventLog(connection, "cue", source="tests") as opened:
            await opened.ensure(replicas=3)
            yield opened


@pytest.mark.parametrize("guard", [0, None])
async def test_what_follows_on_an_event_that_the_leader_does_not_have_yet_is_stored(
    log: EventLog, guard: int | None
) -> None:
    errors: list[CuebookError | None] = []

    def done(_: int, error: CuebookError | None) -> None:
        errors.append(error)

    def post(run: int, fact: str, event: Event, expected: int | None) -> None:
        subject, scope = log.subjects.task(f"r{run}", 0, fact), log.subjects.task_scope(f"r{run}", 0)
        log.post(subject, event, scope=scope if expected is not None else "", expected=expected, done=done)

    runs = range(1, 21)
    for run in runs:
        post(run, "progressed", TaskProgressed(), guard)
    for run in runs:
        post(run, "completed", TaskCompleted(), run)
    await log.appender.flushed()
    assert errors == [None] * 2 * len(runs)
    assert log.appender.resent  # some were refused at first


async def test_of_many_writers_one_wins(log: EventLog) -> None:
    subject, scope = log.subjects.task("r", 0, "completed"), log.subjects.task_scope("r", 0)
    outcomes = await asyncio.gather(
        *(log.append(subject, TaskCompleted(), scope=scope, expected=0) for _ in range(50)), return_exceptions=True
    )
    assert sorted(map(str, outcomes)) == sorted(["1", *[str(ConcurrencyConflictError(scope, 0))] * 49])


async def test_what_shall_follow_on_nothing_is_refused(log: EventLog) -> None:
    subject, scope = log.subjects.task("r", 0, "completed"), log.subjects.task_scope("r", 0)
    assert await log.append(log.subjects.task("s", 0, "completed"), TaskCompleted()) == 1
    with pytest.raises(ConcurrencyConflictError):
        await log.append(subject, TaskCompleted(), scope=scope, expected=1)  # is there, and of something else
    async with Appender(log.connection, first_after=log.first_after, known=log.chain, give_up_s=0.5) as appender:
        with pytest.raises(UnavailableError, match="wrong last sequence: 0"):  # may come yet
            await appender.append(subject, b"{}", event_id="e", scope=scope, expected=99)
