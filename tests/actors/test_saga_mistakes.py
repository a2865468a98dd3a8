"""What an author may get wrong in a saga: it is said where it is written, and nothing unreadable gets into the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from cuebook.actors import Approval, Run, Saga, saga
from cuebook.events.errors import ConfigurationError
from tests.actors.cast import Bank, Number, chain
from tests.actors.theatre import Theatre

ONE = Number(n=1)


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda run: run.ask_human(5, Approval), "question must be of type str, not 5"),
        (lambda run: run.call(Bank.add, ONE, priority=101), "priority must be from -100 to 100, not 101"),
        (lambda run: run.call(Bank.add, ONE, labels=["gpu"]), "labels must be of type dict"),
        (lambda run: run.call(Bank.add, ONE, labels={"gpu": 1}), "a label must be of type str, not 1"),
        (lambda run: run.call(Bank.add, ONE, labels={1: "gpu"}), "a label must be of type str, not 1"),
        (lambda run: run.call(Bank.add, ONE, timeout_s=0), "timeout_s must be more than 0"),
        (lambda run: run.call(Bank.add, ONE, timeout_s=-5), "timeout_s must be more than 0"),
        (lambda run: run.call(Bank.add, ONE, timeout_s="5"), "a time to wait is a number of seconds, not '5'"),
        (lambda run: run.sleep(timedelta(seconds=1)), "a time to wait is a number of seconds"),
        (lambda run: run.wait_for("paid", Number, timeout="1h"), "a time to wait is a number of seconds, not '1h'"),
    ],
)
def test_what_cannot_be_asked_raises_where_it_is_asked(ask: Callable[[Run], Any], complaint: str) -> None:
    run = Run("r", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigurationError) as caught:
        ask(run)
    assert str(caught.value).startswith(complaint)
    assert run.steps == []


@pytest.mark.parametrize(
    "options", [{"on": 5}, {"key": 5}, {"name": None}, {"version": None}, {"version": 1.5}, {"continues": 1}]
)
def test_a_sagas_words_are_words(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        saga(**options)


@saga()
async def gathers_a_list(run: Run, number: Number) -> None:
    await run.gather([run.call(Bank.add, number)])  # type: ignore[call-overload]


@saga()
async def forgets_to_await(run: Run, number: Number) -> Any:
    return run.call(Bank.add, number)


@pytest.mark.parametrize(
    ("mistaken", "complaint"),
    [
        (gathers_a_list, "run.gather takes steps, not list"),
        (forgets_to_await, "the saga returned a step; await it"),
    ],
)
def test_a_step_that_is_taken_for_something_else(mistaken: Saga[Any, Any], complaint: str) -> None:
    play = acted(mistaken)
    play.play(until=play.owes_nothing)
    run = play.book.run("r")
    assert (run.status, run.error and run.error.message) == ("failed", complaint)
    assert run.items == {}  # what was asked in the same breath is not begun


@saga()
async def limits_itself(run: Run, number: Number) -> None:
    await run.call(Bank.add, number)
    async with asyncio.timeout(5):
        await run.sleep(1)


@saga()
async def has_a_group(run: Run, number: Number) -> None:
    await run.call(Bank.add, number)
    async with asyncio.TaskGroup():
        await run.sleep(1)


@saga()
async def uses_anyio(run: Run, number: Number) -> None:
    await run.call(Bank.add, number)
    with anyio.fail_after(5):
        await run.sleep(1)


@saga()
async def gathers_otherwise(run: Run, number: Number) -> None:
    await run.call(Bank.add, number)
    await asyncio.sleep(0)


@pytest.mark.parametrize("foreign", [limits_itself, has_a_group, uses_anyio, gathers_otherwise])
async def test_what_needs_an_event_loop_makes_the_run_stuck_and_undoes_nothing(foreign: Saga[Any, Any]) -> None:
    play = acted(foreign)
    play.play(until=lambda: play.book.run("r").status not in ("requested", "running"))
    run = play.book.run("r")
    assert run.status == "stuck"
    assert run.stuck is not None
    assert "put I/O into an agent, and wait with run.gather, run.sleep" in run.stuck.reason
    assert play.troupe.undone == []


def acted(mistaken: Saga[Any, Any]) -> Theatre:
    play = Theatre([mistaken, chain], [Bank], {"bank.add": lambda data: {"n": data["n"] + 1}})
    play.hire()
    play.request(mistaken.name, "r", {"n": 1})
    return play
