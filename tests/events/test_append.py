from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuebook.embedded.nats_server import NatsServer
from cuebook.events import append as append_module
from cuebook.events import generations
from cuebook.events.append import Appender
from cuebook.events.codec import MAX_BYTES, encode
from cuebook.events.connection import Connection, connect
from cuebook.events.envelope import Envelope
from cuebook.events.errors import (
    CommandRejectedError,
    ConcurrencyConflictError,
    CuebookError,
    InvalidTokenError,
    PoisonMessageError,
    UnavailableError,
)
from cuebook.events.facts import OutsideEvent, TaskCompleted
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.events.proxy import Proxy, proxy
from tests.events.rolls import roll
from tests.events.server import plain_server
from tests.waiting import eventually


class Outcomes:
    """Counts how often each append has ended, and how."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.sequences: dict[int, int] = {}
        self.errors: dict[int, CuebookError] = {}

    def done(self, key: int) -> Callable[[int, CuebookError | None], None]:
        def done(sequence: int, error: CuebookError | None) -> None:
            self.calls[key] += 1
            if error is None:
                self.sequences[key] = sequence
            else:
                self.errors[key] = error

        return done


def task(log: EventLog, key: int) -> tuple[str, str]:
    """Subject and scope of some task."""
    return log.subjects.task(f"r{key}", 0, "completed"), log.subjects.task_scope(f"r{key}", 0)


def post(log: EventLog, outcomes: Outcomes, key: int, *, expected: int | None = 0) -> str:
    subject, scope = task(log, key)
    return log.post(subject, TaskCompleted(output=key), scope=scope, expected=expected, done=outcomes.done(key))


async def stored(log: EventLog) -> dict[int, Envelope]:
    """Every event by its sequence; fails for anything else."""
    found: dict[int, Envelope] = {}
    async for item in log.read():
        assert isinstance(item, Envelope)
        found[item.sequence] = item
    return found


async def all_ended(outcomes: Outcomes, count: int, within_s: float = 30.0) -> None:
    await eventually(lambda: len(outcomes.calls) == count, within_s=within_s)
    assert set(outcomes.calls.values()) == {1}


# --- the guard -------------------------------------------------------------------------------------------------------


async def test_an_append_gives_the_sequence_it_is_stored_at(log: EventLog) -> None:
    topic = log.subjects.event("a")
    assert [await log.append(topic, OutsideEvent(data=n)) for n in range(3)] == [1, 2, 3]
    assert {n: item.data for n, item in (await stored(log)).items()} == {1: 0, 2: 1, 3: 2}


async def test_an_append_that_expects_what_is_not_there_conflicts(log: EventLog) -> None:
    subject, scope = task(log, 1)
    first = await log.append(subject, TaskCompleted(), scope=scope, expected=0)
    with pytest.raises(ConcurrencyConflictError) as caught:
        await log.append(subject, TaskCompleted(), scope=scope, expected=0)
    assert (caught.value.scope, caught.value.expected_sequence) == (scope, 0)
    assert await log.append(subject, TaskCompleted(), scope=scope, expected=first) == first + 1
    for nowhere in (first, 99):
        with pytest.raises(ConcurrencyConflictError):
            await log.append(task(log, 2)[0], TaskCompleted(), scope=task(log, 2)[1], expected=nowhere)
    assert log.appender.resent == 0


async def test_what_follows_on_something_that_was_not_carried_over_by_a_roll_conflicts(log: EventLog) -> None:
    subject, scope = task(log, 1)
    first = await log.append(subject, TaskCompleted(), scope=scope, expected=0)
    await roll(log)
    with pytest.raises(ConcurrencyConflictError):
        await log.append(subject, TaskCompleted(), scope=scope, expected=first)
    assert log.appender.resent == 0


async def test_of_many_writers_one_wins(log: EventLog) -> None:
    outcomes = Outcomes()
    subject, scope = task(log, 1)
    for key in range(50):
        log.post(subject, TaskCompleted(output=key), scope=scope, expected=0, done=outcomes.done(key))
    await log.appender.flushed()
    assert len(outcomes.sequences) == 1
    assert {type(error) for error in outcomes.errors.values()} == {ConcurrencyConflictError}
    assert len(outcomes.errors) == 49


async def test_the_guard_is_the_whole_scope_and_nothing_else(log: EventLog) -> None:
    await log.append(
        log.subjects.task("r", 0, "requested", "a"), TaskCompleted(), scope=log.subjects.task_scope("r", 0), expected=0
    )
    with pytest.raises(ConcurrencyConflictError):
        await log.append(
            log.subjects.task("r", 0, "completed"), TaskCompleted(), scope=log.subjects.task_scope("r", 0), expected=0
        )
    await log.append(
        log.subjects.task("r", 1, "completed"), TaskCompleted(), scope=log.subjects.task_scope("r", 1), expected=0
    )


async def test_the_same_event_id_is_stored_once_without_a_guard(log: EventLog) -> None:
    topic = log.subjects.event("a")
    assert await log.append(topic, OutsideEvent(), event_id="order-1") == 1
    assert await log.append(topic, OutsideEvent(), event_id="order-1") == 1
    assert len(await stored(log)) == 1


# --- many at once ----------------------------------------------------------------------------------------------------


async def test_more_than_the_window_are_all_stored_in_order(log: EventLog) -> None:
    count = append_module.WINDOW * 2 + 500
    outcomes = Outcomes()
    for key in range(count):
        post(log, outcomes, key)
    assert log.appender.under_way == count
    await log.appender.flushed()
    assert log.appender.under_way == 0
    assert outcomes.errors == {}
    assert [outcomes.sequences[key] for key in range(count)] == list(range(1, count + 1))


async def test_a_window_of_one_still_lets_all_through(connection: Connection, log: EventLog) -> None:
    outcomes = Outcomes()
    async with Appender(connection, first_after=log.first_after, window=1) as appender:
        for key in range(50):
            body = encode(OutsideEvent(), event_id=f"e{key}", source="tests")
            appender.post(log.subjects.event("a"), body, event_id=f"e{key}", done=outcomes.done(key))
        await appender.flushed()
    assert len(outcomes.sequences) == 50


async def test_large_appends_are_held_back_by_their_bytes(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_module, "WINDOW_BYTES", 1024 * 1024)
    outcomes = Outcomes()
    for key in range(40):
        log.post(log.subjects.event("a"), OutsideEvent(data="x" * 200_000), done=outcomes.done(key))
    assert len(log.appender._pending) < 10
    await log.appender.flushed()
    assert len(outcomes.sequences) == 40


async def test_a_callback_may_append_again(log: EventLog) -> None:
    outcomes = Outcomes()

    def again(sequence: int, error: CuebookError | None) -> None:
        if sequence < 100:
            log.post(log.subjects.event("a"), OutsideEvent(), done=again)
        else:
            outcomes.done(0)(sequence, error)

    again(0, None)
    await all_ended(outcomes, 1)
    assert outcomes.sequences == {0: 100}


async def test_a_callback_that_raises_is_logged_and_harms_nobody(
    log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes()

    def bad(sequence: int, error: CuebookError | None) -> None:
        raise ValueError("as foreseen")

    for key in range(3):
        log.post(log.subjects.event("a"), OutsideEvent(), done=bad)
        post(log, outcomes, key)
    await all_ended(outcomes, 3)
    assert [record.message for record in caplog.records] == ["a callback of an append raised"] * 3


async def test_an_append_whose_caller_has_gone_is_stored_all_the_same(log: EventLog) -> None:
    waiting = asyncio.create_task(log.append(log.subjects.event("a"), OutsideEvent()))
    await asyncio.sleep(0)  # it runs up to where it waits for the answer
    assert log.appender.under_way == 1
    waiting.cancel()
    await log.appender.flushed()
    assert waiting.cancelled()
    assert len(await stored(log)) == 1


# --- what is refused here --------------------------------------------------------------------------------------------


async def test_what_is_too_large_is_refused_before_it_is_sent(log: EventLog) -> None:
    with pytest.raises(PoisonMessageError):
        await log.append(log.subjects.event("a"), OutsideEvent(data="x" * MAX_BYTES))
    with pytest.raises(PoisonMessageError):
        log.post(log.subjects.event("a"), OutsideEvent(data=b"bytes"), done=Outcomes().done(0))
    assert log.appender.under_way == 0
    assert await log.append(log.subjects.event("a"), OutsideEvent()) == 1


async def test_what_the_servers_own_limit_forbids_is_refused_here_and_the_connection_lives(tmp_path: Path) -> None:
    settings = f'max_payload: 64KB\njetstream {{ store_dir: "{tmp_path}/js" }}'
    async with plain_server(tmp_path, settings) as url:
        connection = await connect(url, name="tests")
        async with EventLog(connection, "cue", source="tests") as log:
            await log.ensure()
            with pytest.raises(PoisonMessageError, match="max_payload"):
                await log.append(log.subjects.event("a"), OutsideEvent(data="x" * 65_536))
            assert await log.append(log.subjects.event("a"), OutsideEvent(data="x" * 60_000)) == 1
        await connection.close()


SMUGGLED = ["", "a b", "a\n", "a\x00", "é", "a\r\nNats-Rollup: all", "a\r\nPUB b 0\r\n\r\n", "x" * 600]


@pytest.mark.parametrize("text", [*SMUGGLED, "A", "a.*", "a.>"])
async def test_nothing_is_smuggled_into_a_frame_by_its_subject(log: EventLog, text: str) -> None:
    with pytest.raises(InvalidTokenError):
        log.post(text, OutsideEvent(), done=Outcomes().done(0))


@pytest.mark.parametrize("text", [*SMUGGLED, "A"])
async def test_nothing_is_smuggled_into_a_header_by_its_scope(log: EventLog, text: str) -> None:
    with pytest.raises(InvalidTokenError):
        log.post(log.subjects.event("a"), OutsideEvent(), scope=text, expected=0, done=Outcomes().done(0))


@pytest.mark.parametrize("text", SMUGGLED)
async def test_nothing_is_smuggled_into_a_header_by_its_event_id(log: EventLog, text: str) -> None:
    with pytest.raises(InvalidTokenError):
        log.appender.post(log.subjects.event("a"), b"{}", event_id=text, done=Outcomes().done(0))


async def test_what_the_server_can_never_take_is_a_rejected_command(log: EventLog) -> None:
    body = b"x" * (MAX_BYTES + 8 * 1024)
    with pytest.raises(CommandRejectedError, match="10054"):
        await log.appender.append(log.subjects.event("a"), body, event_id="a")


# --- outcomes that are not known at once -----------------------------------------------------------------------------


async def test_without_a_stream_the_append_is_tried_until_it_is_given_up(connection: Connection, space: str) -> None:
    log = EventLog(connection, space, source="tests")
    async with Appender(connection, first_after=log.first_after, give_up_s=3.0) as appender:
        with pytest.raises(UnavailableError, match="no stream listens"):
            await appender.append(log.subjects.event("a"), b"{}", event_id="a")


async def test_an_append_succeeds_when_its_stream_comes_in_time(connection: Connection, space: str) -> None:
    async with EventLog(connection, space, source="tests") as log:
        waiting = asyncio.create_task(log.append(log.subjects.event("a"), OutsideEvent()))
        await eventually(lambda: any(entry.refusal for entry in log.appender._pending.values()))
        await log.ensure()
        assert await waiting == 1


async def test_a_full_disk_is_waited_for_and_said(tmp_path: Path) -> None:
    settings = f'jetstream {{ store_dir: "{tmp_path}/js", max_file: 1MB }}'
    async with plain_server(tmp_path, settings) as url:
        connection = await connect(url, name="tests")
        async with EventLog(connection, "cue", source="tests") as log:
            await log.ensure()
            async with Appender(connection, first_after=log.first_after, give_up_s=3.0) as appender:

                async def fill() -> None:
                    for number in range(20):
                        body = encode(OutsideEvent(data="x" * 100_000), event_id=f"e{number}", source="tests")
                        await appender.append(log.subjects.event("a"), body, event_id=f"e{number}")

                with pytest.raises(UnavailableError, match="resource"):
                    await fill()
        await connection.close()


async def test_a_swallowed_answer_is_asked_for_again_and_stored_once(
    line: Proxy, far_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "RESEND_AFTER_S", 0.2)
    for expected in (0, None):  # settled by reading back; by the server's duplicate window
        line.swallow, before = (lambda block: b'"seq":' in block and not line.swallowed), line.swallowed
        line.swallowed = 0
        subject, scope = task(far_log, 1 if expected is None else 2)
        sequence = await far_log.append(subject, TaskCompleted(), scope=scope, expected=expected)
        assert line.swallowed == 1, before
        history = await far_log.scope_history(scope)
        assert [item.sequence for item in history] == [sequence]


async def test_a_conflict_after_a_repetition_is_a_conflict_when_another_won(
    server: NatsServer, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "RESEND_AFTER_S", 0.2)
    async with proxy(server.url) as line:
        slow, quick = await connect(line.url, name="slow"), await connect(server.url, name="quick")
        async with EventLog(slow, space, source="slow") as ours, EventLog(quick, space, source="quick") as theirs:
            await ours.ensure()
            subject, scope = task(ours, 1)
            await theirs.append(subject, TaskCompleted(by="them"), scope=scope, expected=0)
            line.swallow = lambda block: b"10071" in block and not line.swallowed
            with pytest.raises(ConcurrencyConflictError):
                await ours.append(subject, TaskCompleted(by="us"), scope=scope, expected=0)
            assert line.swallowed == 1
        await slow.close()
        await quick.close()


async def test_an_append_outside_its_own_guard_is_stored_once_whatever_is_lost(
    line: Proxy, far_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "RESEND_AFTER_S", 0.2)
    guard, elsewhere = far_log.subjects.task_scope("r", 0), far_log.subjects.event("elsewhere")
    line.swallow = lambda block: b'"seq":' in block and not line.swallowed
    assert await far_log.append(elsewhere, OutsideEvent(), scope=guard, expected=0) == 1
    assert line.swallowed == 1
    # The guard moves on before the repetition: the conflict is settled by looking where the event was sent.
    line.swallowed = 0
    waiting = asyncio.create_task(far_log.append(elsewhere, OutsideEvent(data=2), scope=guard, expected=0))
    await eventually(lambda: line.swallowed == 1)
    await far_log.append(task(far_log, 9)[0].replace("r9", "r"), TaskCompleted(), scope=guard, expected=0)
    assert await waiting == 2


async def test_a_broken_line_loses_and_doubles_nothing(line: Proxy, far_log: EventLog) -> None:
    count = 1_000
    outcomes = Outcomes()
    for key in range(count):
        post(far_log, outcomes, key, expected=0 if key % 2 else None)
        if key % 250 == 125:
            await eventually(lambda: bool(outcomes.calls))
            line.cut()
    await all_ended(outcomes, count)
    assert outcomes.errors == {}
    found = await stored(far_log)
    assert sorted(item.data["output"] if item.data else 0 for item in found.values()) == list(range(count))
    assert {key: found[sequence].data.get("output", 0) for key, sequence in outcomes.sequences.items()} == {
        key: key for key in range(count)
    }


async def test_what_was_acknowledged_is_stored_exactly_once_over_kills_of_the_server(
    server: NatsServer, space: str
) -> None:
    connection = await connect(server.url, name="tests")
    async with EventLog(connection, space, source="tests") as log:
        await log.ensure()
        outcomes, posted = Outcomes(), 0

        async def keep_posting() -> None:
            nonlocal posted
            while True:
                while log.appender.under_way < 500:
                    post(log, outcomes, posted, expected=0 if posted % 3 else None)
                    posted += 1
                await asyncio.sleep(0)

        poster = asyncio.create_task(keep_posting())
        for kills in range(1, 4):
            await eventually(lambda: len(outcomes.calls) >= 700 * kills)  # noqa: B023 - asked within the round
            await server.kill()
            await server.restart()
        await eventually(lambda: len(outcomes.calls) >= 3_000)
        poster.cancel()
        await log.appender.flushed()
        assert set(outcomes.calls.values()) == {1}
        assert outcomes.errors == {}
        found = await stored(log)
        by_id = Counter(item.id for item in found.values())
        assert set(by_id.values()) == {1}
        assert len(found) == posted == len(outcomes.sequences)
        assert all(found[sequence].data.get("output", 0) == key for key, sequence in outcomes.sequences.items())
    await connection.close()


async def test_only_what_was_overtaken_is_sent_again_while_answers_keep_coming(
    server: NatsServer, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "RESEND_AFTER_S", 3.0)
    sent, lost = Counter[bytes](), 0
    async with proxy(server.url) as line:

        def swallow(block: bytes) -> bool:
            nonlocal lost
            if lost or b'"seq":' not in block:
                return False
            lost = block.count(b'"seq":')
            return True

        connection = await connect(line.url, name="tests")
        write = connection.write

        def counting(frame: bytes) -> None:
            sent[frame] += 1
            write(frame)

        async with EventLog(connection, space, source="tests") as log:
            await log.ensure()
            monkeypatch.setattr(connection, "write", counting)
            line.swallow = swallow
            outcomes = Outcomes()
            for key in range(300):
                post(log, outcomes, key)
            appending = asyncio.create_task(keep_appending(log))
            await all_ended(outcomes, 300)
            appending.cancel()
        assert outcomes.errors == {}
        assert len({frame for frame, times in sent.items() if times > 1}) == lost > 0
        await connection.close()


async def test_what_was_lost_in_a_silence_is_sent_again_when_the_log_answers(
    line: Proxy, far_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "RESEND_AFTER_S", 1.0)
    line.swallow = lambda block: True
    outcomes = Outcomes()
    for key in range(50):
        post(far_log, outcomes, key)
    await eventually(lambda: all(entry.sent > 2 for entry in far_log.appender._pending.values()))
    for entry in far_log.appender._pending.values():
        entry.due += 3_600  # none is sent again for itself any more
    line.swallow = lambda block: False
    await all_ended(outcomes, 50)
    assert outcomes.errors == {}


async def test_what_is_to_be_the_first_waits_for_a_server_that_is_away_before_it_was_sent(
    server: NatsServer, own_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def impatient(connection: Connection, subject: str, request: dict[str, Any], **options: Any) -> Any:
        asked.append(subject)
        return await js_request(connection, subject, request, 0.2, **options)

    monkeypatch.setattr(generations, "js_request", impatient)
    await server.kill()
    await eventually(lambda: not own_log.connection.is_connected)
    scope = own_log.subjects.everything_of("r")
    own_log.chain.suspect()  # as after a reconnect that did not last
    first = asyncio.create_task(own_log.append(own_log.subjects.event("a"), OutsideEvent(), scope=scope, expected=0))
    await eventually(lambda: len(asked) > 4)
    await server.restart()
    assert await first == 1


async def keep_appending(log: EventLog) -> None:
    while True:
        await log.append(log.subjects.event("other"), OutsideEvent())


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_leaving_ends_every_append_exactly_once(server: NatsServer, space: str) -> None:
    connection = await connect(server.url, name="tests")
    outcomes = Outcomes()
    count = append_module.WINDOW + 100
    async with EventLog(connection, space, source="tests") as log:
        await log.ensure()
        await server.kill()
        await eventually(lambda: not connection.is_connected)
        for key in range(count):
            post(log, outcomes, key)
        flushed = asyncio.create_task(log.appender.flushed())
    assert set(outcomes.calls.values()) == {1}
    assert len(outcomes.calls) == count
    assert {type(error) for error in outcomes.errors.values()} == {UnavailableError}
    assert "unknown" in str(outcomes.errors[0])
    assert "never sent" in str(outcomes.errors[count - 1])
    await flushed
    await connection.close()


async def test_an_append_after_the_end_ends_too(log: EventLog, connection: Connection) -> None:
    outcomes = Outcomes()
    appender = Appender(connection, first_after=log.first_after)
    async with appender:
        pass
    appender.post(log.subjects.event("a"), b"{}", event_id="a", done=outcomes.done(0))
    assert outcomes.calls == {}  # never before `post` returns
    await all_ended(outcomes, 1)
    assert "not sent" in str(outcomes.errors[0])
    with pytest.raises(UnavailableError):
        await appender.append(log.subjects.event("a"), b"{}", event_id="a")


async def test_a_connection_that_is_closed_gives_its_appends_up(server: NatsServer, space: str) -> None:
    connection = await connect(server.url, name="tests")
    log = EventLog(connection, space, source="tests")
    async with Appender(connection, first_after=log.first_after, give_up_s=3.0) as appender:
        await connection.close()
        with pytest.raises(UnavailableError, match="unknown"):
            await appender.append(log.subjects.event("a"), b"{}", event_id="a")


async def test_what_never_gets_its_turn_is_given_up_as_not_sent(server: NatsServer, space: str) -> None:
    connection = await connect(server.url, name="tests")
    outcomes = Outcomes()
    log = EventLog(connection, space, source="tests")
    async with Appender(connection, first_after=log.first_after, window=1, give_up_s=0.5) as appender:
        await server.kill()
        for key in range(3):
            appender.post(log.subjects.event("a"), b"{}", event_id=f"e{key}", done=outcomes.done(key))
        await all_ended(outcomes, 3)
        await appender.flushed()
    await connection.close()
