from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextlib import aclosing

import pytest

from cuebook.embedded.nats_server import NatsServer
from cuebook.events import feed as feed_module
from cuebook.events import lookup
from cuebook.events import reading as reading_module
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope, EventIds, Position, to_datetime
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, StreamMissingError, UnavailableError
from cuebook.events.facts import OutsideEvent, RunStarted, StepAsked, TaskCompleted, TaskRequested
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog, Unreadable
from cuebook.events.stream import stream_config
from tests.waiting import eventually


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(feed_module, "RETRY_S", 0.05)


async def fill(log: EventLog, count: int, *, topic: str = "a", size: int = 0) -> None:
    for number in range(count):
        event = OutsideEvent(data="x" * size if size else number)
        log.post(log.subjects.event(topic), event, done=lambda sequence, error: None)
    await log.appender.flushed()


async def sequences(log: EventLog, after: int = 0, until: int | None = None, *filters: str) -> list[int]:
    async with asyncio.timeout(60):
        return [item.sequence async for item in log.read(after=after, until=until, filters=filters)]


async def recreate(log: EventLog) -> None:
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    await js_request(log.connection, f"STREAM.CREATE.{log.subjects.stream}", stream_config(log.subjects, 1))


# --- reading a range -------------------------------------------------------------------------------------------------


async def test_an_empty_log_is_read_at_once(log: EventLog) -> None:
    assert await sequences(log) == []
    assert await sequences(log, 0, 10) == []


async def test_a_range_ends_where_it_was_said_or_at_the_end(log: EventLog) -> None:
    await fill(log, 10)
    assert await sequences(log) == list(range(1, 11))
    assert await sequences(log, 3, 7) == [4, 5, 6, 7]
    assert await sequences(log, 9, 100) == [10]
    for after, until in ((10, None), (10, 10), (7, 7), (8, 3), (100, None)):
        assert await sequences(log, after, until) == []


async def test_a_range_ends_although_nothing_in_it_matches(log: EventLog) -> None:
    a, b, c = map(log.subjects.event, "abc")
    for topic in "aabbaab":
        await fill(log, 1, topic=topic)
    assert await sequences(log, 0, None, c) == []
    assert await sequences(log, 0, 2, b) == []  # b comes after the end
    assert await sequences(log, 4, 6, b) == []  # b is before and after
    assert await sequences(log, 0, 6, b) == [3, 4]
    assert await sequences(log, 0, None, a, b) == [1, 2, 3, 4, 5, 6, 7]
    assert await sequences(log, 2, 5, a) == [5]


async def test_a_range_ends_while_others_go_on_appending(log: EventLog) -> None:
    await fill(log, 100)
    appending = asyncio.create_task(keep_appending(log))
    assert await sequences(log, 0, 100) == list(range(1, 101))
    last = (await log.verify()).last_sequence
    found = await sequences(log)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= last
    appending.cancel()


async def keep_appending(log: EventLog) -> None:
    while True:
        await log.append(log.subjects.event("a"), OutsideEvent())


async def test_what_is_no_event_keeps_its_place(log: EventLog) -> None:
    await log.append(log.subjects.event("a"), OutsideEvent())
    for subject, body in (
        (log.subjects.event("a"), b"{"),
        (f"{log.subjects.space}.nowhere", b"{}"),
        (log.subjects.run("r", "danced"), b"{}"),
    ):
        await log.connection.jetstream().publish(subject, body, timeout=10)
    await log.append(log.subjects.event("a"), OutsideEvent())
    items = [item async for item in log.read()]
    assert [type(item) for item in items] == [Envelope, Unreadable, Unreadable, Unreadable, Envelope]
    broken = items[1]
    assert isinstance(broken, Unreadable)
    assert (broken.sequence, broken.subject, broken.body) == (2, log.subjects.event("a"), b"{")
    assert "JSON" in broken.reason
    assert broken.remedy
    assert broken.recorded_at > 0


async def test_a_subject_that_is_no_text_keeps_its_place_too(log: EventLog) -> None:
    for tail in (b"\xff\xfe", b"\x1b[31m", b"\x01", "é".encode(), b"x" * 3_000):
        log.connection.write(b"PUB %b.event.%b 2\r\n{}\r\n" % (log.subjects.space.encode(), tail))
    await log.append(log.subjects.event("a"), OutsideEvent())
    items = [item async for item in log.read()]
    assert [type(item) for item in items] == [Unreadable] * 5 + [Envelope]
    assert all(item.subject.isprintable() for item in items)
    assert all(len(item.reason) < 500 and item.reason.isprintable() for item in items if isinstance(item, Unreadable))
    assert [type(item) for item in await log.scope_history(log.subjects.all)] == [type(item) for item in items]
    assert isinstance(await log.at(2), Unreadable)


async def test_reading_without_a_stream_says_so(nats_url: str, space: str) -> None:
    connection = await connect(nats_url, name="tests")
    with pytest.raises(ConfigurationError):
        await sequences(EventLog(connection, space, source="tests"))
    await connection.close()


async def test_a_slow_reader_holds_little_of_a_long_log(log: EventLog) -> None:
    await fill(log, 6_000, size=4_000)
    gc.collect()
    tracemalloc.start()
    async with aclosing(log.read()) as items:
        count = 0
        async for _ in items:
            count += 1
            if count % 2_000 == 0:  # time for the server to send as much as it will
                for _ in range(3):
                    await log.connection.flush()
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_000
    assert peak < 3 * reading_module.READ_AHEAD * 5_000  # of 24 MB


async def test_abandoned_readers_leave_nothing_behind(log: EventLog) -> None:
    await fill(log, 5_000)
    before = dict(log.connection._direct)
    for read in (log.read, log.follow):
        async with aclosing(read()) as items:
            async for item in items:
                if item.sequence == 10:
                    break
    assert log.connection._direct == before


@pytest.mark.usefixtures("impatient")
async def test_a_range_is_whole_over_a_restart_of_the_server(server: NatsServer, own_log: EventLog) -> None:
    await fill(own_log, 20_000)
    found = []
    async with aclosing(own_log.read()) as items:
        async for item in items:
            found.append(item.sequence)
            if item.sequence == 5_000:
                await server.kill()
                await server.restart()
    assert found == list(range(1, 20_001))


@pytest.mark.usefixtures("impatient")
async def test_a_range_whose_end_is_lost_meanwhile_is_a_regressed_history(log: EventLog) -> None:
    await fill(log, 3 * feed_module.UNACKED)

    async def read_and_lose() -> None:
        async with asyncio.timeout(60), aclosing(log.read()) as items:
            async for item in items:
                if item.sequence == 1:
                    await recreate(log)

    with pytest.raises(HistoryRegressedError):
        await read_and_lose()


# --- following -------------------------------------------------------------------------------------------------------


async def test_following_gives_what_is_stored_and_then_what_comes(log: EventLog) -> None:
    await fill(log, 5)
    found: list[int] = []
    caught_up = asyncio.Event()

    async def follow() -> None:
        async with aclosing(log.follow(after=2)) as items:
            async for item in items:
                found.append(item.sequence)
                if item.sequence == 5:
                    caught_up.set()

    following = asyncio.create_task(follow())
    await caught_up.wait()
    for count in range(4, 8):
        await fill(log, 1)
        await eventually(lambda: len(found) == count)  # noqa: B023 - asked within the round
    assert found == [3, 4, 5, 6, 7, 8, 9]
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_following_a_filter_gives_only_what_matches(log: EventLog) -> None:
    async with aclosing(log.follow(filters=[log.subjects.event("b")])) as items:
        first = asyncio.ensure_future(anext(items))
        await fill(log, 3, topic="a")
        await fill(log, 1, topic="b")
        assert (await first).sequence == 4


@pytest.mark.usefixtures("impatient")
async def test_following_ends_with_its_connection(nats_url: str, log: EventLog) -> None:
    connection = await connect(nats_url, name="tests")
    async with aclosing(EventLog(connection, log.subjects.space, source="tests").follow()) as items:
        first = asyncio.ensure_future(anext(items))
        await fill(log, 1)
        await first
        second = asyncio.ensure_future(anext(items))
        await connection.close()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(second, 30)


@pytest.mark.usefixtures("impatient")
async def test_following_gives_what_came_before_it_says_that_the_history_regressed(log: EventLog) -> None:
    await fill(log, 3)
    found = []

    async def follow_and_lose() -> None:
        async with asyncio.timeout(60), aclosing(log.follow()) as items:
            async for item in items:
                found.append(item.sequence)
                if item.sequence == 3:
                    await recreate(log)

    with pytest.raises(HistoryRegressedError):
        await follow_and_lose()
    assert found == [1, 2, 3]


# --- looking up ------------------------------------------------------------------------------------------------------


async def test_the_history_of_a_run_is_everything_under_its_id(log: EventLog) -> None:
    subjects = log.subjects
    await log.append(subjects.run("other", "started"), RunStarted(saga="s"))
    await log.append(subjects.run("r", "started"), RunStarted(saga="s"))
    await log.append(subjects.task("r", 0, "requested", "a"), TaskRequested())
    await log.append(subjects.task("other", 0, "requested", "a"), TaskRequested())
    await log.append(subjects.step("r", 1, "asked"), StepAsked(question="?"))
    await log.append(subjects.progress("r", 0), OutsideEvent(data={}), event_type="progress.progress.v1")
    await log.append(subjects.task("r", 0, "completed"), TaskCompleted())
    assert [item.sequence for item in await log.history("r")] == [2, 3, 5, 7]
    assert await log.history("none") == []


async def test_single_messages_are_found_by_their_place(log: EventLog) -> None:
    await fill(log, 3)
    await log.connection.jetstream().publish(log.subjects.event("a"), b"{", timeout=10)
    second = await log.at(2)
    assert isinstance(second, Envelope)
    assert (second.sequence, second.data, second.subject) == (2, 1, log.subjects.event("a"))
    read = [item async for item in log.read(after=1, until=2)]
    assert read == [second]
    assert isinstance(await log.at(4), Unreadable)
    assert await log.at(5) is None


async def test_the_first_message_of_a_scope_is_found(log: EventLog) -> None:
    for topic in "aab":
        await fill(log, 1, topic=topic)
    assert await log.first_sequence(log.subjects.event("b")) == 3
    assert await log.first_sequence(log.subjects.all) == 1
    assert await log.first_sequence(log.subjects.event("none")) == 0


async def test_a_scope_history_is_whole_however_long_it_is(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(log, 1_000, size=1_000)
    await fill(log, 5, topic="b")
    found = await log.scope_history(log.subjects.event("a"))
    assert [item.sequence for item in found] == list(range(1, 1_001))
    assert [item.sequence for item in await log.scope_history(log.subjects.event("b"), after=1_002)] == [
        1_003,
        1_004,
        1_005,
    ]
    assert await log.scope_history(log.subjects.event("none")) == []
    assert found == [item async for item in log.read(until=1_000)]
    monkeypatch.setattr(lookup, "BATCH", 5)
    assert len(await log.scope_history(log.subjects.event("b"))) == 5


async def test_forged_headers_do_not_move_a_message(log: EventLog) -> None:
    topic = log.subjects.event("a")
    forged = {
        "Nats-Sequence": "999",
        "Nats-Subject": log.subjects.run("victim", "completed"),
        "Nats-Time-Stamp": "1999-01-01T00:00:00Z",
        "Nats-Num-Pending": "5",
        "Nats-Stream": "OTHER",
    }
    await log.connection.jetstream().publish(topic, b"{}", timeout=10, headers=forged)
    (item,) = await log.scope_history(topic)
    assert (item.sequence, item.subject) == (1, topic)
    assert [item] == [found async for found in log.read()]
    assert item == await log.at(1)


async def test_looking_up_without_a_server_says_so(
    server: NatsServer, own_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "TIMEOUT_S", 0.2)
    await server.kill()
    await eventually(lambda: not own_log.connection.is_connected)
    with pytest.raises(UnavailableError):
        await own_log.scope_history(own_log.subjects.all)
    await own_log.connection.close()
    for ask in (own_log.scope_history, own_log.first_sequence):
        with pytest.raises(UnavailableError):
            await ask(own_log.subjects.all)


async def test_looking_up_without_a_stream_says_so(nats_url: str, space: str) -> None:
    connection = await connect(nats_url, name="tests")
    log = EventLog(connection, space, source="tests")
    for look in (log.scope_history(log.subjects.all), log.at(1)):
        with pytest.raises(StreamMissingError, match=f"no stream {log.subjects.stream}"):
            await look
    await connection.close()


async def test_a_moment_is_found_in_the_log(log: EventLog) -> None:
    await fill(log, 5)
    items = [item async for item in log.read()]
    assert await log.sequence_at(items[0].recorded_at - 1_000_000) == 0
    assert await log.sequence_at(items[-1].recorded_at + 1_000_000) == 5
    for item in items:
        found = await log.sequence_at(item.recorded_at)
        assert found == len([other for other in items if other.recorded_at < item.recorded_at])
    assert await log.sequence_at(0) == 0


# --- positions -------------------------------------------------------------------------------------------------------


async def test_a_position_holds_while_its_event_is_there(log: EventLog) -> None:
    await fill(log, 3)
    await log.connection.jetstream().publish(log.subjects.event("a"), b"{", timeout=10)
    await log.verify_position(Position())
    async for item in log.read():
        await log.verify_position(Position(item.sequence, item.id if isinstance(item, Envelope) else ""))


async def test_a_position_beyond_the_end_is_a_regressed_history(log: EventLog) -> None:
    await fill(log, 3)
    with pytest.raises(HistoryRegressedError, match="holds 1 to 3, but 4 was already read"):
        await log.verify_position(Position(4, "x"))


async def test_another_event_at_a_position_is_a_regressed_history(log: EventLog) -> None:
    await fill(log, 3)
    third = await log.at(3)
    assert isinstance(third, Envelope)
    await recreate(log)
    with pytest.raises(HistoryRegressedError):
        await log.verify_position(Position(3, third.id))
    await fill(log, 10)
    with pytest.raises(HistoryRegressedError, match=f"was event {third.id}, now it is"):
        await log.verify_position(Position(3, third.id))


async def test_an_event_that_became_unreadable_is_a_regressed_history_but_not_the_other_way_round(
    log: EventLog,
) -> None:
    await log.connection.jetstream().publish(log.subjects.event("a"), b"{", timeout=10)
    with pytest.raises(HistoryRegressedError, match="unreadable"):
        await log.verify_position(Position(1, "x"))
    await fill(log, 1)
    await log.verify_position(Position(2))  # an older release could not read it


# --- small things ----------------------------------------------------------------------------------------------------


def test_ids_are_unique_tokens() -> None:
    first, second = EventIds(), EventIds()
    made = [ids() for ids in (first, second) for _ in range(1_000)]
    assert len(set(made)) == 2_000
    assert all(len(made_id) < 64 and made_id.replace("-", "").isalnum() for made_id in made)


def test_microseconds_become_a_time_exactly() -> None:
    for microseconds in (0, 1, 1_700_000_000_123_457, 253_402_300_799_999_999):
        moment = to_datetime(microseconds)
        assert moment.microsecond == microseconds % 1_000_000
        assert round(moment.timestamp()) == round(microseconds / 1_000_000)
