"""How a run ends: what is under way, what people and new code say, whatever its saga raises."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import field_validator

from cuebook.actors import Run, saga
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    RunCancelRequested,
    RunRetryRequested,
    TaskCancelled,
    TaskCancelRequested,
    TaskEscalated,
    TaskResolved,
)
from tests.actors.cast import chain
from tests.actors.press import Press, Text, failing, hasty, listener, printed_twice, settle, theatre
from tests.actors.theatre import Theatre


def test_a_step_under_way_that_can_be_undone_is_waited_for_and_then_undone() -> None:
    play = theatre(hasty)
    director = play.hire()
    play.request("hasty", "r", {"text": "x"})
    settle(play, director)
    play.tick(2)
    settle(play, director)
    assert play.book.run("r").status == "running"
    assert not play.book.run("r").items[0].closed
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "compensated"
    assert play.troupe.undone == ["r/0"]


def test_a_step_whose_agent_died_is_done_again_before_its_run_is_undone() -> None:
    """Its effect may have happened; with the same key it happens once."""
    play = theatre(hasty)
    director = play.hire()
    play.request("hasty", "r", {"text": "x"})
    settle(play, director)
    play.book.write("play.run.r.cancel_requested", RunCancelRequested(reason="no"))
    settle(play, director)
    play.troupe.leave("i0")
    settle(play, director)
    assert play.book.run("r").items[0].status == "backoff"
    play.troupe.join(Press, "new")
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "compensated"
    assert play.troupe.undone == ["r/0"]


def test_a_step_that_failed_by_its_own_word_is_not_done_again() -> None:
    def broken(data: Any) -> Any:
        raise PoisonMessageError("no")

    play = theatre(hasty, press__copy=broken)
    director = play.hire()
    play.request("hasty", "r", {"text": "x"})
    settle(play, director)
    play.book.write("play.run.r.cancel_requested", RunCancelRequested(reason="no"))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "cancelled"
    assert play.troupe.attempts == {"r/0": 1}
    assert not _cancelled(play).outcome_unknown


def test_a_person_may_end_a_task_that_is_in_doubt() -> None:
    play = theatre(hasty)
    director = play.hire()
    play.request("hasty", "r", {"text": "x"})
    settle(play, director)
    play.troupe.leave("i0")
    play.book.write("play.run.r.cancel_requested", RunCancelRequested(reason="no"))
    settle(play, director)
    play.book.write("play.run.r.task.0.cancel_requested", TaskCancelRequested(reason="I looked: not printed"))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "cancelled"
    assert _cancelled(play).outcome_unknown


def _cancelled(play: Theatre) -> TaskCancelled:
    (found,) = [item.event for item in play.book.all() if isinstance(item.event, TaskCancelled)]
    return found


def test_cancelling_does_not_stop_what_is_being_undone() -> None:
    play = theatre(chain)
    director = play.hire()
    play.request("chain", "r", {"n": 13})
    play.play(until=lambda: play.book.run("r").status == "compensating" or play.owes_nothing())
    play.fire(director)
    director = play.hire()
    play.book.write("play.run.r.cancel_requested", RunCancelRequested(reason="stop"))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "compensated"
    assert len(play.troupe.undone) == 4


def test_a_compensation_that_a_person_has_done_by_hand_needs_no_result() -> None:
    play = theatre(failing)
    director = play.hire()
    play.request("failing", "r", {"text": "x"})
    while "task.1.requested.press" not in play.book.facts("r"):
        assert play.take_turn()
    play.troupe.leave("i0")
    settle(play, director)
    play.book.write("play.run.r.task.1.escalated", TaskEscalated(reason="nobody is there"))
    play.book.write("play.run.r.task.1.resolved", TaskResolved(action="supply", by="ann"))
    settle(play, director)
    assert play.book.run("r").status == "compensated"


def test_a_step_is_asked_for_once_however_often_its_run_is_decided_about() -> None:
    play = theatre(printed_twice)
    director = play.hire()
    play.request("printed_twice", "r", {"text": "x"})
    while not any("task.0.requested" in post.subject for post in director.posted):
        assert play.take_turn()
    for _ in range(3):
        director.core.conductor.decide(director.core.world.runs["r"])
    assert len([post for post in director.posted if "task.0.requested" in post.subject]) == 1


def test_a_retry_of_a_run_that_is_not_stuck_is_not_kept_for_later() -> None:
    @saga(name="listener")
    async def changed(run: Run, text: Text) -> Text:
        return await run.call(Press.double, text)

    play = theatre(listener)
    director = play.hire()
    play.request("listener", "r", {"text": "x"})
    settle(play, director)
    play.book.write("play.run.r.retry_requested", RunRetryRequested(by="ann"))
    settle(play, director)
    play.fire(director)
    play.sagas = Repertoire([changed])
    director = play.hire()
    settle(play, director)
    assert play.book.run("r").status == "stuck"
    assert "resumed" not in play.book.facts("r")
    play.book.write("play.run.r.retry_requested", RunRetryRequested(by="ann"))
    settle(play, director)
    assert play.book.facts("r")[-3:] == ["retry_requested", "resumed", "stuck"]


def test_new_code_that_drifts_asks_for_nothing_more() -> None:
    """Not even for what it wants beside the step that differs."""

    @saga(name="listener")
    async def changed(run: Run, text: Text) -> Text:
        run.call(Press.double, text)
        run.call(Press.copy, text)
        return await run.call(Press.copy, text)

    play = theatre(listener)
    director = play.hire()
    play.request("listener", "r", {"text": "x"})
    settle(play, director)
    play.fire(director)
    play.sagas = Repertoire([changed])
    settle(play, play.hire())
    assert play.book.run("r").status == "stuck"
    assert [fact for fact in play.book.facts("r") if "requested" in fact] == [
        "requested.listener",
        "task.0.requested.press",
    ]


def test_new_code_that_raises_before_it_asks_for_what_was_done_undoes_nothing() -> None:
    @saga(name="failing")
    async def broken(run: Run, text: Text) -> None:
        raise NameError("a typing error of today")

    play = theatre(failing)
    director = play.hire()
    play.request("failing", "r", {"text": "x"})
    settle(play, director)
    play.fire(director)
    play.sagas = Repertoire([broken])
    settle(play, play.hire())
    assert play.book.run("r").status == "stuck"


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), RecursionError(), StopIteration(5)]
)
@pytest.mark.usefixtures("service_signals")
def test_whatever_a_saga_raises_ends_its_run_and_nothing_else(error: BaseException) -> None:
    @saga()
    async def raising(run: Run, text: Text) -> None:
        try:
            raise error
        finally:
            run.logger.info("leaving")

    play = theatre(raising, listener)
    play.hire()
    play.request("raising", "r", {"text": "x"})
    play.request("listener", "s", {"text": "x"})
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "failed"
    assert play.book.run("s").status == "completed"


@pytest.fixture
def service_signals() -> Iterator[None]:
    """SIGINT as a service has it: Ctrl-C raises nothing."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


def test_where_ctrl_c_raises_it_is_the_person_s_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)

    @saga()
    async def raising(run: Run, text: Text) -> None:
        raise KeyboardInterrupt

    play = theatre(raising)
    play.hire()
    play.request("raising", "r", {"text": "x"})
    with pytest.raises(KeyboardInterrupt):
        play.play(until=play.owes_nothing)


class Bomb(Text):
    """Its check wants to end the process."""

    @field_validator("text")
    @classmethod
    def _go_off(cls, text: str) -> str:
        if text == "exit":
            raise SystemExit(1)
        if text == "interrupt":
            raise KeyboardInterrupt
        return text


@saga()
async def careless(run: Run, bomb: Bomb) -> None: ...


@pytest.mark.usefixtures("service_signals")
@pytest.mark.parametrize("text", ["exit", "interrupt"])
def test_an_input_whose_check_wants_to_end_the_process_is_refused(text: str) -> None:
    play = theatre(careless)
    play.hire()
    play.request("careless", "r", {"text": text})
    play.request("careless", "s", {"text": "x"})
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "rejected"
    assert play.book.run("s").status == "completed"


async def test_a_saga_does_not_take_the_task_that_drives_it_for_its_own() -> None:
    """Else `asyncio.timeout` in it would cancel whoever reads the log."""
    own: list[object] = []

    @saga()
    async def curious(run: Run, text: Text) -> None:
        own.append(asyncio.current_task())

    play = theatre(curious)
    director = play.hire()
    play.request("curious", "r", {"text": "x"})
    settle(play, director)
    assert own == [None]
    assert asyncio.current_task() is not None


@pytest.mark.usefixtures("service_signals")
@pytest.mark.parametrize("error", [None, SystemExit(1), KeyboardInterrupt()])
def test_a_saga_that_does_not_let_itself_be_closed_is_closed(error: BaseException | None) -> None:
    @saga()
    async def stubborn(run: Run, text: Text) -> None:
        try:
            await run.wait_for("never", Text)
        finally:
            if error is not None:
                raise error
            await run.call(Press.copy, text)

    play = theatre(stubborn)
    director = play.hire()
    play.request("stubborn", "r", {"text": "x"})
    settle(play, director)
    play.book.write("play.run.r.cancel_requested", RunCancelRequested(reason="no"))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "cancelled"
    assert play.troupe.attempts == {}
