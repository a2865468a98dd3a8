"""Who decides when there are several orchestrators: one goes on where another ends, and two at once do no harm."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.lease import Lease
from cuebook.events.connection import connect, ended
from cuebook.events.envelope import Envelope
from cuebook.events.facts import TERMINAL_RUN_FACTS, TERMINAL_TASK_FACTS
from cuebook.events.subjects import Subjects
from tests.actors.cast import Bank, approved, chain, fan, lines
from tests.actors.desk import Desk
from tests.actors.processes import Cast
from tests.events.proxy import proxy
from tests.waiting import eventually

DECIDES = "this orchestrator decides now"


async def test_a_standby_goes_on_with_open_runs_when_the_one_that_decides_is_killed(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    connection = await connect(nats_url, name="tests")
    async with Cast(nats_url, space, tmp_path) as cast, Client(connection, space) as client:
        leader = await cast.orchestrator("approved")
        await leader.says(DECIDES)
        standby = await cast.orchestrator("approved")
        await standby.says("ready")
        host = await cast.agents("Bank")
        await host.says("ready")
        for run_id in ("a", "b", "c"):
            await client.submit_run("approved", {"n": 1}, run_id=run_id)
        await eventually(lambda: questions(client, 3), within_s=30)
        assert DECIDES not in standby.errors
        await leader.kill()
        await client.resolve("a", 1, value={"approved": True})
        await client.resolve("b", 1, value={"approved": False})
        assert (await client.wait("a", timeout_s=20)).result == {"n": 3}
        assert (await client.wait("b", timeout_s=20)).status == "compensated"
        assert (await client.state("c")).status == "running"
        assert DECIDES in standby.errors
        check_single([item async for item in client.log.read() if isinstance(item, Envelope)])
        assert max(Counter(key for _, key, *_ in lines(cast.ledger)).values()) == 1
    await connection.close()


async def questions(client: Client, count: int) -> bool:
    facts = [item.address.fact async for item in client.log.read() if isinstance(item, Envelope)]
    return facts.count("asked") == count


async def test_an_orchestrator_that_stops_hands_over_at_once(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[approved], agents=[Bank]) as desk:
        leader = desk.stage
        standby = await desk.direct(standby=True)
        await desk.client.submit_run("approved", {"n": 1}, run_id="r")
        await desk.saw("r", "asked")
        await asyncio.wait_for(standby.service.in_place.wait(), 30)
        assert not standby.service.deciding.is_set()
        assert standby.service._lease is not None
        standby.service._lease._holder = "standby"  # both are in one process, whose name is theirs
        await leader.stop()
        bucket = await desk.client.log.connection.jetstream().key_value(f"{space}_leases")
        [held] = await bucket.history("orchestrator")
        assert held.operation == "DEL" or held.value == b"standby"  # not left to expire
        await eventually(standby.service.deciding.is_set)
        await desk.client.resolve("r", 1, value={"approved": True})
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 3}


async def test_who_cannot_renew_the_lease_decides_no_longer(nats_url: str, space: str) -> None:
    async with proxy(nats_url) as line:
        connection = await connect(line.url, name="tests")
        lease = Lease(connection, Subjects(space), "a")
        keeping = asyncio.create_task(lease.keep())
        await asyncio.wait_for(lease.held.wait(), 30)
        line.flows.clear()
        await asyncio.wait_for(lease.lost.wait(), 30)
        assert not lease.held.is_set()
        line.flows.set()
        await asyncio.wait_for(lease.held.wait(), 30)
        await ended(keeping)
        await connection.close()


async def test_two_that_decide_at_once_decide_everything_once(
    nats_url: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    async with Desk(nats_url, space, sagas=[chain, fan, approved], agents=[Bank]) as desk:
        other = await desk.direct(standby=True)
        other.service.core.activate()
        assert all(stage.service.core.active for stage in desk.stages)
        client = desk.client
        runs = {
            await client.submit_run(name, {"n": n}, run_id=client.new_id(name)): status
            for name, n, status in [("chain", 1, "completed"), ("chain", 13, "compensated"), ("fan", 5, "completed")]
            * 8
        }
        for turn in range(20):
            await client.publish("chain.asked", {"n": 1000 + turn % 10})  # each twice
            await client.submit_task("bank", {"n": turn}, handler="add", run_id=f"single-{turn}")
        runs |= {f"single-{turn}": "completed" for turn in range(20)}
        await eventually(lambda: started(desk, 10), within_s=30)
        runs |= {f"chain-{1000 + turn}": "completed" for turn in range(10)}
        outcomes = await asyncio.gather(*(client.wait(run_id, timeout_s=30) for run_id in runs))
        assert {one.run_id: one.status for one in outcomes} == runs
        await eventually(lambda: refusals(desk, 10), within_s=30)
        assert all(stage.service.core.active for stage in desk.stages)
        log = await desk.log()
        check_single(log)
        effects = Counter(key for _, key, *_ in lines(tmp_path / "ledger"))
        assert set(effects.values()) == {1}
        assert len(effects) == sum(item.address.kind == "task" and item.address.fact == "completed" for item in log)


async def started(desk: Desk, count: int) -> bool:
    return sum(item.subject.endswith(".started") and ".chain-10" in item.subject for item in await desk.log()) >= count


async def refusals(desk: Desk, count: int) -> bool:
    return len(await desk.rejections()) >= count


def check_single(log: list[Envelope]) -> None:
    """One request, one assignment of each attempt, and one end for everything; one refusal for a message."""
    found: Counter[tuple[object, ...]] = Counter()
    for item in log:
        address = item.address
        ends = {"task": TERMINAL_TASK_FACTS, "run": TERMINAL_RUN_FACTS, "step": {"answered", "expired", "matched"}}
        if address.fact in ends.get(address.kind, ()):
            found["end", address.kind, address.run_id, address.n] += 1
        elif address.fact == "assigned":
            found["assigned", address.run_id, address.n, item.event.attempt] += 1  # type: ignore[attr-defined]
        elif address.fact in ("requested", "started", "slept", "waiting", "asked", "compensating", "rejected"):
            found[item.subject,] += 1
    assert [one for one, times in found.items() if times != 1] == []
