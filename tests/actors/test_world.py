"""The fold: total, the same from a snapshot as from the start, and no larger than what is open."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuebook.actors import Run, saga
from cuebook.actors.orchestrator.dumps import dump_run, load_run
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RUN_CLOSED, TASK_CLOSED, RunState, StepState, TaskState, fold_run
from cuebook.actors.orchestrator.world import World
from cuebook.events.codec import encode
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    AgentRegistered,
    Error,
    Origin,
    OutsideEvent,
    RetryPolicy,
    RunCancelRequested,
    RunCompensating,
    RunForked,
    RunRequested,
    RunStarted,
    RunStuck,
    StepAsked,
    StepSlept,
    StepWaiting,
    TaskAssigned,
    TaskCompleted,
    TaskEscalated,
    TaskRequested,
    TaskResolved,
)
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan
from tests.actors.theatre import Book, Director, Theatre, Troupe
from tests.events.strategies import EVENT_TYPES, events

SAGAS = {one.name: one for one in (chain, fan, approved, awaited)}
RUNS = st.sampled_from(["r", "s", "chain-1"])
NUMBERS = st.sampled_from([0, 1, 2, 999_999_999])
AGENTS, INSTANCES = st.sampled_from(["bank", "nobody"]), st.sampled_from(["i", "j"])
TOPICS = st.sampled_from(["chain.asked", "paid", "other"])
SUBJECTS = Book().subjects


@saga()
async def sleepy(run: Run, number: Number) -> None:
    await run.sleep(3600)


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, bytes, bool]:
    """Anything that could stand in the log of a space: of a right type or a wrong one, in any order."""
    cls = draw(st.sampled_from([cls for cls in EVENT_TYPES if cls.event_type != "event"] + [OutsideEvent] * 3))
    kind, fact, *_ = (*cls.event_type.split("."), "")
    run_id, n, agent, instance = draw(RUNS), draw(NUMBERS), draw(AGENTS), draw(INSTANCES)
    match kind:
        case "run":
            subject = SUBJECTS.run(run_id, fact, "chain" if fact == "requested" and draw(st.booleans()) else "")
        case "task":
            tail = {"requested": (agent,), "assigned": (agent, instance)}.get(fact, ())
            subject = SUBJECTS.task(run_id, n, fact, *tail)
        case "step":
            subject = SUBJECTS.step(run_id, n, fact)
        case "agent":
            subject = SUBJECTS.agent(agent, instance, fact)
        case "rejected":
            subject = SUBJECTS.rejected(draw(st.integers(0, 30)))
        case "progress":
            subject = SUBJECTS.progress(run_id, n)
        case _:
            subject = SUBJECTS.event(draw(TOPICS))
    body = draw(st.one_of(_native(cls), _plausible(cls), st.sampled_from([b"", b"{", b'{"n": 1}', b"\x94\x01"])))
    if draw(st.integers(0, 9)) == 0:
        subject += ".Garbage"
    return subject, body, draw(st.booleans())


def _native(cls: Any) -> st.SearchStrategy[bytes]:
    return events(cls).map(_encode)


def _plausible(cls: Any) -> st.SearchStrategy[bytes]:
    """With values that fit what went before, more often than chance would have it."""
    likely: dict[Any, st.SearchStrategy[Any]] = {
        RunRequested: st.builds(RunRequested, input=st.just({"n": 1})),
        RunStarted: st.builds(RunStarted, saga=st.sampled_from([*SAGAS, "gone"]), input=st.just({"n": 1})),
        RunCompensating: st.builds(RunCompensating, reason=st.just("r"), steps=st.lists(NUMBERS, max_size=3)),
        TaskRequested: st.builds(
            TaskRequested,
            handler=st.sampled_from(["add", ""]),
            input=st.just({"n": 1}),
            compensation=st.booleans(),
            compensates=st.sampled_from([None, 0, 1]),
            retry=st.none() | events(RetryPolicy),
        ),
        TaskAssigned: st.builds(
            TaskAssigned, handler=st.just("add"), attempt=st.integers(1, 3), timeout_s=st.just(5.0)
        ),
        TaskCompleted: st.builds(TaskCompleted, output=st.sampled_from([{"n": 2}, None, 0, "", False])),
        OutsideEvent: st.builds(OutsideEvent, data=st.sampled_from([{"n": 1}, {"n": "x"}, None])),
        StepWaiting: st.builds(StepWaiting, topic=TOPICS, match=st.sampled_from([{}, {"n": 1}])),
        StepAsked: st.builds(StepAsked, question=st.just("?"), schema=st.sampled_from([{}, {"type": "integer"}])),
        AgentRegistered: st.builds(
            AgentRegistered,
            slots=st.integers(-1, 3),
            handlers=st.just({name: handler.spec() for name, handler in Bank.handlers().items()}),
        ),
    }
    return likely.get(cls, events(cls)).map(_encode)


def _encode(event: Any) -> bytes:
    try:
        return encode(event, event_id="e", source="anybody", event_type="t" if isinstance(event, OutsideEvent) else "")
    except PoisonMessageError:
        return b"{"


def director() -> Director:
    book = Book()
    return Director(book, Repertoire(SAGAS.values()), Troupe(book, [Bank], {}))


def fold_all(world: World, book: Book, first: int = 1) -> None:
    for sequence in range(first, len(book) + 1):
        item, whole = book.read(sequence)
        world.fold(item, guarded=whole)


@settings(max_examples=50)
@given(st.lists(messages(), max_size=30), st.booleans())
def test_no_history_makes_an_orchestrator_raise(history: list[tuple[str, bytes, bool]], crashing: bool) -> None:
    one = director()
    one.core.activate()
    for subject, body, _ in history:
        one.book.append(subject, body)
        one.read_one()
        one.core.tick()
        if not crashing:
            one.settle()
    one.settle()
    one.book.now += 100_000_000_000
    one.core.tick()
    one.settle()
    world = one.core.world
    assert not any(run.closed for run in world.runs.values())
    for instance in world.registry.instances.values():
        held = {
            (run.run_id, n)
            for run in world.runs.values()
            for n, item in run.items.items()
            if isinstance(item, TaskState) and item.status == "assigned" and item.instance == instance.instance
        }
        assert instance.tasks >= {key for key in held if _task(world, key).agent == instance.agent}
        assert instance.tasks <= held | {key for key in instance.tasks if _task(world, key).pending}


def _task(world: World, key: tuple[str, int]) -> TaskState:
    task = world.runs[key[0]].items[key[1]]
    assert isinstance(task, TaskState)
    return task


def waits(world: World) -> dict[str, set[tuple[str, int]]]:
    return {topic: set(index) for topic, index in world.waits.items()}


@settings(max_examples=50)
@given(st.lists(messages(), max_size=30), st.data())
def test_snapshot_and_tail_give_what_the_whole_log_gives(history: list[tuple[str, bytes, bool]], data: Any) -> None:
    book = Book()
    for subject, body, whole in history:
        scope = SUBJECTS.everything_of(subject.split(".")[2]) if whole and subject.startswith("play.run.") else ""
        book.append(subject, body, scope=scope, expected=0 if scope and not book.last(scope) else None)
    cut = data.draw(st.integers(0, len(book)))
    whole_world, first_part, second_part = World(SUBJECTS, SAGAS), World(SUBJECTS, SAGAS), World(SUBJECTS, SAGAS)
    fold_all(whole_world, book)
    for sequence in range(1, cut + 1):
        item, guarded = book.read(sequence)
        first_part.fold(item, guarded=guarded)
    second_part.load(msgpack.unpackb(msgpack.packb(first_part.dump()), strict_map_key=False))
    fold_all(second_part, book, cut + 1)
    assert second_part.dump() == whole_world.dump()
    assert waits(second_part) == waits(whole_world)
    tasks = [{key: one.tasks for key, one in world.registry.instances.items()} for world in (second_part, whole_world)]
    assert tasks[0] == tasks[1]


@settings(max_examples=40)
@given(st.lists(messages(), max_size=30))
def test_what_is_over_stays_over(history: list[tuple[str, bytes, bool]]) -> None:
    book = Book()
    for subject, body, _ in history:
        book.append(subject, body)
    for run_id in ("r", "s", "chain-1"):
        ended: dict[Any, str] = {}
        for until in range(len(book) + 1):
            run = _fold(book, run_id, until)
            parts = {"run": run.status} | {n: item.status for n, item in run.items.items()}
            assert all(parts[key] == status for key, status in ended.items())
            over = RUN_CLOSED | TASK_CLOSED | {"matched", "answered", "expired"}
            ended = {key: status for key, status in parts.items() if status in over and (key != "run" or run.closed)}


def _fold(book: Book, run_id: str, until: int) -> RunState:
    return fold_run(run_id, [book.read(sequence)[0] for sequence in range(1, until + 1)])


@pytest.mark.parametrize("value", [None, False, True, 0, 0.0, -0.0, 1.0, "", [], {}, [None, 0], {"": ""}])
def test_a_snapshot_keeps_what_users_say_to_the_letter(value: Any) -> None:
    book = Book()
    say = book.write
    say(SUBJECTS.run("r", "requested", "chain"), RunRequested(input=value))
    say(SUBJECTS.run("r", "started"), RunStarted(saga="chain", input=value))
    say(SUBJECTS.task("r", 0, "requested", "bank"), TaskRequested(input=value, affinity="", labels={}, timeout_s=0.0))
    say(SUBJECTS.task("r", 0, "completed"), TaskCompleted(output=value))
    say(SUBJECTS.task("r", 1, "requested", "bank"), TaskRequested(input=value, compensates=0, retry=RetryPolicy()))
    say(SUBJECTS.task("r", 1, "escalated"), TaskEscalated(reason=""))
    say(SUBJECTS.task("r", 1, "resolved"), TaskResolved(action="supply", output=value))
    say(SUBJECTS.step("r", 2, "slept"), StepSlept(seconds=0.0))
    say(SUBJECTS.step("r", 3, "asked"), StepAsked(question="", context=value, schema={"type": "object"}))
    say(SUBJECTS.step("r", 3, "answered"), b'{"value": 5}')
    say(SUBJECTS.run("r", "cancel_requested"), RunCancelRequested())
    run = book.run("r")
    again = load_run(msgpack.unpackb(msgpack.packb(dump_run(run))))
    assert repr(dump_run(again)) == repr(dump_run(run))
    assert _all(again) == _all(run)
    assert repr(again.items[0].output) == repr(value)  # type: ignore[union-attr]
    assert again.items[1].compensates == 0  # type: ignore[union-attr]


def _all(run: RunState) -> list[str]:
    """Every field of a run and its parts, told apart as 0, 0.0 and False are not by ==."""
    parts = (run, *run.items.values())
    return [f"{name} {getattr(part, name)!r}" for part in parts for name in type(part).__annotations__]


SAMPLES: dict[str, Any] = {
    "str": "a", "str | None": "a", "int": 7, "int | None": 7, "float | None": 0.5, "bool": True, "Any": {"a": [1]},
    "dict[str, Any] | None": {"a": 1}, "dict[str, str] | None": {"a": "b"}, "dict[str, int] | None": {"a": 1},
    "list[int] | None": [1], "tuple[int, str] | None": (1, "a"), "Error | None": Error(type="E", message="m"),
    "RetryPolicy | None": RetryPolicy(attempts=9), "TaskResolved | None": TaskResolved(action="retry", by="ann"),
    "RunStuck | None": RunStuck(reason="r", step=1),
    "Origin | None": Origin(run_id="o", n=1, sequence=2, recorded_at=3),
    "RunForked | None": RunForked(
        saga="s", fork_of="o", at=9, copied=1, started_at=4, started_sequence=2
    ),
}  # fmt: skip
BESIDE = {"pending", "queued", "gone", "takers", "winding", "verified", "kind"}
"""What is no part of the fold."""


@pytest.mark.parametrize("cls", [RunState, TaskState, StepState])
def test_a_snapshot_forgets_no_field(cls: type[Any]) -> None:
    run = RunState("r")
    part = run if cls is RunState else run.items.setdefault(0, cls("r", 0))
    wanted = {name: SAMPLES[kind] for name, kind in cls.__annotations__.items() if name not in BESIDE}
    for name, value in wanted.items():
        setattr(part, name, value)
    again = load_run(msgpack.unpackb(msgpack.packb(dump_run(run))))
    assert {name: getattr(again if cls is RunState else again.items[0], name) for name in wanted} == wanted


def test_closed_runs_leave_memory_whoever_closes_them() -> None:
    """Also one that somebody closes from outside while its tasks wait."""
    play = Theatre([fan], [], {})
    director = play.hire()
    play.request("fan", "r", {"n": 3})
    director.settle()
    play.book.write("play.run.r.completed", b"{}")
    play.troupe.join(Bank, "late")
    play.play(until=play.owes_nothing)
    assert not any("assigned" in fact for fact in play.book.facts("r"))
    assert not any(one.tasks for one in director.core.world.registry.instances.values())


def test_a_run_that_is_closed_from_outside_leaves_no_timer() -> None:
    play = Theatre([sleepy], [], {})
    director = play.hire()
    play.request("sleepy", "r", {"n": 1})
    director.settle()
    assert len(director.core.timers) == 1
    play.book.write("play.run.r.completed", b"{}")
    director.settle()
    assert len(director.core.timers) == 0
