"""What authors of agents may write, what is refused with a word about why, and what others learn of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Generic, TypeVar

import jsonschema_rs
import pytest
from pydantic import BaseModel, Field

from cuebook.actors import Agent, Approval, Handler, PermanentError, Retry, Task, handler, saga
from cuebook.actors.runtime import AgentHost
from cuebook.events.errors import ConfigurationError, CuebookError, InvalidTokenError
from cuebook.events.facts import AgentRegistered, RetryPolicy, RetryRule
from tests.actors.cast import Number
from tests.actors.desk import Desk
from tests.waiting import eventually

DRAFT = "https://json-schema.org/draft/2020-12/schema"

T = TypeVar("T")


class Charge(BaseModel):
    id: str = Field(pattern="^ch_")
    amount: Decimal = Decimal(0)


class Refund(BaseModel):
    charge_id: str = Field(alias="chargeId")
    at: datetime
    partial: bool = False


class Box(BaseModel, Generic[T]):
    content: T


class Refunds(Agent):
    """Gives money back."""

    name = "refund"
    version = "7"
    concurrency = 16
    labels: ClassVar[dict[str, str]] = {"bank": "yes"}

    @handler(timeout_s=30, retry=Retry(attempts=5, never=(KeyError,)))
    async def issue(self, charge: Charge, task: Task) -> Refund:
        """Issues one refund."""
        return Refund(chargeId=charge.id, at=datetime(2026, 1, 31, tzinfo=UTC))

    @issue.compensation
    async def take_back(self, charge: Charge, refund: Refund, task: Task) -> None: ...

    @handler()
    def count(self, numbers: list[int]) -> dict[str, int]:
        return {"count": len(numbers)}

    @handler()
    async def unpack(self, box: Box[Charge]) -> Box[int] | None:
        return Box(content=int(box.content.amount)) if box.content.amount else None

    @handler()
    async def forget(self, charge: Charge) -> None: ...

    async def _private(self) -> None: ...


class Stricter(Refunds):
    name = "stricter"

    @handler(timeout_s=5)
    async def count(self, numbers: list[int]) -> dict[str, int]:
        return {}


# --- what is said about a handler ---


def test_handlers_are_found_by_name() -> None:
    found = Refunds.handlers()
    assert sorted(found) == ["count", "forget", "issue", "unpack"]
    assert found["issue"] is Refunds.issue
    assert (Refunds.issue.agent_name, Refunds.issue.name, Refunds.issue.timeout_s) == ("refund", "issue", 30)
    assert Refunds.issue.wants_task
    assert not Refunds.count.wants_task
    assert Refunds.issue.undo_wants_task
    assert not Refunds.count.undo_wants_task


def test_a_handler_can_be_called_as_the_method_it_is() -> None:
    assert Refunds().count([1, 2, 3]) == {"count": 3}
    assert isinstance(Refunds.count, Handler)


def test_the_registration_says_what_handlers_take_and_give() -> None:
    spec = Refunds.issue.spec()
    assert spec.input_schema["properties"]["id"] == {"title": "Id", "type": "string", "pattern": "^ch_"}
    assert spec.input_schema["required"] == ["id"]
    assert spec.output_schema["required"] == ["chargeId", "at"]
    assert (spec.timeout_s, spec.compensation, spec.description) == (30, True, "Issues one refund.")
    assert spec.retry == RetryPolicy(attempts=5, rules=[RetryRule(error="KeyError", attempts=1)])
    plain = Refunds.count.spec()
    assert plain.input_schema == {"type": "array", "items": {"type": "integer"}}
    assert (plain.timeout_s, plain.compensation, plain.description, plain.retry) == (60, False, "", RetryPolicy())
    assert Refunds.forget.spec().output_schema == {"type": "null"}
    for name, one in Refunds.handlers().items():
        for schema in (one.spec().input_schema, one.spec().output_schema):
            assert jsonschema_rs.meta.is_valid({"$schema": DRAFT, **schema}), name


async def test_the_registration_is_in_the_log_and_data_comes_as_models(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Refunds, Stricter]) as desk:
        facts = [item.event for item in await desk.log() if isinstance(item.event, AgentRegistered)]
        [registered, stricter] = facts
        assert registered.handlers == {name: one.spec() for name, one in Refunds.handlers().items()}
        assert (registered.slots, registered.version, registered.labels) == (16, "7", {"bank": "yes"})
        assert (registered.description, registered.recycle_after) == ("Gives money back.", 100)
        assert stricter.description == ""  # not that of the class it inherits from
        run = desk.client.run_task
        issued = await run("refund", {"id": "ch_1"}, handler="issue", timeout_s=20)
        assert issued.result == {"chargeId": "ch_1", "at": "2026-01-31T00:00:00Z", "partial": False}
        assert (await run("refund", [1, 2], handler="count", timeout_s=20)).result == {"count": 2}
        box = {"content": {"id": "ch_1", "amount": "3"}}
        assert (await run("refund", box, handler="unpack", timeout_s=20)).result == {"content": 3}
        assert (await run("refund", {"content": {"id": "ch_1"}}, handler="unpack", timeout_s=20)).result is None
        assert (await run("refund", {"id": "ch_1"}, handler="forget", timeout_s=20)).status == "completed"
        assert (await run("refund", {"id": "xx"}, handler="forget", timeout_s=20)).status == "rejected"


# --- inheritance ---


def test_an_agent_that_inherits_handlers_answers_under_its_own_name() -> None:
    assert Stricter.issue.agent_name == "stricter"
    assert Refunds.issue.agent_name == "refund"
    assert Stricter.issue.undo is not None
    assert (Stricter.count.timeout_s, Refunds.count.timeout_s) == (5, 60)
    assert sorted(Stricter.handlers()) == sorted(Refunds.handlers())
    assert Stricter.issue.spec() == Refunds.issue.spec()


def test_handlers_may_come_from_a_class_that_is_no_agent() -> None:
    class Counts:
        @handler()
        async def add(self, number: Number) -> Number:
            return number

    class Counter(Counts, Agent):
        name = "counter"

    class Other(Counts, Agent):
        name = "other"

    assert (Counter.add.agent_name, Other.add.agent_name) == ("counter", "other")
    assert list(Counter.handlers()) == ["add"]


async def test_a_compensation_may_be_overridden(nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuebook.actors.orchestrator.dispatcher.CANCEL_GRACE_S", 0.05)
    undone: list[str] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    class Base(Agent):
        name = "base"

        @handler()
        async def add(self, number: Number) -> Number:
            begun.set()
            while not gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait_for(gate.wait(), 30)
            return number

        @add.compensation
        async def undo(self, number: Number, result: Number) -> None:
            undone.append("base")

    class Derived(Base):
        name = "derived"

        async def undo(self, number: Number, result: Number) -> None:
            undone.append("derived")

    async with Desk(nats_url, space, agents=[Derived]) as desk:
        await desk.client.submit_task("derived", {"n": 1}, run_id="r1")
        await eventually(begun.is_set)
        await desk.client.cancel("r1")
        await desk.client.wait("r1", timeout_s=30)
        gate.set()
        await desk.saw("r1", "reverted")
        assert undone == ["derived"]


def test_two_handlers_of_one_name_are_refused() -> None:
    class Double(Agent):
        name = "double"

        @handler()
        async def add(self, number: Number) -> Number:
            return number

        @handler()
        async def _add(self, number: Number) -> Number:
            return number

    with pytest.raises(ConfigurationError, match="agent Double has two handlers called 'add'"):
        Double.handlers()


def test_a_plain_method_does_not_hide_a_handler_silently() -> None:
    class Hiding(Refunds):
        name = "hiding"

        async def count(self, numbers: list[int]) -> dict[str, int]:
            return {}

    with pytest.raises(ConfigurationError, match=r"Hiding\.count hides a handler") as caught:
        Hiding.handlers()
    assert caught.value.remedy == "decorate it with @handler() as well"


@pytest.mark.parametrize("name", ["start", "stop", "handlers"])
def test_a_handler_does_not_hide_what_every_agent_has(name: str) -> None:
    async def add(self: Any, number: Number) -> Number:
        return number

    add.__name__ = name
    with pytest.raises(ConfigurationError, match=f"Hiding.{name} hides what every agent has"):
        type("Hiding", (Agent,), {"name": "hiding", name: handler()(add)})


# --- what is refused ---


def _no_types(self, number): ...  # type: ignore[no-untyped-def]
def _no_result(self, number: Number): ...  # type: ignore[no-untyped-def]
def _no_input(self: Any) -> Number: ...  # type: ignore[empty-body]
def _three(self: Any, number: Number, task: Task, more: int) -> Number: ...  # type: ignore[empty-body]
def _two_inputs(self: Any, number: Number, more: Number) -> Number: ...  # type: ignore[empty-body]
def _task_only(self: Any, task: Task) -> Number: ...  # type: ignore[empty-body]
async def _generator(self: Any, number: Number) -> AsyncIterator[Number]:
    yield number


def _sync_generator(self: Any, number: Number) -> Iterator[Number]:
    yield number


@pytest.mark.parametrize(
    "function", [_no_types, _no_result, _no_input, _three, _two_inputs, _task_only, _generator, _sync_generator]
)
def test_what_does_not_look_like_a_handler_is_refused(function: Callable[..., Any]) -> None:
    broken = _agent_with(function)
    with pytest.raises(ConfigurationError, match=r"must look like \(self, input: Model, task: Task\) -> Model"):
        broken.handlers()
    with pytest.raises(ConfigurationError):
        AgentHost(None, "space", [broken])  # type: ignore[arg-type]


def _keyword(self: Any, *, number: Number) -> Number: ...  # type: ignore[empty-body]
def _many(self: Any, *numbers: Number) -> Number: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("function", [_keyword, _many])
def test_parameters_are_taken_by_position(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="must take its parameters by position, one by one"):
        _agent_with(function).handlers()


def _unknown(self: Any, number: Nowhere) -> Number: ...  # type: ignore[name-defined,empty-body] # noqa: F821
def _no_model(self: Any, lock: asyncio.Lock) -> Number: ...  # type: ignore[empty-body]
def _gives_no_model(self: Any, number: Number) -> asyncio.Lock: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_unknown, "the annotations of _unknown cannot be read: name 'Nowhere' is not defined"),
        (_no_model, "handler _no_model cannot take or give"),
        (_gives_no_model, "handler _gives_no_model cannot take or give"),
    ],
)
def test_types_that_pydantic_does_not_know_are_refused(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        _agent_with(function).handlers()


def test_what_has_no_schema_is_refused() -> None:
    def call(self: Any, function: Callable[[int], int]) -> Number: ...  # type: ignore[empty-body]

    with pytest.raises(ConfigurationError, match="call has no JSON Schema"):
        _agent_with(call).handlers()["call"].spec()


def test_a_compensation_takes_input_and_output() -> None:
    class Broken(Agent):
        name = "broken"

        @handler()
        async def add(self, number: Number) -> Number:
            return number

        @add.compensation
        async def undo(self, number: Number) -> None: ...

    with pytest.raises(ConfigurationError, match=r"undo must look like \(self, input, output, task\)"):
        Broken.handlers()


def test_a_compensation_of_which_nothing_would_run_is_refused() -> None:
    async def undo(self: Any, number: Number, result: Number) -> AsyncIterator[int]:
        yield number.n

    def undo_too(self: Any, number: Number, result: Number) -> Iterator[int]:
        yield number.n

    for function in (undo, undo_too):
        broken = _agent_with(_echo)
        broken.handlers()["echo"].compensation(function)
        with pytest.raises(ConfigurationError, match=f"compensation .*{function.__name__} is a generator"):
            broken.handlers()


def test_a_handler_has_one_compensation() -> None:
    one = handler()(_echo)
    one.compensation(_echo)
    with pytest.raises(ConfigurationError, match="handler echo has two compensations"):
        one.compensation(_echo)


async def _echo(self: Any, number: Number) -> Number:
    return number


def _start_plainly(self: Any) -> None: ...
async def _start_with(self: Any, server: str) -> None: ...


@pytest.mark.parametrize("hook", ["start", "stop"])
@pytest.mark.parametrize("function", [_start_plainly, _start_with])
def test_start_and_stop_can_be_called(hook: str, function: Callable[..., Any]) -> None:
    odd: type[Agent] = type("Odd", (Agent,), {"name": "odd", "echo": handler()(_echo), hook: function})
    with pytest.raises(ConfigurationError, match=r"must look like async def .*\(self\)"):
        odd.handlers()


def test_an_agent_can_be_made() -> None:
    def take_a_key(self: Any, key: str) -> None: ...

    odd: type[Agent] = type("Odd", (Agent,), {"name": "odd", "echo": handler()(_echo), "__init__": take_a_key})
    with pytest.raises(ConfigurationError, match="agent Odd cannot be made without arguments") as caught:
        odd.handlers()
    assert "async def start(self)" in caught.value.remedy


def test_an_agent_has_a_name_and_a_handler() -> None:
    class Nameless(Agent):
        @handler()
        async def add(self, number: Number) -> Number:
            return number

    class Idle(Agent):
        name = "idle"

    with pytest.raises(ConfigurationError, match="agent Nameless has no name"):
        Nameless.handlers()
    with pytest.raises(ConfigurationError, match="agent Idle has no handler"):
        Idle.handlers()
    for name in ("Refund", "a.b", "", "a b", "x" * 65, "*"):
        with pytest.raises(InvalidTokenError, match="name of agent Misnamed"):
            type("Misnamed", (Agent,), {"name": name})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("concurrency", 0),
        ("recycle_after", -1),
        ("heartbeat_s", 0.0),
        ("heartbeat_s", float("inf")),
        ("heartbeat_s", float("nan")),
        ("version", 3),
        ("labels", {"gpu": 1}),
        ("labels", {1: "gpu"}),
        ("labels", ["gpu"]),
        ("labels", None),
        ("concurrency", "4"),
        ("concurrency", 2.5),
        ("concurrency", 10**12),
        ("recycle_after", None),
        ("recycle_after", 1.5),
        ("heartbeat_s", "1"),
        ("offline_for_s", None),
        ("name", 5),
    ],
)
def test_an_agents_numbers_and_labels_are_checked(attribute: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="agent Odd"):
        type("Odd", (Agent,), {"name": "odd", attribute: value})


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "5", None, True])
def test_a_timeout_is_a_positive_span(timeout_s: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_s must be more than 0"):
        handler(timeout_s=timeout_s)


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"backoff_s": -1.0},
        {"backoff_s": float("nan")},
        {"max_s": float("inf")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"factor": float("nan")},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"never": ("ValueError",)},
        {"never": (int,)},
        {"on": {"ValueError": Retry()}},
        {"on": {ValueError: Retry(never=(KeyError,))}},
        {"on": {ValueError: Retry(on={KeyError: Retry()})}},
        {"on": {ValueError: 3}},
        {"on": None},
        {"on": [ValueError]},
        {"never": ValueError},
        {"never": None},
        {"attempts": "3"},
        {"attempts": 2.5},
        {"attempts": 10**30},
        {"backoff_s": "1"},
        {"max_s": None},
    ],
    ids=repr,
)
def test_a_retry_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Retry(**options)


def test_a_retry_is_a_retry() -> None:
    with pytest.raises(ConfigurationError, match="retry must be a Retry, not 3"):
        handler(retry=3)  # type: ignore[arg-type]


def test_a_decorator_without_its_brackets_says_so() -> None:
    async def add(self: Any, number: Number) -> Number:
        return number

    for decorator, remedy in ((handler, "write @handler()"), (saga, "write @saga()")):
        with pytest.raises(ConfigurationError) as caught:
            decorator(add)  # type: ignore[arg-type]
        assert caught.value.remedy == remedy


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_handler_is_a_method(kind: Callable[..., Any]) -> None:
    async def add(self: Any, number: Number) -> Number:
        return number

    with pytest.raises(ConfigurationError, match="decorates a method, not"):
        handler()(kind(add))


def test_a_handlers_name_can_be_part_of_a_subject() -> None:
    async def Add(self: Any, number: Number) -> Number:  # noqa: N802 - that is what is refused
        return number

    async def _hidden__word_(self: Any, number: Number) -> Number:
        return number

    with pytest.raises(InvalidTokenError, match="handler name 'Add'"):
        handler()(Add)
    assert handler()(_hidden__word_).name == "hidden-word"


def test_small_things() -> None:
    assert issubclass(PermanentError, CuebookError)
    assert Approval(approved=True)
    assert not Approval(approved=False, note="no")


def _agent_with(function: Callable[..., Any]) -> type[Agent]:
    return type("Broken", (Agent,), {"name": "broken", "broken": handler()(function)})
