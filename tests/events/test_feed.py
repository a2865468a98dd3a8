from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cuebook.embedded.nats_server import NatsServer
from cuebook.events import feed as feed_module
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import (
    HistoryRegressedError,
    StreamMissingError,
    UnavailableError,
)
from cuebook.events.facts import OutsideEvent
from cuebook.events.feed import UNACKED, Feed, delivery_numbers
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.stream import stream_config
from tests.events.proxy import proxy
from tests.waiting import eventually


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed in tenths of a second; 0.1 s is the shortest heartbeat the server takes."""
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(feed_module, "RETRY_S", 0.05)


class Received:
    """What a feed has called with, and whether it is to be held."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.messages: list[tuple[Any, ...]] = []
        self.is_held = False

    def __call__(self, *message: Any) -> None:
        self.messages.append(message)
        self.sequences.append(message[2])

    def __len__(self) -> int:
        return len(self.sequences)

    def held(self) -> bool:
        return self.is_held


async def fill(log: EventLog, count: int, *, topic: str = "a", size: int = 0) -> None:
    """Append `count` events."""
    for _ in range(count):
        log.post(log.subjects.event(topic), OutsideEvent(data="x" * size), done=lambda sequence, error: None)
    await log.appender.flushed()


@asynccontextmanager
async def feeding(
    log: EventLog,
    received: Callable[..., None],
    *,
    after: int = 0,
    filters: list[str] | None = None,
    held: Callable[[], bool] | None = None,
) -> AsyncIterator[Feed]:
    filters = [log.subjects.all] if filters is None else filters
    async with Feed(
        log.connection, log.subjects.stream, filters=filters, start=after + 1, on_message=received, held=held
    ) as feed:
        yield feed


async def recreate(log: EventLog, **config: Any) -> None:
    """Replace the stream by an empty one of the same name, as a restored backup or a careless hand does."""
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    config = stream_config(log.subjects, 1) | config
    await js_request(log.connection, f"STREAM.CREATE.{log.subjects.stream}", config)


async def consumers(log: EventLog, count: int) -> list[str]:
    """The names of the stream's consumers, once there are so many."""

    async def named() -> bool:
        answer = await js_request(log.connection, f"CONSUMER.NAMES.{log.subjects.stream}", {})
        names[:] = answer["consumers"] or []
        return len(names) == count

    names: list[str] = []
    asked: Callable[[], bool | Awaitable[bool]] = named
    await eventually(asked)
    return names


# --- what comes ------------------------------------------------------------------------------------------------------


async def test_stored_and_later_messages_come_in_order_from_the_start(log: EventLog) -> None:
    received = Received()
    await fill(log, 300)
    async with feeding(log, received, after=100) as feed:
        await fill(log, 200)
        await eventually(lambda: len(received) == 400)
        assert received.sequences == list(range(101, 501))
        assert feed.next_sequence == 501
        await eventually(lambda: feed.pending == 0)
        assert feed.opened == 1


async def test_a_message_comes_with_its_subject_body_time_and_headers(log: EventLog) -> None:
    received = Received()
    await log.append(log.subjects.event("a"), OutsideEvent(data=1), event_id="id-1")
    async with feeding(log, received):
        await eventually(lambda: len(received) == 1)
    subject, body, sequence, recorded_at, headers = received.messages[0]
    item = log.decode(subject, body, sequence, recorded_at, headers)
    assert (item.subject, item.sequence, item.event) == (log.subjects.event("a"), 1, OutsideEvent(data=1))  # type: ignore[union-attr]
    assert headers == b"NATS/1.0\r\nNats-Msg-Id: id-1\r\n\r\n"
    assert abs(recorded_at - item.time) < 10_000_000  # type: ignore[union-attr]


async def test_only_what_matches_a_filter_comes(log: EventLog) -> None:
    for topic in ("a", "b", "c", "a", "b"):
        await log.append(log.subjects.event(topic), OutsideEvent())
    for filters, expected in (
        ([log.subjects.event("a")], [1, 4]),
        ([log.subjects.event("a"), log.subjects.event("b")], [1, 2, 4, 5]),
        ([log.subjects.event("none")], []),
        ([], [1, 2, 3, 4, 5]),
    ):
        received = Received()
        async with feeding(log, received, filters=filters):
            await eventually(lambda: received.sequences == expected)  # noqa: B023 - asked within the round


def test_places_are_read_from_both_forms_of_the_reply() -> None:
    assert delivery_numbers(b"$JS.ACK.CUE.name.1.17.5.1700000000000000123.42") == (17, 5, 1700000000000000123, 42)
    long = b"$JS.ACK.hub.hash.CUE.name.1.17.5.1700000000000000123.42"
    assert delivery_numbers(long) == (17, 5, 1700000000000000123, 42)
    assert delivery_numbers(long + b".token") == (17, 5, 1700000000000000123, 42)


async def test_no_header_of_an_author_looks_like_the_servers(log: EventLog) -> None:
    received = Received()
    topic = log.subjects.event("a")
    for line in (b"100 FlowControl Request", b"100 Idle Heartbeat", b"204 EOB", b"503"):
        headers = b"NATS/1.0 %b\r\nNats-Last-Consumer: 99\r\nNats-Consumer-Stalled: x\r\n\r\n" % line
        log.connection.write(
            b"HPUB %b answers.here %d %d\r\n%b{}\r\n" % (topic.encode(), len(headers), len(headers) + 2, headers)
        )
    await log.append(topic, OutsideEvent())
    async with feeding(log, received) as feed:
        await eventually(lambda: len(received) == 5)
        assert feed.opened == 1
    assert [item.sequence for item in await log.scope_history(topic)] == [1, 2, 3, 4, 5]


# --- holding ---------------------------------------------------------------------------------------------------------


async def test_a_held_receiver_gets_a_bounded_number_until_it_resumes(log: EventLog) -> None:
    received = Received()
    await fill(log, 5 * UNACKED)
    received.is_held = True
    async with feeding(log, received, held=received.held) as feed:
        for times in (1, 2, 3):
            await eventually(lambda: len(received) == times * UNACKED)  # noqa: B023 - asked within the round
            await log.connection.flush()
            assert len(received) == times * UNACKED
            feed.resume()
        received.is_held = False
        feed.resume()
        await eventually(lambda: len(received) == 5 * UNACKED)
        assert received.sequences == list(range(1, 5 * UNACKED + 1))
        assert feed.opened == 1


async def test_a_receiver_that_is_not_held_needs_no_resume(log: EventLog) -> None:
    received = Received()
    await fill(log, 3 * UNACKED)
    async with feeding(log, received, held=received.held) as feed:
        feed.resume()
        await eventually(lambda: len(received) == 3 * UNACKED)
        await fill(log, UNACKED + 1)
        await eventually(lambda: len(received) == 4 * UNACKED + 1)


async def test_resuming_a_feed_that_was_left_does_nothing(log: EventLog) -> None:
    received = Received()
    received.is_held = True
    await fill(log, UNACKED)
    async with feeding(log, received, held=received.held) as feed:
        await eventually(lambda: len(received) == UNACKED)
    feed.resume()
    feed.resume()


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("held", [None, lambda: False], ids=["by bytes", "by count"])
async def test_nothing_is_missing_or_doubled_over_restarts_of_the_server(
    server: NatsServer, own_log: EventLog, held: Callable[[], bool] | None
) -> None:
    received = Received()
    async with feeding(own_log, received, held=held):
        for kill in range(1, 4):
            for _ in range(400):
                own_log.post(own_log.subjects.event("a"), OutsideEvent(), done=lambda sequence, error: None)
            await eventually(lambda: len(received) > 400 * (kill - 1))  # noqa: B023 - asked within the round
            await server.kill()
            await server.restart()
            await own_log.appender.flushed()
            await eventually(lambda: len(received) == 400 * kill)  # noqa: B023 - asked within the round
        assert received.sequences == list(range(1, 1_201))


@pytest.mark.usefixtures("impatient")
async def test_a_deleted_consumer_is_replaced(log: EventLog) -> None:
    received = Received()
    async with feeding(log, received) as feed:
        for count in (1, 2, 3):
            (name,) = await consumers(log, 1)
            await js_request(log.connection, f"CONSUMER.DELETE.{log.subjects.stream}.{name}", {})
            await log.append(log.subjects.event("a"), OutsideEvent())
            await eventually(lambda: len(received) == count)  # noqa: B023 - asked within the round
        assert received.sequences == [1, 2, 3]
        assert feed.opened > 1


@pytest.mark.usefixtures("impatient")
async def test_messages_lost_on_the_way_come_again(server: NatsServer, space: str) -> None:
    async with proxy(server.url) as line:
        reading, writing = await connect(line.url, name="reads"), await connect(server.url, name="writes")
        received = Received()
        async with EventLog(writing, space, source="tests") as log, EventLog(reading, space, source="reads") as reader:
            await log.ensure()
            async with feeding(reader, received) as feed:
                for lost in range(1, 4):
                    line.swallow = lambda block: b".event.a" in block and line.swallowed < lost  # noqa: B023
                    before = len(received)
                    await log.append(log.subjects.event("a"), OutsideEvent())
                    await eventually(lambda: line.swallowed == lost)  # noqa: B023 - asked within the round
                    await log.append(log.subjects.event("a"), OutsideEvent())
                    await eventually(lambda: len(received) == before + 2)  # noqa: B023 - asked within the round
                assert received.sequences == list(range(1, 7))
                assert feed.opened > 1
        await reading.close()
        await writing.close()


@pytest.mark.usefixtures("impatient")
async def test_a_lost_last_message_is_noticed_by_the_heartbeat(server: NatsServer, space: str) -> None:
    async with proxy(server.url) as line:
        reading, writing = await connect(line.url, name="reads"), await connect(server.url, name="writes")
        received = Received()
        async with EventLog(writing, space, source="tests") as log, EventLog(reading, space, source="reads") as reader:
            await log.ensure()
            async with feeding(reader, received):
                line.swallow = lambda block: b".event.a" in block and not line.swallowed
                await log.append(log.subjects.event("a"), OutsideEvent())
                await eventually(lambda: received.sequences == [1])
                assert line.swallowed == 1
        await reading.close()
        await writing.close()


async def test_traffic_that_leaves_no_room_for_heartbeats_is_not_taken_for_silence(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.5)
    received = Received()
    async with feeding(log, received) as feed:
        until = asyncio.get_running_loop().time() + 2.5
        while asyncio.get_running_loop().time() < until:
            await log.append(log.subjects.event("a"), OutsideEvent())
        await eventually(lambda: feed.pending == 0)
        assert feed.opened == 1


@pytest.mark.parametrize("again", [False, True], ids=["asked", "asked again"])
async def test_a_server_that_asks_whether_it_may_go_on_is_answered(log: EventLog, again: bool) -> None:
    """By flow control, and when no answer comes, by a header of its heartbeats."""
    connection, answered = log.connection, asyncio.Event()
    async with feeding(log, Received()) as feed:
        where = connection.new_inbox()
        listener = await connection.listen(where, lambda *_: answered.set())
        info = await connection.jetstream().consumer_info(log.subjects.stream, feed._consumer)
        told = {"Nats-Last-Consumer": "0", "Nats-Consumer-Stalled": where} if again else None
        await connection.publish(str(info.config.deliver_subject), b"", reply="" if again else where, headers=told)
        await asyncio.wait_for(answered.wait(), 30)
        assert feed.opened == 1
        await listener.close()


async def test_a_quiet_log_stays_open(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.5)
    received = Received()
    async with feeding(log, received) as feed:
        heartbeats = feed._heard
        await eventually(lambda: feed._heard - heartbeats > 2.5)
        assert feed.opened == 1


# --- another history -------------------------------------------------------------------------------------------------


async def test_a_start_beyond_the_end_is_a_regressed_history(log: EventLog) -> None:
    await fill(log, 5)
    async with feeding(log, Received(), after=5):
        pass
    with pytest.raises(HistoryRegressedError, match=r"ends at 5, but 6 was already read"):
        async with feeding(log, Received(), after=6):
            pass
    assert await consumers(log, 0) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("count", [0, 4, 5, 20])
@pytest.mark.parametrize("held", [None, lambda: False], ids=["by bytes", "by count"])
async def test_a_stream_that_came_back_with_another_history_ends_the_feed(
    log: EventLog, count: int, held: Callable[[], bool] | None
) -> None:
    received = Received()
    await fill(log, 5)
    async with feeding(log, received, held=held) as feed:
        await eventually(lambda: len(received) == 5)
        await recreate(log)
        await fill(log, count)
        with pytest.raises(HistoryRegressedError, match="already read"):
            async with asyncio.timeout(30):
                await asyncio.shield(feed.failure)
    assert received.sequences == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_came_back_without_what_was_read_ends_the_feed(log: EventLog) -> None:
    received = Received()
    await fill(log, 5)
    async with feeding(log, received) as feed:
        await eventually(lambda: len(received) == 5)
        await recreate(log, first_seq=20)
        await fill(log, 1)
        with pytest.raises(HistoryRegressedError, match="begins again at 20, but 5 was already read"):
            async with asyncio.timeout(30):
                await asyncio.shield(feed.failure)
    assert received.sequences == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("impatient")
async def test_a_deleted_stream_ends_the_feed(log: EventLog) -> None:
    async with feeding(log, Received()) as feed:
        await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
        with pytest.raises(StreamMissingError, match="there is no stream"):
            async with asyncio.timeout(30):
                await asyncio.shield(feed.failure)


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_a_receiver_that_raises_ends_the_feed_at_that_message(log: EventLog) -> None:
    received: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        received.append(sequence)
        if sequence == 3:
            raise ValueError("as foreseen")

    await fill(log, 10)
    async with feeding(log, receive) as feed:
        with pytest.raises(ValueError, match="as foreseen"):
            async with asyncio.timeout(30):
                await asyncio.shield(feed.failure)
        await fill(log, 1)
        await log.connection.flush()
    assert received == [1, 2, 3]


@pytest.mark.usefixtures("impatient")
async def test_a_closed_connection_ends_the_feed(nats_url: str, log: EventLog) -> None:
    connection = await connect(nats_url, name="tests")
    reader = EventLog(connection, log.subjects.space, source="tests")
    async with feeding(reader, Received()) as feed:
        await connection.close()
        with pytest.raises(UnavailableError, match="closed"):
            async with asyncio.timeout(30):
                await asyncio.shield(feed.failure)


async def test_a_feed_that_cannot_be_opened_leaves_nothing_behind(connection: Connection, space: str) -> None:
    log = EventLog(connection, space, source="tests")
    with pytest.raises(StreamMissingError, match="there is no stream"):
        async with feeding(log, Received()):
            pass
    assert connection._direct == {}
    assert connection.on_reconnect == []


async def test_leaving_deletes_the_consumer_and_the_subscription(log: EventLog) -> None:
    before = dict(log.connection._direct)
    async with feeding(log, Received()):
        assert len(await consumers(log, 1)) == 1
        assert len(log.connection._direct) == len(before) + 1
    assert log.connection._direct == before
    assert await consumers(log, 0) == []


async def test_nobody_complains_of_a_failure_that_nobody_looked_at(log: EventLog) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def receive(*message: Any) -> None:
        raise ValueError("as foreseen")

    await fill(log, 1)
    async with feeding(log, receive) as feed:
        await eventually(feed.failure.done)
    del feed
    gc.collect()
    assert complaints == []


async def test_a_consumer_of_ours_is_light_for_the_server(log: EventLog) -> None:
    async with feeding(log, Received()):
        (name,) = await consumers(log, 1)
        answer = await log.connection.request(f"$JS.API.CONSUMER.INFO.{log.subjects.stream}.{name}", b"", timeout=10)
        config = json.loads(answer.data)["config"]
        assert (config["ack_policy"], config["mem_storage"], config["num_replicas"]) == ("none", True, 1)
        assert config["inactive_threshold"] == 60 * 10**9
