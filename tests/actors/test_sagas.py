"""What an author may do in a saga, and how its runs end."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from cuebook.actors import (
    Agent,
    Approval,
    Retry,
    Run,
    Saga,
    StepExpiredError,
    Task,
    TaskFailedError,
    handler,
    hours,
    saga,
)
from cuebook.actors.client import Outcome
from cuebook.actors.orchestrator.state import TaskState
from cuebook.events.envelope import Envelope, to_datetime
from cuebook.events.facts import MessageRejected
from cuebook.events.subjects import check_token
from tests.actors.desk import Desk
from tests.waiting import eventually

Play = Callable[..., Desk]


class Word(BaseModel):
    text: str


class Shop(Agent):
    """Notes what it does. `hold` waits for its gate, `meet` for another that meets, `refuse` never succeeds."""

    name = "shop"
    concurrency = 20
    recycle_after = 0
    done: ClassVar[list[str]] = []
    gates: ClassVar[dict[str, asyncio.Event]] = {}
    full: ClassVar[bool] = False

    @classmethod
    def gate(cls, name: str) -> asyncio.Event:
        return cls.gates.setdefault(name, asyncio.Event())

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def take(self, word: Word) -> Word:
        self.done.append(f"take {word.text}")
        return Word(text=f"{word.text} taken")

    @take.compensation
    async def put_back(self, word: Word, taken: Word, task: Task) -> None:
        if self.full:
            raise ValueError("the shelf is full")
        self.done.append(f"undo {word.text}: {taken.text} ({task.idempotency_key})")

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def hold(self, word: Word) -> Word:
        await self.gate(word.text).wait()
        self.done.append(f"hold {word.text}")
        return word

    @hold.compensation
    async def let_go(self, word: Word, held: Word) -> None:
        self.done.append(f"undo {word.text}")

    @handler(timeout_s=20)
    async def meet(self, word: Word) -> Word:
        here = sum(gate.is_set() for gate in self.gates.values())
        self.gate(word.text).set()
        await eventually(lambda: sum(gate.is_set() for gate in self.gates.values()) > 1)
        return Word(text="first" if not here else "second")

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def refuse(self, word: Word) -> Word:
        raise ValueError(f"no {word.text}")


@pytest.fixture(autouse=True)
def _shop() -> None:
    Shop.done, Shop.gates, Shop.full = [], {}, False


@pytest.fixture
def play(nats_url: str, space: str) -> Play:
    """A desk for some sagas, with the shop."""

    def prepared(*sagas: Saga[Any, Any]) -> Desk:
        return Desk(nats_url, space, sagas=sagas, agents=[Shop])

    return prepared


async def perform(desk: Desk, name: str, text: str = "a", run_id: str = "r") -> Outcome:
    return await desk.client.run_saga(name, {"text": text}, run_id=run_id, timeout_s=20)


async def undone(desk: Desk, run_id: str = "r") -> list[tuple[int, str]]:
    """The compensations of a run: which step each undoes, and how it ended."""
    state = await desk.client.state(run_id)
    return [
        (item.compensates, item.status)
        for _, item in sorted(state.items.items())
        if isinstance(item, TaskState) and item.compensates is not None
    ]


async def give_up(desk: Desk, run_id: str, n: int) -> None:
    """Abort a task once it waits for a person."""
    await desk.saw(run_id, "escalated")
    await eventually(lambda: escalated(desk, run_id, n))
    await desk.client.resolve(run_id, n, action="abort", note="not today")


async def escalated(desk: Desk, run_id: str, n: int) -> bool:
    item = (await desk.client.state(run_id)).items.get(n)
    return item is not None and item.status == "escalated"


# --- steps ---


@saga()
async def calls(run: Run, word: Word) -> Word:
    first = await run.call(Shop.take, word)
    assert isinstance(first, Word)
    return await run.call(Shop.take, first)


async def test_a_call_gives_the_result_as_the_handlers_model(play: Play) -> None:
    async with play(calls) as desk:
        outcome = await perform(desk, "calls")
        assert (outcome.status, outcome.result) == ("completed", {"text": "a taken taken"})
        assert Shop.done == ["take a", "take a taken"]


@saga()
async def meeting(run: Run, word: Word) -> list[str]:
    one, two = await run.gather(run.call(Shop.meet, Word(text="one")), run.call(Shop.meet, Word(text="two")))
    return sorted([one.text, two.text])


async def test_gathered_steps_are_under_way_together(play: Play) -> None:
    async with play(meeting) as desk:
        assert (await perform(desk, "meeting")).result == ["first", "second"]


@saga()
async def gathering(run: Run, word: Word) -> Word:
    steps = [run.call(Shop.refuse, Word(text="one")), run.call(Shop.refuse, Word(text="two"))]
    await run.gather(*steps, run.call(Shop.hold, word))
    return word


async def test_gather_raises_the_first_error_by_position_once_all_have_ended(play: Play) -> None:
    async with play(gathering) as desk:
        await desk.client.submit_run("gathering", {"text": "a"}, run_id="r")
        await give_up(desk, "r", 1)
        await give_up(desk, "r", 0)
        await desk.saw("r", "aborted", times=2)
        assert (await desk.client.state("r")).status == "running"
        Shop.gate("a").set()
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, "no one" in outcome.error) == ("compensated", True)
        assert Shop.done == ["hold a", "undo a"]


@saga()
async def resting(run: Run, word: Word) -> Word:
    await run.sleep(0.05)
    return word


async def test_a_sleep_ends_after_its_time_by_the_logs_clock(play: Play) -> None:
    async with play(resting) as desk:
        assert (await perform(desk, "resting")).status == "completed"
        slept, expired = [item for item in await desk.log("r") if item.address.kind == "step"]
        assert (slept.address.fact, expired.address.fact) == ("slept", "expired")
        assert expired.recorded_at - slept.recorded_at >= 50_000


@saga()
async def paid(run: Run, word: Word) -> list[str]:
    await run.call(Shop.hold, word)
    first = await run.wait_for("paid.order", Word, match={"text": word.text})
    second = await run.wait_for("paid.order", Word, match={"text": word.text}, timeout=hours(1))
    return [first.text, second.text]


async def test_an_event_counts_for_a_wait_that_comes_later_and_for_one_wait_only(play: Play) -> None:
    async with play(paid) as desk:
        await desk.client.publish("paid.order", {"text": "a"})  # before the run
        await desk.client.submit_run("paid", {"text": "a"}, run_id="r")
        await desk.saw("r", "assigned")
        await desk.client.publish("paid.order", {"text": "b"})
        early = await desk.client.publish("paid.order", {"text": "a"})
        Shop.gate("a").set()
        await desk.saw("r", "waiting", times=2)
        await desk.client.publish("paid.order", {"text": "b"})
        await desk.client.publish("paid", {"text": "a"})
        late = await desk.client.publish("paid.order", {"text": "a", "more": 1})
        assert (await desk.client.wait("r", timeout_s=20)).result == ["a", "a"]
        assert [event.sequence for event in await desk.events("r", "matched")] == [early, late]


@saga()
async def impatient(run: Run, word: Word) -> str:
    try:
        await run.wait_for("never", Word, timeout=0.05)
    except StepExpiredError as error:
        return str(error)
    return "?"


async def test_a_wait_that_expires_raises(play: Play) -> None:
    async with play(impatient) as desk:
        assert (await perform(desk, "impatient")).result == "r/0 was not answered within 0.05 s"


@saga()
async def asking(run: Run, word: Word) -> bool:
    return bool(await run.ask_human("really?", Approval, context=word, timeout=hours(1)))


async def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays_open(play: Play) -> None:
    async with play(asking) as desk:
        await desk.client.submit_run("asking", {"text": "a"}, run_id="r")
        (asked,) = await desk.saw("r", "asked")
        assert (asked.question, asked.context) == ("really?", {"text": "a"})
        wrong = await desk.client.resolve("r", 0, value={"bogus": 1})
        (refused,) = await desk.saw("r", "refused")
        assert (refused.sequence, "approved" in refused.reason) == (wrong, True)
        await desk.seen()
        assert [one["id"] for one in (await desk.client.ask("escalations"))["escalations"]] == ["r/0"]
        await desk.client.resolve("r", 0, value={"approved": True})
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", True)
        await desk.seen()
        assert (await desk.client.ask("escalations"))["escalations"] == []


@saga()
async def unanswered(run: Run, word: Word) -> bool:
    await run.call(Shop.take, word)
    return bool(await run.ask_human("really?", Approval, timeout=0.05))


async def test_a_question_that_nobody_answers_raises(play: Play) -> None:
    async with play(unanswered) as desk:
        assert (await perform(desk, "unanswered")).status == "compensated"
        (compensating,) = await desk.events("r", "compensating")
        assert compensating.error.type == "StepExpiredError"
        assert Shop.done == ["take a", "undo a: a taken (r/2)"]


@saga()
async def careless(run: Run, word: Word) -> Word:
    run.call(Shop.hold, word)
    run.sleep(0.01)
    return word


async def test_steps_that_are_not_awaited_are_waited_for(play: Play) -> None:
    async with play(careless) as desk:
        await desk.client.submit_run("careless", {"text": "a"}, run_id="r")
        await desk.saw("r", "assigned")
        await desk.saw("r", "expired")
        assert (await desk.client.state("r")).status == "running"
        Shop.gate("a").set()
        assert (await desk.client.wait("r", timeout_s=20)).status == "completed"
        assert [fact.split(".")[-1] for fact in await desk.facts("r")][-2:] == ["completed", "completed"]
        assert Shop.done == ["hold a"]


@saga()
async def reckless(run: Run, word: Word) -> Word:
    run.call(Shop.refuse, word)
    return await run.call(Shop.take, word)


async def test_the_failure_of_a_step_that_is_not_awaited_ends_the_run(play: Play) -> None:
    async with play(reckless) as desk:
        await desk.client.submit_run("reckless", {"text": "a"}, run_id="r")
        await give_up(desk, "r", 0)
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, "not awaited" in (await desk.client.state("r")).reason) == ("compensated", True)
        assert Shop.done == ["take a", "undo a: a taken (r/2)"]


@saga()
async def forgiving(run: Run, word: Word) -> str:
    try:
        await run.call(Shop.refuse, word)
    except TaskFailedError as error:
        done = await run.call(Shop.take, word)
        return f"{error.task} {error.error.type if error.error else '?'} {done.text}"
    return "?"


async def test_a_saga_may_go_on_after_a_failed_step(play: Play) -> None:
    async with play(forgiving) as desk:
        await desk.client.submit_run("forgiving", {"text": "a"}, run_id="r")
        await give_up(desk, "r", 0)
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", "r/0 ValueError a taken")


# --- the run's clock ---

seen: list[list[Any]] = []


@saga()
async def clocked(run: Run, word: Word) -> list[str]:
    moments = [run.now]
    seen.append(moments)
    await run.sleep(0.02)
    moments.append(run.now)
    await run.call(Shop.hold, word)
    moments.append(run.now)
    return [moment.isoformat() for moment in moments]


async def test_now_is_the_logs_time_and_the_same_when_replayed(play: Play) -> None:
    seen.clear()
    async with play(clocked) as desk:
        await desk.client.submit_run("clocked", {"text": "a"}, run_id="r")
        await desk.saw("r", "assigned")
        await desk.stage.die()
        await desk.direct()
        Shop.gate("a").set()
        outcome = await desk.client.wait("r", timeout_s=20)
        recorded = [
            to_datetime(item.recorded_at)
            for item in await desk.log("r")
            if item.address.fact in ("started", "expired", "completed")
        ]
        first, second = seen
        assert first == recorded[:2]
        assert second == recorded[:3]
        assert outcome.result == [moment.isoformat() for moment in second]


@saga()
async def crossed(run: Run, word: Word) -> list[str]:
    early, late = run.sleep(0.0), run.sleep(0.1)
    moments = []
    for step in (late, early):
        await step
        moments.append(run.now.isoformat())
    return moments


async def test_now_does_not_go_back_when_an_earlier_end_is_awaited_later(play: Play) -> None:
    async with play(crossed) as desk:
        late, after = (await perform(desk, "crossed")).result
        assert late == after


# --- ends ---


@saga()
async def aborted(run: Run, word: Word) -> None:
    raise run.abort("declined")


async def test_an_abort_with_nothing_to_undo_fails_the_run(play: Play) -> None:
    async with play(aborted) as desk:
        outcome = await perform(desk, "aborted")
        assert (outcome.status, outcome.error) == ("failed", "declined")


@saga()
async def undoing(run: Run, word: Word) -> None:
    slow = run.call(Shop.hold, Word(text="slow"))
    await run.call(Shop.take, Word(text="quick"))
    run.call(Shop.meet, Word(text="x"))
    await run.gather(slow, run.call(Shop.meet, Word(text="y")))
    raise run.abort("declined")


async def begin_undoing(desk: Desk) -> None:
    await desk.client.submit_run("undoing", {"text": "a"}, run_id="r")
    await desk.saw("r", "completed")
    Shop.gate("slow").set()


async def test_steps_are_undone_in_reverse_order_of_their_completion_each_as_a_task(play: Play) -> None:
    async with play(undoing) as desk:
        await begin_undoing(desk)
        assert (await desk.client.wait("r", timeout_s=20)).status == "compensated"
        assert Shop.done == ["take quick", "hold slow", "undo slow", "undo quick: quick taken (r/5)"]
        assert await undone(desk) == [(0, "completed"), (1, "completed")]
        history = [fact.removeprefix("run.r.") for fact in await desk.facts("r")]
        tail = [re.sub(r"assigned.*", "assigned", fact) for fact in history[history.index("compensating") :]]
        assert tail == [
            "compensating",
            *("task.4.requested.shop", "task.4.assigned", "task.4.completed"),
            *("task.5.requested.shop", "task.5.assigned", "task.5.completed"),
            "compensated",
        ]


class Archive(Agent):
    """Keeps large texts, and throws them away at the second attempt."""

    name = "archive"
    thrown: ClassVar[list[tuple[int, str, int]]] = []

    @handler(retry=Retry(attempts=3, backoff_s=0.01))
    async def keep(self, word: Word) -> Word:
        return Word(text="y" * len(word.text))

    @keep.compensation
    async def throw(self, word: Word, kept: Word, task: Task) -> None:
        if task.attempt == 1:
            raise OSError("the lid is stuck")
        self.thrown.append((len(word.text), set(kept.text).pop(), len(kept.text)))


@saga()
async def archiving(run: Run, word: Word) -> None:
    await run.call(Archive.keep, word)
    await run.call(Archive.keep, Word(text="x" * 3))
    raise run.abort("no room")


@pytest.mark.parametrize("size", [130_960, 250_000])
async def test_a_step_is_undone_however_large_its_input_and_output(nats_url: str, space: str, size: int) -> None:
    Archive.thrown = []
    async with Desk(nats_url, space, sagas=[archiving], agents=[Archive]) as desk:
        outcome = await perform(desk, "archiving", "x" * size)
        assert outcome.status == "compensated"
        assert Archive.thrown == [(3, "y", 3), (size, "y", size)]
        assert [status for _, status in await undone(desk)] == ["completed", "completed"]


async def test_a_run_whose_undoing_fails_is_stuck_until_it_has_succeeded(play: Play) -> None:
    async with play(undoing) as desk:
        Shop.full = True
        await begin_undoing(desk)
        await give_up(desk, "r", 5)
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, "step 1 could not be undone (r/5 was aborted" in outcome.error) == ("stuck", True)
        await desk.seen()
        assert [one["kind"] for one in (await desk.client.ask("escalations"))["escalations"]] == ["stuck"]

        assert await desk.client.retry("r") == "r"  # in vain
        await give_up(desk, "r", 6)
        await desk.saw("r", "stuck", times=2)
        assert await desk.events("r", "compensated") == []

        Shop.full = False
        await desk.client.retry("r")
        await desk.saw("r", "compensated")
        assert (await desk.client.wait("r", timeout_s=20)).status == "compensated"
        assert await undone(desk) == [(0, "completed"), (1, "aborted"), (1, "aborted"), (1, "completed")]
        assert Shop.done.count("undo slow") == 1
        assert Shop.done[-1] == "undo quick: quick taken (r/7)"
        assert Counter(item.address.fact for item in await desk.log("r") if item.address.kind == "run") == {
            "requested": 1, "started": 1, "compensating": 1, "stuck": 2, "retry_requested": 2, "resumed": 2,
            "compensated": 1,
        }  # fmt: skip


@saga()
async def cancellable(run: Run, word: Word) -> None:
    await run.call(Shop.take, word)
    run.call(Shop.meet, word)  # cannot be undone: is cancelled
    run.call(Shop.hold, Word(text="held"))  # can be: its outcome is waited for
    await run.wait_for("never", Word)


async def test_a_cancelled_run_closes_what_is_open_and_is_undone(play: Play) -> None:
    async with play(cancellable) as desk:
        await desk.client.submit_run("cancellable", {"text": "a"}, run_id="r")
        await desk.saw("r", "waiting")
        await desk.saw("r", "assigned", times=3)
        await desk.client.cancel("r", reason="the customer left")
        await desk.saw("r", "cancelled", times=2)
        assert (await desk.client.state("r")).status == "running"
        Shop.gate("held").set()
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, (await desk.client.state("r")).reason) == ("compensated", "the customer left")
        assert Shop.done == ["take a", "hold held", "undo held", "undo a: a taken (r/5)"]


# --- changed code ---


def drifting(change: str) -> Saga[Word, Word]:
    """One saga as its author changes it between two releases."""

    @saga(name="drifting")
    async def drifting(run: Run, word: Word) -> Word:
        if change == "ends earlier":
            return word
        if change == "pauses first":
            await run.sleep(1)
        held = await run.call(Shop.hold, Word(text="b") if change == "asks otherwise" else word)
        return await run.call(Shop.take, held)

    return drifting


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("asks otherwise", {"call": "shop.hold", "input": {"text": "b"}}),
        ("pauses first", {"sleep": 1.0}),
        ("ends earlier", None),
    ],
)
async def test_a_run_whose_code_was_changed_is_stuck_until_the_code_is_put_back(
    play: Play, change: str, asked: Any
) -> None:
    recorded = {"call": "shop.hold", "input": {"text": "a"}}
    async with play(drifting("")) as desk:
        await desk.client.submit_run("drifting", {"text": "a"}, run_id="r")
        await desk.saw("r", "assigned")
        await desk.stage.stop()
        changed = await desk.direct(drifting(change))
        (stuck,) = await desk.saw("r", "stuck")
        assert (stuck.step, stuck.recorded, stuck.asked) == (0, recorded, asked)
        Shop.gate("a").set()
        await desk.saw("r", "completed")

        await desk.client.retry("r")  # before the code is put back
        await desk.saw("r", "stuck", times=2)
        await desk.seen()
        (shown,) = (await desk.client.ask("escalations"))["escalations"]
        assert (shown["kind"], shown["recorded"], shown["asked"]) == ("stuck", recorded, asked)

        await changed.stop()
        await desk.direct(drifting(""))
        await desk.client.retry("r")
        await desk.saw("r", "resumed", times=2)
        await desk.saw("r", "completed", times=3)
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", {"text": "a taken"})
        assert Shop.done == ["hold a", "take a"]


@saga()
async def foreign(run: Run, word: Word) -> Word:
    taken = await run.call(Shop.take, word)
    await asyncio.sleep(0)
    await asyncio.sleep(1)
    return taken


async def test_a_saga_that_awaits_what_is_no_step_is_stuck_and_says_what_to_do(play: Play) -> None:
    async with play(foreign, calls) as desk:
        outcome = await perform(desk, "foreign")
        assert (outcome.status, "put I/O into an agent" in outcome.error) == ("stuck", True)
        assert (await perform(desk, "calls", run_id="other")).status == "completed"


# --- starting ---


@saga(on="order.placed", key="id")
async def keyed(run: Run, order: dict[str, Any]) -> str:
    return run.id


@saga(on="order.placed")
async def unkeyed(run: Run, order: dict[str, Any]) -> str:
    return run.id


@saga(on="order.placed", key="text")
async def worded(run: Run, word: Word) -> str:
    return run.id


async def test_a_second_event_with_the_same_key_is_rejected_once(play: Play) -> None:
    async with play(keyed) as desk:
        await desk.client.publish("order.placed", {"id": "a"})
        assert (await eventually_ended(desk, "keyed-a")).result == "keyed-a"
        second = await desk.client.publish("order.placed", {"id": "a"})
        (rejected,) = await eventually(desk.rejections)
        assert (rejected.address.n, reason(rejected)) == (second, "run keyed-a was started already")
        await desk.stage.stop()
        await desk.direct()
        third = await desk.client.publish("order.placed", {"id": "a"})
        await eventually(lambda: count_rejections(desk, 2))
        assert [item.address.n for item in await desk.rejections()] == [second, third]
        assert len(await desk.events("keyed-a", "started")) == 1


async def test_events_with_the_same_key_at_once_start_one_run(play: Play) -> None:
    async with play(keyed) as desk:
        sequences = await asyncio.gather(*(desk.client.publish("order.placed", {"id": "a"}) for _ in range(5)))
        await eventually(lambda: count_rejections(desk, 4))
        (started,) = await desk.events("keyed-a", "started")
        assert {item.address.n for item in await desk.rejections()} == {*sequences} - {started.trigger}


async def test_every_saga_that_listens_to_a_topic_gets_a_run(play: Play) -> None:
    async with play(keyed, unkeyed, worded) as desk:
        sequence = await desk.client.publish("order.placed", {"id": "a", "text": "b"}, event_id="e1")
        for run_id in ("keyed-a", "unkeyed-e1", "worded-b"):
            assert (await eventually_ended(desk, run_id)).result == run_id
            assert [event.trigger for event in await desk.events(run_id, "started")] == [sequence]
        assert await desk.rejections() == []


async def test_an_event_is_rejected_once_for_all_sagas_that_cannot_begin_with_it(play: Play) -> None:
    async with play(keyed, worded) as desk:
        half = await desk.client.publish("order.placed", {"id": "a"})
        assert (await eventually_ended(desk, "keyed-a")).status == "completed"
        wrong = await desk.client.publish("order.placed", "nothing")
        await eventually(lambda: count_rejections(desk, 2))
        assert [(item.address.n, "saga keyed" in reason(item)) for item in await desk.rejections()] == [
            (half, False),
            (wrong, True),
        ]
        assert all("saga worded" in reason(item) for item in await desk.rejections())


async def test_a_run_keeps_the_conversation_of_the_event_that_began_it(play: Play) -> None:
    async with play(worded, calls) as desk:
        sequence = await desk.client.publish("order.placed", {"text": "a"}, event_id="e1")
        await eventually_ended(desk, "worded-a")
        started = (await desk.log("worded-a"))[0]
        assert (started.causation_id, started.correlation_id) == ("e1", "e1")
        assert (await desk.client.log.at(sequence)).id == "e1"  # type: ignore[union-attr]
        await perform(desk, "calls")
        history = await desk.log("r")
        assert len({item.correlation_id for item in history}) == 1
        tasks = [item for item in history if item.address.kind == "task"]
        asked = {item.address.n: item.id for item in tasks if item.address.fact == "requested"}
        assigned = {item.address.n: item.causation_id for item in tasks if item.address.fact == "assigned"}
        assert {item.causation_id for item in tasks if item.address.fact == "requested"} == {history[0].id}
        assert assigned == asked


@pytest.mark.parametrize(
    "key", ["Order 8812", "a.b", "", " ", "ü", "x" * 100, 17, -1, 2.5, True, ["a"], {"a": 1}, "*", ">", "a/b\n", "live"]
)
def test_any_key_gives_a_run_id_and_always_the_same(key: Any) -> None:
    run_id = keyed.run_id({"id": key}, "e1")
    assert check_token(run_id) == run_id == keyed.run_id({"id": key, "more": 1}, "e2")
    assert run_id.startswith("keyed-")
    assert run_id != keyed.run_id({"id": f"{key}2"}, "e1")


@pytest.mark.parametrize("data", [None, 1, "text", [], {}, {"id": None}, {"other": 1}])
def test_without_a_key_the_event_gives_the_run_id(data: Any) -> None:
    assert keyed.run_id(data, "e1") == keyed.run_id(data, "e1") == "keyed-e1"
    assert keyed.run_id(data, "e2") == "keyed-e2"


async def test_an_odd_key_starts_its_run_once(play: Play) -> None:
    async with play(keyed) as desk:
        for _ in range(2):
            await desk.client.publish("order.placed", {"id": "Order 8812!"})
        run_id = keyed.run_id({"id": "Order 8812!"}, "")
        assert (await eventually_ended(desk, run_id)).result == run_id
        assert len(await eventually(desk.rejections)) == 1


def reason(item: Envelope) -> str:
    assert isinstance(item.event, MessageRejected)
    assert item.event.remedy
    return item.event.reason


async def eventually_ended(desk: Desk, run_id: str) -> Outcome:
    """A run that something else has started."""
    await desk.saw(run_id, "started")
    return await desk.client.wait(run_id, timeout_s=20)


async def count_rejections(desk: Desk, expected: int) -> bool:
    return len(await desk.rejections()) >= expected
