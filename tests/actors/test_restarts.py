"""Whatever dies, and wherever in its work: every run ends as it would have, and nothing is done or decided twice."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nats.js import api

from cuebook.actors import Agent, Run, Task, handler, hours, saga
from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.orchestrator.snapshot import FORMAT
from cuebook.actors.orchestrator.state import RunState, TaskState
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.facts import TERMINAL_RUN_FACTS, TERMINAL_TASK_FACTS
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan, lines
from tests.actors.desk import Desk
from tests.actors.processes import Cast, Service
from tests.waiting import eventually

UNLUCKY = 13


class Mortal(OrchestratorService):
    """Decides without asking for the lease, and falls silent for ever after `lives` appends."""

    lives = 1_000_000

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.posted = 0
        self.dead = asyncio.Event()

    def post(self, *args: Any, **options: Any) -> str:
        if self.posted == self.lives:
            self._connection.write = lambda frame: None  # type: ignore[method-assign]
            self.dead.set()
        else:
            self.posted += 1
        return super().post(*args, **options)


def mortal(lives: int) -> type[Mortal]:
    return type("Mortal", (Mortal,), {"lives": lives})


def shape(state: RunState) -> dict[str, Any]:
    """What must be the same however often somebody died; steps under way at once may complete in any order."""
    tasks = [item for item in state.items.values() if isinstance(item, TaskState)]
    return {
        "outcome": (state.outcome(), state.result, state.reason),
        "asked for": [
            (n, item.kind, item.status, item.output if isinstance(item, TaskState) else None)
            for n, item in sorted(state.items.items())
            if not (isinstance(item, TaskState) and item.compensates is not None)
        ],
        "undone": sorted((item.compensates, item.status) for item in tasks if item.compensates is not None),
        "attempts": {item.attempt for item in tasks},
    }


async def begin(desk: Desk, lives: int) -> Mortal:
    """Start an orchestrator that will not live long."""
    stage = await desk.prepare(service=mortal(lives))
    assert isinstance(stage.service, Mortal)
    await eventually(lambda: stage.service.caught_up.is_set() or stage.task.done())
    stage.service.core.activate()
    return stage.service


async def goes_on(desk: Desk, service: Mortal, run_id: str) -> bool:
    """Wait for the orchestrator's death or the end of the run."""
    ended = asyncio.ensure_future(desk.client.wait(run_id))
    died = asyncio.ensure_future(service.dead.wait())
    await asyncio.wait([ended, died], timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert ended.done() or died.done(), "it neither ended nor died"
    over = ended.done()
    for one in (ended, died):
        one.cancel()
    return not over


PIECES = [("chain", 1), ("chain", UNLUCKY), ("fan", 4)]


@pytest.mark.parametrize(("name", "n"), PIECES)
async def test_an_orchestrator_may_die_after_any_append(
    nats_url: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n: int
) -> None:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))

    async def play(number: int, lives: int) -> tuple[dict[str, Any], int]:
        async with Desk(nats_url, f"{space}-{number}", sagas=[chain, fan], agents=[Bank]) as desk:
            await desk.stage.die()
            service = await begin(desk, lives)
            run_id = f"{name}-{number}"
            await desk.client.submit_run(name, {"n": n}, run_id=run_id)
            if await goes_on(desk, service, run_id):
                await desk.stage.die()
                await begin(desk, Mortal.lives)
            await desk.client.wait(run_id, timeout_s=20)
            check_log(await desk.log())
            return shape(await desk.client.state(run_id)), service.posted

    undisturbed, appends = await play(0, Mortal.lives)
    assert undisturbed["attempts"] == {1}
    assert appends > 8
    played = await asyncio.gather(*(play(1 + lives, lives) for lives in range(appends)))
    assert [posted for _, posted in played] == list(range(appends))
    for found, _ in played:
        assert found == undisturbed
    effects = lines(tmp_path / "ledger")
    assert set(Counter(key for _, key, *_ in effects).values()) == {1}
    assert len(effects) == (appends + 1) * len(effects_of(undisturbed))


def effects_of(run: dict[str, Any]) -> list[Any]:
    return [*(item for item in run["asked for"] if item[1] == "task"), *run["undone"]]


@pytest.mark.parametrize(("name", "n"), PIECES)
async def test_orchestrators_that_all_die_after_one_append_get_there_together(
    nats_url: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n: int
) -> None:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    async with Desk(nats_url, space, sagas=[chain, fan], agents=[Bank]) as desk:
        await desk.stage.die()
        await desk.client.submit_run(name, {"n": n}, run_id="r")
        deaths = 0
        while await goes_on(desk, await begin(desk, 1), "r"):
            await desk.stage.die()
            deaths += 1
        check_log(await desk.log())
        assert deaths > 8
        run = shape(await desk.client.state("r"))
        effects = lines(tmp_path / "ledger")
        assert len(effects) == len(effects_of(run)) == len({key for _, key, *_ in effects})


def check_log(log: Iterable[Envelope]) -> None:
    """One request and one end for each task and run."""
    ends: Counter[tuple[str, str, int]] = Counter()
    requests: Counter[str] = Counter()
    for item in log:
        address = item.address
        if address.fact in {"task": TERMINAL_TASK_FACTS, "run": TERMINAL_RUN_FACTS}.get(address.kind, ()):
            ends[address.kind, address.run_id, address.n] += 1
        elif address.fact in ("requested", "started", "slept", "waiting", "asked"):
            requests[item.subject] += 1
    assert [one for one, times in ends.items() if times != 1] == []
    assert [one for one, times in requests.items() if times != 1] == []


# --- processes and servers ---


def expected(n: int) -> tuple[str, Any]:
    return ("compensated", None) if n == UNLUCKY else ("completed", {"n": n + 3})


async def check_all(client: Client, runs: dict[str, int], ledger: Path) -> None:
    """Every run has ended as it should, on one terminal fact, and all that was done was asked for."""
    outcomes = await asyncio.gather(*(client.wait(run_id, timeout_s=60) for run_id in runs))
    assert {one.run_id: (one.status, one.result) for one in outcomes} == {
        run_id: expected(n) for run_id, n in runs.items()
    }
    log = [item async for item in client.log.read() if isinstance(item, Envelope)]
    check_log(log)
    tasks = {f"{item.address.run_id}/{item.address.n}" for item in log if item.address.kind == "task"}
    done = {key for _, key, *_ in lines(ledger)}
    assert done == tasks
    undone = {key for what, key, *_ in lines(ledger) if what == "take"}
    assert len(undone) == 4 * sum(n == UNLUCKY for n in runs.values())


async def test_processes_may_be_killed_while_they_work(nats_url: str, space: str, tmp_path: Path) -> None:
    connection = await connect(nats_url, name="tests")
    runs: dict[str, int] = {}
    async with Cast(nats_url, space, tmp_path) as cast, Client(connection, space) as client:
        orchestrators = [await cast.orchestrator("chain") for _ in range(2)]
        await client.log.ensure()
        hosts = [await cast.agents("Quick") for _ in range(2)]
        for one in hosts:
            await one.says("ready")

        async def submit(count: int) -> None:
            for _ in range(count):
                n = UNLUCKY if len(runs) % 4 == 0 else 100 + len(runs)
                runs[await client.submit_run("chain", {"n": n}, run_id=client.new_id("chain"))] = n

        async def busy(events: int) -> None:
            """Wait until so many more events are stored."""
            before = (await client.log.verify()).last_sequence

            async def enough() -> bool:
                return (await client.log.verify()).last_sequence >= before + events

            await eventually(enough, within_s=30)

        async def replace(services: list[Service], replacement: Any) -> None:
            victim = services.pop(0)
            await victim.kill()
            services.append(await replacement)

        for turn in range(4):
            await submit(15)
            await busy(20 + turn)
            if turn % 2:
                await replace(orchestrators, cast.orchestrator("chain"))
            else:
                await replace(hosts, cast.agents("Quick"))
        await check_all(client, runs, cast.ledger)
    await connection.close()


async def test_the_server_may_be_killed_under_load(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    runs: dict[str, int] = {}
    async with (
        nats_server(tmp_path / "nats") as server,
        Desk(server.url, space, sagas=[chain], agents=[Bank]) as desk,
    ):

        async def customer(number: int) -> None:
            for turn in range(10):
                n = UNLUCKY if turn == 3 else 1000 * number + turn
                run_id = await desk.client.submit_run("chain", {"n": n}, run_id=f"chain-{number}-{turn}")
                runs[run_id] = n
                await desk.client.wait(run_id)

        customers = [asyncio.create_task(customer(number)) for number in range(1, 9)]
        world = desk.stage.service.core.world
        for mark in (150, 500, 800):
            await desk.sees(lambda mark=mark: world.position.sequence > mark, within_s=30)  # type: ignore[misc]
            await server.kill()
            await server.restart()
        async with asyncio.timeout(60):
            await asyncio.gather(*customers)
        assert len(runs) == 80
        await check_all(desk.client, runs, tmp_path / "ledger")


# --- snapshots ---


class Slow(Agent):
    """Never finishes by itself."""

    name = "slow"
    concurrency = 2

    @handler(timeout_s=3600)
    async def think(self, number: Number, task: Task) -> Number:
        await asyncio.Event().wait()
        return number


@saga()
async def thinking(run: Run, number: Number) -> Number:
    await run.call(Bank.add, number)
    run.sleep(hours(1))
    return await run.call(Slow.think, number, affinity="a", labels=None, priority=3)


@saga()
async def foreign(run: Run, number: Number) -> Number:
    await run.call(Bank.add, number)
    await asyncio.sleep(0)
    return number


async def scene(desk: Desk, act: str) -> None:
    """Runs, tasks, steps and refusals in every state in which they can rest."""
    client = desk.client
    for name in ("thinking", "thinking", "foreign", "approved", "awaited", "chain"):
        await client.submit_run(name, {"n": 5}, run_id=client.new_id(name))
    await client.submit_task("bank", {"n": 1}, handler="refuse", run_id=f"escalated-{act}")
    await client.submit_task("bank", {"n": 1}, handler="add", run_id=f"choosy-{act}", labels={"zone": act})
    await client.submit_task("nobody", {"n": 1}, run_id=f"stranger-{act}")
    await client.publish("unheard", {"n": 1})
    await client.publish("chain.asked", {"n": UNLUCKY}, event_id=act)
    await client.publish("chain.asked", "nothing")
    await client.submit_run("unserved", {"n": 1}, run_id=f"unserved-{act}")
    await desk.saw(f"escalated-{act}", "escalated")
    await client.wait(f"unserved-{act}", timeout_s=20)


def dump(desk: Desk, number: int) -> Any:
    """The fold of one orchestrator as it comes out of a snapshot."""
    return msgpack.unpackb(msgpack.packb(desk.stages[number].service.core.world.dump()))


async def at_rest(desk: Desk, *numbers: int) -> None:
    """Wait until nothing happens any more and these orchestrators have seen it all."""

    async def settled() -> bool:
        open_runs = [run for run in desk.stages[numbers[0]].service.core.world.runs.values() if not run.closed]
        busy = [run for run in open_runs if run.run_id.startswith("chain") or run.status in ("requested", "new")]
        started = [run for run in open_runs if run.saga and not run.items]
        waiting = [
            item
            for run in open_runs
            for item in run.items.values()
            if item.pending or (isinstance(item, TaskState) and item.agent == "bank" and item.status == "assigned")
        ]
        last = (await desk.client.log.verify()).last_sequence
        seen = {desk.stages[number].service.core.world.position.sequence for number in numbers}
        standalone = [run for run in busy if not run.standalone]
        return not standalone and not started and not waiting and seen == {last}

    await eventually(settled, within_s=30)


async def test_starting_from_a_snapshot_gives_what_starting_from_nothing_gives(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cuebook.actors")
    sagas = [chain, fan, approved, awaited, thinking, foreign]
    async with Desk(nats_url, space, sagas=sagas, agents=[Bank, Slow]) as desk:
        await scene(desk, "first")
        await at_rest(desk, 0)
        await desk.stage.stop()  # saves a snapshot
        assert "saved a snapshot" in caplog.text
        await desk.direct()
        assert "snapshot of" in caplog.text
        await scene(desk, "second")
        await desk.stage.die()  # saves none
        await desk.direct()
        await at_rest(desk, 2)
        caplog.clear()
        await desk.direct(standby=True)
        assert "snapshot of" in caplog.text
        await desk.client.log.connection.jetstream().delete_object_store(f"{space}_snapshots")
        caplog.clear()
        await desk.direct(standby=True)
        assert "snapshot of" not in caplog.text
        await at_rest(desk, 2, 3, 4)
        decided, restored, folded = dump(desk, 2), dump(desk, 3), dump(desk, 4)
        assert len(folded["runs"]) > 14
        assert restored == folded
        assert decided == folded


DAMAGED = {
    "noise": b"\x00noise",
    "cut": zlib.compress(msgpack.packb({"format": FORMAT, "world": {"runs": [1] * 1000}}))[:-9],
    "no map": zlib.compress(msgpack.packb([1, 2])),
    "no message pack": zlib.compress(b"\xc1"),
    "no world": zlib.compress(msgpack.packb({"format": FORMAT})),
    "an empty world": zlib.compress(msgpack.packb({"format": FORMAT, "world": {}})),
    "half a world": zlib.compress(
        msgpack.packb({"format": FORMAT, "world": {"sequence": 1, "event_id": "", "runs": 3}})
    ),
    "another format": zlib.compress(msgpack.packb({"format": 1, "world": {"sequence": 9_000, "event_id": "x"}})),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_a_snapshot_that_cannot_be_used_is_ignored(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO", "cuebook.actors")
    async with Desk(nats_url, space, sagas=[approved], agents=[Bank]) as desk:
        await desk.client.submit_run("approved", {"n": 1}, run_id="r")
        await desk.saw("r", "asked")
        await desk.stage.die()
        js = desk.client.log.connection.jetstream()
        bucket = await js.create_object_store(f"{space}_snapshots", api.ObjectStoreConfig())
        await bucket.put("orchestrator", DAMAGED[kind])
        caplog.clear()
        await desk.direct()
        (told,) = [record for record in caplog.records if "reading the whole log" in record.getMessage()]
        assert told.levelname == ("INFO" if kind == "another format" else "WARNING")
        await desk.client.resolve("r", 1, value={"approved": True})
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 3}
