"""A fork shares what had ended, executes and undoes nothing of it again, and goes on as its origin would have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuebook.actors import Agent, Run, TaskFailedError, handler, saga
from cuebook.actors.forking import Past, plan_fork
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.events.errors import CommandRejectedError, NotFoundError, PoisonMessageError
from cuebook.events.facts import (
    Origin,
    RunCancelRequested,
    RunForked,
    RunRejected,
    StepAnswered,
    TaskCopied,
    TaskResolved,
)
from tests.actors.cast import Bank, Number, approved, fan
from tests.actors.desk import Desk
from tests.actors.test_theatre import check_memory, check_single_decisions
from tests.actors.theatre import Theatre


class Note(BaseModel):
    text: str


class Program(BaseModel):
    steps: list[str]


class Scribe(Agent):
    """Writes a note down, and can strike it out."""

    name = "scribe"
    concurrency = 9

    @handler()
    async def write(self, note: Note) -> Note:
        raise NotImplementedError  # the play has its own

    @write.compensation
    async def strike(self, note: Note, written: Note) -> None: ...

    @handler()
    async def look(self, note: Note) -> Note:
        raise NotImplementedError  # the play has its own

    @handler()
    async def refuse(self, note: Note) -> Note:
        raise NotImplementedError  # the play has its own


@saga()
async def story(run: Run, program: Program) -> list[str]:
    """Does what it is told, step by step, with everything that a saga can ask for."""
    told: list[str] = []
    for step in program.steps:
        so_far = Note(text=f"{step} of {run.id} after {len(told)} with {len(''.join(told))}")
        match step:
            case "write":
                told.append((await run.call(Scribe.write, so_far)).text)
            case "look":
                told.append((await run.call(Scribe.look, so_far)).text)
            case "both":
                one, other = await run.gather(run.call(Scribe.write, so_far), run.call(Scribe.look, so_far))
                told += [one.text, other.text]
            case "refuse":
                try:
                    await run.call(Scribe.refuse, so_far)
                except TaskFailedError as error:
                    told.append(str(error))
            case "sleep":
                await run.sleep(2)
            case "now":
                await run.call(Scribe.look, Note(text=run.now.isoformat()))
            case "wait":
                told.append((await run.wait_for("news", Note)).text)
            case "ask":
                told.append(str(await run.ask_human("how many?", int)))
            case "abort":
                raise run.abort(f"enough of {run.id}")
    return told


def refuse(_: Any) -> Any:
    raise PoisonMessageError("never")


HANDLERS: dict[str, Callable[[Any], Any]] = {
    "scribe.write": lambda note: {"text": note["text"] + ", written"},
    "scribe.look": lambda note: {"text": note["text"] + ", seen"},
    "scribe.refuse": refuse,
}


def stage(seed: int = 0) -> Theatre:
    play = Theatre([story], [Scribe], HANDLERS, seed=seed)
    play.hire()
    return play


def help_along(play: Theatre) -> None:
    """People answer what they are asked, give up what fails, and news comes."""
    subjects = play.book.subjects
    for run in list(play.directors[0].core.world.runs.values()):
        for n, item in list(run.items.items()):
            if isinstance(item, StepState) and item.type == "ask" and item.status == "open":
                play.book.write(subjects.step(run.run_id, n, "answered"), StepAnswered(value=3))
            elif isinstance(item, StepState) and item.type == "wait" and item.status == "open":
                if len(events_on(play)) < sum(step == "wait" for step in run.input["steps"]):
                    play.publish("news", {"text": f"news {len(events_on(play))}"})
            elif isinstance(item, TaskState) and item.status == "escalated":
                play.book.write(subjects.task(run.run_id, n, "resolved"), TaskResolved(action="abort"))


def events_on(play: Theatre) -> list[Any]:
    return [item for item in play.book.all() if item.address.kind == "event"]


def finish(play: Theatre) -> None:
    for _ in range(5_000):
        if play.take_turn():
            continue
        if play.owes_nothing():
            return
        help_along(play)
        play.tick(10)
    raise AssertionError({run_id: play.book.facts(run_id) for run_id in play.open_runs()})


def tell(play: Theatre, steps: list[str], run_id: str = "origin") -> RunState:
    play.request("story", run_id, {"steps": steps})
    finish(play)
    return play.book.run(run_id)


def fork(
    play: Theatre, run_id: str = "origin", *, at: int | None = None, new_id: str = "copied", **answers: Any
) -> RunForked:
    """Append what a fork takes."""
    past = Past(run_id, [item for item in play.book.all() if item.address.run_id == run_id], at)
    plan = plan_fork(play.book.subjects, past, new_id, {int(n[1:]): value for n, value in answers.items()}, by="ann")
    scope = play.book.subjects.everything_of(new_id)
    expected = 0
    for subject, event in plan.events:
        expected = play.book.write(subject, event, scope=scope, expected=expected)
    opened = plan.events[0][1]
    assert isinstance(opened, RunForked)
    return opened


def own(play: Theatre, run_id: str = "copied") -> set[int]:
    """What a run has executed itself, by number."""
    return {int(key.partition("/")[2]) for key in play.troupe.attempts if key.startswith(f"{run_id}/")}


def nameless(value: Any) -> Any:
    """Without the names of runs, which differ: what was done before a fork names the origin."""
    return json.loads(re.sub("origin|copied|second|thirdy", "<run>", json.dumps(value)))


programs = st.lists(
    st.sampled_from(["write", "write", "look", "both", "refuse", "sleep", "now", "wait", "ask"]), max_size=6
).flatmap(lambda steps: st.sampled_from([steps, [*steps, "abort"]]))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), steps=programs)
def test_a_fork_at_the_last_event_ends_like_the_original(seed: int, steps: list[str]) -> None:
    play = stage(seed)
    origin = tell(play, steps)
    done, undone = len(play.troupe.attempts), list(play.troupe.undone)
    fork(play)
    finish(play)
    copy = play.book.run("copied")
    assert copy.status == origin.status
    assert nameless([copy.result, copy.reason]) == nameless([origin.result, origin.reason])
    assert (len(play.troupe.attempts), play.troupe.undone) == (done, undone)
    check_single_decisions(play.book)
    check_memory(play)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), steps=programs, share=st.floats(0, 1))
def test_a_fork_anywhere_does_only_what_was_not_done_and_ends_as_its_origin(
    seed: int, steps: list[str], share: float
) -> None:
    play = stage(seed)
    origin = tell(play, steps)
    points = [item.sequence for item in play.book.all() if item.address.run_id == "origin"]
    at = points[1 + int(share * (len(points) - 2))]
    past = Past("origin", play.book.all(), at).state
    undone = len(play.troupe.undone)
    fork(play, at=at)
    finish(play)
    copy = play.book.run("copied")
    shared = {n for n, item in past.items.items() if item.closed}
    assert own(play).isdisjoint(shared)
    assert nameless(copy.result) == nameless(origin.result)
    did = {n for n in own(play) if isinstance(item := copy.items[n], TaskState) and item.compensation}
    assert {int(key.partition("/")[2]) for key in play.troupe.undone[undone:]} == (did if "abort" in steps else set())
    assert all(key.startswith("copied/") for key in play.troupe.undone[undone:])
    assert copy.status == origin.status or (copy.status == "failed" and not did)
    check_single_decisions(play.book)
    check_memory(play)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), steps=programs.filter(len))
def test_a_fork_of_a_fork_shares_what_both_had_done(seed: int, steps: list[str]) -> None:
    play = stage(seed)
    tell(play, steps)
    points = [item.sequence for item in play.book.all() if item.address.run_id == "origin"]
    fork(play, at=points[len(points) // 2], new_id="second")
    finish(play)
    fork(play, "second", new_id="thirdy")
    finish(play)
    second, third = play.book.run("second"), play.book.run("thirdy")
    assert (third.status, nameless(third.result)) == (second.status, nameless(second.result))
    assert own(play, "thirdy") == set()
    for n, item in third.items.items():
        assert item.origin is not None
        first = second.items[n].origin
        assert item.origin == (first or Origin(run_id="second", n=n, sequence=item.origin.sequence,
                                               recorded_at=item.origin.recorded_at))  # fmt: skip


def test_another_answer_takes_the_saga_another_way() -> None:
    play = stage()
    tell(play, ["ask", "write", "ask"])
    answer = next(item for item in play.book.all() if item.address.fact == "answered")
    opened = fork(play, at=answer.sequence, _0=77)
    finish(play)
    copy = play.book.run("copied")
    assert (opened.changed, opened.fork_of, opened.at) == ([0], "origin", answer.sequence)
    assert copy.status == "completed"
    assert copy.result[0] == "77"
    assert copy.result[1] == "write of copied after 1 with 2, written"
    assert (copy.items[0].changed, copy.items[1].origin) == (True, None)
    assert play.book.run("origin").result[0] == "3"


def test_an_open_question_and_a_task_that_was_given_up_can_be_answered() -> None:
    play = stage()
    tell(play, ["refuse", "ask"])
    asked = next(item for item in play.book.all() if item.address.fact == "asked")
    fork(play, at=asked.sequence, _0={"text": "it worked"}, _1=5)
    finish(play)
    copy = play.book.run("copied")
    assert (copy.status, copy.result) == ("completed", ["5"])
    assert own(play) == set()


def test_code_that_goes_another_way_is_refused_with_both_sides_and_executes_nothing() -> None:
    play = stage()
    tell(play, ["look", "write", "look"])
    points = [item.sequence for item in play.book.all() if item.address.fact == "completed"]
    fork(play, at=points[-1], _0={"text": "much shorter"})
    finish(play)
    copy = play.book.run("copied")
    assert copy.status == "rejected"
    assert own(play) == set()
    rejected = next(item.event for item in play.book.all() if isinstance(item.event, RunRejected))
    assert isinstance(rejected, RunRejected)
    assert "goes another way than origin did at step 1" in rejected.reason
    assert "write of copied after 1 with 12" in rejected.reason
    assert rejected.remedy.endswith("fork at origin/0")


def test_a_fork_waits_for_all_that_it_shares_and_can_be_cancelled_meanwhile() -> None:
    play = stage()
    tell(play, ["write", "look", "write"])
    past = Past("origin", [item for item in play.book.all() if item.address.run_id == "origin"])
    plan = plan_fork(play.book.subjects, past, "copied", {})
    *first, (last_subject, last) = plan.events
    for subject, event in first:
        play.book.write(subject, event)
    while play.take_turn():
        pass
    play.tick(100)
    while play.take_turn():
        pass
    assert play.book.facts("copied") == ["forked", *[f"task.{n}.copied.scribe" for n in (0, 1)]]
    play.book.write(play.book.subjects.run("copied", "cancel_requested"), RunCancelRequested(reason="no"))
    finish(play)
    assert play.book.run("copied").status == "cancelled"
    play.book.write(last_subject, last)
    finish(play)
    assert play.book.facts("copied")[-1] == "task.2.copied.scribe"
    assert play.book.run("copied").status == "cancelled"


def test_a_copied_fact_counts_only_while_a_fork_begins() -> None:
    play = stage()
    play.request("story", "origin", {"steps": ["ask", "write"]})
    while play.take_turn():
        pass
    origin = Origin(run_id="elsewhere", n=1, sequence=1, recorded_at=2**63)
    forged = TaskCopied(origin=origin, status="completed", handler="write", output={"text": "forged"})
    play.book.write(play.book.subjects.task("origin", 1, "copied", "scribe"), forged)
    finish(play)
    run = play.book.run("origin")
    assert run.status == "completed"
    assert own(play, "origin") == {1}
    assert run.items[1].origin is None
    assert any(item.address.kind == "rejected" for item in play.book.all())


def test_what_a_snapshot_of_a_fork_holds_is_the_fork() -> None:
    play = stage()
    tell(play, ["write", "refuse", "ask", "sleep", "write"])
    at = next(item.sequence for item in play.book.all() if item.address.fact == "answered")
    fork(play, at=at)
    while play.take_turn():
        pass
    director = play.directors[0]
    assert director.core.world.runs
    play.fire(director)
    play.hire(director.snapshot())
    finish(play)
    assert play.book.run("copied").status == "completed"
    assert own(play) == {4}


@pytest.mark.parametrize(
    ("steps", "answers", "error", "complaint"),
    [
        (["sleep"], {"_0": 1}, CommandRejectedError, "is a sleep"),
        (["ask"], {"_0": "many"}, CommandRejectedError, "does not fit"),
        (["ask"], {"_4": 1}, NotFoundError, "origin/4 had not been asked for"),
        (["write", "abort"], {"_1": 1}, CommandRejectedError, "undid step 0"),
    ],
)
def test_answers_that_cannot_be_given(
    steps: list[str], answers: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    play = stage()
    tell(play, steps)
    before = len(play.book)
    with pytest.raises(error, match=complaint):
        fork(play, **answers)
    assert len(play.book) == before


def test_pasts_that_cannot_be_shared() -> None:
    play = stage()
    play.ask("scribe", "single", {"text": "once"}, handler="look")
    finish(play)
    with pytest.raises(CommandRejectedError, match="one task without a saga") as refused:
        fork(play, "single")
    assert "run retry single" in refused.value.remedy
    tell(play, ["look"])
    first = next(item.sequence for item in play.book.all() if item.address.run_id == "origin")
    with pytest.raises(CommandRejectedError, match="had not started"):
        fork(play, at=first)


async def test_a_run_is_forked_on_a_server(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[approved, fan], agents=[Bank]) as desk:
        client = desk.client
        await client.submit_run("approved", {"n": 1}, run_id="a1")
        await desk.saw("a1", "asked")
        await client.resolve("a1", 1, value={"approved": False, "note": "not today"})
        assert (await client.wait("a1", timeout_s=30)).status == "compensated"
        copy = (await client.fork("a1", answers={1: {"approved": True}}, new_id="a1-yes")).run_id
        outcome = await client.wait(copy, timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 3})
        log = await desk.log(copy)
        assert [f"{item.address.n} {item.address.fact}" for item in log] == [
            "-1 forked", "0 copied", "1 copied", "-1 started", "2 requested", "2 assigned", "2 completed",
            "-1 completed",
        ]  # fmt: skip
        origin = await desk.log("a1")
        assert {item.correlation_id for item in log} == {origin[0].correlation_id}
        assert log[0].causation_id == next(item.id for item in origin if item.address.fact == "answered")
        with pytest.raises(CommandRejectedError, match="a1-yes exists already"):
            await client.fork("a1", new_id="a1-yes")
        with pytest.raises(NotFoundError, match="there is no run nothing"):
            await client.fork("nothing")
        # More steps than one batch takes.
        many = Number(n=1_200).model_dump()
        await client.submit_run("fan", many, run_id="f1")
        assert (await client.wait("f1", timeout_s=60)).result == many
        copy = (await client.fork("f1", new_id="f1-again")).run_id
        assert (await client.wait(copy, timeout_s=60)).result == many
        assert sum(".copied." in fact for fact in await desk.facts(copy)) == 1_200
        assert not any(".assigned." in fact for fact in await desk.facts(copy))
