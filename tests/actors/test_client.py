"""What programs and the command line ask of a space, and what they are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cuebook.actors import client as client_module
from cuebook.actors.client import Client
from cuebook.events.connection import connect
from cuebook.events.errors import (
    CommandRejectedError,
    InvalidTokenError,
    NotFoundError,
    PoisonMessageError,
    UnavailableError,
)
from cuebook.events.facts import RetryPolicy
from tests.actors.cast import Bank, approved, chain, fan
from tests.actors.desk import Desk
from tests.waiting import eventually


class Play(Desk):
    """A desk with the bank, and sagas that call it."""

    def __init__(self, url: str, space: str) -> None:
        super().__init__(url, space, sagas=[chain, fan, approved], agents=[Bank])


@pytest.fixture
def play(nats_url: str, space: str) -> Play:
    return Play(nats_url, space)


async def refused(desk: Desk, run_id: str) -> None:
    """A standalone task that waits for a person."""
    await desk.client.submit_task("bank", {"n": 1}, handler="refuse", run_id=run_id)
    await desk.saw(run_id, "escalated")


# --- work and its outcomes ---


async def test_a_task_gives_its_outcome_however_it_is_asked_for(play: Play) -> None:
    async with play as desk:
        client = desk.client
        ran = await client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
        named = await client.run_task("bank", {"n": 1}, handler="add", run_id="named", timeout_s=20)
        submitted = await client.wait(await client.submit_task("bank", {"n": 1}, handler="add"), timeout_s=20)
        for one in (ran, named, submitted, await client.wait(ran.run_id), await client.wait("named")):
            assert (one.status, one.result, one.error) == ("completed", {"n": 2}, "")
        assert named.run_id == "named"
        assert "named" in repr(named)


async def test_a_run_gives_its_outcome_however_it_is_asked_for(play: Play) -> None:
    async with play as desk:
        client = desk.client
        ran = await client.run_saga("fan", {"n": 3}, timeout_s=20)
        named = await client.run_saga("fan", {"n": 3}, run_id="named", timeout_s=20)
        submitted = await client.wait(await client.submit_run("fan", {"n": 3}), timeout_s=20)
        for one in (ran, named, submitted, await client.wait(ran.run_id)):
            assert (one.status, one.result, one.error) == ("completed", {"n": 3}, "")
        assert ran.run_id.startswith("fan-")


async def test_an_outcome_is_the_same_whether_one_waited_or_came_later(play: Play) -> None:
    async with play as desk:
        client = desk.client
        outcomes = [
            await client.run_task("bank", {"n": "x"}, handler="add", timeout_s=20),
            await client.run_task("bank", {"n": 1}, handler="nothing", timeout_s=20),
            await client.run_saga("nothing", {"n": 1}, timeout_s=20),
            await client.run_saga("fan", {"n": "x"}, timeout_s=20),
            await client.run_saga("chain", {"n": 13}, timeout_s=20),
        ]
        await refused(desk, "aborted")
        waiting = asyncio.create_task(client.wait("aborted", timeout_s=20))
        await client.resolve("aborted", 0, action="abort", note="not today")
        outcomes.append(await waiting)
        assert [one.status for one in outcomes] == ["rejected"] * 4 + ["compensated", "aborted"]
        for one in outcomes:
            assert one.error
            later = await client.wait(one.run_id)
            assert (later.status, later.result, later.error) == (one.status, one.result, one.error)


async def test_options_of_a_task_are_stored_with_it(play: Play) -> None:
    async with play as desk:
        await desk.client.submit_task(
            "bank",
            {"n": 1},
            handler="add",
            run_id="r",
            priority=7,
            affinity="a",
            labels={"zone": "z"},
            timeout_s=5,
            retry=RetryPolicy(attempts=9),
        )
        (requested,) = await desk.events("r", "requested")
        assert (requested.priority, requested.affinity, requested.labels) == (7, "a", {"zone": "z"})
        assert (requested.timeout_s, requested.retry) == (5, RetryPolicy(attempts=9))


async def test_a_run_id_is_used_once(play: Play) -> None:
    async with play as desk:
        client = desk.client
        await client.run_task("bank", {"n": 1}, handler="add", run_id="r", timeout_s=20)
        for again in (
            client.submit_task("bank", {"n": 1}, run_id="r"),
            client.submit_run("fan", {"n": 1}, run_id="r"),
            client.run_task("bank", {"n": 1}, run_id="r"),
            client.run_saga("fan", {"n": 1}, run_id="r"),
        ):
            with pytest.raises(CommandRejectedError, match="run r exists already") as raised:
                await again
            assert raised.value.remedy
        assert len(await desk.events("r", "requested")) == 1
        assert await desk.rejections() == []


@pytest.mark.parametrize("run_id", ["Upper", "a.b", "a b", "*", "-a", "x" * 65])
async def test_what_no_subject_can_hold_is_refused_before_it_is_sent(play: Play, run_id: str) -> None:
    async with play as desk:
        for submit in (
            desk.client.submit_task("bank", 1, run_id=run_id),
            desk.client.submit_run("fan", 1, run_id=run_id),
        ):
            with pytest.raises(InvalidTokenError):
                await submit
        with pytest.raises(InvalidTokenError):
            await desk.client.submit_task(run_id, 1)
        with pytest.raises(InvalidTokenError):
            await desk.client.state(run_id)


@pytest.mark.parametrize("data", ["x" * 300_000, {1: 2}, float("nan"), 2**70, object()])
async def test_what_no_event_can_hold_is_refused_before_it_is_sent(play: Play, data: Any) -> None:
    async with play as desk:
        for submit in (
            desk.client.submit_task("bank", data, run_id="r"),
            desk.client.run_task("bank", data),
            desk.client.publish("a.b", data),
        ):
            with pytest.raises(PoisonMessageError):
                await submit
        with pytest.raises(NotFoundError):
            await desk.client.state("r")


async def test_waiting_has_a_limit_and_an_end(play: Play, nats_url: str, space: str) -> None:
    async with play as desk:
        with pytest.raises(NotFoundError, match="there is no run nothing in space"):
            await desk.client.wait("nothing")
        await refused(desk, "r")
        with pytest.raises(TimeoutError):
            await desk.client.wait("r", timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await desk.client.run_task("bank", {"n": 1}, handler="refuse", run_id="again", timeout_s=0.05)
        await desk.saw("again", "requested")  # however soon it was given up
        assert (await desk.client.state("again")).outcome() in ("waiting", "assigned", "failed", "escalated")
        connection = await connect(nats_url, name="another client")
        async with Client(connection, space) as other:
            waiting = asyncio.create_task(other.wait("r"))
            await eventually(lambda: "r" in other._awaited)
        with pytest.raises(UnavailableError, match="it goes on"):
            await waiting
        await connection.close()


async def test_waiting_ends_with_a_connection_that_is_closed_for_good(
    play: Play, nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_AGAIN_S", 0.1)
    async with play as desk:
        await refused(desk, "r")
        connection = await connect(nats_url, name="another client")
        async with Client(connection, space) as other:
            looked, look_at = asyncio.Event(), other._look_at

            async def look(run_id: str) -> None:
                await look_at(run_id)
                if asyncio.current_task() is waiting:
                    looked.set()

            monkeypatch.setattr(other, "_look_at", look)
            waiting = asyncio.create_task(other.wait("r"))
            await looked.wait()
            await connection.close()
            with pytest.raises(UnavailableError, match="closed for good before run r had ended; it goes on"):
                await waiting


async def test_what_ends_just_before_its_end_is_listened_for_is_seen_at_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LOOK_AGAIN_S", 3600.0)
    async with play as desk:
        expect = desk.client.expect

        async def expect_late(run_id: str, kind: Any) -> Any:
            await desk.client.resolve(run_id, 0, action="abort")
            await desk.saw(run_id, "aborted")
            return await expect(run_id, kind)

        await refused(desk, "r")
        monkeypatch.setattr(desk.client, "expect", expect_late)
        assert (await desk.client.wait("r", timeout_s=20)).status == "aborted"


async def test_many_may_wait_for_one_run(play: Play) -> None:
    async with play as desk:
        await refused(desk, "r")
        waiting = [asyncio.create_task(desk.client.wait("r", timeout_s=20)) for _ in range(5)]
        await desk.client.resolve("r", 0, action="supply", value={"n": 5})
        assert {(one.status, one.result["n"]) for one in await asyncio.gather(*waiting)} == {("completed", 5)}


async def test_an_event_with_an_id_is_stored_once(play: Play) -> None:
    async with play as desk:
        first = await desk.client.publish("paid", {"n": 1}, event_id="e1")
        assert await desk.client.publish("paid", {"n": 1}, event_id="e1") == first
        assert await desk.client.publish("paid", {"n": 1}) == first + 1


# --- deciding ---


async def test_an_escalated_task_is_supplied_retried_or_aborted(play: Play) -> None:
    async with play as desk:
        client = desk.client
        for run_id in ("supplied", "retried", "aborted"):
            await refused(desk, run_id)
        await client.resolve("supplied", 0, action="supply", value={"n": 9}, note="counted by hand")
        outcome = await client.wait("supplied", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", {"n": 9})
        (resolved,) = await desk.events("supplied", "resolved")
        assert (resolved.by, resolved.note) == ("test", "counted by hand")

        await client.resolve("retried", 0, action="retry")
        await desk.saw("retried", "escalated", times=2)
        assert len(await desk.events("retried", "assigned")) == 2

        await client.resolve("aborted", 0, action="abort", note="not today")
        assert (await client.wait("aborted", timeout_s=20)).status == "aborted"


async def test_a_supplied_result_must_fit_the_handlers_model(play: Play) -> None:
    async with play as desk:
        await refused(desk, "r")
        await desk.client.resolve("r", 0, action="supply", value={"bogus": 9})
        _, second = await desk.saw("r", "escalated", times=2)
        assert "does not fit" in second.reason
        await desk.client.resolve("r", 0, action="supply", value={"n": 9})
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 9}


async def test_a_decision_needs_something_open_and_a_known_word(play: Play) -> None:
    async with play as desk:
        client = desk.client
        with pytest.raises(NotFoundError, match="there is no run nothing"):
            await client.resolve("nothing", 0, value=1)
        await client.run_task("bank", {"n": 1}, handler="add", run_id="done", timeout_s=20)
        with pytest.raises(CommandRejectedError, match="done/0 is completed: nothing there waits for a person"):
            await client.resolve("done", 0, action="retry")
        with pytest.raises(NotFoundError, match="run done has no task or step 3"):
            await client.resolve("done", 3, action="retry")
        await refused(desk, "r")
        for action in ("", "approve"):
            with pytest.raises(CommandRejectedError, match="r/0 is an escalated task") as raised:
                await client.resolve("r", 0, action=action, value=1)
            assert "supply" in raised.value.remedy
        assert await desk.events("r", "resolved") == []


async def test_of_two_people_who_decide_one_is_told_that_the_other_was_faster(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with play as desk:
        await desk.client.submit_run("approved", {"n": 1}, run_id="asked")
        await refused(desk, "task")
        await desk.saw("asked", "asked")
        for run_id, n, words in (("asked", 1, {"value": {"approved": True}}), ("task", 0, {"action": "abort"})):
            seen = await desk.client.state(run_id)

            async def stale(_: str, seen: Any = seen) -> Any:
                return seen

            await desk.client.resolve(run_id, n, **words)
            with monkeypatch.context() as patch:
                patch.setattr(desk.client, "state", stale)
                with pytest.raises(CommandRejectedError, match=f"{run_id}/{n} was decided by somebody else"):
                    await desk.client.resolve(run_id, n, **words)
        assert (await desk.client.wait("asked", timeout_s=20)).result == {"n": 3}
        assert (await desk.client.wait("task", timeout_s=20)).status == "aborted"
        assert await desk.rejections() == []


async def test_what_is_cancelled_ends_and_what_is_over_cannot_be(play: Play) -> None:
    async with play as desk:
        client = desk.client
        await client.submit_run("approved", {"n": 1}, run_id="run")
        await desk.saw("run", "asked")
        await client.cancel("run", reason="changed my mind")
        assert (await client.wait("run", timeout_s=20)).status == "compensated"

        await client.submit_task("bank", {"n": 60_000}, handler="slowly", run_id="task")
        await desk.saw("task", "assigned")
        await client.cancel("task", reason="too slow")
        outcome = await client.wait("task", timeout_s=20)
        assert (outcome.status, outcome.error) == ("cancelled", "too slow")
        (requested,) = await desk.events("task", "cancel_requested")
        assert (requested.by, requested.reason) == ("test", "too slow")

        for run_id, status in (("run", "compensated"), ("task", "cancelled")):
            with pytest.raises(CommandRejectedError, match=f"run {run_id} is over: {status}"):
                await client.cancel(run_id)
        with pytest.raises(NotFoundError):
            await client.cancel("nothing")


async def test_one_task_of_a_run_can_be_cancelled(play: Play) -> None:
    async with play as desk:
        await desk.client.submit_run("approved", {"n": 1}, run_id="run")
        await desk.saw("run", "asked")
        await desk.client.submit_task("bank", {"n": 1}, handler="add", run_id="waits", labels={"zone": "nowhere"})
        await desk.client.cancel("waits", n=0)
        assert (await desk.client.wait("waits", timeout_s=20)).status == "cancelled"
        sequence = (await desk.client.log.verify()).last_sequence
        with pytest.raises(NotFoundError, match="run run has no task 99"):
            await desk.client.cancel("run", n=99)
        with pytest.raises(NotFoundError, match="run run has no task 1"):  # that is a question
            await desk.client.cancel("run", n=1)
        with pytest.raises(CommandRejectedError, match="task run/0 is over: completed"):
            await desk.client.cancel("run", n=0)
        assert (await desk.client.log.verify()).last_sequence == sequence
        assert (await desk.client.state("run")).status == "running"


async def test_what_has_ended_is_run_again_under_a_new_id(play: Play) -> None:
    async with play as desk:
        client = desk.client
        await client.run_saga("chain", {"n": 13}, run_id="chain-13", timeout_s=20)
        again = await client.retry("chain-13")
        assert again.startswith("chain-13-")
        assert (await client.wait(again, timeout_s=20)).status == "compensated"
        state = await client.state(again)
        assert (state.retry_of, state.input) == ("chain-13", {"n": 13})
        assert state.correlation_id == (await client.state("chain-13")).correlation_id

        options: dict[str, Any] = {"priority": 5, "affinity": "a", "labels": {"version": Bank.version}}
        options |= {"timeout_s": 7.0, "retry": RetryPolicy(attempts=9)}
        await client.submit_task("bank", {"n": 1}, handler="add", run_id="task", **options)
        await client.wait("task", timeout_s=20)
        again = await client.retry("task")
        assert (await client.wait(again, timeout_s=20)).result == {"n": 2}
        assert await desk.events(again, "requested") == await desk.events("task", "requested")

        await refused(desk, "open")
        with pytest.raises(CommandRejectedError, match="run open is escalated, there is nothing to retry"):
            await client.retry("open")
        with pytest.raises(NotFoundError):
            await client.retry("nothing")


# --- agents and the orchestrator ---


async def test_an_instance_that_is_drained_finishes_what_it_has_and_stops(play: Play) -> None:
    async with play as desk:
        await desk.client.submit_task("bank", {"n": 300}, handler="slowly", run_id="r")
        await desk.saw("r", "assigned")
        (instance,) = [one.id for one in desk.crews[0].host.instances]
        await desk.client.drain("bank", instance, reason="lunch")
        await desk.sees(lambda: desk.health(instance) == "stopped")
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 300}
        assert len(await desk.events("r", "assigned")) == 1
        await desk.crews[0].stop()
        await desk.client.submit_task("bank", {"n": 1}, handler="add", run_id="later")
        await desk.hire(Bank)
        assert (await desk.client.wait("later", timeout_s=20)).result == {"n": 2}


async def test_the_orchestrator_answers_questions(play: Play) -> None:
    async with play as desk:
        client = desk.client
        await refused(desk, "r")
        await client.submit_task("bank", {"n": 1}, handler="add", run_id="choosy", labels={"zone": "z"})
        await client.submit_run("approved", {"n": 1}, run_id="asked")
        await desk.saw("asked", "asked")
        await desk.seen()
        (agent,) = (await client.ask("agents"))["agents"]
        assert (agent["agent"], agent["health"], agent["slots"]) == ("bank", "healthy", 50)
        escalations = (await client.ask("escalations"))["escalations"]
        assert {one["id"]: one["kind"] for one in escalations} == {"r/0": "task", "asked/1": "question"}
        why = (await client.ask("waiting", {"run": "choosy"}))["waiting"]
        assert "has the labels zone=z" in why["0"]
        assert (await client.ask("waiting", {"run": "nothing"}))["waiting"] == {}
        runs = (await client.ask("runs"))["runs"]
        assert {one["run_id"]: one["status"] for one in runs} == {
            "r": "escalated", "choosy": "waiting", "asked": "running",
        }  # fmt: skip
        assert {one["saga"] for one in (await client.ask("sagas"))["sagas"]} == {"chain", "fan", "approved"}
        status = await client.ask("status")
        assert (status["open_runs"], status["waiting"]["bank"]) == (3, 1)
        assert "status" in (await client.ask("nonsense"))["known"]


async def test_without_an_orchestrator_a_question_has_no_answer_and_work_waits(play: Play) -> None:
    async with play as desk:
        await desk.stage.stop()
        with pytest.raises(UnavailableError, match="no orchestrator answers in space") as raised:
            await desk.client.ask("status")
        assert "serve orchestrator" in raised.value.remedy
        await desk.client.submit_task("bank", {"n": 1}, handler="add", run_id="r")
        waiting = asyncio.create_task(desk.client.wait("r", timeout_s=20))
        await desk.direct()
        assert (await waiting).result == {"n": 2}


async def test_a_standby_leaves_the_answer_to_the_one_that_decides(play: Play) -> None:
    async with play as desk:
        await desk.direct(standby=True)
        for _ in range(20):
            assert "sequence" in await desk.client.ask("status")
