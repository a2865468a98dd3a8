"""What people decide about tasks, and what becomes of those that are cancelled. On a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cuebook.actors import Agent, Retry, Task, handler, instance
from cuebook.actors.orchestrator import dispatcher
from cuebook.events.errors import CommandRejectedError
from tests.actors.cast import Bank, Number, stubbornly
from tests.actors.desk import Desk
from tests.waiting import eventually

# --- what people decide ---


class Escalating(Agent):
    """Fails until a person has said retry."""

    name = "escalating"
    concurrency = 4

    @handler(retry=Retry(attempts=2, backoff_s=0.01))
    async def fail(self, number: Number, task: Task) -> Number:
        if task.attempt > 2:
            return Number(n=task.attempt)
        raise ValueError("no")


async def test_a_person_supplies_a_result_that_fits(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Escalating]) as desk:
        run_id = await desk.client.submit_task("escalating", {"n": 1})
        await desk.saw(run_id, "escalated")
        await desk.seen()
        [shown] = (await desk.client.ask("escalations"))["escalations"]
        assert (shown["id"], shown["agent"], shown["error"]) == (f"{run_id}/0", "escalating", "no")
        await desk.client.resolve(run_id, 0, action="supply", value={"n": "many"})
        [_, again] = await desk.saw(run_id, "escalated", 2)
        assert again.reason == 'the supplied result does not fit: n: "many" is not of type "integer"'
        with pytest.raises(CommandRejectedError, match="is an escalated task"):
            await desk.client.resolve(run_id, 0, value={"n": 7})
        await desk.client.resolve(run_id, 0, action="supply", value={"n": 7})
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 7})
        assert (await desk.events(run_id, "completed"))[0].by == "test"
        with pytest.raises(CommandRejectedError, match="nothing there waits for a person"):
            await desk.client.resolve(run_id, 0, action="abort")


async def test_a_person_says_retry_and_the_attempts_count_on(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Escalating]) as desk:
        run_id = await desk.client.submit_task("escalating", {"n": 1})
        await desk.saw(run_id, "escalated")
        await desk.client.resolve(run_id, 0, action="retry")
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 3})


async def test_a_person_gives_up(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Escalating]) as desk:
        run_id = await desk.client.submit_task("escalating", {"n": 1})
        await desk.saw(run_id, "escalated")
        await desk.client.resolve(run_id, 0, action="abort", note="not worth it")
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.error) == ("aborted", "no")
        assert (await desk.events(run_id, "aborted"))[0].reason == "not worth it"


# --- cancelling ---


async def test_tasks_are_cancelled_wherever_they_are(nats_url: str, space: str) -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    class Busy(Agent):
        name = "busy"

        @handler(timeout_s=600)
        async def wait(self, number: Number, task: Task) -> Number:
            begun.append(task.run_id)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(task.run_id)
                raise
            return number

    class Faulty(Agent):
        name = "faulty"

        @handler(retry=Retry(attempts=2, backoff_s=600, max_s=600))
        async def later(self, number: Number) -> Number:
            raise ValueError("no")

        @handler(retry=Retry(attempts=1))
        async def never(self, number: Number) -> Number:
            raise ValueError("no")

    async with Desk(nats_url, space, agents=[Busy, Faulty]) as desk:
        client = desk.client
        await client.submit_task("busy", {"n": 1}, run_id="assigned")
        await eventually(lambda: begun == ["assigned"])
        await client.submit_task("busy", {"n": 1}, run_id="waiting")
        await client.submit_task("nobody", {"n": 1}, run_id="stranger")
        await client.submit_task("faulty", {"n": 1}, run_id="backoff", handler="later")
        await client.submit_task("faulty", {"n": 1}, run_id="escalated", handler="never")
        await desk.saw("backoff", "retried")
        await desk.saw("escalated", "escalated")
        for run_id in ("waiting", "stranger", "backoff", "escalated", "assigned"):
            await client.cancel(run_id, reason="not needed")
            outcome = await client.wait(run_id, timeout_s=30)
            assert (run_id, outcome.status, outcome.error) == (run_id, "cancelled", outcome.error)
            [fact] = await desk.events(run_id, "cancelled")
            assert (run_id, fact.outcome_unknown) == (run_id, False)
        assert begun == cancelled == ["assigned"]
        with pytest.raises(CommandRejectedError, match="is over"):
            await client.cancel("waiting")
        await desk.seen()
        assert (await desk.client.ask("status"))["open_runs"] == 0


async def test_a_task_is_cancelled_in_the_moment_in_which_it_comes(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = instance.Instance._on_assigned

    def take_and_cancel(self: instance.Instance, *message: Any) -> None:
        take(self, *message)
        for (run_id, n), work in self._work.items():
            order = {"cancel": [run_id, n, work.assigned], "reason": "not needed"}
            self._on_control(b"", b"", json.dumps(order).encode(), None)

    monkeypatch.setattr(instance.Instance, "_on_assigned", take_and_cancel)
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        run_id = await desk.client.submit_task("bank", {"n": 1}, handler="add")
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.error) == ("cancelled", "not needed")
        await eventually(lambda: [one.in_flight for one in desk.crews[0].host.instances] == [0])


async def test_a_cancellation_of_an_earlier_attempt_does_not_reach_the_present_one(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    class Waiting(Agent):
        name = "waiting"

        @handler(timeout_s=60)
        async def wait(self, number: Number) -> Number:
            begun.set()
            await gate.wait()
            return number

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        run_id = await desk.client.submit_task("waiting", {"n": 1})
        await asyncio.wait_for(begun.wait(), 20)
        [assigned] = [item for item in await desk.log(run_id) if item.address.fact == "assigned"]
        control = desk.client.log.subjects.control("waiting", desk.crews[0].host.instances[0].id)
        old = {"cancel": [run_id, 0, assigned.sequence - 1], "reason": "too late"}
        for message in (json.dumps(old).encode(), b"the last one"):
            desk.client.log.connection.post(control, message)
        await eventually(lambda: "the last one" in caplog.text)
        gate.set()
        assert (await desk.client.wait(run_id, timeout_s=20)).result == {"n": 1}


async def test_a_late_effect_of_a_cancelled_task_is_undone(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "CANCEL_GRACE_S", 0.1)
    gate = asyncio.Event()
    undone: list[tuple[int, int, str, bool]] = []
    begun: set[str] = set()

    class Stubborn(Agent):
        name = "stubborn"
        concurrency = 3

        @handler(timeout_s=600)
        async def pay(self, number: Number, task: Task) -> Number:
            begun.add(task.run_id)
            await stubbornly(gate)
            return Number(n=number.n + 1)

        @pay.compensation
        async def refund(self, number: Number, paid: Number, task: Task) -> None:
            undone.append((number.n, paid.n, task.idempotency_key, task.reverting))

        @handler(timeout_s=600)
        async def mail(self, number: Number, task: Task) -> Number:
            begun.add(task.run_id)
            await stubbornly(gate)
            return number

        @handler(timeout_s=600)
        async def book(self, number: Number, task: Task) -> Number:
            begun.add(task.run_id)
            await stubbornly(gate)
            return number

        @book.compensation
        def unbook(self, number: Number, booked: Number) -> None:
            raise RuntimeError("the hotel is closed")

    async with Desk(nats_url, space, agents=[Stubborn]) as desk:
        client = desk.client
        for name in ("pay", "mail", "book"):
            await client.submit_task("stubborn", {"n": 1}, handler=name, run_id=name)
        await eventually(lambda: begun == {"pay", "mail", "book"})
        for name in ("pay", "mail", "book"):
            await client.cancel(name, reason="not needed")
            assert (await client.wait(name, timeout_s=30)).status == "cancelled"
            assert (await desk.events(name, "cancelled"))[0].outcome_unknown
        gate.set()
        [paid] = await desk.saw("pay", "reverted")
        assert (paid.output, paid.error) == ({"n": 2}, None)
        assert undone == [(1, 2, "pay/0/reverted", True)]
        [mailed] = await desk.saw("mail", "reverted")
        assert mailed.error.type == "NoCompensationError"
        [booked] = await desk.saw("book", "reverted")
        assert (booked.error.type, booked.error.message) == ("RuntimeError", "the hotel is closed")
        assert (await client.state("pay")).outcome() == "cancelled"


async def test_a_stray_message_under_a_task_does_not_lose_its_answer(nats_url: str, space: str) -> None:
    gate = asyncio.Event()
    begun = asyncio.Event()

    class Waiting(Agent):
        name = "waiting"

        @handler()
        async def wait(self, number: Number) -> Number:
            begun.set()
            await gate.wait()
            return Number(n=number.n + 1)

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        run_id = await desk.client.submit_task("waiting", {"n": 1}, run_id="r1")
        await eventually(begun.is_set)
        js = desk.client.log.connection.jetstream()
        await js.publish(f"{space}.run.r1.task.0.nonsense", b"{", timeout=10)
        await js.publish(f"{space}.run.r1.task.0.resolved", b'{"action": "abort"}', timeout=10)
        await js.publish(f"{space}.run.r1.task.0.requested.waiting", b'{"input": {"n": 9}}', timeout=10)
        await desk.sees(lambda: desk.stage.service.core.world.runs["r1"].items[0].last_sequence >= 5)
        gate.set()
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 2})
        assert len([fact for fact in await desk.facts("r1") if ".assigned." in fact]) == 1
