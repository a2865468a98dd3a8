"""What the orchestrator makes of requests, strays and people's wishes, one case at a time."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar

import pytest

from cuebook.actors import Agent, handler
from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.dispatcher import UNKNOWN_AGENT_GRACE_S
from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.queries import answer_query, pack_answer
from cuebook.actors.orchestrator.state import RunState, TaskState
from cuebook.events.facts import (
    MessageRejected,
    RunCancelRequested,
    RunRequested,
    RunRetryRequested,
    RunStarted,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskRequested,
    TaskResolved,
    TaskRetried,
)
from tests.actors.cast import Bank, Number, awaited, chain
from tests.actors.press import counter, last, listener, settle, theatre, waiting
from tests.actors.theatre import Theatre

LARGE = 250_000


class Single(Agent):
    """One task at a time."""

    name = "single"
    concurrency = 1

    @handler()
    async def give_back(self, number: Number) -> Number:
        return number


def test_a_mistake_in_a_decision_is_said_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch, expected_errors: list[str]
) -> None:
    expected_errors.append("a decision of the orchestrator failed")
    play = theatre()
    director = play.hire()
    decide = director.core.dispatcher.decide

    def mistaken(run: RunState, task: TaskState) -> None:
        if run.run_id == "bad":
            raise RuntimeError("a mistake of ours")
        decide(run, task)

    monkeypatch.setattr(director.core, "_try", partial(Orchestrator._try, director.core))  # as it is outside of tests
    monkeypatch.setattr(director.core.dispatcher, "decide", mistaken)
    for run_id in ("bad", "good"):
        play.ask("bank", run_id, {"n": 1}, handler="add")
    while play.take_turn():
        pass
    assert [play.book.run(run_id).outcome() for run_id in ("bad", "good")] == ["waiting", "completed"]


def test_only_one_expectation_that_nothing_was_there_makes_a_request_guarded() -> None:
    """Of a header that comes twice the server reads one, and nobody knows which."""
    play = theatre()
    play.ask("bank", "r", {"n": 1})
    item, _ = play.book.read(len(play.book))
    name = "Nats-Expected-Last-Subject-Sequence"
    scope, none, some = f"{name}-Subject: play.run.r.>\r\n", f"{name}: 0\r\n", f"{name}: 7\r\n"
    assert is_guarded(item, f"NATS/1.0\r\n{none}{scope}\r\n".encode(), 1)
    for lines in (some + none + scope, none + some + scope, some + scope, none):
        assert not is_guarded(item, f"NATS/1.0\r\n{lines}\r\n".encode(), 1)


def test_a_free_slot_is_given_to_who_waits_for_it_at_once() -> None:
    play = theatre(agents=())
    director = play.hire()
    play.troupe.join(Single, "s")
    for run_id in ("first", "second"):
        play.ask("single", run_id, {"n": 1})
    settle(play, director)
    assert director.core.dispatcher.depths() == {"single": 1}
    play.book.write("play.run.first.task.0.completed", TaskCompleted(output={"n": 1}, attempt=1))
    settle(play, director)  # and no time passes
    assert play.book.facts("second")[-1] == "task.0.assigned.single.s"


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
        (
            TaskRequested(handler="copy", input={"text": "y"}, priority=101),
            "priority 101 is not between -100 and 100",
            "ask again",
        ),
        (
            TaskRequested(handler="copy", input={"text": "y"}, priority=-(2**63)),
            "priority -9223372036854775808 is not",
            "ask",
        ),
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
