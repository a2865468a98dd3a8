"""What becomes of a task whatever its handler does. On a real server."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from contextvars import ContextVar
from datetime import UTC
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from cuebook.actors import Agent, PermanentError, Retry, Task, handler, progress
from cuebook.actors.attempt import PreparedHandler
from cuebook.actors.deadlines import Deadlines
from cuebook.actors.orchestrator import dispatcher
from cuebook.events.envelope import to_datetime
from cuebook.events.facts import TaskAssigned
from tests.actors.cast import Number, stubbornly
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


async def test_an_attempt_ends_at_its_deadline(nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "ANSWER_GRACE_S", 60.0)  # it is the instance that says so
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
    monkeypatch.setattr(dispatcher, "ANSWER_GRACE_S", 3.0)
    caplog.set_level("INFO")
    gate = asyncio.Event()

    class Stubborn(Agent):
        name = "stubborn"
        concurrency = 2

        @handler(timeout_s=0.1, retry=Retry(attempts=2, backoff_s=0.01))
        async def wait(self, number: Number, task: Task) -> Number:
            if task.attempt == 1:
                await stubbornly(gate)
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


async def test_a_plain_function_sees_the_context_that_it_is_called_in() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    class Asking(Agent):
        name = "asking"

        @handler()
        def ask(self, number: Number) -> str:
            return tenant.get()

    prepared = PreparedHandler(Asking.handlers()["ask"], Asking(), Deadlines())
    assigned = TaskAssigned(handler="ask", attempt=1, timeout_s=20.0, input={"n": 1})
    tenant.set("acme")
    assert await prepared.call(assigned, lambda _: pytest.fail("it wants no context of its task"), None) == "acme"


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


class Grouping(Agent):
    name = "grouping"

    @handler(retry=Retry(attempts=3, backoff_s=0.01))
    async def fail(self, number: Number) -> Number:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(20))
            raise PermanentError("never") if number.n else ValueError("not yet")

    @handler(retry=Retry(attempts=1))
    async def give(self, number: Number) -> int:
        return 2**70


async def test_of_a_group_of_errors_each_is_told_and_the_permanent_one_counts(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Grouping]) as desk:
        for n, said, attempts in ((0, "ValueError: not yet", 3), (1, "PermanentError: never", 1)):
            run_id = await desk.client.submit_task("grouping", {"n": n}, handler="fail")
            await desk.saw(run_id, "escalated")
            failures = await desk.saw(run_id, "failed")
            assert len(failures) == attempts
            assert failures[-1].error.message == f"unhandled errors in a TaskGroup (1 sub-exception): {said}"


async def test_a_result_that_no_event_can_hold_is_a_failure_that_says_what_to_do(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Grouping]) as desk:
        run_id = await desk.client.submit_task("grouping", {"n": 1}, handler="give")
        (escalated,) = await desk.saw(run_id, "escalated")
        assert escalated.error.message == "an integer has more than 64 bits; send large integers as strings"


@pytest.mark.parametrize(("given", "stored"), [(7, 1.0), (-1, 0.0), (True, 1.0), ("half", None), (float("nan"), None)])
async def test_progress_is_a_fraction_or_none(nats_url: str, space: str, given: Any, stored: float | None) -> None:
    class Vague(Agent):
        name = "vague"

        @handler()
        async def work(self, number: Number, task: Task) -> Number:
            await task.progress("so far", given)
            return number

    async with Desk(nats_url, space, agents=[Vague]) as desk:
        await desk.client.run_task("vague", {"n": 1}, handler="work", timeout_s=20)
        await eventually(functools.partial(told, desk))
        assert [event.fraction for event in await told(desk)] == [stored]


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
