"""Several events at once: all of them in one row, or none."""

from __future__ import annotations

from typing import Any

import nats.errors
import pytest

from cuebook.events import batch
from cuebook.events.batch import Member, append_batch
from cuebook.events.codec import encode
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, PoisonMessageError, UnavailableError
from cuebook.events.facts import Event, RunCancelRequested, RunCompleted
from cuebook.events.log import EventLog


def events(log: EventLog, count: int, run_id: str = "r1") -> list[tuple[str, Event]]:
    return [(log.subjects.run(run_id, "cancel_requested"), RunCancelRequested(reason=str(n))) for n in range(count)]


def members(log: EventLog, count: int) -> list[Member]:
    return [
        Member(subject, encode(event, event_id=f"e{n}", source="tests"), f"e{n}")
        for n, (subject, event) in enumerate(events(log, count))
    ]


async def stored(log: EventLog) -> list[str]:
    items = [item async for item in log.read()]
    return [item.event.reason for item in items if isinstance(item, Envelope) and hasattr(item.event, "reason")]


@pytest.mark.parametrize("count", [1, 2, 1_000, 2_300])
async def test_all_are_stored_one_after_another(log: EventLog, count: int) -> None:
    scope = log.subjects.everything_of("r1")
    assert await log.append_all(events(log, count), scope=scope, expected=0) == count
    assert await stored(log) == [str(n) for n in range(count)]
    assert await log.append_all(events(log, 2), scope=scope, expected=count) == count + 2


async def test_none_is_stored_when_somebody_else_was_first(log: EventLog) -> None:
    scope = log.subjects.everything_of("r1")
    await log.append(log.subjects.run("r1", "cancel_requested"), RunCancelRequested(reason="first"))
    with pytest.raises(ConcurrencyConflictError, match="has events after sequence 0"):
        await log.append_all(events(log, 5), scope=scope, expected=0)
    assert await stored(log) == ["first"]


async def test_none_is_sent_when_one_cannot_be_encoded(log: EventLog) -> None:
    large = (log.subjects.run("r1", "completed"), RunCompleted(result="x" * 300_000))
    with pytest.raises(PoisonMessageError, match=r"run\.r1\.completed: run\.completed\.v1 takes"):
        await log.append_all([*events(log, 2), large], scope=log.subjects.everything_of("r1"), expected=0)
    assert await stored(log) == []


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_batch_whose_answer_was_lost_is_stored_once(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    real, asked = type(log.connection).request, []

    async def forgetful(self: Any, subject: str, *args: Any, **options: Any) -> Any:
        answer = await real(self, subject, *args, **options)
        if subject.startswith("$JS"):
            return answer
        asked.append(subject)
        if len(asked) <= lost:
            raise TimeoutError
        return answer

    monkeypatch.setattr(type(log.connection), "request", forgetful)
    scope = log.subjects.everything_of("r1")
    last = await append_batch(log.connection, members(log, 5), scope=scope, expected=0, first_after=log.first_after)
    assert (last, len(asked)) == (5, 1)
    assert await stored(log) == [str(n) for n in range(5)]


async def test_a_batch_that_never_arrived_is_sent_again(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    real, sent = type(log.connection).publish, []

    async def lossy(self: Any, subject: str, *args: Any, **options: Any) -> Any:
        sent.append(subject)
        if len(sent) != 2:  # the second member of the first attempt is lost on the way
            await real(self, subject, *args, **options)

    monkeypatch.setattr(type(log.connection), "publish", lossy)
    last = await append_batch(
        log.connection,
        members(log, 4),
        scope=log.subjects.everything_of("r1"),
        expected=0,
        first_after=log.first_after,
    )
    assert last == 4
    assert await stored(log) == [str(n) for n in range(4)]


async def test_a_batch_that_nobody_was_there_for_and_then_conflicts_is_refused_at_once(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    real, attempts = type(log.connection).request, []

    async def paused(self: Any, subject: str, *args: Any, **options: Any) -> Any:
        if not subject.startswith("$JS"):
            attempts.append(subject)
            if len(attempts) < 3:
                raise nats.errors.NoRespondersError
        return await real(self, subject, *args, **options)

    async def never(scope: str, after: int) -> None:
        raise AssertionError("what nobody was there for is not looked for")

    monkeypatch.setattr(type(log.connection), "request", paused)
    scope = log.subjects.everything_of("r1")
    with pytest.raises(ConcurrencyConflictError):
        await append_batch(log.connection, members(log, 2), scope=scope, expected=7, first_after=never)
    assert len(attempts) == 3


async def test_what_the_server_does_not_take_is_refused(log: EventLog) -> None:
    await log.connection.jetstream().add_stream(
        name=f"{log.subjects.stream}-other", subjects=[f"{log.subjects.space}-other.>"]
    )
    other = f"{log.subjects.space}-other"
    strange = [Member(f"{other}.a", b"{}", "e1"), Member(f"{other}.b", b"{}", "e2")]
    with pytest.raises(CommandRejectedError, match="the server refused 2 events"):
        await append_batch(log.connection, strange, scope=f"{other}.>", expected=0, first_after=log.first_after)


@pytest.mark.parametrize(
    ("subject", "headers"),
    [
        ("a b", {}),
        ("\udce9", {}),
        ("a" * 4_000, {}),
        ("b", {"odd name": "x"}),
        ("b", {"note": "\udce9"}),
    ],
    ids=["subject with a space", "subject not UTF-8", "long subject", "header's name", "header's value"],
)
async def test_what_cannot_be_sent_is_refused_by_its_name(log: EventLog, subject: str, headers: dict[str, str]) -> None:
    scope = log.subjects.event("a")
    odd = [Member(scope, b"{}", "e1"), Member(f"{log.subjects.space}.event.{subject}", b"{}", "e2", headers)]
    with pytest.raises(CommandRejectedError, match=r"event 'e2' under '.*' cannot be sent"):
        await append_batch(log.connection, odd, scope=scope, expected=0, first_after=log.first_after)
    assert await append_batch(log.connection, odd[:1], scope=scope, expected=0, first_after=log.first_after) == 1


async def test_without_an_answer_the_outcome_is_unknown(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "GIVE_UP_S", 0.0)
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    connection = await connect(nats_url, name="tests")
    async with connection, EventLog(connection, space, source="tests") as log:  # no stream takes it

        async def nothing(scope: str, after: int) -> None:
            return None

        with pytest.raises(UnavailableError, match="not acknowledged"):
            await append_batch(
                connection, members(log, 2), scope=log.subjects.everything_of("r1"), expected=0, first_after=nothing
            )
