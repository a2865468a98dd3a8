"""Three replicas: the leader may be the last to have what an author has read, and refuses what follows on that."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cuebook.embedded.nats_cluster import NatsCluster, nats_cluster
from cuebook.events import lookup
from cuebook.events.append import Appender
from cuebook.events.connection import connect
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, HistoryRegressedError, UnavailableError
from cuebook.events.facts import Event, OutsideEvent, TaskCompleted, TaskProgressed
from cuebook.events.feed import Feed
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.waiting import eventually


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with nats_cluster(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def log(cluster: NatsCluster) -> AsyncIterator[EventLog]:
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


@pytest.mark.timeout(400)
async def test_what_follows_is_stored_also_where_the_leader_catches_up_while_it_is_asked(
    cluster: NatsCluster, log: EventLog
) -> None:
    connection = await connect(cluster.url, name="other")
    async with connection, EventLog(connection, "cue", source="other") as other:
        for run in range(150):
            subject, scope = log.subjects.task(f"r{run}", 0, "completed"), log.subjects.task_scope(f"r{run}", 0)
            sequence = 2 * run + 1
            follows = asyncio.create_task(log.append(subject, TaskCompleted(), scope=scope, expected=sequence))
            await asyncio.sleep(random.uniform(0, 0.012))  # at another moment of what goes on meanwhile each time
            progressed = log.subjects.task(f"r{run}", 0, "progressed")
            assert await other.append(progressed, TaskProgressed()) == sequence
            assert await follows == sequence + 1


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
    async with Appender(log.connection, first_after=log.first_after, known=log.chain, give_up_s=3.0) as appender:
        with pytest.raises(UnavailableError, match="wrong last sequence: 0"):  # may come yet
            await appender.append(subject, b"{}", event_id="e", scope=scope, expected=99)


async def test_a_feed_waits_for_a_leader_that_lacks_what_was_read(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "LAG_S", 60.0)
    assert await log.append(log.subjects.event("a"), OutsideEvent()) == 1
    stream, came = log.chain.stream, asyncio.Event()

    async def read_on() -> None:
        async with Feed(log.connection, stream, filters=[], start=3, on_message=lambda *_: came.set()):
            await came.wait()

    async def is_open() -> bool:
        names: Mapping[str, Any] = await js_request(log.connection, f"CONSUMER.NAMES.{stream}", {})
        return bool(names["consumers"])

    async with asyncio.TaskGroup() as group:
        group.create_task(read_on())
        await eventually(is_open)
        for number in (2, 3):
            assert await log.append(log.subjects.event("a"), OutsideEvent()) == number


async def test_a_feed_does_not_wait_for_ever(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LAG_S", 0.3)
    await log.append(log.subjects.event("a"), OutsideEvent())
    with pytest.raises(HistoryRegressedError, match="ends at 1, but 2 was already read"):
        async with Feed(log.connection, log.chain.stream, filters=[], start=3, on_message=lambda *_: None):
            raise AssertionError("there is nothing to read")


async def test_what_is_read_is_whole_while_a_node_catches_up(cluster: NatsCluster, log: EventLog) -> None:
    stream, topic = log.chain.stream, log.subjects.event("a")
    await log.append(topic, OutsideEvent())
    for _ in range(2):
        about = await js_request(log.connection, f"STREAM.INFO.{stream}", {})
        ours = log.connection.connected_url
        assert ours is not None
        node = next(
            one for one in cluster.nodes if one.name != about["cluster"]["leader"] and f":{ours.port}" not in one.url
        )
        await node.kill()
        await asyncio.gather(*(log.append(topic, OutsideEvent(data="x" * 500)) for _ in range(10_000)))
        last = (await log.verify()).last_sequence
        found = await log.at(last)
        assert found is not None
        await node.restart()
        for _ in range(50):
            with contextlib.suppress(UnavailableError):  # the node was chosen, and does not answer yet
                assert await log.sequence_at(found.recorded_at + 1) == last
                read = [item.sequence async for item in log.read(after=last - 500, until=last)]
                assert read == list(range(last - 499, last + 1))


async def test_a_read_outlives_the_leader_that_dies_at_its_end(cluster: NatsCluster, log: EventLog) -> None:
    await asyncio.gather(*(log.append(log.subjects.event("a"), OutsideEvent()) for _ in range(3000)))
    last = await log.append(log.subjects.event("b"), OutsideEvent())
    about = await js_request(log.connection, f"STREAM.INFO.{log.chain.stream}", {})
    node = next(one for one in cluster.nodes if one.name == about["cluster"]["leader"])
    read = 0
    async for _ in log.read(filters=[log.subjects.event("a")], until=last):
        read += 1
        if read == 2900:
            await node.kill()
    assert read == 3000
