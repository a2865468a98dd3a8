"""An append that fails is asked for again, whichever it is, and what was interrupted leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import RunRetryRequested, StepAnswered, TaskResolved
from tests.actors.cast import Bank, approved, awaited, chain, fan, first_steps
from tests.actors.theatre import Director, Theatre

PLAIN = b'{"handler": "add", "input": {"n": 5}}'


def add(data: Any) -> Any:
    return {"n": data["n"] + 1}


def refuse(data: Any) -> Any:
    raise PoisonMessageError(f"no {data['n']}")


def begin() -> tuple[Theatre, Director]:
    """Runs that need every decision there is, and messages that need an answer."""
    play = Theatre([chain, fan, approved, awaited, first_steps], [Bank], {"bank.add": add, "bank.refuse": refuse})
    director = play.hire()
    book, subjects = play.book, play.book.subjects
    play.request("chain", "r13", {"n": 13})
    play.request("approved", "a", {"n": 1})
    play.request("awaited", "w", {"n": 9})
    play.request("nowhere", "n", {"n": 9})
    play.request("fan", "c", {"n": 2})
    play.publish("chain.asked", {"n": 4})
    play.publish("chain.asked", {"n": "x"})
    play.publish("first.asked", {"n": 3})
    play.ask("bank", "wrong", {"n": "x"}, handler="add")
    book.write(subjects.task("t", 0, "requested", "bank"), PLAIN)
    book.write(subjects.task("t", 0, "requested", "bank"), PLAIN)
    book.write("play.run.c.cancel_requested", b"{}")
    book.write("play.run.nobody.cancel_requested", b"{}")
    return play, director


def answer(play: Theatre, run_id: str, n: int) -> None:
    """What people do, once each thing has come to them."""
    run, book = play.book.run(run_id), play.book
    item = run.items[n]
    if item.kind == "task":
        book.write(book.subjects.task(run_id, n, "resolved"), TaskResolved(action="abort", by="ann"))
    elif "step.1.refused" not in book.facts(run_id):
        book.write(book.subjects.step(run_id, n, "answered"), StepAnswered(value="perhaps"))
    else:
        book.write(book.subjects.step(run_id, n, "answered"), StepAnswered(value={"approved": True}))


def play_on(play: Theatre, director: Director, failing: int, *, stored: bool) -> int:
    """To the end, with one append failing; returns how many there were."""
    appends = 0
    answered: set[tuple[str, int]] = set()
    for _ in range(5_000):
        if director.posted:
            appends += 1
            if appends == failing:
                director.fail_one(stored=stored)
            else:
                director.store_one()
        elif turns := play.turns():
            turns[0]()
        elif play.owes_nothing():
            return appends
        else:
            _react(play, answered)
            play.tick()
    raise AssertionError(f"still open: {[(run_id, play.book.facts(run_id)) for run_id in play.open_runs()]}")


def _react(play: Theatre, answered: set[tuple[str, int]]) -> None:
    for run_id in play.open_runs():
        for n, item in play.book.run(run_id).items.items():
            waits = item.status == "escalated" or (item.kind == "step" and getattr(item, "type", "") == "ask")
            state = (run_id, len(play.book.facts(run_id)))
            if waits and not item.closed and state not in answered:
                answered.add(state)
                answer(play, run_id, n)
    if "started" in play.book.facts("w") and ("w", 0) not in answered:
        answered.add(("w", 0))
        play.publish("paid", {"n": 9})


def outcomes(play: Theatre) -> dict[str, Any]:
    runs = {item.address.run_id for item in play.book.all() if item.address.run_id}
    return {run_id: (play.book.run(run_id).outcome(), play.book.run(run_id).result) for run_id in sorted(runs)}


@pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])
def test_whichever_append_fails_everything_ends_as_it_would_have(stored: bool) -> None:
    play, director = begin()
    appends = play_on(play, director, 0, stored=stored)
    expected = outcomes(play)
    rejected = sorted(item.address.n for item in play.book.all() if item.address.kind == "rejected")
    assert expected["r13"] == ("compensated", None)
    assert len(rejected) == 3
    assert appends > 50
    for failing in range(1, appends + 1):
        play, director = begin()
        play_on(play, director, failing, stored=stored)
        found = outcomes(play)
        assert found == expected, failing
        assert not any(instance.tasks for instance in director.core.world.registry.instances.values())


def test_who_no_longer_decides_keeps_nothing_of_what_was_under_way() -> None:
    """Its sagas are closed; when it decides again it begins with what the log says."""
    play = Theatre([approved], [Bank], {"bank.add": add})
    first = play.hire()
    play.request("approved", "r", {"n": 1})
    play.play(until=lambda: "step.1.asked" in play.book.facts("r"))
    first.core.deactivate()
    play.hire()
    play.book.write("play.run.r.step.1.answered", StepAnswered(value={"approved": True}))
    play.play(until=play.owes_nothing)
    first.core.activate()
    conductor, openings = first.core.conductor, first.core.openings
    assert not any((conductor._executions, conductor._requesting, openings._starting, openings._misfits))
    assert play.book.run("r").result == {"n": 3}


def test_a_task_of_a_run_that_somebody_else_has_closed_is_not_placed_when_there_is_room() -> None:
    play = Theatre([fan], [Bank], {"bank.add": add})
    director = play.hire()
    play.troupe.leave("i0")
    play.request("fan", "r", {"n": 3})
    director.settle()
    assert director.core.dispatcher.depths() == {"bank": 3}
    play.book.write("play.run.r.completed", b"{}")
    play.troupe.join(Bank, "late")
    play.play(until=play.owes_nothing)
    assert not any("assigned" in fact for fact in play.book.facts("r"))
    assert not any(director.core.dispatcher.depths().values())


def test_a_stuck_run_goes_on_although_its_resumption_fails_at_first() -> None:
    play = Theatre([chain], [Bank], {"bank.add": add})
    director = play.hire()
    play.request("chain", "r", {"n": 1})
    director.settle()
    play.book.write("play.run.r.stuck", b'{"reason": "a person wants to look"}')
    play.book.write("play.run.r.retry_requested", RunRetryRequested(by="ann"))
    while "resumed" not in str(director.posted):
        director.turns()[0]()
    director.posted.rotate(-[b"run.resumed" in post.body for post in director.posted].index(True))
    director.fail_one(stored=False)
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "completed"


def test_a_decision_that_was_overtaken_is_made_anew_as_soon_as_that_is_known() -> None:
    """The other's fact was read before the refusal came, and nothing else will come."""
    play = Theatre([], [Bank], {"bank.add": add})
    director = play.hire()
    play.ask("bank", "t", {"n": 1}, handler="add")
    director.read_one()
    play.book.write("play.run.t.task.0.cancel_requested", b"{}")
    director.read_one()
    director.store_one()
    director.settle()
    assert play.book.facts("t")[-1] == "task.0.cancelled"


# --- answers from a replica that is behind ---


def forgetful(director: Director) -> list[str]:
    """The next question for the first message of a scope is answered as if there was none; returns what was asked."""
    asked: list[str] = []
    look = director.first_sequence

    def first_sequence(scope: str, answer: Callable[[int], None]) -> None:
        asked.append(scope)
        if len(asked) == 1:
            director.answers.append(lambda: answer(0))
        else:
            look(scope, answer)

    director.first_sequence = first_sequence  # type: ignore[method-assign]
    return asked


def test_a_request_that_the_replica_asked_does_not_have_yet_is_looked_for_again() -> None:
    play = Theatre([], [Bank], {"bank.add": add})
    asked = forgetful(play.hire())
    play.book.write("play.run.t.task.0.requested.bank", PLAIN)
    play.play(until=play.owes_nothing)
    assert play.book.run("t").outcome() == "completed"
    assert asked == ["play.run.t.>"] * 2


@pytest.mark.parametrize("behind", ["the replica that is asked", "who asks"])
def test_a_start_in_which_another_was_faster_is_not_refused_because_somebody_does_not_have_it_yet(behind: str) -> None:
    play = Theatre([chain], [Bank], {"bank.add": add})
    first, second = play.hire(), play.hire()
    asked = forgetful(second) if behind != "who asks" else ["nothing is forgotten"]
    play.publish("chain.asked", {"n": 4})
    while first.read < len(play.book) or second.read < len(play.book):
        for director in (first, second):
            director.read_one()
    first.store_one()
    second.store_one()
    while second.acks or second.answers:  # before it reads the other's start
        (second.acks or second.answers).popleft()()
    assert asked
    play.play(until=play.owes_nothing)
    assert play.book.run("chain-4").status == "completed"
    assert not [item for item in play.book.all() if item.address.kind == "rejected"]
