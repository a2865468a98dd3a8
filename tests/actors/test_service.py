"""The orchestrator as a process on a real server: who decides, by which clock, and what becomes of odd messages."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from typing import Any

import pytest

from cuebook.actors import Agent, Run, Task, handler, saga
from cuebook.actors.orchestrator import lease
from cuebook.actors.orchestrator import service as service_module
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.orchestrator.snapshot import SnapshotStore
from cuebook.events.connection import connect, ended
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, UnavailableError
from cuebook.events.facts import OutsideEvent, TaskCompleted, TaskRequested
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan
from tests.actors.desk import Desk, Stage
from tests.waiting import eventually


class Tracer(Agent):
    """Says what it knows about its call."""

    name = "tracer"
    recycle_after = 0

    @handler()
    async def tell(self, number: Number, task: Task) -> list[str]:
        return [task.traceparent, task.correlation_id]


@saga(on="traced")
async def traced(run: Run, number: Number) -> list[str]:
    return await run.call(Tracer.tell, number)


class Unleashed(OrchestratorService):
    """Decides from the moment it has caught up, whoever has the lease."""

    async def _catch_up(self, failure: asyncio.Future[None]) -> None:
        await super()._catch_up(failure)
        self.core.activate()


async def rejected(desk: Desk) -> Counter[int]:
    return Counter(item.address.n for item in await desk.rejections())


# --- odd messages ---


async def test_each_bad_message_is_rejected_once_whatever_happens_to_orchestrators(nats_url: str, space: str) -> None:
    bad = [
        (f"{space}.event.chain.asked", b"{"),
        (f"{space}.event.chain.asked", b'{"n": "x"}'),
        (f"{space}.event.chain.asked", b"\xff\xfe"),
        (f"{space}.event.chain.asked", b"\x94\x01\xa0\xc4\x00\xc4\x01\xc1"),
        (f"{space}.event.Chain", b"{}"),
        (f"{space}.what.is.this", b"{}"),
        (f"{space}.run.r1.task.0.requested.bank", b"[1]"),
        (f"{space}.run.r1.task.0.juggled", b"{}"),
        (f"{space}.run.r1.cancel_requested", b"{}"),
        (f"{space}.agent.bank.i1.registered", b"{}"),
        (f"{space}.run.{'x' * 70}.started", b"{}"),
    ]
    async with Desk(nats_url, space, sagas=[chain]) as desk:
        connection = desk.client.log.connection
        sequences = []
        for subject, body in bad:
            sequences.append((await connection.jetstream().publish(subject, body, timeout=10)).seq)
        await eventually(lambda: _all(rejected(desk), sequences))
        await desk.stage.die()
        late = await connection.jetstream().publish(*bad[0], timeout=10)
        sequences.append(late.seq)
        for _ in range(2):
            await unleash(desk)
        await eventually(lambda: _all(rejected(desk), sequences))
        for stage in desk.stages[1:]:
            await eventually(functools.partial(_has_no_refusals, stage))
        assert await rejected(desk) == Counter(sequences)
        assert all(item.event.reason for item in await desk.rejections())  # type: ignore[attr-defined]


def _has_no_refusals(stage: Stage) -> bool:
    return not stage.service.core.world.refusals


async def unleash(desk: Desk) -> Stage:
    """Start an orchestrator that decides at once."""
    stage = await desk.prepare(service=Unleashed)
    await eventually(lambda: stage.service.core.active)
    return stage


async def _all(found: Any, sequences: list[int]) -> bool:
    return set(await found) >= set(sequences)


async def test_a_subject_that_is_not_text_stops_nobody(nats_url: str, space: str) -> None:
    """The server takes any bytes: for a subject of nobody's, and under a task that is being worked on."""
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        connection = desk.client.log.connection
        task = await desk.client.submit_task("bank", {"n": 100}, handler="slowly")
        await desk.saw(task, "assigned")
        for tail in (b"event.\xff\xfe", b"run.%b.task.0.\xff" % task.encode(), b"run.\xff.completed"):
            connection.write(b"PUB %b.%b 2\r\n{}\r\n" % (space.encode(), tail))
        assert (await desk.client.run_saga("chain", {"n": 1}, timeout_s=30)).result == {"n": 4}
        assert (await desk.client.wait(task, timeout_s=30)).result == {"n": 100}
        await eventually(lambda: _count(desk, 3))


async def _count(desk: Desk, count: int) -> bool:
    return len(await desk.rejections()) == count


@pytest.mark.parametrize("scope", ["", "step"])
async def test_a_request_that_guards_less_than_its_run_does_not_open_it_again(
    nats_url: str, space: str, scope: str
) -> None:
    """Expecting nothing under its own subject, it is stored although the run is over."""
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        await desk.client.run_task("bank", {"n": 1}, handler="add", run_id="r", timeout_s=30)
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
        if scope:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = f"{space}.run.r.{scope}.>"
        js = desk.client.log.connection.jetstream()
        subject = f"{space}.run.r.task.0.requested.{'bank' if scope else 'other'}"
        again = await js.publish(subject, b'{"handler": "add", "input": {"n": 1}}', headers=headers, timeout=10)
        await eventually(lambda: _all(rejected(desk), [again.seq]))
        assert [fact for fact in await desk.facts("r") if "assigned" in fact or "completed" in fact][2:] == []


async def test_what_came_while_nobody_decided_is_done_afterwards(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain, awaited], agents=[Bank]) as desk:
        waiting = await desk.client.submit_run("awaited", {"n": 7})
        await desk.saw(waiting, "waiting")
        await desk.stage.stop()
        await desk.client.publish("chain.asked", {"n": 1})
        await desk.client.publish("paid", {"n": 6})
        await desk.client.publish("paid", {"n": 7})
        task = await desk.client.submit_task("bank", {"n": 1}, handler="add")
        await desk.direct()
        await desk.saw("chain-1", "started")
        assert (await desk.client.wait("chain-1", timeout_s=30)).result == {"n": 4}
        assert (await desk.client.wait(waiting, timeout_s=30)).result == {"n": 8}
        assert (await desk.client.wait(task, timeout_s=30)).result == {"n": 2}


# --- who decides ---


async def test_one_decides_and_a_standby_takes_over_when_it_stops(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        first, second = desk.stage, await desk.direct(standby=True)
        assert not second.service.deciding.is_set()
        assert (await desk.client.run_saga("chain", {"n": 1}, timeout_s=30)).status == "completed"
        assert not second.service.core.active
        await eventually(lambda: second.service.core.world.position == first.service.core.world.position)
        run_id = await desk.client.submit_run("chain", {"n": 2})
        await first.stop()
        assert (await desk.client.wait(run_id, timeout_s=30)).result == {"n": 5}
        await desk.sees(second.service.deciding.is_set)  # it may be the first that has done it


async def test_a_standby_takes_over_when_the_one_that_decides_falls_silent(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        await desk.direct(standby=True)
        run_id = await desk.client.submit_run("chain", {"n": 2})
        await desk.stages[0].die()
        assert (await desk.client.wait(run_id, timeout_s=30)).result == {"n": 5}


async def test_who_loses_the_lease_rests_until_it_gets_it_back(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        service = desk.stage.service
        bucket = await desk.client.log.connection.jetstream().key_value(f"{space}_leases")

        async def hold() -> None:
            while True:
                await bucket.put("orchestrator", b"somebody else")
                await asyncio.sleep(0.5)

        holding = asyncio.create_task(hold())
        await desk.sees(lambda: not service.deciding.is_set())
        assert not service.core.active
        await desk.client.submit_task("bank", {"n": 1}, handler="add", run_id="r")
        await desk.sees(lambda: "r" in service.core.world.runs)
        assert not service.core.world.runs["r"].items[0].pending
        await ended(holding)
        await desk.sees(service.deciding.is_set)  # what the somebody does not renew expires
        assert (await desk.client.wait("r", timeout_s=30)).result == {"n": 2}


async def test_who_is_being_stopped_decides_nothing_more(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        service = desk.stage.service
        flushed = service.log.appender.flushed

        async def task_comes_meanwhile() -> None:
            await desk.client.submit_task("bank", {"n": 1}, handler="add", run_id="late")
            await eventually(lambda: "late" in service.core.world.runs)
            await flushed()

        monkeypatch.setattr(service.log.appender, "flushed", task_comes_meanwhile)
        await desk.stage.stop()
        assert await desk.facts("late") == ["run.late.task.0.requested.bank"]


async def test_two_that_decide_at_once_decide_nothing_twice(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain, fan, approved]) as desk:
        for _ in range(2):
            await unleash(desk)
        await desk.hire(Bank)
        runs = [await desk.client.submit_run("chain", {"n": n}) for n in range(8, 16)]
        runs.append(await desk.client.submit_run("fan", {"n": 20}))
        tasks = [await desk.client.submit_task("bank", {"n": n}, handler="add") for n in range(40)]
        outcomes = [await desk.client.wait(run_id, timeout_s=30) for run_id in runs]
        assert Counter(one.status for one in outcomes) == {"completed": 8, "compensated": 1}
        assert {(await desk.client.wait(run_id, timeout_s=30)).status for run_id in tasks} == {"completed"}
        subjects = Counter(
            item.subject
            for item in await desk.log()
            if item.address.kind in ("run", "task", "step") and item.address.fact != "assigned"
        )
        assert {subject: count for subject, count in subjects.items() if count > 1} == {}
        attempts = Counter(
            (item.address.run_id, item.address.n) for item in await desk.log() if item.address.fact == "assigned"
        )
        assert set(attempts.values()) == {1}


async def test_a_standby_leaves_questions_to_the_one_that_decides(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain]) as desk:
        assert (await desk.client.ask("status"))["open_runs"] == 0
        await desk.direct(standby=True)
        connection = desk.client.log.connection
        inbox = connection.new_inbox()
        answers = await connection.subscribe(inbox)
        await connection.publish(desk.client.log.subjects.query("status"), b"{}", reply=inbox)
        await answers.next_msg(timeout=30)
        assert "error" in await desk.client.ask("weather")
        assert answers.pending_msgs == 0
        await desk.stages[0].stop()
        await asyncio.wait_for(desk.stage.service.deciding.wait(), 30)
        assert (await desk.client.ask("sagas"))["sagas"]
        await desk.stage.stop()
        with pytest.raises(UnavailableError, match="no orchestrator answers"):
            await desk.client.ask("status")


async def test_many_escalations_fit_into_one_answer(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        tasks = [
            await desk.client.submit_task("bank", {"n": n, "x": "x" * 200_000}, handler="refuse") for n in range(9)
        ]
        for run_id in tasks:
            await desk.saw(run_id, "escalated")
        await desk.seen()
        answer = await desk.client.ask("escalations")
        assert 0 < len(answer["escalations"]) < 9
        assert len(answer["escalations"]) + answer["more"] == 9


# --- what it keeps ---


async def test_a_snapshot_is_saved_while_it_works(nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SNAPSHOT_EVERY_S", 0.05)
    monkeypatch.setattr(service_module, "SNAPSHOT_MIN_EVENTS", 1)
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
        last = (await desk.client.log.verify()).last_sequence
        await eventually(lambda: desk.stage.service._snapshot_at == last)
        data = await SnapshotStore(desk.client.log.connection, desk.client.log.subjects).load()
        assert data is not None
        assert data["sequence"] == last


# --- what it reads back ---


async def test_what_another_has_written_where_its_own_was_lost_is_read_as_it_is(nats_url: str, space: str) -> None:
    """A server without fsync may come back without what it had acknowledged, and go on counting from there."""
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        service = desk.stage.service
        lost = service.core.world.position.sequence + 1
        service._own[lost] = "lost", TaskCompleted(), "", "", ""
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).result == {"n": 2}
        assert lost not in service._own


@saga()
async def burrowing(run: Run, number: Number) -> Any:
    hole: Any = number.n
    for _ in range(100):
        hole = [hole]
    return hole


async def test_what_a_saga_makes_is_looked_at_before_it_is_stored(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[burrowing]) as desk:
        outcome = await desk.client.run_saga("burrowing", {"n": 1}, timeout_s=20)
        assert outcome.status == "failed"
        assert "nested deeper" in outcome.error


# --- time ---


class WrongClock:
    """The module `time` of a machine whose calendar is off, with the same seconds."""

    def __init__(self, offset_s: float) -> None:
        self._offset_s = offset_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._offset_s

    def time_ns(self) -> int:
        return time.time_ns() + int(self._offset_s * 1e9)


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
async def test_an_orchestrator_whose_clock_is_wrong_keeps_the_logs_time(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, offset_s: float
) -> None:
    monkeypatch.setattr(service_module, "time", WrongClock(offset_s))
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        assert (await desk.client.run_saga("chain", {"n": 1}, timeout_s=30)).result == {"n": 4}
        outcome = await desk.client.run_task("bank", {"n": 300}, handler="slowly", timeout_s=30)
        assert outcome.status == "completed"
        assert "failed" not in " ".join(await desk.facts())


class SuspendedClock(WrongClock):
    """The module `time` of a machine that was suspended meanwhile: its seconds have stood still for so long."""

    suspended_s = 0.0

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() - int(self.suspended_s * 1e9)


async def test_an_orchestrator_whose_machine_was_suspended_asks_what_time_it_is(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SuspendedClock(0.0)
    monkeypatch.setattr(service_module, "time", clock)
    monkeypatch.setattr(service_module, "CLOCK_EVERY_S", 0.1)
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        clock.suspended_s = 3600.0
        assert (await desk.client.run_saga("chain", {"n": 1}, timeout_s=30)).result == {"n": 4}


# --- what a run carries along ---


async def test_traces_and_conversations_reach_the_agents_of_a_run(nats_url: str, space: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Desk(nats_url, space, sagas=[traced], agents=[Tracer]) as desk:
        log = desk.client.log
        await log.append(
            log.subjects.event("traced"),
            OutsideEvent(data={"n": 1}),
            event_type="traced",
            event_id="e1",
            correlation_id="c1",
            traceparent=trace,
        )
        assert (await desk.saw("traced-e1", "completed", 2))[-1].result == [trace, "c1"]
        run_id = log.ids()
        await log.append(
            log.subjects.task(run_id, 0, "requested", "tracer"),
            TaskRequested(input={"n": 1}),
            scope=log.subjects.everything_of(run_id),
            expected=0,
            correlation_id="c2",
            traceparent=trace,
        )
        assert (await desk.saw(run_id, "completed"))[0].output == [trace, "c2"]


# --- what ends it ---


async def test_an_orchestrator_ends_when_its_connection_is_closed_for_good(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space) as desk:
        await desk.stage.connection.close()
        with pytest.raises(BaseExceptionGroup) as caught:
            await asyncio.wait_for(desk.stage.task, 30)
        assert caught.group_contains(UnavailableError)


async def test_an_orchestrator_refuses_a_log_that_is_older_than_its_snapshot(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[chain], agents=[Bank]) as desk:
        await desk.client.run_saga("chain", {"n": 1}, timeout_s=30)
        await desk.crews[0].stop()
        await desk.stage.stop()
        js = desk.client.log.connection.jetstream()
        await js.delete_stream(desk.client.log.subjects.stream)
        stage = await desk.prepare()
        with pytest.raises(HistoryRegressedError):
            await asyncio.wait_for(stage.task, 30)
        await stage.connection.close()


async def test_two_sagas_of_one_name_are_refused_before_anything_starts(nats_url: str, space: str) -> None:
    @saga(name="chain")
    async def other(run: Run, number: Number) -> None: ...

    connection = await connect(nats_url, name="test")
    with pytest.raises(ConfigurationError, match="two sagas are called 'chain'"):
        OrchestratorService(connection, space, [chain, other])
    with pytest.raises(ConfigurationError, match="must look like"):
        OrchestratorService(connection, space, [_without_input()])
    await connection.close()


def _without_input() -> Any:
    async def lonely(run: Run) -> None: ...

    return saga()(lonely)  # type: ignore[arg-type]
