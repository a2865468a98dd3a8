"""Many runs that wait for events of one topic: each event finds its run, and the past is read once for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.actors import Run, saga
from cuebook.actors.orchestrator import matching
from cuebook.actors.orchestrator.lookback import LookBack
from cuebook.actors.orchestrator.matching import MatchIndex, matches
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.errors import UnavailableError
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog, Unreadable
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.actors.theatre import Theatre

NAMES = st.sampled_from("abc")
VALUES = st.sampled_from([0, 1, 1.0, True, False, None, "1", "x", "", [1], {"a": 1}, 2**63, float(2**63)])
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)


@given(st.lists(st.tuples(st.integers(0, 9), OBJECTS | st.none()), max_size=30), OBJECTS | VALUES)
def test_an_index_finds_whoever_matches_and_nobody_else(changes: list[tuple[int, Any]], data: Any) -> None:
    index: MatchIndex[int] = MatchIndex()
    plain: dict[int, Any] = {}
    for who, wanted in changes:
        if wanted is None:
            index.discard(who)
            plain.pop(who, None)
        else:
            index.add(who, wanted)
            plain[who] = wanted
    assert sorted(index.waiting_for(data)) == sorted(who for who in plain if matches(plain[who], data))
    assert (set(index), len(index)) == (set(plain), len(plain))
    for who in plain:
        index.discard(who)
    assert (index._fields, index._filed, index._others) == ({}, {}, set())


@saga()
async def paid_soon(run: Run, number: Number) -> Number:
    return await run.wait_for("paid", Number, match={"kind": "in full", "n": number.n})


def test_an_event_is_compared_with_those_who_wait_for_its_value_only(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Theatre([paid_soon], [], {})
    director = play.hire()
    for n in range(300):
        play.request("paid_soon", f"r{n}", {"n": n})
    director.settle()
    compared = []

    def counted(wanted: Any, data: Any) -> bool:
        compared.append(wanted)
        return matches(wanted, data)

    monkeypatch.setattr(matching, "matches", counted)
    play.publish("paid", {"n": 7, "kind": "in full"})
    director.settle()
    assert play.book.run("r7").status == "completed"
    assert len(compared) <= 2, "r0 may stand under the kind that all share"
    play.publish("paid", {"n": 8, "kind": "in part"})
    director.settle()
    assert play.book.run("r8").status == "running"


# --- what came before it was waited for ---


class CountedLog(EventLog):
    """Counts its readings; the first `broken` of them end after their first event."""

    broken = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.readings: list[tuple[int, int | None]] = []

    async def read(
        self, *, after: int = 0, until: int | None = None, filters: Sequence[str] = ()
    ) -> AsyncGenerator[Envelope | Unreadable]:
        self.readings.append((after, until))
        async with aclosing(super().read(after=after, until=until, filters=filters)) as items:
            async for item in items:
                yield item
                if len(self.readings) <= self.broken:
                    raise UnavailableError("the server is gone")


@pytest.fixture
async def log(nats_url: str, space: str) -> AsyncIterator[CountedLog]:
    connection = await connect(nats_url, name="tests")
    async with CountedLog(connection, space, source="tests") as log:
        await log.ensure()
        for n in range(1, 9):
            subject = log.subjects.event("paid" if n % 2 else "lost")
            await log.append(subject, OutsideEvent(data={"n": n % 4, "at": n}), event_type="x")
        yield log
    await connection.close()


async def look_back(log: CountedLog, *searches: tuple[str, dict[str, Any], int, int]) -> list[int | None]:
    """The sequences found, in the order of the searches."""
    found: list[int | None] = [None] * len(searches)
    errands: list[asyncio.Task[None]] = []

    def errand(attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def persist() -> None:
            while True:
                try:
                    return await attempt()
                except UnavailableError:
                    continue

        errands.append(asyncio.create_task(persist()))

    searcher = LookBack(log, errand)
    for number, (topic, match, after, until) in enumerate(searches):

        def answer(sequence: int, data: Any, number: int = number) -> None:
            assert data["at"] == sequence
            assert found[number] is None, "one answer is enough"
            found[number] = sequence

        searcher.find(topic, match, after, until, answer)
    await asyncio.gather(*errands)
    assert (searcher._latest, searcher._turns) == ({}, {})
    return found


SEARCHES: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    ("paid", {"n": 1}, 0, 8),
    ("paid", {"n": 1}, 1, 8),
    ("paid", {"n": 1}, 1, 4),
    ("paid", {"n": 3}, 2, 3),
    ("paid", {}, 3, 8),
    ("paid", {"n": 2}, 0, 8),
    ("lost", {"n": 0}, 0, 8),
)
FOUND = [1, 5, None, 3, 5, None, 4]


async def test_searches_made_together_read_their_topic_once(log: CountedLog) -> None:
    assert await look_back(log, *SEARCHES) == FOUND
    assert log.readings == [(0, 8), (0, 8)]


async def test_a_search_alone_finds_what_it_finds_with_others(log: CountedLog) -> None:
    assert [(await look_back(log, search))[0] for search in SEARCHES] == FOUND


async def test_who_asks_while_a_topic_is_being_read_gets_what_was_read_before(log: CountedLog) -> None:
    found: list[int] = []
    errands: list[asyncio.Task[None]] = []
    searcher = LookBack(log, lambda attempt: errands.append(asyncio.ensure_future(attempt())))

    def ask_again(sequence: int, data: Any) -> None:
        found.append(sequence)
        searcher.find("paid", {"n": 1}, 0, 8, lambda sequence, data: found.append(sequence))

    searcher.find("paid", {"n": 3}, 0, 8, ask_again)
    while not all(one.done() for one in errands):
        await asyncio.gather(*errands)
    assert found == [3, 1]


async def test_an_answer_that_is_not_taken_costs_the_others_nothing(
    log: CountedLog, expected_errors: list[str]
) -> None:
    expected_errors.append("an event found for a wait was not taken")
    found: list[int] = []
    errands: list[asyncio.Task[None]] = []
    searcher = LookBack(log, lambda attempt: errands.append(asyncio.ensure_future(attempt())))

    def fail(sequence: int, data: Any) -> None:
        raise RuntimeError("a mistake of ours")

    searcher.find("paid", {"n": 1}, 0, 8, fail)
    searcher.find("paid", {"n": 3}, 0, 8, lambda sequence, data: found.append(sequence))
    await asyncio.gather(*errands)
    assert found == [3]


async def test_a_reading_that_breaks_off_is_repeated_for_those_without_an_answer(log: CountedLog) -> None:
    log.broken = 2
    assert await look_back(log, *SEARCHES[:5]) == FOUND[:5]
    assert log.readings == [(0, 8), (1, 8), (1, 8)]


async def test_after_a_restart_a_topic_is_read_once_for_all_who_wait(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Desk(nats_url, space, sagas=[paid_soon]) as desk:
        for n in range(40):
            await desk.client.submit_run("paid_soon", {"n": n}, run_id=f"r{n}")
        await desk.saw("r39", "waiting")
        await desk.stage.stop()
        for n in range(20):
            await desk.client.publish("paid", {"n": n, "kind": "in full"})
        readings = []
        read = EventLog.read

        def counted(log: EventLog, **named: Any) -> Any:
            if log.source == "orchestrator":
                readings.append(named)
            return read(log, **named)

        monkeypatch.setattr(EventLog, "read", counted)
        await desk.direct()
        for n in range(20):
            assert (await desk.client.wait(f"r{n}", timeout_s=20)).result["n"] == n
        assert len(readings) == 1
        await desk.client.publish("paid", {"n": 30, "kind": "in full"})
        assert (await desk.client.wait("r30", timeout_s=20)).result["n"] == 30
