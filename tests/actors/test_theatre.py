"""Whatever order things happen in and whoever dies: every run ends as it should, and nothing is decided twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuebook.actors import Run, Saga, saga
from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    TERMINAL_RUN_FACTS,
    TERMINAL_TASK_FACTS,
    MessageRejected,
    OutsideEvent,
    RunCancelRequested,
    RunRetryRequested,
    RunStarted,
    SagaServed,
    StepAnswered,
    TaskCancelRequested,
    TaskResolved,
)
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan, first_steps
from tests.actors.theatre import Book, Director, Theatre

SAGAS = [chain, fan, first_steps, awaited, approved]


@saga(on="chain.asked")
async def follower(run: Run, number: Number) -> Number:
    """Not served from the beginning; counts from when it is."""
    return number


@saga(on="chain.asked", since="beginning")
async def historian(run: Run, asked: dict[str, Any]) -> str:
    """Not served from the beginning; counts from there."""
    return str(asked)


LATER: list[list[Saga[Any, Any]]] = [[*SAGAS, follower], [*SAGAS, historian, follower]]
PLAIN = b'{"handler": "add", "input": {"n": 5}}'
STEP_ENDS = {"matched", "answered", "expired", "cancelled"}


def add(data: Any) -> Any:
    return {"n": data["n"] + 1}


def refuse(data: Any) -> Any:
    raise PoisonMessageError(f"no {data['n']}")


def theatre(seed: int) -> Theatre:
    play = Theatre(SAGAS, [Bank], {"bank.add": add, "bank.refuse": refuse}, seed=seed)
    play.troupe.join(Bank, "understudy")
    return play


def check_single_decisions(book: Book) -> None:
    """Of what orchestrators and agents wrote: one request and one end for each task, step, run and refusal."""
    ends: Counter[tuple[str, str, int]] = Counter()
    requests: Counter[str] = Counter()
    attempts: dict[tuple[str, int], list[int]] = {}
    for item in book.all():
        address = item.address
        if item.source in ("test", "outside"):
            continue
        terminal = {"task": TERMINAL_TASK_FACTS, "run": TERMINAL_RUN_FACTS, "step": STEP_ENDS, "rejected": {"rejected"}}
        if address.fact in terminal.get(address.kind, ()):
            ends[address.kind, address.run_id + _refused_for(item), address.n] += 1
        elif address.fact in ("requested", "started", "slept", "waiting", "asked"):
            requests[item.subject] += 1
        elif address.fact == "assigned":
            attempts.setdefault((address.run_id, address.n), []).append(item.event.attempt)  # type: ignore[attr-defined]
    assert {key: count for key, count in (ends + requests).items() if count > 1} == {}
    assert all(numbers == sorted(set(numbers)) for numbers in attempts.values()), attempts


def _refused_for(item: Envelope) -> str:
    """A message may be refused once for each saga."""
    return ",".join(item.event.sagas) if isinstance(item.event, MessageRejected) else ""


def check_starts(book: Book) -> None:
    """Of each saga every event since it was served, and none before, has begun a run or was refused for it."""
    served: dict[tuple[str, str], int] = {}
    begun: Counter[tuple[str, int]] = Counter()
    refused: Counter[tuple[str, int]] = Counter()
    asked: dict[str, list[int]] = {}
    for item in book.all():
        match item.event:
            case SagaServed() as event:
                served.setdefault((item.address.agent, event.on), event.after)
            case RunStarted() as event:
                begun[event.saga, event.trigger] += 1
            case MessageRejected() as event:
                refused.update((name, item.address.n) for name in event.sagas)
            case OutsideEvent():
                asked.setdefault(item.address.topic, []).append(item.sequence)
    for (name, topic), after in served.items():
        for sequence in asked.get(topic, ()):
            assert begun[name, sequence] + refused[name, sequence] == (sequence > after), (name, sequence, after)


def check_fold(director: Director) -> None:
    """However it came to know what it knows, and whatever it has decided: the log says the same."""
    known, whole = director.core.world.dump(), director.refolded()
    for blind in director.core.world.listening.blind:  # of these it knows only what came after its snapshot
        for dump in (known, whole):
            said = dump["listening"]
            said["complete"] = [one for one in said["complete"] if one[0] != blind]
            said["candidates"] = [one for one in said["candidates"] if one[0] != blind]
    assert known == whole


def check_effects(play: Theatre) -> None:
    """What a run did is kept when it completed, and taken back when it did not."""
    for key in play.troupe.performed:
        run_id, _, n = key.partition("/")
        run = play.book.run(run_id)
        kept = run.outcome() == "completed"
        was_undo = run.items[int(n)].kind == "task" and run.items[int(n)].compensates is not None  # type: ignore[union-attr]
        assert was_undo or kept == (key not in play.troupe.undone), (key, run.outcome(), play.book.facts(run_id))


def check_memory(play: Theatre) -> None:
    """What is over is forgotten, and every slot is free again."""
    for director in play.directors:
        conductor, openings, world = director.core.conductor, director.core.openings, director.core.world
        assert not world.waits
        assert not any((conductor._executions, conductor._requesting, openings._starting, openings._misfits))
        assert not any(instance.tasks for instance in world.registry.instances.values())
        assert not any(director.core.dispatcher.depths().values())


@pytest.mark.parametrize("seed", range(3))
def test_runs_end_as_their_sagas_say(seed: int) -> None:
    play = theatre(seed)
    play.hire()
    play.request("chain", "r1", {"n": 1})
    play.request("chain", "r13", {"n": 13})
    play.request("fan", "f5", {"n": 5})
    play.play(until=play.owes_nothing)
    assert (play.book.run("r1").status, play.book.run("r1").result) == ("completed", {"n": 4})
    assert play.book.run("f5").result == {"n": 5}
    assert play.book.run("r13").status == "compensated"
    assert play.troupe.undone[-2:] == ["r13/1", "r13/0"]
    assert max(play.troupe.attempts.values()) == 1
    check_single_decisions(play.book)
    check_effects(play)
    check_memory(play)


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_a_run_whose_orchestrator_dies_anywhere_ends_the_same(with_snapshot: bool) -> None:
    """After each single append of the whole history in turn."""
    for death in range(1, 60):
        play = theatre(seed=7)
        play.hire()
        play.request("chain", "r1", {"n": 1})
        play.request("chain", "r13", {"n": 13})
        begin = len(play.book)
        died = False
        while play.turns() or not play.owes_nothing():
            if not died and len(play.book) >= begin + death:
                died = True
                _replace(play, with_snapshot=with_snapshot)
            elif not play.take_turn():
                play.tick()
        assert play.book.run("r1").result == {"n": 4}
        assert play.book.run("r13").status == "compensated"
        assert set(play.troupe.attempts.values()) == {1}, death
        assert play.troupe.undone == ["r13/3", "r13/2", "r13/1", "r13/0"] or play.troupe.undone[2:] == [
            "r13/1",
            "r13/0",
        ]
        check_single_decisions(play.book)
        check_memory(play)
    assert not died, "the history is longer than the deaths that were tried"


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_no_order_of_events_and_no_death_changes_the_outcomes(seed: int) -> None:
    play = theatre(seed)
    chance, book = play.chance, play.book
    subjects = book.subjects
    for _ in range(chance.choice((1, 1, 2, 3))):
        play.hire()
    wishes: list[Callable[[], object]] = [
        lambda: play.request("chain", "r1", {"n": 1}),
        lambda: play.request("chain", "r13", {"n": 13}),
        lambda: play.request("chain", "gone", {"n": 2}),
        lambda: play.request("fan", "f5", {"n": 5}),
        lambda: play.request("approved", "a1", {"n": 1}),
        lambda: play.request("awaited", "w9", {"n": 9}),
        lambda: play.request("nowhere", "n1", {"n": 9}),
        lambda: play.publish("first.asked", {"n": 3}),
        lambda: play.publish("chain.asked", {"n": 4}),
        lambda: play.publish("chain.asked", {"n": 4}),
        lambda: play.publish("chain.asked", {"n": "x"}),
        lambda: play.ask("bank", "t1", {"n": 5}, handler="add"),
        lambda: book.write(subjects.task("t2", 0, "requested", "bank"), PLAIN),
        lambda: book.write(subjects.task("t2", 0, "requested", "bank"), PLAIN),
    ]
    strays: list[Callable[[], object]] = [
        lambda: book.run("r1").items and book.write(subjects.task("r1", 0, "requested", "bank"), PLAIN),
        lambda: book.write(f"play.run.r1.task.{chance.randrange(4)}.Garbage", b"{"),
        lambda: book.write("play.run.r1.junk", b"{"),
        lambda: book.write("play.run.r1.completed", b"{"),
        lambda: book.write(f"play.run.r13.step.{chance.randrange(4)}.slept", b"{"),
        lambda: book.write(f"play.run.f5.task.{chance.randrange(9)}.resolved", TaskResolved(action="retry")),
        lambda: book.write(f"play.run.r13.task.{chance.randrange(6, 9)}.cancel_requested", b"}"),
        lambda: book.write("play.run.gone.cancel_requested", RunCancelRequested(reason="gone")),
        lambda: book.write("play.run.w9.cancel_requested", RunCancelRequested(reason="paid in cash")),
        lambda: book.write(f"play.run.gone.task.{chance.randrange(3)}.cancel_requested", TaskCancelRequested()),
        lambda: book.write("play.agent.bank.i0.Garbage", b"{"),
    ]
    troubles: list[Callable[[], object]] = [
        *([lambda: _replace(play)] * 3),
        lambda: _redeploy(play),
        lambda: _redeploy(play),
        lambda: _redeploy(play),
        lambda: _rest(play),
        lambda: play.troupe.lose("understudy"),
        lambda: _lose_answer(play),
        lambda: _lose_answer(play),
    ]
    chance.shuffle(wishes)
    chance.shuffle(troubles)
    del troubles[chance.randrange(len(troubles) + 1) :]
    complete = False
    for _ in range(20_000):
        what = chance.random()
        if what < 0.05 and wishes:
            wishes.pop()()
        elif what < 0.06 and strays and not wishes:
            strays.pop(chance.randrange(len(strays)))()
        elif what < 0.07 and troubles and not wishes:
            troubles.pop()()
        elif what < 0.08:
            _answer_questions(play)
        elif not play.take_turn():
            play.tick()
            if wishes or strays or troubles:
                continue
            if not complete:  # else a run may wait for its saga
                complete = bool(play.hire(b"", LATER[-1]))
            elif play.owes_nothing():
                break
    else:
        raise AssertionError([(run_id, book.run(run_id).status, book.facts(run_id)) for run_id in play.open_runs()])
    for director in play.directors:
        check_fold(director)
    check_starts(book)
    assert book.run("r1").result == {"n": 4}
    assert book.run("f5").result == {"n": 5}
    assert book.run("r13").status == "compensated"
    assert book.run("gone").status in ("compensated", "cancelled", "completed", "failed")
    assert book.run("n1").status == "rejected"
    assert book.run("a1").result == {"n": 3}
    assert {book.run("t1").outcome(), book.run("t2").outcome()} == {"completed"}
    check_single_decisions(book)
    check_effects(play)
    check_memory(play)


def _replace(play: Theatre, *, with_snapshot: bool | None = None) -> None:
    """An orchestrator dies; another begins with the log, or with a snapshot of it."""
    director = play.chance.choice(play.directors)
    check_fold(director)
    snapshot = director.snapshot() if (with_snapshot or (with_snapshot is None and play.chance.random() < 0.5)) else b""
    play.fire(director)
    play.hire(snapshot, list(director.sagas.values()))


def _redeploy(play: Theatre) -> None:
    """An orchestrator with other sagas stands by for a while before it replaces one, and chance brings its snapshot."""
    chance = play.chance
    snapshot = chance.choice([b"", *(director.snapshot() for director in play.directors)])
    for _ in range(chance.randrange(3)):
        play.publish("chain.asked", {"n": 100 + len(play.book)})
    new = play.engage(snapshot, chance.choice([SAGAS, *LATER]))
    for _ in range(chance.randrange(40)):
        play.take_turn()
    old = chance.choice([director for director in play.directors if director is not new])
    check_fold(old)
    play.fire(old)
    new.catch_up()
    new.core.activate()
    check_fold(new)


def _rest(play: Theatre) -> None:
    """An orchestrator loses the lease and gets it back."""
    director = play.chance.choice(play.directors)
    director.core.deactivate()
    for _ in range(play.chance.randrange(20)):
        play.take_turn()
    director.core.activate()


def _lose_answer(play: Theatre) -> None:
    for director in play.directors:
        if director.posted:
            director.fail_one()


def _answer_questions(play: Theatre) -> None:
    """A person looks at what waits: wrong answers first, then the right ones."""
    subjects = play.book.subjects
    for run_id in play.open_runs():
        if play.book.run(run_id).status == "stuck":  # somebody cancelled what should have undone a step
            play.book.write(subjects.run(run_id, "retry_requested"), RunRetryRequested(by="ann"))
        for n, item in play.book.run(run_id).items.items():
            if item.kind == "task" and item.status == "escalated":
                play.book.write(subjects.task(run_id, n, "resolved"), TaskResolved(action="abort", by="ann"))
            elif item.kind == "step" and item.type == "ask" and item.status == "open":  # type: ignore[union-attr]
                value = {"approved": True} if play.chance.random() < 0.5 else "perhaps"
                play.book.write(subjects.step(run_id, n, "answered"), StepAnswered(value=value, by="ann"))
