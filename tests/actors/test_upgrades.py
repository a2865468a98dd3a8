"""Two releases of one agent side by side: each task goes to an instance that has its handler and takes its input."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuebook.actors import Agent, Retry, Run, Task, handler, saga
from cuebook.actors.orchestrator import registry
from cuebook.actors.orchestrator.admission import RETURN_GRACE_S
from cuebook.actors.orchestrator.queries import answer_query
from cuebook.actors.orchestrator.variants import REMEMBERED_LEFT, Team, dump_team, load_team
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    AgentRecovered,
    HandlerSpec,
    RunRetryRequested,
    TaskEscalated,
    TaskResolved,
)
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.actors.theatre import Director, Theatre
from tests.waiting import eventually


class Price(BaseModel):
    n: int
    currency: str


class Parcel(BaseModel):
    count: int


class Old(Agent):
    name = "shop"
    version = "1"
    concurrency = 2
    recycle_after = 0
    heartbeat_s = 0.2

    @handler(timeout_s=11, retry=Retry(attempts=3, backoff_s=0.5, jitter=0))
    async def sell(self, number: Number) -> Number:
        return number

    @handler()
    async def haggle(self, number: Number) -> Number:
        return number


class New(Agent):
    name = "shop"
    version = "2"
    concurrency = 2
    recycle_after = 0
    heartbeat_s = 0.2

    @handler(timeout_s=22, retry=Retry(attempts=2, backoff_s=3, jitter=0))
    async def sell(self, price: Price) -> Number:
        return Number(n=price.n)

    @sell.compensation
    async def take_back(self, price: Price, sold: Number) -> None: ...

    @handler(timeout_s=33)
    async def pack(self, number: Number) -> Number:
        return number

    @pack.compensation
    async def unpack(self, number: Number, packed: Number) -> None: ...


class Renamed(New):
    """Sells, and takes back, under other names."""

    name = "shop"
    version = "4"

    @handler()
    async def pack(self, parcel: Parcel) -> Number:
        return Number(n=parcel.count)

    @pack.compensation
    async def unpack(self, parcel: Parcel, packed: Number) -> None: ...


class Newer(New):
    """Cannot undo what it packs."""

    name = "shop"
    version = "3"

    @handler()
    async def pack(self, number: Number) -> Number:
        return number


@saga()
async def packing(run: Run, number: Number) -> None:
    await run.call(New.pack, number)
    await run.wait_for("go", Number)
    raise run.abort("changed my mind")


def same(data: Any) -> Any:
    return {"n": data["n"]}


HANDLERS = {"shop.sell": same, "shop.haggle": same, "shop.pack": same}
OLD_INPUT, NEW_INPUT = {"n": 1}, {"n": 1, "currency": "EUR"}


def theatre(*joined: tuple[type[Agent], str]) -> tuple[Theatre, Director]:
    play = Theatre([packing], [], HANDLERS)
    for cls, instance in joined:
        play.troupe.join(cls, instance)
    return play, play.hire()


def last(play: Theatre, run_id: str, fact: str) -> Any:
    return [item.event for item in play.book.all() if item.address.run_id == run_id and item.address.fact == fact][-1]


def assigned(play: Theatre, run_id: str) -> list[str]:
    """The instances that got a task of the run, in order."""
    found = [item for item in play.book.all() if item.address.run_id == run_id and item.address.fact == "assigned"]
    return [item.address.instance for item in found]


def why(director: Director, run_id: str) -> str:
    return str(answer_query(director.core, "waiting", b'{"run": "%b"}' % run_id.encode())["waiting"].get("0", ""))


# --- placement ---


@pytest.mark.parametrize("order", [(Old, New), (New, Old)], ids=["old first", "old late"])
def test_a_handler_that_only_one_release_has_is_given_to_that_one(order: tuple[type[Agent], ...]) -> None:
    play, director = theatre(*((cls, cls.version) for cls in order))
    for n in range(3):
        play.ask("shop", f"p{n}", {"n": n}, handler="pack")
        play.ask("shop", f"h{n}", {"n": n}, handler="haggle")
    director.settle()
    assert [assigned(play, f"p{n}") for n in range(3)] == [["2"], ["2"], []]
    assert [assigned(play, f"h{n}") for n in range(3)] == [["1"], ["1"], []]
    assert why(director, "p2") == (
        "only version 2 has handler 'pack', and all 2 slots of 1 instances of that are taken; 1 more wait"
    )
    assert last(play, "p0", "assigned").reason == {"by": "only one", "candidates": 1, "only": "version 2"}
    play.play(until=play.owes_nothing)
    assert [play.book.run(f"p{n}").outcome() for n in range(3)] == ["completed"] * 3


def test_each_release_gets_the_input_that_it_accepts() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    for n in range(4):
        play.ask("shop", f"old{n}", {"n": n}, handler="sell")
    for n in range(3):
        play.ask("shop", f"both{n}", NEW_INPUT, handler="sell")
    director.settle()
    assert [assigned(play, f"old{n}") for n in range(4)] == [["1"], ["1"], [], []]
    assert [assigned(play, f"both{n}") for n in range(3)] == [["2"], ["2"], []]
    assert why(director, "old3").startswith("only version 1 takes this input of 'sell', and all 2 slots of 1 instances")
    assert why(director, "both2") == "all 4 slots of 2 instances of 'shop' are taken; 2 more wait"
    play.play(until=play.owes_nothing)
    assert not [item for item in play.book.all() if item.address.fact == "failed"]


def test_what_no_release_takes_is_rejected_and_names_those_that_were_asked() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    play.ask("shop", "unknown", OLD_INPUT, handler="lend")
    play.ask("shop", "input", {"n": "x"}, handler="sell")
    play.ask("shop", "unnamed", OLD_INPUT)
    director.settle()
    reasons = {run_id: last(play, run_id, "rejected") for run_id in ("unknown", "input", "unnamed")}
    assert reasons["unknown"].reason == "agent 'shop' has no handler 'lend' (version 1 and version 2)"
    assert reasons["unknown"].remedy == "name one of: haggle, pack, sell"
    assert reasons["input"].reason == (
        'version 1: input of shop.sell: n: "x" is not of type "integer"; '
        'version 2: input of shop.sell: "currency" is a required property'
    )
    assert reasons["unnamed"].reason == "agent 'shop' has several handlers (version 1 and version 2)"


def test_timeout_and_retries_are_those_of_the_instance_that_has_the_task() -> None:
    failing = {**HANDLERS, "shop.sell": _refuse}
    play = Theatre([], [], failing)
    play.troupe.join(Old, "1")
    director = play.hire()
    play.ask("shop", "t", NEW_INPUT, handler="sell")
    play.ask("shop", "own", NEW_INPUT, handler="sell", timeout_s=5.0)
    play.play(until=lambda: len(assigned(play, "t")) == 1 and play.book.run("own").items[0].status == "backoff")
    assert last(play, "t", "assigned").timeout_s == 11
    assert last(play, "t", "retried").delay_s == 0.5
    play.troupe.join(New, "2")
    play.troupe.leave("1")
    play.play(until=lambda: play.book.run("t").outcome() == play.book.run("own").outcome() == "escalated")
    assert assigned(play, "t") == ["1", "2"]
    assert last(play, "t", "assigned").timeout_s == 22
    assert last(play, "t", "escalated").reason == "failed 2 of 2 attempts"
    assert last(play, "own", "assigned").timeout_s == 5
    assert director.core.world.runs


def _refuse(data: Any) -> Any:
    raise PoisonMessageError("no")


def test_with_the_same_handlers_everywhere_nothing_is_told_apart() -> None:
    """However many versions: a release that changes no handler costs nothing."""

    class Same(Old):
        name = "shop"
        version = "1.1"

    play, director = theatre((Old, "a"), (Same, "b"))
    play.ask("shop", "t", OLD_INPUT, handler="sell")
    director.settle()
    [team] = director.core.world.registry.teams.values()
    [variant] = team.present
    assert team.name(variant) == "version 1 or 1.1"
    assert "only" not in last(play, "t", "assigned").reason
    play.troupe.join(New, "c")
    play.troupe.leave("a")
    play.troupe.leave("b")
    director.settle()
    assert [team.name(one) for one in team.present] == ["version 2"]


def test_releases_that_say_the_same_version_are_told_apart_by_number() -> None:
    class Careless(New):
        name = "shop"
        version = "1"

    _, director = theatre((Old, "a"), (Careless, "b"))
    team = director.core.world.registry.teams["shop"]
    assert team.names(team.present) == "version 1 (set 1) and version 1 (set 2)"


# --- joining and leaving ---


def test_what_waits_is_looked_at_again_when_another_release_comes() -> None:
    play, director = theatre((New, "2"))
    for n in range(5):
        play.ask("shop", f"t{n}", NEW_INPUT, handler="sell")
    director.settle()
    play.troupe.join(Old, "1")
    director.settle()
    assert [assigned(play, f"t{n}") for n in range(5)] == [["2"], ["2"], ["1"], ["1"], []]


def test_a_task_waits_for_the_release_that_was_there_when_it_was_asked_for() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    for n in range(3):
        play.ask("shop", f"p{n}", {"n": n}, handler="pack")
    director.settle()
    play.troupe.leave("2")
    director.settle()
    play.tick(10 * RETURN_GRACE_S)
    director.settle()
    assert why(director, "p2") == "only version 2 has handler 'pack', and no instance of that is running"
    director = _succeeded(play, director)
    assert why(director, "p2") == "only version 2 has handler 'pack', and no instance of that is running"
    play.troupe.join(New, "2b")
    play.play(until=play.owes_nothing)
    assert assigned(play, "p2") == ["2b"]
    assert {play.book.run(f"p{n}").outcome() for n in range(3)} == {"completed"}


def _succeeded(play: Theatre, director: Director) -> Director:
    """Another orchestrator goes on, from a snapshot."""
    snapshot = director.snapshot()
    play.fire(director)
    director = play.hire(snapshot)
    director.settle()
    return director


def test_a_task_for_a_release_that_has_just_left_waits_a_moment_for_its_return() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    play.troupe.leave("2")
    for run_id in ("back", "cancelled"):
        play.ask("shop", run_id, OLD_INPUT, handler="pack")
    director.settle()
    assert director.core.dispatcher.depths() == {"shop": 2}
    assert "only version 2 has handler 'pack'" in why(director, "back")
    play.book.write("play.run.cancelled.task.0.cancel_requested", b"{}")
    play.troupe.join(New, "2b")
    play.play(until=play.owes_nothing)
    assert play.book.run("back").outcome() == "completed"
    assert not any(director.core.dispatcher.depths().values())
    assert len(director.core.timers) == 0


def test_a_task_for_a_release_that_does_not_come_back_is_rejected() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    play.troupe.leave("1")
    play.ask("shop", "soon", OLD_INPUT, handler="haggle")
    director.settle()
    play.tick(RETURN_GRACE_S + 1)
    director.settle()
    play.ask("shop", "late", OLD_INPUT, handler="sell")
    director.settle()
    told = "version 1 could take it, and no instance of that is left"
    assert last(play, "soon", "rejected").reason == f"agent 'shop' has no handler 'haggle'; {told}"
    assert last(play, "soon", "rejected").remedy == "name one of: pack, sell"
    assert last(play, "late", "rejected").reason.endswith(f'"currency" is a required property; {told}')


def test_a_lost_release_may_come_back_and_is_waited_for() -> None:
    play, director = theatre((Old, "1"), (New, "2"))
    play.troupe.lose("2")
    play.ask("shop", "t", OLD_INPUT, handler="pack")
    director.settle()
    play.tick(2 * RETURN_GRACE_S)
    director.settle()
    assert why(director, "t") == ("only version 2 has handler 'pack', and no instance of that is healthy (1 lost)")
    play.book.write("play.agent.shop.2.recovered", AgentRecovered())
    director.settle()
    assert assigned(play, "t") == ["2"]


def test_an_agent_that_is_scaled_to_nothing_and_back_takes_up_what_came_meanwhile() -> None:
    play, director = theatre((New, "2"))
    play.ask("shop", "before", {"n": 1}, handler="pack")
    play.troupe.leave("2")
    director.settle()
    play.tick(10 * RETURN_GRACE_S)
    play.ask("shop", "after", {"n": 1}, handler="pack")
    play.ask("shop", "wrong", {"n": "x"}, handler="pack")
    play.ask("shop", "typo", {"n": 1}, handler="pakc")
    director.settle()
    assert why(director, "after") == "no instance of agent 'shop' is running"
    director = _succeeded(play, director)
    play.troupe.join(New, "2b")
    play.play(until=play.owes_nothing)
    ends = {run_id: play.book.run(run_id).outcome() for run_id in ("before", "after", "wrong", "typo")}
    assert ends == {"before": "completed", "after": "completed", "wrong": "rejected", "typo": "rejected"}


def test_an_agent_is_known_although_all_its_instances_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REMEMBERED_GONE", 0)
    play, director = theatre((New, "2"))
    play.troupe.leave("2")
    director.settle()
    director = _succeeded(play, director)
    assert not director.core.world.registry.instances
    play.ask("shop", "t", {"n": 1}, handler="pack")
    director.settle()
    assert why(director, "t") == "no instance of agent 'shop' is running"
    play.troupe.join(New, "2b")
    play.play(until=play.owes_nothing)
    assert play.book.run("t").outcome() == "completed"


def test_a_task_that_was_tried_and_that_nobody_can_take_any_more_goes_to_a_person() -> None:
    play, director = theatre((Old, "1"))
    play.ask("shop", "t", OLD_INPUT, handler="haggle")
    director.settle()
    play.troupe.leave("1")
    for n in range(REMEMBERED_LEFT + 1):  # so many releases come and go that the first is forgotten
        release = type(f"Release{n}", (New,), {"name": "shop", "version": str(n), f"extra{n}": _extra(n)})
        play.troupe.join(release, f"r{n}")
        play.troupe.leave(f"r{n}")
    play.troupe.join(New, "new")
    director.settle()
    play.tick()
    director.settle()
    escalated = last(play, "t", "escalated")
    assert isinstance(escalated, TaskEscalated)
    assert escalated.reason == "agent 'shop' has no handler 'haggle'"
    play.book.write("play.run.t.task.0.resolved", TaskResolved(action="supply", output={"n": 1}, by="ann"))
    play.play(until=play.owes_nothing)
    assert play.book.run("t").outcome() == "completed"


def _extra(n: int) -> Any:
    @handler(timeout_s=n + 1)
    async def extra(self: Any, number: Number) -> Number:
        return number

    extra.name = f"extra{n}"
    return extra


# --- undoing ---


def test_a_step_is_undone_by_a_release_that_can() -> None:
    play, director = theatre((New, "2"), (Newer, "3"), (Old, "1"))
    for n in range(6):
        play.request("packing", f"r{n}", {"n": n})
    play.play(until=lambda: all("step.1.waiting" in play.book.facts(f"r{n}") for n in range(6)))
    play.publish("go", {"n": 1})
    play.play(until=play.owes_nothing)
    assert {play.book.run(f"r{n}").status for n in range(6)} == {"compensated"}
    packed, undone = ({assigned(play, f"r{n}")[turn] for n in range(6)} for turn in (0, 1))
    assert packed == {"2", "3"}
    assert undone == {"2"}
    assert director.core.world.position.sequence == len(play.book)


def test_a_step_that_no_release_can_undo_any_more_makes_its_run_stuck_until_one_can() -> None:
    play, director = theatre((New, "2"))
    play.request("packing", "r", {"n": 1})
    play.play(until=lambda: "step.1.waiting" in play.book.facts("r"))
    play.troupe.join(Newer, "3")
    play.troupe.leave("2")
    play.tick(RETURN_GRACE_S)
    play.publish("go", {"n": 1})
    play.play(until=lambda: play.book.run("r").status == "stuck")
    assert "shop.pack has no compensation; version 2 could take it" in play.book.run("r").reason
    play.troupe.join(New, "2b")
    play.book.write("play.run.r.retry_requested", RunRetryRequested(by="ann"))
    play.play(until=play.owes_nothing)
    assert play.book.run("r").status == "compensated"
    assert play.troupe.undone == ["r/0"]
    assert director.core.active


def test_a_step_is_undone_by_a_release_that_knows_its_input_where_there_is_one() -> None:
    play, _ = theatre((Renamed, "4"), (New, "2"))
    play.request("packing", "r", {"n": 1})
    play.play(until=lambda: "step.1.waiting" in play.book.facts("r"))
    play.publish("go", {"n": 1})
    play.play(until=play.owes_nothing)
    assert assigned(play, "r") == ["2", "2"]


def test_an_instance_that_was_lost_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REMEMBERED_GONE", 1)
    play, director = theatre((Old, "1"), (New, "2"))
    play.troupe.lose("2")
    play.troupe.join(Old, "1b")
    play.troupe.leave("1b")
    director.settle()
    play.tick(RETURN_GRACE_S)
    play.ask("shop", "t", OLD_INPUT, handler="pack")
    director.settle()
    assert play.book.run("t").outcome() == "rejected"


# --- laws ---

CHANGES = st.lists(st.sampled_from(["+1", "-1", "+2", "-2", "lose 1", "lose 2", "restart"]), max_size=12)


@settings(max_examples=60)
@given(CHANGES, st.integers(0, 2**32))
def test_whatever_joins_and_leaves_no_task_fails_and_none_is_lost(changes: list[str], seed: int) -> None:
    play = Theatre([packing], [], HANDLERS, seed=seed)
    play.hire()
    play.troupe.join(Old, "1-0")
    play.troupe.join(New, "2-0")
    wishes = [("pack", {"n": 1}), ("haggle", {"n": 1}), ("sell", OLD_INPUT), ("sell", NEW_INPUT)] * 3
    there = {"1": ["1-0"], "2": ["2-0"]}
    releases: dict[str, type[Agent]] = {"1": Old, "2": New}
    for number, (name, data) in enumerate(wishes):
        play.ask("shop", f"t{number}", data, handler=name)
        for _ in range(play.chance.randrange(12)):
            play.take_turn()
        if number < len(changes):
            _change(play, changes[number], number, there, releases)
    for version, cls in releases.items():
        play.troupe.join(cls, f"{version}-last")
    play.play(until=play.owes_nothing)
    assert {play.book.run(f"t{number}").outcome() for number in range(len(wishes))} == {"completed"}
    assert not [item for item in play.book.all() if item.address.fact in ("failed", "rejected", "escalated")]


def _change(
    play: Theatre, change: str, number: int, there: dict[str, list[str]], releases: dict[str, type[Agent]]
) -> None:
    version = change[-1]
    match change[0]:
        case "+":
            there[version].append(f"{version}-{number + 1}")
            play.troupe.join(releases[version], there[version][-1])
        case "-" if there[version]:
            play.troupe.leave(there[version].pop())
        case "l" if there.get(version):
            play.troupe.lose(there[version][0])
        case "r":
            director = play.directors[0]
            snapshot = director.snapshot() if play.chance.random() < 0.5 else b""
            play.fire(director)
            play.hire(snapshot)


SPECS = st.dictionaries(st.sampled_from("ab"), st.builds(HandlerSpec, timeout_s=st.sampled_from([1.0, 2.0])))


@given(st.lists(st.tuples(SPECS, st.sampled_from(["1", "2"]), st.booleans()), max_size=30))
def test_a_team_knows_who_is_there_and_comes_out_of_a_snapshot_as_it_was(
    steps: list[tuple[dict[str, HandlerSpec], str, bool]],
) -> None:
    team, there = Team(), []
    for sequence, (handlers, version, leaves) in enumerate(steps, 1):
        there.append((team.join(handlers, version), version))
        if leaves:
            variant, its = there.pop(0)
            team.leave(variant, its, sequence, sequence)
        present = [one for one in team.variants if any(variant is one for variant, _ in there)]
        assert team.present == (present or team.variants)
        assert len(team.variants) - len(present) <= REMEMBERED_LEFT
        for one in team.variants:
            assert one.versions == Counter(version for variant, version in there if variant is one)
            assert (one.left_sequence > 0) == (one not in present)
    again = load_team(dump_team(team))
    assert dump_team(again) == dump_team(team)
    assert [again.variants.index(one) for one in again.present] == [team.variants.index(one) for one in team.present]


# --- on a real server ---


class First(Agent):
    """Release 1."""

    name = "mill"
    version = "1"
    concurrency = 4
    recycle_after = 20

    @handler(timeout_s=30, retry=Retry(attempts=1))
    async def grind(self, number: Number) -> Number:
        await asyncio.sleep(0.003)
        return Number(n=number.n + 1)


class Second(Agent):
    """Release 2: grinds what release 1 does not understand, and sieves."""

    name = "mill"
    version = "2"
    concurrency = 4
    recycle_after = 20

    @handler(timeout_s=30, retry=Retry(attempts=1))
    async def grind(self, grain: Number | Price, task: Task) -> Number:
        await asyncio.sleep(0.003)
        return Number(n=grain.n + 1)

    @handler(timeout_s=30, retry=Retry(attempts=1))
    async def sieve(self, number: Number) -> Number:
        await asyncio.sleep(0.003)
        return Number(n=-number.n)


async def test_two_releases_join_and_leave_while_tasks_flow_and_none_fails(nats_url: str, space: str) -> None:
    over = asyncio.Event()
    results: dict[str, Any] = {}

    async def ask_on(desk: Desk, name: str, first: int) -> None:
        n = first
        while not over.is_set():
            run_id = f"{name}-{n}"
            outcome = await desk.client.run_task("mill", {"n": n}, handler=name, timeout_s=40, run_id=run_id)
            results[run_id] = outcome.status, outcome.result
            n += 10

    async def more(count: int) -> None:
        enough = len(results) + count
        await eventually(lambda: len(results) >= enough, within_s=30)

    async with Desk(nats_url, space, agents=[First]) as desk:
        old = desk.crews[0]
        async with asyncio.TaskGroup() as group:
            for first in range(10):
                group.create_task(ask_on(desk, "grind", first))
            await more(60)
            new = await desk.hire(Second)  # a rolling upgrade begins
            for first in range(10):
                group.create_task(ask_on(desk, "sieve", first))
            await more(60)
            late = await desk.hire(First)  # an old instance that comes late takes nothing away
            await old.stop()
            await more(60)
            await new.stop()  # back to the old release; what is to be sieved waits
            assert not late.task.done()
            await desk.hire(Second)
            await more(60)
            await late.stop()
            await more(60)
            over.set()
        expected = {
            run_id: ("completed", {"n": n + 1 if name == "grind" else -n})
            for run_id in results
            for name, n in [(run_id.partition("-")[0], int(run_id.partition("-")[2]))]
        }
        assert results == expected
        log = await desk.log()
        tasks = [item for item in log if item.address.kind == "task"]
        assert {item.address.fact for item in tasks} == {"requested", "assigned", "completed"}
        counts = Counter((item.address.run_id, item.address.fact) for item in tasks)
        assert set(counts.values()) == {1}
        releases = {item.address.instance: item.event.version for item in log if item.address.fact == "registered"}  # type: ignore[attr-defined]
        took = Counter(
            (item.event.handler, releases[item.address.instance])  # type: ignore[attr-defined]
            for item in tasks
            if item.address.fact == "assigned"
        )
        assert set(took) == {("grind", "1"), ("grind", "2"), ("sieve", "2")}
