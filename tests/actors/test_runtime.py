"""What becomes of a task whatever its handler does, and of the work of an instance that leaves. On a real server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import threading
import time
from collections import Counter
from datetime import UTC
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from cuebook.actors import Agent, PermanentError, Retry, Task, handler, instance, progress
from cuebook.actors.orchestrator import dispatcher
from cuebook.events.envelope import to_datetime
from cuebook.events.errors import CommandRejectedError
from cuebook.events.facts import AgentStopped
from tests.actors.cast import Bank, Number
from tests.actors.desk import Desk
from tests.waiting import eventually


class Even(BaseModel):
    """A rule that no JSON Schema tells."""

    n: int

    @field_validator("n")
    @classmethod
    def _is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n


class OutOfStockError(ValueError):
    """An error with an ancestry."""


# --- what handlers do ---


async def test_a_handler_gives_its_result(nats_url: str, space: str) -> None:
    class Adder(Agent):
        name = "adder"

        @handler()
        async def add(self, number: Number) -> Number:
            return Number(n=number.n + 1)

    async with Desk(nats_url, space, agents=[Adder]) as desk:
        outcome = await desk.client.run_task("adder", {"n": 1}, run_id="r1", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", {"n": 2})
        instance = desk.crews[0].host.instances[0].id
        assert await desk.facts("r1") == [
            "run.r1.task.0.requested.adder",
            f"run.r1.task.0.assigned.adder.{instance}",
            "run.r1.task.0.completed",
        ]
        [completed] = await desk.events("r1", "completed")
        assert (completed.by, completed.attempt) == (instance, 1)


async def test_a_handler_that_raises_is_tried_again_and_then_a_person_is_asked(nats_url: str, space: str) -> None:
    seen: list[Task] = []

    class Faulty(Agent):
        name = "faulty"

        @handler(timeout_s=7, retry=Retry(attempts=3, backoff_s=0.01))
        async def fail(self, number: Number, task: Task) -> Number:
            seen.append(task)
            raise OutOfStockError(f"no {number.n}")

    async with Desk(nats_url, space, agents=[Faulty]) as desk:
        run_id = await desk.client.submit_task("faulty", {"n": 4})
        [escalated] = await desk.saw(run_id, "escalated")
        assert escalated.reason == "failed 3 of 3 attempts"
        errors = [event.error for event in await desk.events(run_id, "failed")]
        assert [error.message for error in errors] == ["no 4"] * 3
        assert errors[0].classes == ["OutOfStockError", "ValueError", "Exception"]
        assert [task.attempt for task in seen] == [1, 2, 3]
        assert {task.idempotency_key for task in seen} == {f"{run_id}/0"}
        assigned = [item for item in await desk.log(run_id) if item.address.fact == "assigned"]
        assert [task.deadline for task in seen] == [to_datetime(item.recorded_at + 7_000_000) for item in assigned]
        assert {task.deadline.tzinfo for task in seen} == {UTC}
        assert {task.correlation_id for task in seen} == {assigned[0].correlation_id}


@pytest.mark.parametrize(
    ("error", "failures"),
    [(OutOfStockError("gone"), 2), (ValueError("bad"), 1), (KeyError("k"), 1), (OSError("net"), 3)],
    ids=lambda value: type(value).__name__,
)
async def test_each_class_of_error_has_its_own_attempts(
    nats_url: str, space: str, error: Exception, failures: int
) -> None:
    policy = Retry(
        attempts=3,
        backoff_s=0.01,
        never=(ValueError, LookupError),
        on={OutOfStockError: Retry(attempts=2, backoff_s=0.0)},
    )

    class Faulty(Agent):
        name = "faulty"

        @handler(retry=policy)
        async def fail(self, number: Number) -> Number:
            raise error

    async with Desk(nats_url, space, agents=[Faulty]) as desk:
        run_id = await desk.client.submit_task("faulty", {"n": 4})
        await desk.saw(run_id, "escalated")
        assert len(await desk.events(run_id, "failed")) == failures


class CrashError(BaseException):
    """As some libraries raise when their native part has crashed."""


@pytest.mark.parametrize("kind", ["permanent", "wrong type", "cannot be stored", "exit", "interrupt", "crash"])
async def test_what_no_repetition_mends_goes_to_a_person_at_once(nats_url: str, space: str, kind: str) -> None:
    class Faulty(Agent):
        name = "faulty"

        @handler(retry=Retry(attempts=1 if kind in ("exit", "interrupt", "crash") else 5, backoff_s=0.01))
        async def fail(self, number: Number) -> Any:
            match kind:
                case "permanent":
                    raise PermanentError("the order does not exist")
                case "wrong type":
                    return threading.Lock()
                case "exit":
                    raise SystemExit(3)
                case "interrupt":
                    raise KeyboardInterrupt
                case "crash":
                    raise CrashError
            return "x" * 2_000_000

    async with Desk(nats_url, space, agents=[Faulty]) as desk:
        run_id = await desk.client.submit_task("faulty", {"n": 4})
        [escalated] = await desk.saw(run_id, "escalated")
        expected = {
            "permanent": "PermanentError",
            "wrong type": "InvalidOutputError",
            "cannot be stored": "InvalidOutputError",
            "exit": "SystemExit",
            "interrupt": "KeyboardInterrupt",
            "crash": "CrashError",
        }
        assert (await desk.events(run_id, "failed"))[0].error.type == expected[kind]
        assert len(await desk.events(run_id, "failed")) == 1
        assert escalated.error is not None


async def test_a_result_of_the_wrong_type_is_a_failure_that_says_what_is_wrong(nats_url: str, space: str) -> None:
    class Careless(Agent):
        name = "careless"

        @handler(retry=Retry(attempts=5, backoff_s=0.01))
        async def give(self, number: Number) -> Number:
            return {"n": "many"}  # type: ignore[return-value]

    async with Desk(nats_url, space, agents=[Careless]) as desk:
        run_id = await desk.client.submit_task("careless", {"n": 4})
        await desk.saw(run_id, "escalated")
        [failed] = await desk.events(run_id, "failed")
        assert (failed.error.type, failed.error.retryable) == ("InvalidOutputError", False)
        assert "valid integer" in failed.error.message


async def test_input_that_does_not_fit_is_rejected_before_anybody_gets_it(nats_url: str, space: str) -> None:
    class Adder(Agent):
        name = "adder"

        @handler()
        async def add(self, number: Number) -> Number:
            raise AssertionError("never called")

        @handler()
        async def subtract(self, number: Number) -> Number:
            raise AssertionError("never called")

    async with Desk(nats_url, space, agents=[Adder]) as desk:
        wrong = await desk.client.run_task("adder", {"n": "x"}, handler="add", run_id="r1", timeout_s=20)
        assert wrong.status == "rejected"
        assert wrong.error == 'input of adder.add: n: "x" is not of type "integer"'
        unknown = await desk.client.run_task("adder", {"n": 1}, handler="ad", run_id="r2", timeout_s=20)
        assert (unknown.status, unknown.error) == ("rejected", "agent 'adder' has no handler 'ad'")
        unnamed = await desk.client.run_task("adder", {"n": 1}, run_id="r3", timeout_s=20)
        assert (unnamed.status, unnamed.error) == ("rejected", "agent 'adder' has several handlers")
        assert (await desk.events("r3", "rejected"))[0].remedy == "name one of: add, subtract"
        assert not [fact for fact in await desk.facts() if ".assigned." in fact]


async def test_input_is_validated_again_by_the_model_before_the_handler(nats_url: str, space: str) -> None:
    called: list[int] = []

    class Halver(Agent):
        name = "halver"

        @handler()
        async def halve(self, even: Even) -> Number:
            called.append(even.n)
            return Number(n=even.n // 2)

    async with Desk(nats_url, space, agents=[Halver]) as desk:
        run_id = await desk.client.submit_task("halver", {"n": 3})
        [escalated] = await desk.saw(run_id, "escalated")
        assert escalated.error.type == "InvalidInputError"
        assert "odd" in escalated.error.message
        assert (await desk.client.run_task("halver", {"n": 4}, timeout_s=20)).result == {"n": 2}
        assert called == [4]


async def test_an_attempt_ends_at_its_deadline(nats_url: str, space: str) -> None:
    ended: list[str] = []

    class Slow(Agent):
        name = "slow"

        @handler(timeout_s=0.05, retry=Retry(attempts=2, backoff_s=0.01))
        async def wait(self, number: Number, task: Task) -> Number:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(f"{task.attempt}")
                raise
            return number

        @handler(timeout_s=60, retry=Retry(attempts=1))
        async def give_up(self, number: Number) -> Number:
            raise TimeoutError("the shop did not answer")

    async with Desk(nats_url, space, agents=[Slow]) as desk:
        run_id = await desk.client.submit_task("slow", {"n": 1}, handler="wait")
        await desk.saw(run_id, "escalated")
        failures = await desk.events(run_id, "failed")
        assert {event.error.type for event in failures} == {"TaskTimeoutError"}
        assert {event.error.message for event in failures} == {"no result within 0.05 s"}
        assert {event.by for event in failures} == {desk.crews[0].host.instances[0].id}
        assert ended == ["1", "2"]
        own = await desk.client.submit_task("slow", {"n": 1}, handler="give_up")
        await desk.saw(own, "escalated")
        assert (await desk.events(own, "failed"))[0].error.classes[0] == "TimeoutError"


async def test_a_caller_may_give_a_task_its_own_deadline_and_attempts(nats_url: str, space: str) -> None:
    class Slow(Agent):
        name = "slow"

        @handler(timeout_s=600, retry=Retry(attempts=50, backoff_s=600))
        async def wait(self, number: Number) -> Number:
            await asyncio.Event().wait()
            return number

    async with Desk(nats_url, space, agents=[Slow]) as desk:
        policy = Retry(attempts=2, backoff_s=0.01).policy()
        run_id = await desk.client.submit_task("slow", {"n": 1}, timeout_s=0.05, retry=policy)
        await desk.saw(run_id, "escalated")
        assert len(await desk.events(run_id, "failed")) == 2


async def test_a_handler_that_swallows_its_cancellation_is_given_up_and_its_answer_comes_too_late(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_GRACE_S", 1.0)
    caplog.set_level("INFO")
    gate = asyncio.Event()

    class Stubborn(Agent):
        name = "stubborn"
        concurrency = 2

        @handler(timeout_s=0.1, retry=Retry(attempts=2, backoff_s=0.01))
        async def wait(self, number: Number, task: Task) -> Number:
            if task.attempt == 1:
                await _stubbornly(gate)
            return Number(n=task.attempt)

    async with Desk(nats_url, space, agents=[Stubborn]) as desk:
        outcome = await desk.client.run_task("stubborn", {"n": 1}, run_id="r1", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", {"n": 2})
        [failed] = await desk.events("r1", "failed")
        assert failed.by == "orchestrator"
        assert "did not answer within 0.1 s" in failed.error.message
        gate.set()
        await eventually(lambda: "answer not needed any more" in caplog.text)
        facts = [fact.split(".")[4] for fact in await desk.facts("r1")]
        assert facts == ["requested", "assigned", "failed", "retried", "assigned", "completed"]


async def test_a_handler_that_ends_as_if_cancelled_has_failed(nats_url: str, space: str) -> None:
    class Confused(Agent):
        name = "confused"

        @handler(retry=Retry(attempts=2, backoff_s=0.01))
        async def cancel(self, number: Number) -> Number:
            raise asyncio.CancelledError

    async with Desk(nats_url, space, agents=[Confused]) as desk:
        run_id = await desk.client.submit_task("confused", {"n": 1})
        await desk.saw(run_id, "escalated")
        assert {event.error.type for event in await desk.events(run_id, "failed")} == {"NotFinishedError"}


async def test_plain_functions_run_in_threads_and_harm_nobody_by_blocking(nats_url: str, space: str) -> None:
    gate = threading.Event()
    threads: set[int] = set()

    class Blocking(Agent):
        name = "blocking"
        concurrency = 60

        @handler(timeout_s=30)
        def block(self, number: Number) -> Number:
            threads.add(threading.get_ident())
            gate.wait(20)
            return number

        @handler(timeout_s=0.1, retry=Retry(attempts=1))
        def block_too_long(self, number: Number) -> Number:
            gate.wait(20)
            return number

        @handler()
        async def add(self, number: Number) -> Number:
            return Number(n=number.n + 1)

        @handler(retry=Retry(attempts=1))
        def exhaust(self, number: Number) -> Number:
            raise StopIteration

    async with Desk(nats_url, space, agents=[Blocking]) as desk:
        blocked = [await desk.client.submit_task("blocking", {"n": n}, handler="block") for n in range(50)]
        await eventually(lambda: len(threads) == 50)  # more than a default pool of threads has
        assert (await desk.client.run_task("blocking", {"n": 1}, handler="add", timeout_s=20)).result == {"n": 2}
        late = await desk.client.submit_task("blocking", {"n": 1}, handler="block_too_long")
        await desk.saw(late, "escalated")
        exhausted = await desk.client.submit_task("blocking", {"n": 1}, handler="exhaust")
        await desk.saw(exhausted, "escalated")
        gate.set()
        outcomes = [await desk.client.wait(run_id, timeout_s=30) for run_id in blocked]
        assert [outcome.result for outcome in outcomes] == [{"n": n} for n in range(50)]
        assert threading.get_ident() not in threads


class Chatty(Agent):
    """Says how far it is, fifty times, and then waits until it may go."""

    name = "chatty"
    gate: ClassVar[threading.Event]

    @handler()
    async def talk(self, number: Number, task: Task) -> Number:
        for n in range(1, 51):
            await task.progress(f"{n} of 50", n / 50)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.gate.wait, 20)
        return number

    @handler()
    def talk_in_thread(self, number: Number, task: Task) -> Number:
        for n in range(1, 51):
            task.report(f"{n} of 50", n / 50)
            time.sleep(0.01)
        self.gate.wait(20)
        return number


async def told(desk: Desk) -> list[Any]:
    return [item.event for item in await desk.log() if item.address.kind == "progress"]


@pytest.mark.parametrize("name", ["talk", "talk_in_thread"])
async def test_of_progress_within_a_period_the_last_wins(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.2)
    Chatty.gate = threading.Event()
    async with Desk(nats_url, space, agents=[Chatty]) as desk:
        run_id = await desk.client.submit_task("chatty", {"n": 1}, handler=name)

        async def told_the_last() -> bool:
            return any(event.message == "50 of 50" for event in await told(desk))

        await eventually(told_the_last)
        Chatty.gate.set()
        await desk.client.wait(run_id, timeout_s=30)
        events = await told(desk)
        assert [event.fraction for event in events] == sorted(event.fraction for event in events)
        assert (events[-1].message, events[-1].fraction, events[-1].attempt) == ("50 of 50", 1.0, 1)


@pytest.mark.parametrize("name", ["talk", "talk_in_thread"])
async def test_progress_is_stored_at_most_once_a_period(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 3600.0)
    Chatty.gate = threading.Event()
    Chatty.gate.set()
    async with Desk(nats_url, space, agents=[Chatty]) as desk:
        await desk.client.run_task("chatty", {"n": 1}, handler=name, timeout_s=20)
        assert len(await told(desk)) == 1


async def test_a_decorated_handler_is_called_as_what_it_was(nats_url: str, space: str) -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        return call

    class Decorated(Agent):
        name = "decorated"

        @handler()
        @logged
        async def add(self, number: Number) -> Number:
            return Number(n=number.n + 1)

        @handler()
        @logged
        def add_in_thread(self, number: Number) -> Number:
            return Number(n=number.n + 1)

    async with Desk(nats_url, space, agents=[Decorated]) as desk:
        for name in ("add", "add_in_thread"):
            assert (await desk.client.run_task("decorated", {"n": 1}, handler=name, timeout_s=30)).result == {"n": 2}


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
        assert [one.in_flight for one in desk.crews[0].host.instances] == [0]


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
            await _stubbornly(gate)
            return Number(n=number.n + 1)

        @pay.compensation
        async def refund(self, number: Number, paid: Number, task: Task) -> None:
            undone.append((number.n, paid.n, task.idempotency_key, task.reverting))

        @handler(timeout_s=600)
        async def mail(self, number: Number, task: Task) -> Number:
            begun.add(task.run_id)
            await _stubbornly(gate)
            return number

        @handler(timeout_s=600)
        async def book(self, number: Number, task: Task) -> Number:
            begun.add(task.run_id)
            await _stubbornly(gate)
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
        await js.publish(f"{space}.run.r1.task.0.nonsense", b"{")
        await js.publish(f"{space}.run.r1.task.0.resolved", b'{"action": "abort"}')
        await js.publish(f"{space}.run.r1.task.0.requested.waiting", b'{"input": {"n": 9}}')
        await desk.sees(lambda: desk.stage.service.core.world.runs["r1"].items[0].last_sequence >= 5)
        gate.set()
        outcome = await desk.client.wait(run_id, timeout_s=30)
        assert (outcome.status, outcome.result) == ("completed", {"n": 2})
        assert len([fact for fact in await desk.facts("r1") if ".assigned." in fact]) == 1


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
    monkeypatch.setattr(instance, "LINGER_S", 0.4)
    beats: list[bytes] = []
    deliver = instance.Instance._on_assigned

    def deliver_late(self: instance.Instance, *message: Any) -> None:
        asyncio.get_running_loop().call_later(0.1, deliver, self, *message)

    monkeypatch.setattr(instance.Instance, "_on_assigned", deliver_late)

    class Waiting(Agent):
        name = "waiting"
        heartbeat_s = 0.2

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
                await _stubbornly(gate)
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


async def _stubbornly(gate: asyncio.Event) -> None:
    """Wait, whoever wants it to end; a test that fails gets rid of it all the same."""
    deadline = asyncio.get_running_loop().time() + 30
    while not gate.is_set() and asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout_at(deadline):
                await gate.wait()


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
