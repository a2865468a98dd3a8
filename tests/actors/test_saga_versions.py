"""Several versions of a saga side by side: new runs are of the newest, and each goes on with the one it began with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.actors import Agent, Run, Saga, handler, saga
from cuebook.actors.forking import Past, plan_fork
from cuebook.actors.orchestrator.queries import answer_query
from cuebook.actors.orchestrator.repertoire import Repertoire, age
from cuebook.actors.orchestrator.state import TaskState
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import AgentRegistered, RunCancelRequested, RunStarted, StepWaiting, TaskAssigned
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.actors.theatre import Director, Theatre
from tests.waiting import eventually


class Shop(Agent):
    name = "shop"
    recycle_after = 0
    heartbeat_s = 0.2

    @handler()
    async def sell(self, number: Number) -> Number:
        return number

    @handler()
    async def pack(self, number: Number) -> Number:
        return number


class NewShop(Shop):
    name = "shop"
    version = "2"


@saga(name="order", on="order.placed", key="n")
async def first(run: Run, number: Number) -> str:
    await run.call(Shop.sell, number)
    await run.wait_for("paid", Number, match={"n": number.n})
    await run.call(Shop.sell, number)
    return "first"


@saga(name="order", on="order.placed", key="n", version=2)
async def second(run: Run, number: Number) -> str:
    await run.call(Shop.pack, number)
    await run.wait_for("paid", Number, match={"n": number.n})
    return "second"


@saga(name="order", on="order.placed", key="n", version=3, continues=(1,))
async def third(run: Run, number: Number) -> str:
    """Goes the way of the first until it is paid."""
    await run.call(Shop.sell, number)
    await run.wait_for("paid", Number, match={"n": number.n})
    return "third"


def same(data: Any) -> Any:
    return data


HANDLERS = {"shop.sell": same, "shop.pack": same}


def theatre(*sagas: Saga[Any, Any]) -> tuple[Theatre, Director]:
    play = Theatre(sagas, [], HANDLERS)
    play.troupe.join(Shop, "s1")
    return play, play.hire()


def place(play: Theatre, n: int) -> None:
    play.publish("order.placed", {"n": n})


def pay(play: Theatre, n: int) -> None:
    play.publish("paid", {"n": n})


def settle(play: Theatre) -> None:
    """Until nobody has anything to do."""
    while play.take_turn():
        pass


def ended(play: Theatre, n: int) -> tuple[str, str, Any]:
    run = play.book.run(f"order-{n}")
    return run.version, run.outcome(), run.result


def waits(director: Director, run_id: str) -> str:
    answer = answer_query(director.core, "waiting", b'{"run": "%b"}' % run_id.encode())
    return str(answer["waiting"].get("run", ""))


def test_of_several_that_go_on_with_a_version_it_is_the_newest() -> None:
    @saga(name="order", version="2", continues=("1",))
    async def older(run: Run, number: Number) -> str:
        return "older"

    @saga(name="order", version="10", continues=("1",))
    async def newer(run: Run, number: Number) -> str:
        return "newer"

    served = Repertoire([newer, older])
    assert served.find("order", "1") is newer
    assert served.find("order", "2") is older
    assert served.find("order", "") is newer  # a run from before runs said their version


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_open_runs_go_on_with_their_version_and_new_ones_are_of_the_newest(with_snapshot: bool) -> None:
    play, director = theatre(first)
    place(play, 1)
    settle(play)
    snapshot = director.snapshot() if with_snapshot else b""
    play.fire(director)
    play.hire(snapshot, [second, first])
    place(play, 2)
    settle(play)
    for n in (1, 2):
        pay(play, n)
    play.play(until=play.owes_nothing)
    assert [ended(play, n) for n in (1, 2)] == [("1", "completed", "first"), ("2", "completed", "second")]


def test_a_run_whose_version_nobody_serves_waits_and_says_so_until_somebody_does() -> None:
    play, director = theatre(first)
    place(play, 1)
    settle(play)
    play.fire(director)
    director = play.hire(sagas=[second])
    pay(play, 1)
    settle(play)
    play.tick(3600)
    settle(play)
    assert play.book.run("order-1").outcome() == "running"
    assert waits(director, "order-1") == "no orchestrator serves saga 'order' version 1, only version 2"
    play.fire(director)
    play.hire(sagas=[first, second])
    play.play(until=play.owes_nothing)
    assert ended(play, 1) == ("1", "completed", "first")


def test_a_run_that_waits_for_its_version_can_be_cancelled() -> None:
    play, director = theatre(first)
    place(play, 1)
    settle(play)
    play.fire(director)
    play.hire(sagas=[second])
    play.book.write(play.book.subjects.run("order-1", "cancel_requested"), RunCancelRequested(reason="enough"))
    play.play(until=play.owes_nothing)
    assert play.book.run("order-1").outcome() == "cancelled"


def test_a_version_that_says_so_goes_on_with_the_runs_of_another() -> None:
    play, director = theatre(first, second)
    place(play, 2)
    settle(play)
    play.fire(director)
    director = play.hire(sagas=[first])
    place(play, 1)
    settle(play)
    play.fire(director)
    director = play.hire(sagas=[third])
    for n in (1, 2):
        pay(play, n)
    settle(play)
    assert ended(play, 1) == ("1", "completed", "third")
    assert waits(director, "order-2") == "no orchestrator serves saga 'order' version 2, only version 3"


def test_a_fork_goes_on_with_the_newest_version_that_would_have_come_there() -> None:
    play, director = theatre(first)
    place(play, 1)
    settle(play)
    play.fire(director)
    director = play.hire(sagas=[first, second])
    for old, wanted in (("order-1", "1"), ("order-2", "2")):
        if wanted == "2":
            place(play, 2)
            settle(play)
        past = Past(old, [item for item in play.book.all() if item.address.run_id == old])
        fork = plan_fork(play.book.subjects, past, f"fork-of-{old}", {})
        for position, (subject, event) in enumerate(fork.events):
            scope = play.book.subjects.everything_of(fork.run_id)
            play.book.write(subject, event, scope=scope, expected=0 if not position else None)
        settle(play)
        assert play.book.run(f"fork-of-{old}").version == wanted


def test_the_orchestrator_tells_which_versions_it_serves() -> None:
    _, director = theatre(second, first)
    told = answer_query(director.core, "sagas", b"")["sagas"]
    assert [(one["saga"], one["version"], one["versions"]) for one in told] == [("order", "2", ["1", "2"])]
    assert Repertoire([second, first]).names() == "order@1,order@2"


def test_two_that_cannot_be_told_apart_are_refused() -> None:
    @saga(name="order", version="2")
    async def other(run: Run, number: Number) -> str:
        return "other"

    with pytest.raises(ConfigurationError, match="two sagas are called 'order', version '2'"):
        Repertoire([second, other])
    Repertoire([second, second])


@pytest.mark.parametrize("wrong", [{"version": ""}, {"version": "1\n"}, {"version": "9" * 65}, {"continues": "1"}])
def test_a_version_is_a_word(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        saga(name="order", **wrong)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=4), st.lists(st.integers(0, 999), min_size=1, max_size=4))
def test_versions_are_ordered_by_their_numbers(one: list[int], other: list[int]) -> None:
    def text(numbers: list[int]) -> str:
        return ".".join(map(str, numbers))

    assert (age(text(one)) < age(text(other))) == (one < other)
    assert age("2-rc") < age("10") < age("10.1")


# --- agents of two versions ---


def test_a_task_goes_to_the_version_of_the_agent_that_its_label_names() -> None:
    play, director = theatre(first)
    play.troupe.join(NewShop, "s2")
    for n in range(6):
        play.ask("shop", f"t{n}", {"n": n}, handler="sell", labels={"version": "12"[n % 2]})
    play.ask("shop", "nobody", {"n": 0}, handler="sell", labels={"version": "3"})
    settle(play)
    took = {run.run_id: run.items[0] for run in (play.book.run(f"t{n}") for n in range(6))}
    assert [task.instance for task in took.values() if isinstance(task, TaskState)] == ["s1", "s2"] * 3
    waiting = answer_query(director.core, "waiting", b'{"run": "nobody"}')["waiting"]["0"]
    assert waiting == "none of the 2 healthy instances of 'shop' has the labels version=3"


async def test_agents_and_sagas_of_two_versions_serve_at_once_on_a_server(nats_url: str, space: str) -> None:
    """A rolling upgrade: both versions of both are live, open runs go on with theirs, tasks go where they say."""

    @saga(name="pinned")
    async def old(run: Run, number: Number) -> str:
        await run.call(Shop.sell, number, labels={"version": "1"})
        await run.wait_for("paid", Number, match={"n": number.n})
        await run.call(Shop.sell, number, labels={"version": "1"})
        return "old"

    @saga(name="pinned", version="2")
    async def new(run: Run, number: Number) -> str:
        await run.call(NewShop.pack, number, labels={"version": NewShop.version})
        return "new"

    async with Desk(nats_url, space, sagas=[old], agents=[Shop]) as desk:
        await desk.client.submit_run("pinned", {"n": 1}, run_id="r1")
        await eventually(lambda: started(desk, "r1"))
        await desk.hire(NewShop)
        before = desk.stage
        after = await desk.direct(old, new, standby=True)  # stands by, and takes over
        await before.stop()
        await desk.sees(after.service.deciding.is_set)
        assert (await desk.client.run_saga("pinned", {"n": 2}, run_id="r2", timeout_s=30)).result == "new"
        await desk.client.publish("paid", {"n": 1})
        assert (await desk.client.wait("r1", timeout_s=30)).result == "old"
        log = await desk.log()
    versions = {item.address.instance: item.event.version for item in log if isinstance(item.event, AgentRegistered)}
    took = [
        (item.address.run_id, versions[item.address.instance]) for item in log if isinstance(item.event, TaskAssigned)
    ]
    assert sorted(took) == [("r1", "1"), ("r1", "1"), ("r2", "2")]
    started_as = {item.address.run_id: item.event.version for item in log if isinstance(item.event, RunStarted)}
    assert started_as == {"r1": "1", "r2": "2"}


async def test_who_decides_says_of_which_open_runs_it_lacks_the_version(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Desk(nats_url, space, sagas=[first], agents=[Shop]) as desk:
        await desk.client.submit_run("order", {"n": 1}, run_id="r1")
        await eventually(lambda: started(desk, "r1"))
        await desk.stage.stop()
        await desk.direct(second)
        await eventually(lambda: "open runs stand still: no orchestrator serves saga 'order' version 1" in caplog.text)
        await desk.stage.stop()
        await desk.direct(first, second)
        await desk.client.publish("paid", {"n": 1})
        assert (await desk.client.wait("r1", timeout_s=30)).result == "first"
    assert caplog.text.count("open runs stand still") == 1


async def started(desk: Desk, run_id: str) -> bool:
    return any(item.address.run_id == run_id and isinstance(item.event, StepWaiting) for item in await desk.log())
