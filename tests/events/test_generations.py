"""A log that was rolled reads like one that never was: any part of it, with any filter, from any position."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pytest

from cuebook.events import generations
from cuebook.events.connection import Connection, connect
from cuebook.events.envelope import Envelope, Position
from cuebook.events.errors import (
    ConcurrencyConflictError,
    ConfigurationError,
    HistoryRegressedError,
    StreamMissingError,
)
from cuebook.events.facts import OutsideEvent, RunStarted, SpaceRolled
from cuebook.events.generations import BEFORE, NEXT, chain_of, marker_of, use_past_opener
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.lookup import StoredMessage
from cuebook.events.past import Generation, Past, PastOpener, StreamPast, pack_generations
from cuebook.events.stream import verify_stream
from tests.events.proxy import proxy
from tests.events.rolls import roll
from tests.waiting import eventually

TOPICS = ("a", "b", "a.b")


class Heard(NamedTuple):
    """A message as it went by when it was written."""

    sequence: int
    subject: str
    body: bytes


@pytest.fixture
async def heard(connection: Connection, log: EventLog) -> AsyncIterator[list[Heard]]:
    """Everything that is stored, as the server says it at once: the log as it would be in one stream."""
    messages: list[Heard] = []

    def receive(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        sequence = int((headers or b"").partition(b"Nats-Sequence: ")[2].partition(b"\r\n")[0])
        messages.append(Heard(sequence, subject.decode().removeprefix("live."), payload))

    listener = await connection.listen(log.subjects.live, receive)
    yield messages
    await listener.close()


@asynccontextmanager
async def connected(nats_url: str) -> AsyncIterator[Connection]:
    """A connection of its own, which has to find everything out by itself."""
    opened = await connect(nats_url, name="another")
    yield opened
    await opened.close()


async def write(log: EventLog, count: int) -> int:
    last = 0
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        last = await log.append(log.subjects.event(topic), OutsideEvent(data={"n": n}), event_type="t")
    return last


async def grown(log: EventLog, *, rolls: int = 3, each: int = 7) -> int:
    """A log of so many generations, and some more."""
    await write(log, each)
    for _ in range(rolls):
        await roll(log)
        await write(log, each)
    return (await log.verify()).last_sequence


async def test_any_part_reads_as_if_nothing_had_been_rolled(log: EventLog, heard: list[Heard]) -> None:
    last = await grown(log)
    await eventually(lambda: len(heard) == last)
    assert [one.sequence for one in heard] == list(range(1, last + 1))
    space, chosen = log.subjects.space, random.Random(7)
    choices = [[], [f"{space}.event.>"], [f"{space}.event.a"], [f"{space}.space.*", f"{space}.event.b"]]
    for _ in range(60):
        after, until = sorted(chosen.sample(range(last + 1), 2))
        filters = chosen.choice(choices)
        patterns = [one.replace(".>", ".*") for one in filters] or ["*"]
        wanted = [
            one
            for one in heard
            if after < one.sequence <= until and any(fnmatchcase(one.subject, it) for it in patterns)
        ]
        async with aclosing(log.batches(after=after, until=until, filters=filters)) as batches:
            read = [Heard(one.sequence, one.subject, one.body) async for batch in batches for one in batch]
        assert read == wanted


async def test_single_messages_and_moments_are_found_in_every_generation(log: EventLog, heard: list[Heard]) -> None:
    last = await grown(log)
    await eventually(lambda: len(heard) == last)
    items = [item async for item in log.read()]
    assert [item.sequence for item in items] == list(range(1, last + 1))
    for item in items:
        assert isinstance(item, Envelope)
        assert await log.at(item.sequence) == item
        assert await log.sequence_at(item.recorded_at) == item.sequence - 1
        await log.verify_position(Position(item.sequence, item.id))
        with pytest.raises(HistoryRegressedError):
            await log.verify_position(Position(item.sequence, "another"))
    assert await log.at(last + 1) is None
    subject = log.subjects.event("a")
    assert await log.first_sequence(subject) == heard[0].sequence
    wanted = [one.sequence for one in heard if one.subject == subject]
    for after in (0, *wanted):
        assert [item.sequence for item in await log.scope_history(subject, after=after)] == [
            one for one in wanted if one > after
        ]
        found = await log.first_match(subject, after)
        assert (found.sequence if found else None) == next((one for one in wanted if one > after), None)


@pytest.mark.parametrize("filters", [[], ["event.>"], ["event.b", "space.>"]])
async def test_who_follows_goes_over_without_a_gap_or_a_double(
    log: EventLog, nats_url: str, filters: list[str]
) -> None:
    await grown(log, rolls=1)
    full = [f"{log.subjects.space}.{one}" for one in filters]
    followed: list[int] = []
    held: list[int] = []
    async with connected(nats_url) as connection:
        other = EventLog(connection, log.subjects.space, source="follower")

        async def follow(after: int) -> None:
            async with aclosing(other.batches(after=after, filters=full)) as batches:
                async for batch in batches:
                    held.extend(one.sequence for one in batch)

        def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
            followed.append(sequence)

        task = asyncio.create_task(follow(0))
        async with other.feed(receive, filters=full):
            await grown(log, rolls=2)
            wanted = [item.sequence async for item in log.read(filters=full)]
            await eventually(lambda: len(followed) >= len(wanted) and len(held) >= len(wanted))
        task.cancel()
        await asyncio.wait([task])
    assert followed == held == wanted


async def test_a_reader_that_is_full_is_waited_for_in_what_has_ended_too(log: EventLog) -> None:
    last = await grown(log, rolls=2)
    followed: list[int] = []
    at: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    def held() -> bool:
        at.append(len(followed))
        return len(at) == 1

    async with log.feed(receive, held=held) as feed:
        await eventually(lambda: at)
        assert 0 < at[0] < last
        feed.resume()
        await eventually(lambda: len(followed) == last)
    assert followed == list(range(1, last + 1))


async def test_who_stands_at_the_marker_while_the_next_stream_is_made_goes_on_there(log: EventLog) -> None:
    await write(log, 3)
    followed: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    async with asyncio.TaskGroup() as group:
        frozen, go_on = asyncio.Event(), asyncio.Event()
        group.create_task(roll(log, frozen, go_on))
        await frozen.wait()
        async with log.feed(receive, after=4):
            go_on.set()
            last = await write(log, 2)
            await eventually(lambda: followed[-1:] == [last])
    assert followed == [5, 6]


async def test_a_marker_that_nobody_has_rolled_at_is_an_event_like_others(log: EventLog, heard: list[Heard]) -> None:
    await write(log, 2)
    await log.append(marker_of(log.subjects), SpaceRolled(generation=2, stream="x", into="y"))
    await write(log, 2)
    followed: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    async with log.feed(receive, filters=[f"{log.subjects.space}.event.>"]):
        await log.append(marker_of(log.subjects), SpaceRolled(generation=2, stream="x", into="y"))
        await write(log, 1)
        last = await grown(log, rolls=1)
        await eventually(lambda: followed[-1:] == [last])
    await eventually(lambda: len(heard) == last)
    assert followed == [one.sequence for one in heard if ".event." in one.subject]


async def test_what_ended_in_an_earlier_generation_is_still_taken(log: EventLog) -> None:
    subjects = log.subjects
    started = RunStarted(saga="s", version="1", input=None)
    await log.append(subjects.run("r", "started"), started, scope=subjects.everything_of("r"), expected=0)
    await roll(log)
    with pytest.raises(ConcurrencyConflictError):
        await log.append(subjects.run("r", "started"), started, scope=subjects.everything_of("r"), expected=0)
    with pytest.raises(ConcurrencyConflictError):
        await log.append_all([(subjects.run("r", "started"), started)], scope=subjects.everything_of("r"), expected=0)
    await log.append(subjects.run("r2", "started"), started, scope=subjects.everything_of("r2"), expected=0)


async def test_a_log_that_was_not_open_at_the_roll_finds_the_current_stream(log: EventLog, nats_url: str) -> None:
    last = await grown(log, rolls=2)
    async with connected(nats_url) as connection:
        other = EventLog(connection, log.subjects.space, source="later")
        facts = await other.ensure()
        assert (facts.name, facts.generation, facts.last_sequence) == (f"{log.subjects.stream}@3", 3, last)
        assert (facts.first_sequence, facts.messages, facts.rolling) == (1, last, False)


async def test_a_generation_without_its_stream_is_opened_by_who_can_else_it_is_named(
    log: EventLog, nats_url: str, connection: Connection
) -> None:
    last = await grown(log, rolls=2)
    first = [item.sequence async for item in log.read()]
    opener = await moved_away(log)
    async with connected(nats_url) as later:
        other = EventLog(later, log.subjects.space, source="later")
        assert (await other.ensure()).last_sequence == last
        with pytest.raises(ConfigurationError, match=r"generation 1 of space .* is not on the server any more"):
            await other.at(1)
        use_past_opener(later, opener)
        assert [item.sequence async for item in other.read()] == first


async def moved_away(log: EventLog) -> PastOpener:
    """Take the stream of the first generation away, to where only the opener finds it."""
    connection, stream = log.connection, log.subjects.stream
    config = (await js_request(connection, f"STREAM.INFO.{stream}", {}))["config"]
    kept = "KEPT_" + stream
    del config["subjects"], config["republish"]
    config |= {"name": kept, "mirror": {"name": stream}, "sealed": False, "allow_atomic": False}
    await js_request(connection, f"STREAM.CREATE.{kept}", config)

    async def copied() -> bool:
        info = await js_request(connection, f"STREAM.INFO.{kept}", {})
        return bool(info["state"]["messages"] >= log.chain.earlier[0].last)

    await eventually(copied)
    await js_request(connection, f"STREAM.DELETE.{stream}", {})

    async def opener(connection: Connection, space: str, about: Generation) -> Past:
        assert space == log.subjects.space
        return StreamPast(connection, Generation(generation=1, stream=kept, first=about.first, last=about.last))

    return opener


@pytest.mark.parametrize("filtered", [True, False], ids=["of one topic", "of what is young"])
async def test_a_mirror_that_answers_for_the_log_is_not_listened_to(log: EventLog, filtered: bool) -> None:
    await write(log, 6)
    connection, stream, topics = log.connection, log.subjects.stream, [log.subjects.event(one) for one in "ab"]
    some = {"filter_subject": topics[1]} if filtered else {"opt_start_seq": 4}
    config = {"name": f"{stream}-half", "mirror": {"name": stream, **some}}
    info = await js_request(connection, f"STREAM.CREATE.{stream}-half", config)
    assert info["config"]["mirror_direct"], "the server has it so, whatever it is asked for"

    async def it_answers() -> bool:
        answer = await connection.request(f"$JS.API.DIRECT.GET.{stream}", b'{"seq": 1}', timeout=10)
        return (answer.headers or {}).get("Status") == "404"  # which only the log has

    await eventually(it_answers)
    for _ in range(40):
        assert [item.sequence for item in await log.scope_history(log.subjects.all)] == [1, 2, 3, 4, 5, 6]
        assert [item.sequence for item in await log.scope_history(topics[0])] == [1, 4]
        assert [item.sequence for item in await log.scope_history(topics[1], after=2)] == [5]
        assert await log.scope_history(log.subjects.event("none")) == []


async def test_a_generation_that_was_read_while_it_was_dropped_is_read_on(log: EventLog, nats_url: str) -> None:
    await grown(log, rolls=1)
    subject = log.subjects.event("a")
    async with connected(nats_url) as far:
        reader = EventLog(far, log.subjects.space, source="reader")
        assert await reader.first_sequence(subject) == 1
        await in_segments(log)
        reader.chain.suspect()
        assert await reader.first_sequence(subject) == 1  # the stream is still there
        use_past_opener(far, await moved_away(log))
        assert await reader.first_sequence(subject) == 1


async def in_segments(log: EventLog) -> None:
    """Say that the first generation is in segments, as who drops its stream does before."""
    info = await log.chain.look()
    earlier = [replace(one, segments="there", digest="0" * 64) for one in log.chain.earlier]
    metadata = {**info["config"]["metadata"], BEFORE: pack_generations(earlier)}
    config = {**info["config"], "metadata": metadata}
    await js_request(log.connection, f"STREAM.UPDATE.{config['name']}", config)


async def test_who_looks_while_many_look_takes_what_one_of_them_finds(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def counted(connection: Connection, subject: str, *args: Any, **options: Any) -> Any:
        asked.append(subject)
        return await js_request(connection, subject, *args, **options)

    monkeypatch.setattr(generations, "js_request", counted)
    found = await asyncio.gather(*(log.chain.look() for _ in range(50)))
    assert {one["config"]["name"] for one in found} == {log.subjects.stream}
    assert len(asked) == 2  # the first had begun when the others came, who want to know what is true since


@pytest.mark.parametrize("rolls", [1, 2])
async def test_who_was_cut_off_since_before_a_roll_goes_on_though_the_stream_is_gone(
    log: EventLog, nats_url: str, rolls: int
) -> None:
    await write(log, 5)
    followed: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    async with proxy(nats_url) as between, connected(between.url) as far:
        far_log = EventLog(far, log.subjects.space, source="far")
        async with far_log.feed(receive) as feed:
            await eventually(lambda: len(followed) == 5)
            between.flows.clear()
            between.cut()
            await write(log, 3)
            last = await grown(log, rolls=rolls)
            use_past_opener(far, await moved_away(log))
            between.flows.set()
            await eventually(lambda: followed[-1:] == [last] or feed.failure.done(), within_s=60)
            last = await write(log, 2)
            await eventually(lambda: followed[-1:] == [last] or feed.failure.done())
            assert not feed.failure.done() or feed.failure.exception() is None
    assert followed == list(range(1, last + 1))


async def test_who_comes_back_to_another_history_in_place_of_a_stream_that_is_gone_is_stopped(
    log: EventLog, nats_url: str
) -> None:
    await write(log, 5)
    followed: list[int] = []

    def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        followed.append(sequence)

    async with proxy(nats_url) as between, connected(between.url) as far:
        far_log = EventLog(far, log.subjects.space, source="far")
        async with far_log.feed(receive) as feed:
            await eventually(lambda: len(followed) == 5)
            between.flows.clear()
            between.cut()
            await grown(log, rolls=1)
            opener = await moved_away(log)

            async def forged(connection: Connection, space: str, about: Generation) -> Past:
                past = await opener(connection, space, about)
                there = past.at

                async def at(sequence: int) -> StoredMessage | None:
                    found = await there(sequence)
                    return found and found._replace(recorded_at=found.recorded_at + 1)

                past.at = at  # type: ignore[method-assign]
                return past

            use_past_opener(far, forged)
            between.flows.set()
            await asyncio.wait([feed.failure], timeout=60)
            assert isinstance(feed.failure.exception(), HistoryRegressedError)


async def test_a_roll_while_a_long_past_is_read_leaves_nothing_out(log: EventLog) -> None:
    last = await grown(log, rolls=2)
    read: list[int] = []
    async with aclosing(log.batches(until=last)) as batches:
        async for batch in batches:
            if not read:
                await roll(log)
                await log.chain.look()
            read += [message.sequence for message in batch]
    assert read == list(range(1, last + 1))
    scope = f"{log.subjects.space}.event.>"
    past_after, rolled = log.chain.past_after, 0

    async def rolling(after: int) -> Past | None:
        nonlocal rolled
        found = await past_after(after)
        if found is not None and found.generation == 3 and not rolled:
            rolled = 1
            await write(log, 1)
            await roll(log)
        return found

    log.chain.past_after = rolling  # type: ignore[method-assign]
    found = [item.sequence for item in await log.scope_history(scope)]
    assert found == [item.sequence async for item in log.read(filters=[scope])]


async def test_a_space_is_never_made_anew_while_another_generation_is_there(log: EventLog, nats_url: str) -> None:
    await roll(log)
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    frozen, go_on = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group, connected(nats_url) as later:
        group.create_task(roll(log, frozen, go_on))
        await frozen.wait()
        facts = await EventLog(later, log.subjects.space, source="later").ensure()
        assert (facts.name, facts.rolling) == (f"{log.subjects.stream}@2", True)
        go_on.set()
    with pytest.raises(StreamMissingError):
        await chain_of(log.connection, type(log.subjects)("x" + log.subjects.space)).look()


async def test_a_stream_that_is_being_rolled_is_whole_and_one_with_wrong_subjects_is_not(log: EventLog) -> None:
    info = await log.chain.look()
    config = {**info["config"], "subjects": ["else.where"], "metadata": {NEXT: "Y"}}
    await js_request(log.connection, f"STREAM.UPDATE.{log.subjects.stream}", config)
    with pytest.raises(ConfigurationError, match="subjects is"):
        await verify_stream(log.connection, log.subjects)
