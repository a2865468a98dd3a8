"""A saga that goes on without end is stuck, and nobody else waits for it."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from cuebook.actors import Agent, Run, Saga, handler, saga
from cuebook.actors.orchestrator import sagas, watchdog
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.watchdog import watched
from cuebook.actors.saga import EndlessSagaError
from cuebook.events.facts import RunCancelRequested, RunRetryRequested
from tests.actors.cast import Bank, chain
from tests.actors.desk import Desk
from tests.actors.theatre import Theatre


class Word(BaseModel):
    text: str


class Press(Agent):
    name = "press"
    concurrency = 9

    @handler()
    async def copy(self, word: Word) -> Word:
        return word

    @copy.compensation
    async def pulp(self, word: Word, copied: Word) -> None: ...


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STRETCH_S", 0.1)
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.02)


@saga()
async def spins(run: Run, word: Word) -> None:
    await run.call(Press.copy, word)
    while True:
        pass


@saga()
async def swallows(run: Run, word: Word) -> None:
    while True:
        try:
            sum(range(1_000))
        except Exception:  # noqa: BLE001
            run.logger.info("not an Exception")


@saga()
async def swallows_all_at_first(run: Run, word: Word) -> Word:
    for _ in range(3):
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001
            run.logger.info("once more")
    return word


@saga()
async def converts(run: Run, word: Word) -> None:
    try:
        while True:
            pass
    except BaseException as error:
        raise ValueError("something of its own") from error


@saga()
async def does_not_leave(run: Run, word: Word) -> None:
    try:
        await run.wait_for("never", Word)
    finally:
        while True:
            pass


ENDLESS: dict[str, Saga[Any, Any]] = {one.name: one for one in (spins, swallows, swallows_all_at_first, converts)}


def stuck_reason(play: Theatre) -> str:
    run = play.book.run("r")
    assert run.status == "stuck", run.status
    assert run.stuck is not None
    return run.stuck.reason


def staged(*others: Saga[Any, Any]) -> Theatre:
    number = {"bank.add": lambda data: {"n": data["n"] + 1}, "press.copy": lambda data: data}
    return Theatre([*others, chain], [Press, Bank], number)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ENDLESS)
def test_a_saga_that_computes_without_end_is_stuck_and_the_others_go_on(name: str) -> None:
    play = staged(ENDLESS[name])
    play.hire()
    play.request(name, "r", {"text": "a"})
    play.request("chain", "s", {"n": 1})
    play.play(until=lambda: play.open_runs() == ["r"])
    assert stuck_reason(play) == ("the saga does not come to an end: it computed for 0.1 s without awaiting anything")
    assert play.book.run("s").status == "completed"


@pytest.mark.usefixtures("impatient")
def test_a_run_that_was_stuck_for_its_endless_code_goes_on_with_better_code_or_is_undone() -> None:
    @saga(name="spins")
    async def mended(run: Run, word: Word) -> Word:
        return await run.call(Press.copy, word)

    play = staged(spins)
    director = play.hire()
    for run_id in ("r", "t"):
        play.request("spins", run_id, {"text": "a"})
    play.play(until=lambda: play.book.run("t").status == play.book.run("r").status == "stuck")
    play.book.write("play.run.t.cancel_requested", RunCancelRequested())
    play.play(until=lambda: play.open_runs() == ["r"])
    assert (play.book.run("t").status, play.troupe.undone) == ("compensated", ["t/0"])
    play.fire(director)
    play.sagas = Repertoire([mended])
    play.hire()
    play.book.write("play.run.r.retry_requested", RunRetryRequested())
    play.play(until=play.owes_nothing)
    assert play.book.run("r").result == {"text": "a"}


@pytest.mark.usefixtures("impatient")
def test_a_saga_that_does_not_let_itself_be_closed_in_time_is_left(caplog: pytest.LogCaptureFixture) -> None:
    play = staged(does_not_leave)
    play.hire()
    play.request("does_not_leave", "r", {"text": "a"})
    play.play(until=lambda: play.open_runs() == ["r"])
    play.book.write("play.run.r.cancel_requested", RunCancelRequested())
    with caplog.at_level(logging.WARNING):
        play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "cancelled"
    assert "does not let itself be closed" in caplog.text


BITTEN = """
import sys
from cuebook.actors.orchestrator import watchdog
from cuebook.actors.saga import EndlessSagaError

watchdog.STRETCH_S, watchdog.LOOK_EVERY_S = 0.05, 0.01

def spin():
    while True:
        pass

try:
    watchdog.watched(spin)
except EndlessSagaError:
    sys.setprofile(lambda *_: None)
    (lambda: None)()
    sys.setprofile(None)
    print("goes on")
"""


def test_a_process_that_had_an_endless_saga_can_still_be_looked_at_with_a_profiler() -> None:
    ended = subprocess.run([sys.executable, "-c", BITTEN], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "goes on\n", ended.stderr


@pytest.mark.usefixtures("impatient")
def test_what_ends_in_time_is_not_disturbed_then_or_later() -> None:
    def count(most: int) -> int:
        return sum(1 for _ in zip(range(most), itertools.count(), strict=False))

    with pytest.raises(EndlessSagaError):
        watched(count, 10**12)
    assert [watched(count, 1_000) for _ in range(2_000)] == [1_000] * 2_000
    assert count(3_000_000) == 3_000_000  # nobody watches


# --- steps and awaits ---


@saga()
async def asks_on(run: Run, word: Word) -> None:
    while True:
        await run.sleep(0)


@saga()
async def asks_at_once(run: Run, word: Word) -> None:
    while True:
        run.sleep(0)


@saga()
async def calls_on(run: Run, word: Word) -> None:
    while True:
        await run.call(Press.copy, word)


@saga()
async def awaits_again(run: Run, word: Word) -> None:
    step = run.sleep(0)
    while True:
        await step


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cuebook.actors.saga"]  # by its path one would get the decorator of that name
    monkeypatch.setattr(module, "MAX_STEPS", 30)
    monkeypatch.setattr(module, "MAX_UNDOABLE", 20)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("endless", "reason"),
    [
        (asks_on, "it asked for more than 30 steps"),
        (asks_at_once, "it asked for more than 30 steps"),
        (calls_on, "it asked for more than 20 steps that can be undone"),
    ],
)
def test_a_saga_that_asks_without_end_is_stuck(endless: Saga[Any, Any], reason: str) -> None:
    play = staged(endless)
    play.hire()
    play.request(endless.name, "r", {"text": "a"})
    play.play(until=lambda: play.book.run("r").status == "stuck")
    assert stuck_reason(play) == f"the saga does not come to an end: {reason}"
    play.book.write("play.run.r.cancel_requested", RunCancelRequested())
    play.play(until=play.owes_nothing)
    assert len(play.troupe.undone) == (20 if endless is calls_on else 0)


def test_a_saga_that_awaits_what_it_has_without_end_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sagas, "MAX_AWAITS", 1_000)
    play = staged(awaits_again)
    play.hire()
    play.request("awaits_again", "r", {"text": "a"})
    play.play(until=lambda: play.book.run("r").status == "stuck")
    assert stuck_reason(play) == "the saga does not come to an end: it awaited more than 1000 times"


async def test_the_orchestrator_serves_on_beside_a_saga_that_computes_without_end(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "STRETCH_S", 0.3)  # the client of this test is on the thread that stands still
    async with Desk(nats_url, space, sagas=[swallows, chain], agents=[Bank]) as desk:
        await desk.client.submit_run("swallows", {"text": "a"}, run_id="r")
        (stuck,) = await desk.saw("r", "stuck")
        assert "it computed for 0.3 s" in stuck.reason
        assert (await desk.client.run_saga("chain", {"n": 1}, timeout_s=20)).result == {"n": 4}
        assert "lost" not in " ".join(await desk.facts())
