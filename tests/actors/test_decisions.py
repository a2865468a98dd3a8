"""What the orchestrator makes of requests, strays, oversize data and people's wishes, one case at a time."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from cuebook.actors import Agent, Run, Saga, Task, handler, saga
from cuebook.actors.orchestrator.dispatcher import UNKNOWN_AGENT_GRACE_S
from cuebook.actors.orchestrator.queries import answer_query, pack_answer
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import TaskState
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    MessageRejected,
    RunCancelRequested,
    RunRequested,
    RunRetryRequested,
    RunStarted,
    RunStuck,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskFailed,
    TaskRequested,
    TaskResolved,
    TaskRetried,
)
from tests.actors.cast import Bank, Number, awaited, chain
from tests.actors.theatre import Director, Theatre

LARGE = 250_000


class Text(BaseModel):
    text: str


class Press(Agent):
    """Prints, and takes back."""

    name = "press"
    concurrency = 9

    @handler()
    async def copy(self, text: Text, task: Task) -> Text:
        return text

    @copy.compensation
    async def pulp(self, text: Text, copied: Text) -> None: ...

    @handler()
    async def double(self, text: Text) -> Text:
        return text


@saga(on="told")
async def listener(run: Run, text: Text) -> Text:
    return await run.call(Press.copy, text)


@saga(on="told")
async def counter(run: Run, number: Number) -> Number:
    return number


@saga()
async def printed_twice(run: Run, text: Text) -> Text:
    """Doubles what comes back, and needs all of it at the end."""
    first = await run.call(Press.copy, text)
    second = await run.call(Press.copy, first)
    return Text(text=(first.text + second.text) * 2)


@saga()
async def failing(run: Run, text: Text) -> None:
    await run.call(Press.copy, text)
    raise run.abort("enough")


@saga()
async def waiting(run: Run, text: Text) -> Text:
    return await run.wait_for("news", Text)


@saga()
async def hasty(run: Run, text: Text) -> None:
    """Begins to print, and gives up at once."""
    run.call(Press.copy, text)
    await run.sleep(1)
    raise run.abort("changed my mind")


PRESS = {"press.copy": lambda data: data, "press.double": lambda data: data}


def theatre(*sagas: Saga[Any, Any], agents: tuple[type[Agent], ...] = (Press, Bank), **handlers: Any) -> Theatre:
    number = {"bank.add": lambda data: {"n": data["n"] + 1}}
    return Theatre(sagas, agents, PRESS | number | {name.replace("__", "."): one for name, one in handlers.items()})


def last(play: Theatre, run_id: str, fact: str) -> Any:
    return [item.event for item in play.book.all() if item.address.run_id == run_id and item.address.fact == fact][-1]


def settle(play: Theatre, director: Director) -> None:
    """Everything but the agents."""
    director.settle()


# --- tasks that nobody can take ---


def test_a_task_for_an_agent_that_nobody_knows_waits_a_while_and_is_placed_when_it_comes() -> None:
    play = theatre(agents=())
    director = play.hire()
    play.ask("bank", "t", {"n": 1}, handler="add")
    settle(play, director)
    play.tick(UNKNOWN_AGENT_GRACE_S - 1)
    settle(play, director)
    assert director.core.dispatcher.depths() == {"bank": 1}
    assert "no instance of agent 'bank' is running" in str(answer_query(director.core, "waiting", b'{"run": "t"}'))
    play.troupe.join(Bank, "i")
    play.play(until=play.owes_nothing)
    assert play.book.run("t").outcome() == "completed"
    assert not any(director.core.dispatcher.depths().values())
    assert len(director.core.timers) == 0


def test_a_task_for_an_agent_that_never_comes_is_rejected_with_the_nearest_name() -> None:
    play = theatre(agents=(Bank,))
    director = play.hire()
    play.ask("blank", "t", {"n": 1})
    play.ask("xylophone", "u", {"n": 1})
    settle(play, director)
    play.tick(UNKNOWN_AGENT_GRACE_S + 1)
    settle(play, director)
    rejected = last(play, "t", "rejected")
    assert (rejected.reason, rejected.remedy) == (
        "no agent 'blank' has ever registered",
        "did you mean 'bank'?",
    )
    assert last(play, "u", "rejected").remedy == "known agents: bank"
    assert director.core.dispatcher.depths() == {}


def test_a_task_that_is_cancelled_while_its_agent_is_unknown_is_forgotten() -> None:
    play = theatre(agents=())
    director = play.hire()
    play.ask("nobody", "t", None)
    settle(play, director)
    play.book.write("play.run.t.task.0.cancel_requested", TaskCancelRequested(reason="no"))
    settle(play, director)
    assert play.book.run("t").outcome() == "cancelled"
    assert director.core.dispatcher.depths() == {}
    assert len(director.core.timers) == 0


@pytest.mark.parametrize(
    ("request_", "reason", "remedy"),
    [
        (TaskRequested(input={"text": "x"}), "agent 'press' has several handlers", "name one of: copy, double"),
        (TaskRequested(handler="copi"), "agent 'press' has no handler 'copi'", "name one of: copy, double"),
        (TaskRequested(handler="x" * LARGE), "agent 'press' has no handler 'xxx", "name one of"),
        (
            TaskRequested(handler="copy", input={"text": 5}),
            'input of press.copy: text: 5 is not of type "string"',
            "",
        ),
        (TaskRequested(handler="copy", input={}), 'input of press.copy: "text" is a required property', ""),
        (TaskRequested(handler="copy", input={"text": ["y" * 9] * 4000}), "input of press.copy: text: [", ""),
        (TaskRequested(handler="copy", input={"text": "y" * 262_000}), "cannot be handed on", "keep the payload"),
    ],
)
def test_a_request_that_cannot_be_met_is_rejected_and_says_why(request_: Any, reason: str, remedy: str) -> None:
    play = theatre()
    director = play.hire()
    play.book.write("play.run.t.task.0.requested.press", request_, scope="play.run.t.>", expected=0)
    settle(play, director)
    rejected = last(play, "t", "rejected")
    assert rejected.reason.startswith(reason)
    assert rejected.remedy.startswith(remedy)
    assert len(rejected.reason) <= 2000


def test_what_waits_goes_to_whoever_comes_and_has_the_labels() -> None:
    class Gpu(Bank):
        labels: ClassVar = {"gpu": "yes"}

    play = theatre(agents=(Bank,))
    director = play.hire()
    play.ask("bank", "t", {"n": 1}, handler="add", labels={"gpu": "yes"})
    settle(play, director)
    assert "has the labels gpu=yes" in str(answer_query(director.core, "waiting", b'{"run": "t"}'))
    play.troupe.join(Gpu, "big")
    play.play(until=play.owes_nothing)
    assert play.book.facts("t")[1] == "task.0.assigned.bank.big"


# --- data that is too large for the event that would carry it ---


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


# --- several sagas, one event ---


@pytest.mark.parametrize("restart", [False, True])
def test_a_saga_that_cannot_begin_with_an_event_does_not_keep_another_from_it(restart: bool) -> None:
    play = theatre(listener, counter)
    director = play.hire()
    text, number, neither, both = (
        play.publish("told", data) for data in ({"text": "x"}, {"n": 1}, {"m": 2}, {"text": "x", "n": 1})
    )
    if restart:
        for _ in range(6):
            director.turns()[0]()
        play.fire(director)
        play.hire()
    play.play(until=play.owes_nothing)
    runs = {item.address.run_id: item.event.trigger for item in play.book.all() if isinstance(item.event, RunStarted)}
    assert sorted(runs.values()) == sorted([text, number, both, both])
    assert all(play.book.run(run_id).status == "completed" for run_id in runs)
    found = play.rejections()
    assert set(found) == {text, number, neither}
    assert "counter" in found[text]
    assert "listener" not in found[text]
    assert "listener" in found[number]
    assert all(name in found[neither] for name in ("listener", "counter"))


# --- requests that were made before, by whoever ---


def test_plain_requests_count_once_while_open_and_when_over_and_after_a_restart() -> None:
    play = theatre(listener)
    director = play.hire()
    body, subject = b'{"handler": "add", "input": {"n": 1}}', "play.run.t.task.0.requested.bank"
    play.book.write(subject, body)
    again = play.book.write(subject, body)
    play.play(until=play.owes_nothing)
    over = play.book.write(subject, body)
    play.play(until=play.owes_nothing)
    play.fire(director)
    late = play.book.write(subject, body)
    play.hire()
    play.play(until=play.owes_nothing)
    play.hire()
    play.play(until=play.owes_nothing)
    found = play.rejections()
    assert set(found) == {again, over, late}
    assert found[again] == "t was requested before"
    assert found[over] == found[late] == "t was requested before and is over"
    assert [fact for fact in play.book.facts("t") if "assigned" in fact] == ["task.0.assigned.bank.i1"]
    assert last_rejection(play).subject == subject


def last_rejection(play: Theatre) -> MessageRejected:
    return [item.event for item in play.book.all() if isinstance(item.event, MessageRejected)][-1]


@pytest.mark.parametrize("fact", ["started", "requested.listener"])
def test_a_run_that_is_over_is_not_opened_again(fact: str) -> None:
    play = theatre(listener)
    play.hire()
    play.request("listener", "r", {"text": "x"})
    play.play(until=play.owes_nothing)
    body = b'{"saga": "listener", "input": {"text": "x"}}' if fact == "started" else b'{"input": {"text": "x"}}'
    again = play.book.write(f"play.run.r.{fact}", body)
    play.play(until=play.owes_nothing)
    assert set(play.rejections()) == {again}
    assert last_rejection(play).subject == f"play.run.r.{fact}"
    assert play.troupe.attempts == {"r/0": 1}


def test_an_event_whose_run_would_have_the_id_of_a_finished_task_is_rejected() -> None:
    play = theatre(chain)
    play.hire()
    play.ask("bank", "chain-5", {"n": 1}, handler="add")
    play.play(until=play.owes_nothing)
    sequence = play.publish("chain.asked", {"n": 5})
    play.play(until=play.owes_nothing)
    assert play.rejections() == {sequence: "run chain-5 was started already"}


def test_facts_that_people_address_to_a_run_that_is_not_open_are_answered() -> None:
    play = theatre(listener)
    play.hire()
    wishes = [
        play.book.write("play.run.no.cancel_requested", RunCancelRequested()),
        play.book.write("play.run.no.retry_requested", RunRetryRequested()),
        play.book.write("play.run.no.task.0.cancel_requested", TaskCancelRequested()),
        play.book.write("play.run.no.task.0.resolved", TaskResolved(action="retry")),
        play.book.write("play.run.no.step.0.answered", b'{"value": 1}'),
        play.book.write("play.run.no.task.3.requested.bank", TaskRequested()),
    ]
    play.book.write("play.run.no.task.0.failed", TaskFailed(error=_error()))
    play.play(until=play.owes_nothing)
    assert play.rejections() == dict.fromkeys(wishes, "run no is not open")


def _error() -> Any:
    from cuebook.events.facts import Error

    return Error(type="E", message="")


# --- strays ---


@pytest.mark.parametrize(
    "stray",
    [
        "run.r.task.0.Garbage",
        "run.r.task.0.requested.bank.a.b.c",
        "run.r.task.0.completed",
        "run.r.task.0.cancelled.x",
        "run.r.task.1.resolved",
        "run.r.task.1.assigned.bank.i1",
        "run.r.step.0.slept",
        "run.r.step.1.answered",
        "run.r.step.1.waiting.x.y",
        "run.r.junk",
        "run.r.requested",
        "run.r.Stuck",
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_no_stray_under_a_run_keeps_it_from_its_end(stray: str, early: bool) -> None:
    """Unreadable or out of place, before the step is asked for or while it is open."""
    play = theatre(awaited)
    director = play.hire()
    play.request("awaited", "r", {"n": 1})
    if not early:
        settle(play, director)
    play.book.write(f"play.{stray}", b"{")
    play.book.write(f"play.{stray}", b'{"nonsense": 1}')
    settle(play, director)
    play.publish("paid", {"n": 1})
    play.play(until=play.owes_nothing)
    assert play.book.run("r").result == {"n": 2}


def test_no_stray_under_an_instance_keeps_it_from_being_lost() -> None:
    play = theatre(listener, agents=(Bank,))
    director = play.hire()
    for tail in ("Garbage", "registered", "a.b.c"):
        play.book.write(f"play.agent.bank.i0.{tail}", b"{")
    settle(play, director)
    liveness, world = director.core.liveness, director.core.world
    liveness.start(0.0)
    for now in range(1, 12):
        director.core.liveness.expect(world.registry.instances["bank", "i0"], 0.0)
        liveness.check(float(now))
        settle(play, director)
    assert world.registry.instances["bank", "i0"].health == "lost"


# --- ending a run ---


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


# --- questions about it all ---


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"5", b"null", b"{", b'{"run": 5}', b'{"run": ["r"]}', b"\xff"])
def test_no_question_makes_the_orchestrator_raise(payload: bytes) -> None:
    play = theatre(waiting)
    director = play.hire()
    play.request("waiting", "r", {"text": "x"})
    play.ask("nobody", "t", {"x": 1})
    settle(play, director)
    for noun in ("agents", "escalations", "runs", "sagas", "status", "waiting", "weather"):
        assert isinstance(answer_query(director.core, noun, payload), dict)


def test_an_answer_that_is_too_long_is_cut_and_says_so() -> None:
    answer = {"escalations": [{"id": n, "input": "x" * 100} for n in range(1000)]}
    cut = json.loads(pack_answer(answer, 10_000))
    assert 40 < len(cut["escalations"]) < 90
    assert len(cut["escalations"]) + cut["more"] == 1000
    assert json.loads(pack_answer(answer, 10**6)) == answer
    assert json.loads(pack_answer({"text": "x" * 1000}, 100)) == {"error": "the answer is too large"}


def test_handing_back_is_no_failure_and_no_loss() -> None:
    play = theatre(listener)
    director = play.hire()
    play.ask("press", "t", {"text": "x"}, handler="copy")
    settle(play, director)
    assigned = play.book.last("play.run.t.task.0.>")
    play.book.write(
        "play.run.t.task.0.retried", TaskRetried(reason="handed back"), scope="play.run.t.task.0.>", expected=assigned
    )
    settle(play, director)
    task = play.book.run("t").items[0]
    assert (task.status, task.attempt) == ("assigned", 2)  # type: ignore[union-attr]
    assert (task.failures, task.losses) == (0, 0)  # type: ignore[union-attr]
    play.play(until=play.owes_nothing)
    assert play.book.run("t").outcome() == "completed"


def test_a_request_for_a_saga_that_nobody_serves_names_the_nearest() -> None:
    play = theatre(listener, counter)
    director = play.hire()
    play.book.write("play.run.r.requested.listner", RunRequested(input={}), scope="play.run.r.>", expected=0)
    settle(play, director)
    rejected = last(play, "r", "rejected")
    assert (rejected.reason, rejected.remedy) == (
        "this orchestrator serves no saga 'listner'",
        "did you mean 'listener'?",
    )
