"""The life of an instance, and what becomes of its work when it leaves. On a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest

from cuebook.actors import Agent, Retry, Task, handler, instance
from cuebook.events.facts import AgentStopped
from tests.actors.cast import Number, stubbornly
from tests.actors.desk import Desk
from tests.waiting import eventually

# --- the life of an instance ---


async def test_instances_are_renewed_after_their_tasks_and_nothing_is_lost(nats_url: str, space: str) -> None:
    handled: Counter[str] = Counter()
    stopped: list[int] = []

    class Renewed(Agent):
        name = "renewed"
        concurrency = 5
        recycle_after = 7

        @handler()
        async def add(self, number: Number, task: Task) -> Number:
            handled[task.run_id] += 1
            await asyncio.sleep(0.001)
            return Number(n=number.n + 1)

        async def stop(self) -> None:
            stopped.append(1)

    async with Desk(nats_url, space, agents=[Renewed]) as desk:
        first = desk.crews[0].host.instances[0]
        outcomes = await asyncio.gather(*(desk.client.run_task("renewed", {"n": n}, timeout_s=20) for n in range(100)))
        assert [outcome.result for outcome in outcomes] == [{"n": n + 1} for n in range(100)]
        assert set(handled.values()) == {1}
        host = desk.crews[0].host
        await eventually(lambda: len(host.instances) == 1 and not host.instances[0].draining)
        assert host.instances[0] is not first
        reasons = [item.event.reason for item in await desk.log() if isinstance(item.event, AgentStopped)]
        assert len(reasons) >= 2
        assert set(reasons) == {"recycled"}
        assert len(stopped) == len(reasons)
    assert len(stopped) == len(reasons) + 1


async def test_an_instance_that_is_asked_to_drain_finishes_what_it_has_and_takes_nothing_new(
    nats_url: str, space: str
) -> None:
    gate = asyncio.Event()
    done_by: dict[str, str] = {}

    class Waiting(Agent):
        name = "waiting"
        concurrency = 4

        @handler()
        async def wait(self, number: Number, task: Task) -> Number:
            done_by[task.run_id] = task.instance
            await gate.wait()
            return number

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        crew = desk.crews[0]
        leaving = crew.host.instances[0].id
        await desk.client.submit_task("waiting", {"n": 1}, run_id="r1")
        await eventually(lambda: "r1" in done_by)
        staying = (await desk.hire(Waiting)).host.instances[0].id
        await desk.client.drain("waiting", leaving, reason="maintenance")
        await desk.sees(lambda: desk.health(leaving) == "draining")
        for n in range(4):
            await desk.client.submit_task("waiting", {"n": n}, run_id=f"new-{n}")
        await eventually(lambda: len(done_by) == 5)
        assert [done_by[f"new-{n}"] for n in range(4)] == [staying] * 4
        gate.set()
        assert (await desk.client.wait("r1", timeout_s=30)).status == "completed"
        assert (await desk.events("r1", "completed"))[0].by == leaving
        await asyncio.wait_for(crew.task, 20)  # its only instance has left
        await crew.connection.close()
        await desk.sees(lambda: desk.health(leaving) == "stopped")
        assert crew.host.instances == []


async def test_a_draining_instance_does_what_it_is_given_until_the_orchestrator_knows(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far behind that one is: here it reads nothing until the instance has been idle for long.

    And what it assigned just before it knew comes a little later than the word that it knows.
    """
    monkeypatch.setattr(instance, "DRAIN_SIGNAL_S", 60.0)
    monkeypatch.setattr(instance, "LINGER_S", 1.0)
    beats: list[bytes] = []
    deliver = instance.Instance._on_assigned

    def deliver_late(self: instance.Instance, *message: Any) -> None:
        asyncio.get_running_loop().call_later(0.1, deliver, self, *message)

    monkeypatch.setattr(instance.Instance, "_on_assigned", deliver_late)

    class Waiting(Agent):
        name = "waiting"
        heartbeat_s = 0.5

        @handler()
        async def wait(self, number: Number) -> Number:
            return number

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        crew = desk.crews[0]
        leaving = crew.host.instances[0].id
        core = desk.stage.service.core
        receive, held = core.receive, list[tuple[Any, dict[str, Any]]]()
        monkeypatch.setattr(core, "receive", lambda item, **options: held.append((item, options)))
        await desk.client.submit_task("waiting", {"n": 1}, run_id="r")
        stopping = asyncio.create_task(crew.stop())
        await eventually(lambda: any(item.address.fact == "draining" for item, _ in held))
        heartbeat = desk.client.log.subjects.heartbeat("waiting", leaving)
        listener = await desk.client.log.connection.listen(heartbeat, lambda *message: beats.append(message[0]))
        await eventually(lambda: len(beats) > 4)  # longer than it lingers when nothing comes
        await listener.close()
        monkeypatch.setattr(core, "receive", receive)
        for item, options in held:
            receive(item, **options)
        assert (await desk.client.wait("r", timeout_s=20)).status == "completed"
        await stopping
        assert await desk.facts("r") == [
            "run.r.task.0.requested.waiting",
            f"run.r.task.0.assigned.waiting.{leaving}",
            "run.r.task.0.completed",
        ]


async def test_a_handler_that_does_not_let_go_is_left_behind_and_its_task_done_by_another(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "OFFER_AGAIN_S", 0.05)
    gate = asyncio.Event()
    attempts: list[int] = []

    class Stubborn(Agent):
        name = "stubborn"

        @handler(timeout_s=60)
        async def wait(self, number: Number, task: Task) -> Number:
            attempts.append(task.attempt)
            if task.attempt == 1:
                await stubbornly(gate)
            return Number(n=task.attempt)

    async with Desk(nats_url, space) as desk:
        first = await desk.hire(Stubborn, drain_s=0.05)
        run_id = await desk.client.submit_task("stubborn", {"n": 1})
        await eventually(lambda: attempts == [1])
        leaving = first.host.instances[0].id
        await desk.hire(Stubborn)
        await first.stop()
        assert "1 tasks do not let go" in caplog.text
        assert (await desk.client.wait(run_id, timeout_s=30)).result == {"n": 2}
        assert [event.reason for event in await desk.events(run_id, "retried")] == [f"instance {leaving} was lost"]
        gate.set()


async def test_what_is_not_finished_in_time_is_handed_back_and_done_by_another(nats_url: str, space: str) -> None:
    gate = asyncio.Event()
    attempts: list[tuple[str, int]] = []

    class Waiting(Agent):
        name = "waiting"
        concurrency = 4

        @handler(timeout_s=60)
        async def wait(self, number: Number, task: Task) -> Number:
            attempts.append((task.instance, task.attempt))
            await gate.wait()
            return number

    async with Desk(nats_url, space) as desk:
        first = await desk.hire(Waiting, drain_s=0.05)
        leaving = first.host.instances[0].id
        run_ids = [await desk.client.submit_task("waiting", {"n": n}) for n in range(3)]
        await eventually(lambda: len(attempts) == 3)
        staying = (await desk.hire(Waiting)).host.instances[0].id
        await first.stop()
        await eventually(lambda: len(attempts) == 6)
        gate.set()
        for run_id in run_ids:
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
            assert [event.reason for event in await desk.events(run_id, "retried")] == [f"handed back by {leaving}"]
        assert attempts[:3] == [(leaving, 1)] * 3
        assert attempts[3:] == [(staying, 2)] * 3


async def test_an_agent_that_cannot_start_ends_its_host_and_the_others_leave_in_good_order(
    nats_url: str, space: str
) -> None:
    stopped: list[str] = []

    class Fine(Agent):
        name = "fine"

        @handler()
        async def add(self, number: Number) -> Number:
            return number

        async def stop(self) -> None:
            stopped.append("fine")

    class Broken(Fine):
        name = "broken"

        async def start(self) -> None:
            raise ConnectionError("the shop is closed")

    async with Desk(nats_url, space) as desk:
        with pytest.raises(ConnectionError, match="the shop is closed"):
            await desk.hire(Fine, Broken)
        await desk.crews[0].connection.close()
        facts = [fact for fact in await desk.facts() if fact.startswith("agent.")]
        assert [fact.split(".")[3] for fact in facts if fact.startswith("agent.fine.")] == [
            "registered",
            "draining",
            "stopped",
        ]
        assert not [fact for fact in facts if fact.startswith("agent.broken.")]
        assert stopped == ["fine"]


async def test_a_start_that_hangs_is_named_in_the_log_and_does_not_hold_up_stopping(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "SLOW_START_S", 0.05)
    cancelled: list[str] = []

    class Slow(Agent):
        name = "slow"

        async def start(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append("slow")

        @handler()
        async def add(self, number: Number) -> Number:
            return number

    async with Desk(nats_url, space) as desk:
        hiring = asyncio.create_task(desk.hire(Slow))
        await eventually(lambda: "the agent's start() has not returned yet" in caplog.text)
        [crew] = desk.crews
        await crew.stop()
        with pytest.raises(AssertionError, match="it did not start"):
            await hiring
        assert cancelled == ["slow"]
        assert not crew.host.ready.is_set()
        assert not [fact for fact in await desk.facts() if fact.startswith("agent.slow.")]


async def test_an_instance_that_cannot_be_renewed_ends_its_host(
    nats_url: str, space: str, expected_errors: list[str]
) -> None:
    expected_errors.append("could not renew an instance")
    starts: list[int] = []

    class Once(Agent):
        name = "once"
        recycle_after = 1

        async def start(self) -> None:
            starts.append(1)
            if len(starts) > 1:
                raise ConnectionError("the shop is closed")

        @handler()
        async def add(self, number: Number) -> Number:
            return number

    async with Desk(nats_url, space, agents=[Once]) as desk:
        assert (await desk.client.run_task("once", {"n": 1}, timeout_s=20)).status == "completed"
        with pytest.raises(ConnectionError, match="the shop is closed"):
            await asyncio.wait_for(desk.crews[0].task, 20)
        await desk.crews[0].connection.close()
        assert [fact for fact in await desk.facts() if fact.endswith(".stopped")]


async def test_an_agent_whose_stop_raises_is_gone_all_the_same(
    nats_url: str, space: str, expected_errors: list[str]
) -> None:
    expected_errors.append("the agent's stop raised")

    class Clingy(Agent):
        name = "clingy"

        @handler()
        async def add(self, number: Number) -> Number:
            return number

        async def stop(self) -> None:
            raise RuntimeError("not yet")

    async with Desk(nats_url, space, agents=[Clingy]) as desk:
        instance = desk.crews[0].host.instances[0].id
        await desk.crews[0].stop()
        await desk.sees(lambda: desk.health(instance) == "stopped")


async def test_what_is_taken_ahead_waits_for_its_turn(nats_url: str, space: str) -> None:
    gate, begun = asyncio.Event(), list[int]()

    class Ahead(Agent):
        name = "ahead"
        concurrency = 2
        ahead = 3
        offline_for_s = 60.0

        @handler(timeout_s=60)
        async def wait(self, number: Number) -> Number:
            begun.append(number.n)
            await gate.wait()
            return number

    async with Desk(nats_url, space, agents=[Ahead]) as desk:
        [one] = desk.crews[0].host.instances
        run_ids = [await desk.client.submit_task("ahead", {"n": n}) for n in range(6)]
        await eventually(lambda: one.in_flight == 5)
        await desk.client.run_task("ahead", {"n": "x"}, timeout_s=20)  # whatever could begin has begun by now
        assert begun == [0, 1]
        gate.set()
        for run_id in run_ids:
            assert (await desk.client.wait(run_id, timeout_s=20)).status == "completed"


async def test_what_hangs_over_its_time_is_stuck_unless_others_have_room_to_work(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "STUCK_AFTER_S", 0.1)
    let_go, done = asyncio.Event(), asyncio.Event()

    class Mixed(Agent):
        name = "mixed"
        concurrency = 2

        @handler(timeout_s=0.05, retry=Retry(attempts=1))
        async def cling(self, number: Number) -> Number:
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()
            return number

        @handler(timeout_s=60)
        async def last(self, number: Number) -> Number:
            await done.wait()
            return number

    async with Desk(nats_url, space, agents=[Mixed]) as desk:
        [one] = desk.crews[0].host.instances
        assert one.stuck == [], "it only has nothing to do"
        await desk.client.submit_task("mixed", {"n": 1}, handler="cling", run_id="r1")
        await eventually(lambda: one.stuck == ["r1/0 cling"])
        await desk.client.submit_task("mixed", {"n": 2}, handler="last", run_id="r2")
        await eventually(lambda: one.stuck == [])
        done.set()
        await eventually(lambda: one.stuck == ["r1/0 cling"])
        let_go.set()
        await eventually(lambda: one.stuck == [])


async def test_renewed_instances_have_the_slots_of_now_and_the_old_ones_finish(nats_url: str, space: str) -> None:
    done = asyncio.Event()

    class Patient(Agent):
        name = "patient"
        concurrency = 1

        @handler(timeout_s=60)
        async def last(self, number: Number) -> Number:
            await done.wait()
            return number

    async with Desk(nats_url, space, agents=[Patient]) as desk:
        host = desk.crews[0].host
        [old] = host.instances
        await desk.client.submit_task("patient", {"n": 1}, run_id="r1")
        await eventually(lambda: old.in_flight == 1)
        Patient.concurrency = 3
        host.renew()
        await eventually(lambda: [one.slots for one in host.instances if not one.draining] == [3])
        done.set()
        assert (await desk.client.wait("r1", timeout_s=20)).status == "completed"
        assert [event.attempt for event in await desk.events("r1", "completed")] == [1]
        await eventually(lambda: old not in host.instances)
        assert host.handled == 1
