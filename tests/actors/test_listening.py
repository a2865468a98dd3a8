"""From when a saga's events count: from where the log says, whoever reads it and from which snapshot."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from cuebook.actors import Run, Saga, saga
from cuebook.actors.orchestrator import listening
from cuebook.actors.orchestrator.listening import SnapshotGapError
from cuebook.actors.orchestrator.state import TaskState
from cuebook.actors.orchestrator.world import World
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import MessageRejected, RunStarted, SagaServed
from tests.actors.cast import Number
from tests.actors.theatre import Book, Director, Theatre

TOPIC = "order.placed"


@saga(on=TOPIC)
async def pack(run: Run, number: Number) -> Number:
    return number


@saga(on=TOPIC)
async def bill(run: Run, order: dict[str, Any]) -> dict[str, Any]:
    return order


@saga(on=TOPIC, since="beginning")
async def count(run: Run, number: Number) -> Number:
    return number


@saga()
async def idle(run: Run, number: Number) -> Number:
    return number


@saga(name="pack", on="order.paid")
async def pack_later(run: Run, number: Number) -> Number:
    return number


def theatre(*sagas: Saga[Any, Any]) -> Theatre:
    return Theatre(sagas or [idle], [], {})


def place(play: Theatre, n: Any) -> int:
    return play.publish(TOPIC, {"n": n})


def served(book: Book) -> list[tuple[str, str, int]]:
    """The facts about sagas, in order: saga, topic, and after which sequence its events count."""
    found = [(item.address.agent, item.event) for item in book.all() if isinstance(item.event, SagaServed)]
    return [(name, event.on, event.after) for name, event in found]


def finish(play: Theatre) -> None:
    play.play(until=lambda: play.owes_nothing() and all(one.is_ready for one in play.directors if one.core.active))


def is_ready(director: Director) -> bool:
    return director.is_ready


# --- a saga that is served for the first time ---


@pytest.mark.parametrize("how", ["log", "snapshot", "late snapshot"])
def test_a_new_saga_counts_from_when_it_is_served_with_and_without_a_snapshot(how: str) -> None:
    play = theatre(idle)
    old = play.hire()
    early = old.snapshot() if how == "snapshot" else b""
    before = [place(play, n) for n in range(3)]
    old.settle()
    snapshot = old.snapshot() if how == "late snapshot" else early
    play.fire(old)
    play.hire(snapshot, [idle, pack])
    after = [place(play, n) for n in range(2)]
    finish(play)
    assert play.begun() == after
    assert served(play.book) == [("pack", TOPIC, before[-1])]


@pytest.mark.parametrize("how", ["log", "snapshot"])
def test_a_saga_that_wants_history_counts_from_the_first_event(how: str) -> None:
    play = theatre(idle)
    old = play.hire()
    before = [place(play, n) for n in range(3)]
    old.settle()
    snapshot = old.snapshot()
    play.fire(old)
    play.hire(snapshot if how == "snapshot" else b"", [idle, count])
    after = place(play, 9)
    finish(play)
    assert play.begun() == [*before, after]
    assert served(play.book) == [("count", TOPIC, 0)]


def test_what_is_published_while_the_first_orchestrator_of_a_space_starts_is_not_lost() -> None:
    play = theatre(pack)
    director = play.engage()
    placed = [place(play, 1)]
    director.catch_up()
    placed.append(place(play, 2))
    director.core.activate()
    placed.append(place(play, 3))
    assert not is_ready(director)
    finish(play)
    assert is_ready(director)
    assert play.begun() == placed
    assert served(play.book) == [("pack", TOPIC, 0)]


def test_what_is_published_while_one_starts_that_has_a_new_saga_is_not_lost() -> None:
    play = theatre(idle)
    old = play.hire()
    place(play, 0)
    new = play.engage(sagas=[idle, pack])
    placed = [place(play, 1)]
    new.catch_up()
    old.settle()
    placed.append(place(play, 2))
    play.fire(old)
    new.catch_up()
    new.core.activate()
    placed.append(place(play, 3))
    finish(play)
    assert play.begun() == placed


def test_it_is_ready_when_the_log_says_so_for_all_its_sagas() -> None:
    play = theatre(pack, bill, idle)
    director = play.engage()
    director.catch_up()
    director.core.activate()
    for _ in range(2):
        assert not is_ready(director)
        director.store_one()
        director.read_one()
    assert is_ready(director)
    assert [name for name, *_ in served(play.book)] == ["pack", "bill"]


def test_one_with_nothing_to_say_is_ready_at_once() -> None:
    play = theatre(idle)
    director = play.engage()
    director.core.activate()
    assert is_ready(director)


def test_what_came_while_nobody_ran_counts_once_a_saga_has_been_served() -> None:
    play = theatre(pack)
    director = play.hire()
    snapshots = [b"", director.snapshot()]
    play.fire(director)
    placed = place(play, 1)
    for snapshot in snapshots:
        again = play.hire(snapshot)
        assert (placed, "pack") in again.core.world.triggers
        play.directors.remove(again)
    play.hire()
    finish(play)
    assert play.begun() == [placed]


def test_a_saga_that_moves_to_another_topic_counts_from_then_on() -> None:
    play = theatre(pack)
    old = play.hire()
    first = place(play, 1)
    play.publish("order.paid", {"n": 1})
    finish(play)
    snapshot = old.snapshot()
    play.fire(old)
    play.hire(snapshot, [pack_later])
    paid = play.publish("order.paid", {"n": 2})
    place(play, 2)
    finish(play)
    assert play.begun() == [first, paid]
    assert [topic for _, topic, _ in served(play.book)] == [TOPIC, "order.paid"]


def test_two_that_have_different_topics_for_a_saga_both_get_their_fact() -> None:
    """They race under the saga's scope; the loser tries again."""
    play = theatre(idle)
    one, two = play.engage(sagas=[pack]), play.engage(sagas=[pack_later])
    for director in (one, two):
        director.core.activate()
    finish(play)
    assert one.is_ready
    assert two.is_ready
    assert {topic for _, topic, _ in served(play.book)} == {TOPIC, "order.paid"}


def test_only_the_first_fact_about_a_topic_counts() -> None:
    play = theatre(pack)
    director = play.hire()
    placed = place(play, 1)
    play.book.write(play.book.subjects.saga("pack", "served"), SagaServed(on=TOPIC, after=999))
    finish(play)
    play.fire(director)
    play.hire()
    placed_then = place(play, 2)
    finish(play)
    assert play.begun() == [placed, placed_then]
    assert set(served(play.book)) == {("pack", TOPIC, 0), ("pack", TOPIC, 999)}
    assert play.directors[0].core.world.listening.served == {("pack", TOPIC): 0}


@pytest.mark.parametrize("after", [10**15, -5])
def test_a_fact_can_neither_keep_what_comes_after_it_from_counting_nor_be_too_early(after: int) -> None:
    play = theatre(pack)
    play.book.write(play.book.subjects.saga("pack", "served"), SagaServed(on=TOPIC, after=after))
    play.hire()
    placed = place(play, 1)
    finish(play)
    assert play.begun() == [placed]


def test_what_cannot_be_read_about_a_saga_does_not_keep_its_fact_from_the_log() -> None:
    play = theatre(pack)
    play.book.write("play.saga.pack.served", b"{")
    play.book.write("play.saga.pack.Garbage", b"{}")
    play.hire()
    placed = place(play, 1)
    finish(play)
    assert play.begun() == [placed]
    assert len(play.rejections()) == 2


def test_more_events_than_are_kept_for_a_saga_nobody_serves_are_not_promised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "MOST_CANDIDATES", 5)
    play = theatre(idle)
    new = play.engage(sagas=[pack])
    placed = [place(play, n) for n in range(8)]
    new.catch_up()
    assert len(new.core.world.listening.candidates["pack"].events) == 5
    new.core.activate()
    finish(play)
    assert "its oldest events do not count" in caplog.text
    assert play.begun() == placed[3:]
    assert served(play.book) == [("pack", TOPIC, placed[2])]


def test_a_saga_that_wants_history_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MOST_CANDIDATES", 5)
    play = theatre(count)
    placed = [place(play, n) for n in range(8)]
    play.hire()
    finish(play)
    assert play.begun() == placed


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"since": "yesterday", "on": "x"}, "none of: now, beginning"), ({"since": "beginning"}, "topic")],
)
def test_a_saga_that_counts_from_what_there_is_not_is_refused(options: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        saga(**options)


# --- snapshots ---


def test_a_snapshot_and_the_tail_say_what_the_whole_log_says() -> None:
    play = theatre(pack, bill)
    director = play.engage()
    for n in range(3):
        place(play, n)
    place(play, "x")
    snapshots = [director.snapshot()]
    director.core.activate()
    while director.turns():
        director.turns()[0]()
        snapshots.append(director.snapshot())
    assert director.core.world.dump() == director.refolded()
    for snapshot in snapshots:
        again = play.engage(snapshot)
        again.catch_up()
        assert again.core.world.dump() == director.refolded()
        play.directors.remove(again)


@pytest.mark.parametrize("since", ["served", "implied", "beginning"])
def test_a_snapshot_made_without_a_saga_whose_events_it_should_have_is_not_used(since: str) -> None:
    play = theatre(idle)
    if since == "served":
        play.fire(play.hire(sagas=[pack]))
    elif since == "implied":
        begin(play.book, "pack", place(play, 0))
    other = play.hire(sagas=[idle])
    pending = place(play, 1)
    other.catch_up()
    snapshot = msgpack.unpackb(other.snapshot(), strict_map_key=False)
    one = {"pack": pack} if since != "beginning" else {"count": count}
    world = World(play.book.subjects, one)
    world.listening.process_began = len(play.book)
    with pytest.raises(SnapshotGapError):
        world.load(snapshot)
    assert world.position.sequence == 0
    play.fire(other)
    play.hire(msgpack.packb(snapshot), list(one.values()))
    finish(play)
    assert play.begun()[-1] == pending


def test_a_fact_from_before_the_snapshot_makes_one_read_the_whole_log() -> None:
    """One with a new saga began before the snapshot was made, and said so after it."""
    play = theatre(idle)
    old = play.hire()
    first = play.engage(sagas=[pack])
    pending = place(play, 1)
    old.settle()
    snapshot = old.snapshot()
    first.catch_up()
    play.fire(old)
    third = play.engage(snapshot, [pack])
    assert third.read > 0
    first.core.activate()
    while not first.is_ready:
        first.turns()[0]()
    first.posted.clear()
    play.directors.remove(first)
    third.catch_up()
    assert (pending, "pack") in third.core.world.triggers
    third.core.activate()
    finish(play)
    assert play.begun() == [pending]
    assert third.core.world.dump() == third.refolded()


def test_a_snapshot_of_another_that_is_newer_than_the_process_is_not_used_for_a_new_saga() -> None:
    """What came between the two counts, and it is not in there."""
    play = theatre(idle)
    old = play.hire()
    world = World(play.book.subjects, {"pack": pack})
    world.listening.process_began = len(play.book)
    place(play, 1)
    old.settle()
    with pytest.raises(SnapshotGapError):
        world.load(msgpack.unpackb(old.snapshot(), strict_map_key=False))


def test_a_snapshot_in_which_a_saga_was_to_count_from_now_is_not_used_when_it_wants_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "MOST_CANDIDATES", 5)
    play = theatre(idle)
    standby = play.engage(sagas=[pack])
    placed = [place(play, n) for n in range(8)]
    standby.catch_up()
    play.hire(standby.snapshot(), [saga(name="pack", on=TOPIC, since="beginning")(pack.function)])
    play.directors.remove(standby)
    finish(play)
    assert play.begun() == placed


# --- logs of the release that did not say so ---


def begin(book: Book, name: str, trigger: int) -> str:
    """As the release before has written it."""
    run_id = f"{name}-e{trigger}"
    started = RunStarted(saga=name, input={"n": 1}, trigger=trigger)
    book.write(book.subjects.run(run_id, "started"), started, scope=book.subjects.everything_of(run_id), expected=0)
    return run_id


def refuse(book: Book, sequence: int) -> None:
    book.write(book.subjects.rejected(sequence), MessageRejected(subject="s", reason="r"))


@pytest.mark.parametrize(("one", "after"), [(pack, 1), (count, 0)])
@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_saga_that_was_served_goes_on_without_a_gap(one: Saga[Any, Any], after: int, restarts: int) -> None:
    play = theatre(one)
    too_early = place(play, 0)
    first, bad, second = (place(play, n) for n in (1, "x", 2))
    refuse(play.book, bad)
    begin(play.book, one.name, first)
    pending = [second, place(play, 3)]
    for _ in range(restarts):
        director = play.engage()
        director.catch_up()
        director.core.activate()
        for _ in range(play.chance.randrange(3)):
            director.turns()[0]()
        play.fire(director)
    play.hire()
    finish(play)
    expected = [first, *([too_early] if one is count else []), *pending]
    assert sorted(play.begun()) == sorted(expected)
    assert set(play.rejections()) == {bad}
    assert served(play.book) == [(one.name, TOPIC, after)]


def test_a_run_that_began_with_an_event_from_before_the_snapshot_makes_one_read_the_whole_log() -> None:
    """Both releases were at work for a while."""
    play = theatre(idle)
    other = play.hire()
    first, second = place(play, 1), place(play, 2)
    other.catch_up()
    new = play.engage(other.snapshot(), [pack])
    assert new.read > 0
    begin(play.book, "pack", first)
    new.catch_up()
    assert list(new.core.world.triggers) == [(second, "pack")]
    assert new.core.world.dump() == new.refolded()


def test_a_run_that_somebody_asked_for_by_name_says_nothing_about_events() -> None:
    play = theatre(pack)
    place(play, 0)
    play.request("pack", "r", {"n": 1})
    play.book.write(
        "play.run.r.started", RunStarted(saga="pack", input={"n": 1}, trigger=2), expected=2, scope="play.run.r.>"
    )
    play.hire()
    finish(play)
    assert play.begun() == [2]


# --- refusals, where sagas come later ---


def test_what_one_saga_could_not_begin_with_starts_a_run_of_another_that_comes_later() -> None:
    play = theatre(pack)
    old = play.hire()
    bad = place(play, "x")
    new = play.engage(sagas=[pack, bill])
    worse = place(play, "y")
    finish(play)
    play.fire(old)
    new.catch_up()
    new.core.activate()
    finish(play)
    assert set(play.rejections()) == {bad, worse}
    assert play.begun() == [worse]


def test_what_several_sagas_cannot_begin_with_is_refused_for_each_even_if_they_come_one_by_one() -> None:
    play = theatre(pack)
    play.hire()
    bad = place(play, "x")
    finish(play)
    director = play.hire(sagas=[pack, count])
    finish(play)
    refused = [item.event for item in play.book.all() if isinstance(item.event, MessageRejected)]
    assert [event.sagas for event in refused] == [["pack"], ["count"]]
    assert {item.address.n for item in play.book.all() if item.address.kind == "rejected"} == {bad}
    assert director.core.world.dump() == director.refolded()


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_refused_for_one_saga_is_still_open_for_others(restart: bool) -> None:
    """Refused by an orchestrator that does not know them, before theirs had a turn."""
    play = theatre(pack)
    one, two = play.hire(), play.hire(sagas=[pack, bill, count])
    two.core.deactivate()
    bad = place(play, "x")
    one.settle()
    two.catch_up()
    if restart:
        play.fire(two)
        two = play.engage(two.snapshot(), [pack, bill, count])
    two.core.activate()
    finish(play)
    refused = [item.event.sagas for item in play.book.all() if isinstance(item.event, MessageRejected)]
    assert refused == [["pack"], ["count"]]
    assert play.begun("bill") == [bad]


# --- many events that would start the same run ---


@saga(on="bell.rung", key="door")
async def answer(run: Run, ring: dict[str, Any]) -> str:
    return "coming"


@pytest.mark.parametrize("order", ["at once", "one by one", "restarted"])
def test_a_burst_of_events_with_one_key_is_answered_without_time_passing(order: str) -> None:
    play = theatre(answer)
    director = play.hire()
    rung = []
    for n in range(200):
        rung.append(play.publish("bell.rung", {"door": "front", "n": n}))
        if order == "one by one" or (order == "restarted" and n == 150):
            director.settle()
    if order == "restarted":
        play.fire(director)
        director = play.engage()
        director.catch_up()
        director.core.activate()
    before = play.book.now
    director.settle()
    assert play.begun() == rung[:1]
    assert sorted(play.rejections()) == rung[1:]
    assert play.owes_nothing()
    assert play.book.now - before < 1_000  # a microsecond for each message: nobody ticked


def test_a_burst_survives_an_append_without_an_answer() -> None:
    for seed in range(8):  # in some of them it was stored
        play = Theatre([answer], [], {}, seed=seed)
        director = play.hire()
        rung = [play.publish("bell.rung", {"door": "front", "n": n}) for n in range(20)]
        director.catch_up()
        director.fail_one()
        finish(play)
        assert len(play.begun()) == 1
        assert sorted([*play.begun(), *play.rejections()]) == rung


def test_bursts_of_many_keys_with_two_that_decide_start_each_run_once() -> None:
    for seed in range(20):
        play = Theatre([answer], [], {}, seed=seed)
        play.hire()
        play.hire()
        rung = [play.publish("bell.rung", {"door": f"d{n % 5}"}) for n in range(40)]
        finish(play)
        assert len(play.begun()) == 5
        assert sorted([*play.begun(), *play.rejections()]) == rung


# --- plain requests ---


PLAIN = b'{"handler": "add", "input": {"n": 5}}'
REQUESTS = ["task.0.requested.bank", "requested.idle", "task.0.requested.nobody", "task.1.requested.bank", "started"]
WISHES = ["cancel_requested", "task.0.cancel_requested", "retry_requested"]


@pytest.mark.parametrize("ended", [True, False])
def test_every_plain_request_is_carried_out_or_refused_whatever_comes_between(ended: bool) -> None:
    """While one is looked up, others come for the same run, and orchestrators come and go."""
    for seed in range(150):
        play = Theatre([idle], [], {}, seed=seed)
        chance = play.chance
        play.hire()
        if ended:
            play.request("idle", "r", {"n": 1})
            finish(play)
        requests: list[int] = []
        opener = chance.choice([name for name in REQUESTS if ".1." not in name])
        wanted = [opener, *chance.choices([*REQUESTS, *(WISHES if ended else [])], k=chance.randrange(1, 6))]
        for name in wanted:
            body = b'{"saga": "idle", "input": {"n": 1}}' if name == "started" else b'{"input": {"n": 1}}'
            requests.append(play.book.write(f"play.run.r.{name}", b"{}" if name in WISHES else body))
            for _ in range(chance.randrange(6)):
                play.take_turn()
            if chance.random() < 0.2:
                director = chance.choice(play.directors)
                assert director.core.world.dump() == director.refolded()
                snapshot = director.snapshot() if chance.random() < 0.5 else b""
                play.fire(director)
                play.hire(snapshot)
            if chance.random() < 0.1 and len(play.directors) < 2:
                play.hire()
        play_to_rest(play)
        refused = set(play.rejections())
        assert refused <= set(requests)
        if ended:
            assert refused == set(requests), (seed, wanted)
        else:
            carried_out = {n for n in requests if n not in refused}
            assert requests[0] in carried_out, (seed, wanted)
            assert all(_is_in(play.book, n) for n in carried_out), (seed, wanted)
        for director in play.directors:
            assert not director.core.world.refusals
            assert director.core.world.dump() == director.refolded()


def _is_in(book: Book, sequence: int) -> bool:
    """Whether the run has what the request asks for, or has begun where somebody said that it has."""
    run, item = book.run("r"), book.read(sequence)[0]
    assert isinstance(item, Envelope)
    if item.address.kind == "task":
        task = run.items.get(item.address.n)
        return isinstance(task, TaskState) and task.requested_sequence == sequence
    return run.opened_sequence == sequence or item.address.fact == "started"


def play_to_rest(play: Theatre) -> None:
    """Until nothing happens any more, for a minute."""
    for _ in range(60):
        while play.take_turn():
            pass
        play.tick()
