"""A space is rolled in the middle of its work, and nobody notices more than a pause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors import Agent, Run, handler, rolling, saga
from cuebook.actors.client import Client
from cuebook.actors.orchestrator import dispatcher, liveness
from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.world import World
from cuebook.actors.rolling import Rolled, Roller
from cuebook.embedded.nats_cluster import nats_cluster
from cuebook.events.connection import connect
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, ConfigurationError, UnavailableError
from cuebook.events.facts import TaskCompleted
from cuebook.events.jetstream import js_request
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan, lines
from tests.actors.desk import Desk, Stage
from tests.actors.test_standby import check_single
from tests.waiting import eventually


class Holder(Agent):
    """Holds what it was given until the gate opens."""

    name = "holder"
    concurrency = 50
    heartbeat_s = 0.5
    gate: asyncio.Event

    @handler(timeout_s=60)
    async def hold(self, number: Number) -> Number:
        await Holder.gate.wait()
        return number


@saga()
async def late(run: Run, number: Number) -> Number:
    """Sleeps over a roll; then waits for what was said long before."""
    await run.sleep(number.n / 1000)
    return await run.wait_for("said", Number, match={"n": number.n})


SAGAS = [approved, awaited, chain, fan, late]


@pytest.fixture
def desk(nats_url: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    Holder.gate = asyncio.Event()
    return Desk(nats_url, space, sagas=SAGAS, agents=[Bank, Holder])


async def roll(desk: Desk) -> Rolled:
    """As the command does: over a connection of its own."""
    async with operator(desk) as client:
        rolled = await Roller(client.log, by="test", say=lambda text: None).roll()
    assert rolled is not None
    return rolled


@asynccontextmanager
async def operator(desk: Desk) -> AsyncIterator[Client]:
    connection = await connect(desk.url, name="operator")
    try:
        async with Client(connection, desk.space, by="operator") as client:
            yield client
    finally:
        await connection.close()


async def whole_fold(desk: Desk) -> dict[str, Any]:
    """What the whole chain says, folded anew, without the sagas' own bookkeeping."""
    log = desk.client.log
    until = (await log.verify()).last_sequence
    world = World(log.subjects, {one.name: one for one in SAGAS})
    async for batch in log.batches(after=0, until=until):
        for subject, body, sequence, recorded_ns, headers in batch:
            item = log.decode(subject, body, sequence, recorded_ns // 1000, headers)
            world.fold(item, guarded=is_guarded(item, headers, log.chain.generation_of(sequence)))
    return world.dump()


async def both_folds(desk: Desk, stage: Stage) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the whole chain says, and what an orchestrator has made of it, where that has come as far and no further."""
    whole, live = await whole_fold(desk), stage.service.core.world.dump()
    return (whole, live) if live["sequence"] == whole["sequence"] else None


async def test_work_flows_through_two_rolls(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "UNKNOWN_AGENT_GRACE_S", 1.0)
    async with desk:
        client = desk.client
        standby = await desk.direct(standby=True)
        wanted: dict[str, str] = {}
        await client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await client.submit_run("approved", {"n": 1}, run_id="asked")
        await client.submit_run("late", {"n": 2500}, run_id="late")
        await client.submit_task("holder", {"n": 1}, handler="hold", run_id="held")
        await client.submit_task("bank", {"n": 1}, handler="refuse", run_id="escalated")
        await client.submit_task("nobody", {"n": 1}, run_id="waiting")
        await desk.saw("late", "started")  # what was said before does not count
        await client.publish("said", {"n": 2500})
        await desk.saw("awaited", "waiting")
        await desk.saw("asked", "asked")
        await desk.saw("held", "assigned")
        await desk.saw("escalated", "escalated")
        enough = asyncio.Event()

        async def flow(name: str) -> None:
            while not enough.is_set():
                run_id = f"{name}-{len(wanted)}"
                n = 13 if len(wanted) % 3 == 0 else 2
                wanted[run_id] = "compensated" if n == 13 else "completed"
                outcome = await client.run_saga("chain", {"n": n}, run_id=run_id, timeout_s=30)
                assert outcome.status == wanted[run_id]

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(flow(name))
            for generation in (2, 3):
                so_far = len(wanted)
                await eventually(lambda so_far=so_far: len(wanted) > so_far + 5)  # type: ignore[misc]
                rolled = await roll(desk)
                assert (rolled.generation, rolled.into) == (generation, f"{client.log.subjects.stream}@{generation}")
                await eventually(lambda so_far=so_far: len(wanted) > so_far + 10)  # type: ignore[misc]
            enough.set()
        Holder.gate.set()
        await client.publish("paid", {"n": 7})
        await client.resolve("asked", 1, value={"approved": True})
        await client.resolve("escalated", 0, action="supply", value={"n": 5})
        for run_id in ("awaited", "asked", "late", "held", "escalated"):
            assert (await client.wait(run_id, timeout_s=20)).status == "completed", run_id
        assert (await client.wait("waiting", timeout_s=20)).status == "rejected"
        check_single(await desk.log())
        effects = [tuple(line[:2]) for line in lines(tmp_path / "ledger") if line[0] in ("add", "take")]
        assert len(effects) == len(set(effects))
        for stage in desk.stages:
            whole, live = await eventually(partial(both_folds, desk, stage))
            assert {key: live[key] for key in whole} == whole
        await desk.stages[0].stop()
        await asyncio.wait_for(standby.service.deciding.wait(), 30)
        assert (await client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"
        await standby.stop()
        await desk.direct()  # with its snapshot, and then without
        assert (await client.run_saga("fan", {"n": 3}, timeout_s=20)).status == "completed"


async def test_the_new_stream_does_not_answer_for_the_old_one(desk: Desk) -> None:
    async with desk:
        for n in range(5):
            await desk.client.publish("a", {"n": n})
        await roll(desk)
        for n in range(3):
            await desk.client.publish("a", {"n": n})
        log = desk.client.log
        info = await log.chain.look()
        assert not info["config"].get("mirror_direct")
        for _ in range(40):
            assert len(await log.scope_history(log.subjects.event("a"))) == 8


async def test_what_was_used_before_the_roll_is_refused_and_shown_as_ever(desk: Desk) -> None:
    async with desk:
        client = desk.client
        for run_id in ("task", "other"):
            await client.run_task("bank", {"n": 1}, handler="add", run_id=run_id, timeout_s=20)
        await client.publish("chain.asked", {"n": 5}, event_id="asked-5")
        await eventually(lambda: desk.facts("chain-5"))
        assert (await client.wait("chain-5", timeout_s=20)).status == "completed"
        before = await desk.log("chain-5")
        await roll(desk)
        for submit in (
            partial(client.submit_task, "bank", {"n": 1}, handler="add", run_id="task"),
            partial(client.submit_run, "chain", {"n": 5}),
            partial(client.run_task, "bank", {"n": 1}, handler="add", run_id="task"),
            partial(client.fork, "chain-5", new_id="task"),
        ):
            with pytest.raises(CommandRejectedError, match="exists already"):
                await submit()
        sequence = await client.publish("chain.asked", {"n": 5})
        assert await refusal(desk, sequence) == "run chain-5 was started already"
        js = client.log.connection.jetstream()
        guard = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Expected-Last-Subject-Sequence-Subject": client.log.subjects.everything_of("other"),
        }
        for run_id, headers in (("task", {}), ("other", guard)):
            subject = client.log.subjects.task(run_id, 0, "requested", "bank")
            stored = await js.publish(subject, b'{"handler": "add", "input": {"n": 1}}', headers=headers, timeout=10)
            assert await refusal(desk, stored.seq) == f"{run_id} was requested before and is over"
        assert (await desk.log("chain-5"))[: len(before)] == before
        assert (await client.state("task")).items[0].status == "completed"
        fork = await client.fork("chain-5", new_id="chain-5-again")
        assert fork.events
        assert (await client.wait("chain-5-again", timeout_s=20)).status == "completed"
        retried = await client.retry("task")
        assert (await client.wait(retried, timeout_s=20)).status == "completed"
        stored = await js.publish(
            client.log.subjects.task("plain", 0, "requested", "bank"),
            b'{"handler": "add", "input": {"n": 1}}',
            timeout=10,
        )
        assert (await client.wait("plain", timeout_s=20)).status == "completed"


async def test_nobody_looks_for_a_run_in_the_past_whose_id_its_client_has_made(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk:
        await roll(desk)
        await eventually(lambda: desk.client.log.chain.generation == 2)
        looked: list[str] = []
        log = desk.stage.service.log
        first_sequence = log.first_sequence

        async def counted(scope: str) -> int:
            looked.append(scope)
            return await first_sequence(scope)

        monkeypatch.setattr(log, "first_sequence", counted)
        for _ in range(3):
            await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
            await desk.client.run_saga("fan", {"n": 2}, timeout_s=20)
        await desk.client.run_task("bank", {"n": 1}, handler="add", run_id="chosen", timeout_s=20)
        await desk.client.run_saga("fan", {"n": 2}, run_id="origin", timeout_s=20)
        fork = await desk.client.fork("origin", new_id="forked")
        assert (await desk.client.wait(fork.run_id, timeout_s=20)).status == "completed"
        assert looked == []


async def refusal(desk: Desk, sequence: int) -> str:
    """Why the message at a sequence has no effect."""

    async def found() -> str:
        return next((item.event.reason for item in await desk.rejections() if item.address.n == sequence), "")  # type: ignore[attr-defined]

    return str(await eventually(found))


async def test_a_late_answer_from_before_the_roll_is_refused(desk: Desk) -> None:
    async with desk:
        client, subjects = desk.client, desk.client.log.subjects
        await client.submit_task("holder", {"n": 1}, handler="hold", run_id="held")
        (assigned,) = await eventually(lambda: _assigned(desk, "held"))
        over = await client.run_task("bank", {"n": 1}, handler="add", run_id="over", timeout_s=20)
        assert over.status == "completed"
        (ended,) = await _assigned(desk, "over")
        with pytest.raises(UnavailableError):
            await desk.crews[0].die()
        await roll(desk)
        await desk.hire(Holder)
        again = await eventually(lambda: _reassigned(desk, "held"))
        for run_id, expected in (("held", assigned.sequence), ("over", ended.sequence)):
            with pytest.raises(ConcurrencyConflictError):
                await client.log.append(
                    subjects.task(run_id, 0, "completed"),
                    TaskCompleted(output={"n": 666}, attempt=1),
                    scope=subjects.task_scope(run_id, 0),
                    expected=expected,
                )
        assert again.event.attempt == 2
        Holder.gate.set()
        assert (await client.wait("held", timeout_s=20)).result == {"n": 1}


async def _assigned(desk: Desk, run_id: str) -> list[Any]:
    return [item for item in await desk.log(run_id) if item.address.fact == "assigned"]


async def _reassigned(desk: Desk, run_id: str) -> Any:
    found = await _assigned(desk, run_id)
    return found[1] if len(found) > 1 else None


async def test_with_many_open_runs_all_that_is_young_is_carried_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "MOST_FILTERS", 3)
    async with desk:
        client = desk.client
        for n in range(5):
            await client.run_task("bank", {"n": n}, handler="add", run_id=f"old-{n}", timeout_s=20)
        for n in range(5):
            await client.submit_run("awaited", {"n": n}, run_id=f"open-{n}")
            await desk.saw(f"open-{n}", "waiting")
        rolled = await roll(desk)
        state = (await client.log.chain.look())["state"]
        opened = await client.log.first_sequence(client.log.subjects.everything_of("open-0"))
        assert state["first_seq"] == opened == rolled.last - rolled.carried + 1
        for n in range(5):
            await client.publish("paid", {"n": n})
            assert (await client.wait(f"open-{n}", timeout_s=20)).status == "completed"
        with pytest.raises(CommandRejectedError, match="exists already"):
            await client.submit_task("bank", {"n": 1}, run_id="old-1")
        monkeypatch.setattr(rolling, "MOST_FILTERS", 1_000)
        assert (await roll(desk)).carried < 20  # one by one again, from a stream that does not have all of each
        holder = desk.crews[0].host.instances[1].id
        with pytest.raises(UnavailableError):
            await desk.crews[0].die()  # what is said of an instance expects what the new stream does not have
        await desk.sees(lambda: desk.health(holder) == "lost", within_s=30)
        await roll(desk)
        await desk.hire(Bank)
        assert (await client.run_saga("chain", {"n": 1}, timeout_s=20)).status == "completed"


class KilledError(Exception):
    """The roller is gone."""


async def test_killed_at_any_step_it_is_completed_by_the_next_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk:
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await desk.saw("awaited", "waiting")
        calls: list[str] = []
        kill_at, before = 0, False

        async def js(connection: Any, subject: str, *args: Any, **options: Any) -> Any:
            if subject.startswith("STREAM.INFO"):
                return await js_request(connection, subject, *args, **options)
            calls.append(subject)
            if len(calls) == kill_at and before:
                raise KilledError
            answer = await js_request(connection, subject, *args, **options)
            if len(calls) == kill_at:
                raise KilledError
            return answer

        monkeypatch.setattr(rolling, "js_request", js)
        generation = 1
        for step in range(1, 6):
            for before in (True, False) if step < 5 else (True,):
                calls.clear()
                kill_at = step
                with pytest.raises(KilledError):
                    await roll(desk)
                kill_at = 0
                async with operator(desk) as client:
                    await Roller(client.log, by="test", say=lambda text: None).roll()
                    facts = await client.log.verify()
                    ended = await js_request(client.log.connection, f"STREAM.INFO.{facts.earlier[-1].stream}", {})
                generation += 1
                assert (facts.generation, facts.rolling) == (generation, False), (step, before)
                assert ended["config"]["sealed"]
                outcome = await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
                assert outcome.status == "completed"
        assert len(calls) == 6  # all there are, and the last one again
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=20)).status == "completed"
        check_single(await desk.log())


async def test_a_roll_that_was_begun_can_be_undone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk:
        calls = 0

        async def js(connection: Any, subject: str, *args: Any, **options: Any) -> Any:
            nonlocal calls
            answer = await js_request(connection, subject, *args, **options)
            calls += not subject.startswith("STREAM.INFO")
            if calls == 2:  # frozen
                calls += 1
                raise KilledError
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(rolling, "js_request", js)
            with pytest.raises(KilledError):
                await roll(desk)
        waiting = asyncio.create_task(desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20))
        async with operator(desk) as client:
            await Roller(client.log, by="test", say=lambda text: None).abort()
            with pytest.raises(CommandRejectedError, match="nothing to undo"):
                await Roller(client.log, by="test", say=lambda text: None).abort()
        assert (await waiting).status == "completed"
        assert (await desk.client.log.verify()).generation == 1
        assert (await roll(desk)).generation == 2
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"


class Faults:
    """Fails what the roller asks of the server: each call whose configuration takes in the given subjects."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, subjects: str, errors: list[BaseException], after: bool
    ) -> None:
        self.left = list(errors)

        async def js(connection: Any, subject: str, request: Any, *args: Any, **options: Any) -> Any:
            fails = self.left and subject.startswith("STREAM.UPDATE") and request["subjects"][0].startswith(subjects)
            if fails and not after:
                raise self.left.pop(0)
            answer = await js_request(connection, subject, request, *args, **options)
            if fails:
                raise self.left.pop(0)
            return answer

        monkeypatch.setattr(rolling, "js_request", js)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("error", [ConfigurationError("no"), asyncio.CancelledError()])
async def test_what_goes_wrong_when_the_old_stream_has_ended_is_completed_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: bool
) -> None:
    async with desk:
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        with monkeypatch.context() as patched:
            faults = Faults(patched, desk.client.log.subjects.all, [error], after=after)
            with pytest.raises(type(error)):
                await roll(desk)
            assert not faults.left
        facts = await desk.client.log.verify()
        assert (facts.generation, facts.rolling) == (2, False)
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=20)).status == "completed"


async def test_who_is_cancelled_while_the_server_freezes_the_old_stream_sees_that_it_did(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    roller: asyncio.Task[Any]
    on_its_way: list[asyncio.Task[Any]] = []

    async def slowly(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.3)
        return await js_request(*args, **options)

    async def asked(connection: Any, subject: str, *args: Any, **options: Any) -> Any:
        if not subject.startswith("STREAM.UPDATE") or on_its_way:
            return await js_request(connection, subject, *args, **options)
        on_its_way.append(asyncio.create_task(slowly(connection, subject, *args, **options)))
        roller.cancel()
        return await asyncio.shield(on_its_way[0])

    async with desk:
        monkeypatch.setattr(rolling, "js_request", asked)
        roller = asyncio.create_task(roll(desk))
        with pytest.raises(asyncio.CancelledError):
            await roller
        await on_its_way[0]
        facts = await desk.client.log.verify()
        assert (facts.generation, facts.rolling) == (1, False)
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"


@pytest.mark.parametrize("error", [ConfigurationError("no"), asyncio.CancelledError()])
async def test_what_goes_wrong_in_the_pause_undoes_the_roll(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async with desk:
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        with monkeypatch.context() as patched:
            faults = Faults(patched, "rolled.", [error], after=False)
            with pytest.raises(type(error)):
                await roll(desk)
            assert not faults.left
        facts = await desk.client.log.verify()
        assert (facts.generation, facts.rolling) == (1, False)
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"
        assert (await roll(desk)).generation == 2
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=20)).status == "completed"


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("subjects", ["rolled.", "promoted"])
async def test_what_the_server_does_not_answer_in_the_pause_is_asked_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, subjects: str, after: bool
) -> None:
    async with desk:
        subjects = subjects.replace("promoted", desk.client.log.subjects.all)
        faults = Faults(monkeypatch, subjects, [UnavailableError("no leader"), UnavailableError("no leader")], after)
        rolled = await roll(desk)
        assert not faults.left or after
        assert (rolled.generation, rolled.into) == (2, f"{desk.client.log.subjects.stream}@2")
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"
        check_single(await desk.log())


async def test_a_new_stream_that_is_lost_before_anything_was_written_is_made_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk:
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await desk.saw("awaited", "waiting")
        with monkeypatch.context() as patched:
            Faults(patched, desk.client.log.subjects.all, [KilledError()], after=False)
            with pytest.raises(KilledError):
                await roll(desk)
        stream = desk.client.log.subjects.stream
        await js_request(desk.client.log.connection, f"STREAM.DELETE.{stream}@2", {})
        assert (await roll(desk)).generation == 2
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=20)).status == "completed"


async def test_of_two_who_roll_at_once_one_does_it(desk: Desk) -> None:
    async with desk:
        rolls = [asyncio.create_task(roll(desk)) for _ in range(3)]
        await asyncio.wait(rolls)
        failures = [one.exception() for one in rolls if one.exception() is not None]
        done = [one.result().generation for one in rolls if one.exception() is None]
        assert all(isinstance(one, CommandRejectedError) for one in failures), failures
        assert sorted(done) == list(range(2, 2 + len(done)))
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"


async def test_who_waited_so_long_that_somebody_else_may_have_rolled_freezes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk:
        make = Roller._make

        async def late(self: Roller, plan: Any) -> None:
            await make(self, plan)
            assert self._reservation is not None
            self._reservation._until = 0.0

        monkeypatch.setattr(Roller, "_make", late)
        with pytest.raises(UnavailableError, match="not reserved"):
            await roll(desk)
        facts = await desk.client.log.verify()
        assert (facts.generation, facts.rolling) == (1, False)


async def test_with_too_many_generations_nothing_is_frozen(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk:
        await roll(desk)
        monkeypatch.setattr(rolling, "MOST_METADATA", 2_200)
        with pytest.raises(ConfigurationError, match="has 2 generations") as refused:
            await roll(desk)
        assert "another one" in refused.value.remedy
        facts = await desk.client.log.verify()
        assert (facts.generation, facts.rolling) == (2, False)


async def test_what_nobody_has_opened_meanwhile_is_mirrored_before_the_pause(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk:
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await desk.saw("awaited", "waiting")
        asked: list[str] = []

        async def js(connection: Any, subject: str, request: Any, *args: Any, **options: Any) -> Any:
            if not subject.startswith("STREAM.INFO"):
                asked.append(subject.split(".")[1] + str(request.get("subjects", "")))
            return await js_request(connection, subject, request, *args, **options)

        monkeypatch.setattr(rolling, "js_request", js)
        await roll(desk)
        kinds = [one.partition("[")[0] for one in asked]
        assert kinds == ["CREATE", "UPDATE", "UPDATE", "UPDATE", "UPDATE"]
        asked.clear()
        freeze = Roller._freeze

        async def late(self: Roller, plan: Any) -> None:
            await desk.client.submit_run("awaited", {"n": 8}, run_id="opened-late")
            await desk.saw("opened-late", "waiting")
            await freeze(self, plan)

        monkeypatch.setattr(Roller, "_freeze", late)
        await roll(desk)
        assert [one.partition("[")[0] for one in asked].count("CREATE") == 2
        for n, run_id in ((7, "awaited"), (8, "opened-late")):
            await desk.client.publish("paid", {"n": n})
            assert (await desk.client.wait(run_id, timeout_s=20)).status == "completed"


async def test_a_roll_whose_old_stream_has_ended_cannot_be_undone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk:
        updates = 0

        async def js(connection: Any, subject: str, *args: Any, **options: Any) -> Any:
            nonlocal updates
            answer = await js_request(connection, subject, *args, **options)
            updates += subject.startswith("STREAM.UPDATE")
            if updates == 2:
                raise KilledError
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(rolling, "js_request", js)
            with pytest.raises(KilledError):
                await roll(desk)
        async with operator(desk) as client:
            with pytest.raises(CommandRejectedError, match="has ended"):
                await Roller(client.log, by="test", say=lambda text: None).abort()
        assert (await roll(desk)).generation == 2
        assert (await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)).status == "completed"


async def test_inboxes_go_over_with_a_roll_and_none_is_left_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "INBOX_STALLED_S", 3600.0)  # nobody has to notice that nothing comes
    async with desk:
        await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
        rolled = await roll(desk)
        outcome = await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
        assert outcome.status == "completed"
        connection = desk.client.log.connection

        async def inboxes(stream: str) -> int:
            names = (await js_request(connection, f"CONSUMER.NAMES.{stream}", {}))["consumers"] or []
            return sum("__" in name for name in names)

        async def moved() -> bool:
            return (await inboxes(rolled.stream), await inboxes(rolled.into)) == (0, 2)

        await eventually(moved)


async def test_a_stream_of_somebody_else_in_the_place_of_the_next_one_is_left_alone(desk: Desk) -> None:
    async with desk:
        js, name = desk.client.log.connection.jetstream(), f"{desk.client.log.subjects.stream}@2"
        await js.add_stream(name=name, subjects=["foreign"])
        await js.publish("foreign", b"theirs", timeout=10)
        with pytest.raises(ConfigurationError, match="is no mirror"):
            await roll(desk)
        assert (await js.stream_info(name)).state.messages == 1
        await js.delete_stream(name)
        assert (await roll(desk)).into == name


async def test_a_recording_is_not_rolled(desk: Desk) -> None:
    async with operator(desk) as client:
        await client.log.ensure(recording=True)
        with pytest.raises(ConfigurationError, match="recording"):
            await Roller(client.log, by="test", say=lambda text: None).roll()


async def test_a_replicated_space_is_rolled_with_as_many_replicas(tmp_path: Path) -> None:
    async with (
        nats_cluster(tmp_path / "nats") as cluster,
        Desk(cluster.url, "cue", sagas=[awaited], agents=[Bank], replicas=3) as desk,
    ):
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await desk.saw("awaited", "waiting")
        for _ in range(2):
            await roll(desk)
            assert (await desk.client.log.verify()).replicas == 3
            outcome = await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
            assert outcome.status == "completed"
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=20)).status == "completed"
        check_single(await desk.log())


async def test_the_leader_of_the_old_stream_dies_in_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        nats_cluster(tmp_path / "nats") as cluster,
        Desk(cluster.url, "cue", sagas=[awaited], agents=[Bank], replicas=3) as desk,
    ):
        await desk.client.submit_run("awaited", {"n": 7}, run_id="awaited")
        await desk.saw("awaited", "waiting")
        freeze, killed = Roller._freeze, False

        async def frozen(self: Roller, plan: Any) -> None:
            nonlocal killed
            await freeze(self, plan)
            leader = (await self._log.chain.look())["cluster"]["leader"]
            for node in cluster.nodes:
                if node.name == leader:
                    await node.kill()
                    killed = True

        monkeypatch.setattr(Roller, "_freeze", frozen)
        rolled = await roll(desk)
        assert killed
        assert rolled.generation == 2
        outcome = await desk.client.run_task("bank", {"n": 1}, handler="add", timeout_s=60)
        assert outcome.status == "completed"
        await desk.client.publish("paid", {"n": 7})
        assert (await desk.client.wait("awaited", timeout_s=60)).status == "completed"
        check_single(await desk.log())
