"""What is made of data that is too large for the event that would carry it."""

from __future__ import annotations

from typing import Any

import pytest

from cuebook.actors import Run, saga
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import TaskState
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    RunStuck,
    TaskAssigned,
    TaskResolved,
)
from tests.actors.press import Press, Text, failing, last, listener, printed_twice, settle, theatre, waiting
from tests.actors.theatre import Theatre

LARGE = 250_000


def test_an_event_that_no_run_can_begin_with_because_of_its_size_is_rejected() -> None:
    play = theatre(listener)
    play.hire()
    sequence = play.book.write("play.event.told", b'{"text": "%b"}' % (b"x" * (256 * 1024 - 15)))
    play.play(until=play.owes_nothing)
    assert "262144" in play.rejections()[sequence]


def test_an_awaited_event_that_cannot_be_recorded_fails_the_step() -> None:
    play = theatre(waiting)
    director = play.hire()
    play.request("waiting", "r", {"text": ""})
    settle(play, director)
    play.book.write("play.event.news", b'{"text": "%b"}' % (b"x" * (256 * 1024 - 15)))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "failed"
    assert "cannot be stored" in str(last(play, "r", "cancelled").reason)


def test_a_result_that_cannot_be_recorded_undoes_the_run() -> None:
    play = theatre(printed_twice)
    play.hire()
    play.request("printed_twice", "r", {"text": "x" * 120_000})
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "compensated"
    assert play.troupe.undone == ["r/1", "r/0"]
    assert "completed cannot be stored" in last(play, "r", "compensated").reason


@pytest.mark.parametrize("others", ["none", "before", "beside", "first beside"])
def test_a_step_that_cannot_be_recorded_ends_the_run(others: str) -> None:
    @saga(name="oversized")
    async def oversized(run: Run, text: Text) -> None:
        large = Text(text=text.text * 300_000)
        if others == "before":
            await run.call(Press.copy, text)
        if others == "beside":
            await run.gather(run.call(Press.copy, text), run.call(Press.copy, large))
        if others == "first beside":
            await run.gather(run.call(Press.copy, large), run.call(Press.copy, text))
        await run.call(Press.copy, large)

    play = theatre(oversized)
    play.hire()
    play.request("oversized", "r", {"text": "x"})
    play.play(until=play.owes_nothing)
    run = play.book.run("r")
    assert run.closed
    assert all(item.closed for item in run.items.values())
    assert run.status in ("failed", "compensated")
    if others == "before":
        assert play.troupe.undone == ["r/0"]
        assert "step 1 cannot be stored" in last(play, "r", "compensated").reason
    if others == "first beside":
        assert not run.items


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [(SilentError(), "(its text cannot be made)"), (ValueError("no \udcff"), "no ?")],
    ids=["raises", "half a pair"],
)
def test_an_error_whose_text_cannot_be_recorded_ends_the_run_all_the_same(error: Exception, message: str) -> None:
    @saga(name="broken")
    async def broken(run: Run, text: Text) -> None:
        raise error

    play = theatre(broken)
    play.hire()
    play.request("broken", "r", {"text": ""})
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "failed"
    assert last(play, "r", "failed").error.message == message


def assigned_to_undo(play: Theatre, run_id: str) -> Any:
    events = [item.event for item in play.book.all() if item.address.run_id == run_id]
    (found,) = [one for one in events if isinstance(one, TaskAssigned) and one.compensates is not None]
    return found


def test_a_step_with_more_data_than_fits_one_event_is_undone_by_reference() -> None:
    play = theatre(failing)
    play.hire()
    play.request("failing", "r", {"text": "x" * 140_000})
    play.play(until=play.owes_nothing)
    run = play.book.run("r")
    assert (run.status, play.troupe.undone) == ("compensated", ["r/0"])
    undo = run.items[1]
    assert isinstance(undo, TaskState)
    assert (undo.compensates, undo.input, assigned_to_undo(play, "r").input) == (0, None, None)


def test_what_fits_the_request_to_undo_and_not_its_assignment_is_assigned_by_reference() -> None:
    play = theatre(failing)
    play.hire()
    play.request("failing", "r", {"text": "x" * 130_960})
    play.play(until=play.owes_nothing)
    run = play.book.run("r")
    assert (run.status, play.troupe.undone) == ("compensated", ["r/0"])
    undo = run.items[1]
    assert isinstance(undo, TaskState)
    assert undo.input == {"input": {"text": "x" * 130_960}, "output": {"text": "x" * 130_960}}
    assert assigned_to_undo(play, "r").input is None


def test_a_step_that_is_undone_with_little_data_gets_it_with_the_assignment() -> None:
    play = theatre(failing)
    play.hire()
    play.request("failing", "r", {"text": "x"})
    play.play(until=play.owes_nothing)
    assert assigned_to_undo(play, "r").input == {"input": {"text": "x"}, "output": {"text": "x"}}


def test_a_supplied_result_that_cannot_be_recorded_leaves_the_task_with_the_person() -> None:
    def broken(data: Any) -> Any:
        raise PoisonMessageError("no")

    play = theatre(press__copy=broken)
    play.hire()
    play.ask("press", "t", {"text": "x"}, handler="copy", retry=None)
    play.play(until=lambda: play.book.run("t").outcome() == "escalated")
    supply = TaskResolved(action="supply", output={"text": "x" * 262_015})
    play.book.write("play.run.t.task.0.resolved", supply)
    for _ in range(5):
        while play.take_turn():
            pass
        play.tick()
    assert play.book.run("t").outcome() == "escalated"
    assert "cannot be stored" in last(play, "t", "escalated").reason


def test_a_run_whose_code_has_changed_is_stuck_however_large_the_difference() -> None:
    @saga(name="listener")
    async def changed(run: Run, text: Text) -> Text:
        return await run.call(Press.copy, Text(text=text.text + "y"))

    play = theatre(listener)
    director = play.hire()
    play.request("listener", "r", {"text": "x" * 200_000})
    settle(play, director)
    play.fire(director)
    play.sagas = Repertoire([changed])
    director = play.hire()
    settle(play, director)
    stuck = last(play, "r", "stuck")
    assert isinstance(stuck, RunStuck)
    assert stuck.reason == "the saga asks for something else than it did"
    assert stuck.step == 0
    assert "xxx" in str(stuck.recorded)
    assert "xxx" in str(stuck.asked)
