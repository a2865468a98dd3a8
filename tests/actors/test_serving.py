"""An orchestrator that comes with new sagas, on a real server: from when they count, and when it says it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import KeyNotFoundError

from cuebook.actors import Run, saga
from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.errors import UnavailableError
from cuebook.events.facts import AgentLost, Event, SagaServed
from tests.actors.cast import Bank, Number, approved, chain
from tests.actors.desk import Desk
from tests.actors.processes import Cast
from tests.waiting import eventually

WHOLE = "reading the whole log"
SNAPSHOT = "open runs at sequence"


@saga(on="chain.asked", since="beginning")
async def archive(run: Run, number: Number) -> Number:
    return number


async def begun(desk: Desk) -> list[str]:
    """The runs that have started, in order."""
    return [item.address.run_id for item in await desk.log() if item.address.fact == "started"]


async def served(desk: Desk) -> list[str]:
    """The sagas of which the log says from when they count."""
    return [item.address.agent for item in await desk.log() if isinstance(item.event, SagaServed)]


@pytest.mark.parametrize("snapshot", [True, False])
async def test_a_new_saga_starts_nothing_for_old_events_with_and_without_a_snapshot(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture, snapshot: bool
) -> None:
    caplog.set_level("INFO", "cuebook.actors")
    async with Desk(nats_url, space, sagas=[approved]) as desk:
        await desk.client.publish("chain.asked", {"n": 1})
        await desk.seen()  # else it has nothing to make a snapshot of
        await desk.stage.stop()
        if not snapshot:
            await desk.client.log.connection.jetstream().delete_object_store(f"{space}_snapshots")
        await desk.direct(approved, chain)
        assert (SNAPSHOT in caplog.text) == snapshot
        assert WHOLE not in caplog.text
        await desk.client.publish("chain.asked", {"n": 2})
        await desk.saw("chain-2", "started")
        assert await begun(desk) == ["chain-2"]


async def test_a_saga_that_wants_history_gets_it_from_the_log_and_not_from_a_snapshot_without_it(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cuebook.actors")
    async with Desk(nats_url, space, sagas=[chain]) as desk:
        for n in range(3):
            await desk.client.publish("chain.asked", {"n": n}, event_id=f"e{n}")
        await desk.saw("chain-2", "started")
        await desk.stage.stop()
        await desk.direct(chain, archive)
        assert WHOLE in caplog.text
        assert "'archive' counts events from before it" in caplog.text
        for n in range(3):
            await desk.saw(f"archive-e{n}", "completed")
        await desk.stage.stop()
        caplog.clear()
        await desk.direct(chain, archive)
        assert SNAPSHOT in caplog.text
        assert WHOLE not in caplog.text
        assert sorted(await begun(desk)) == ["archive-e0", "archive-e1", "archive-e2", "chain-0", "chain-1", "chain-2"]


async def test_a_snapshot_turns_out_to_be_too_little_and_the_whole_log_is_read(
    nats_url: str, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process with the saga began before the snapshot was made, and died when it had said so."""
    caplog.set_level("INFO", "cuebook.actors")
    async with Desk(nats_url, space, sagas=[approved]) as desk:
        await desk.client.publish("chain.asked", {"n": 1})
        await desk.seen()
        await desk.stage.stop()
        subjects = desk.client.log.subjects
        await desk.client.log.append(subjects.saga("chain", "served"), SagaServed(on="chain.asked", after=0))
        await desk.direct(chain)
        assert SNAPSHOT in caplog.text
        assert WHOLE in caplog.text
        await desk.saw("chain-1", "started")


class Waiting(OrchestratorService):
    """Its facts about sagas are on their way until `arrive`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_their_way: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def post(self, *args: Any, **options: Any) -> str:
        event: Event = args[1]
        if isinstance(event, SagaServed):
            self.on_their_way.append((args, options))
            return "e"
        return super().post(*args, **options)

    def arrive(self) -> None:
        for args, options in self.on_their_way:
            super().post(*args, **options)


async def nobody_decides(desk: Desk) -> bool:
    """Whether the lease is free."""
    leases = await desk.client.log.connection.jetstream().key_value(f"{desk.space}_leases")
    try:
        await leases.get("orchestrator")
    except KeyNotFoundError:
        return True
    return False


async def test_it_is_ready_only_when_the_log_says_from_when_its_sagas_count(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space) as desk:
        await desk.stage.stop()
        await eventually(lambda: nobody_decides(desk))  # else it is a standby first, and in place as such
        service = (await desk.prepare(chain, archive, approved, service=Waiting)).service
        assert isinstance(service, Waiting)
        await eventually(lambda: len(service.on_their_way) == 2)
        assert service.core.active
        assert not service.deciding.is_set()
        assert not service.in_place.is_set()
        with pytest.raises(UnavailableError, match="no orchestrator answers"):
            await desk.client.ask("status")
        service.arrive()
        await asyncio.wait_for(service.in_place.wait(), 30)
        assert service.deciding.is_set()
        assert sorted(await served(desk)) == ["archive", "chain"]
        await desk.client.ask("status")


async def test_a_standby_is_in_place_without_writing_anything(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, sagas=[approved]) as desk:
        standby = await desk.direct(chain, standby=True)
        await asyncio.wait_for(standby.service.in_place.wait(), 30)
        assert not standby.service.deciding.is_set()
        assert await served(desk) == []


async def test_what_is_published_once_a_process_says_it_is_ready_starts_runs_whoever_dies(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    connection = await connect(nats_url, name="tests")
    async with Cast(nats_url, space, tmp_path) as cast, Client(connection, space) as client:
        first = await cast.orchestrator("approved")
        await first.says("ready")
        await client.publish("chain.asked", {"n": 1})
        await first.stop()
        second = await cast.orchestrator("chain")
        await second.says("ready")
        facts = [item.event async for item in client.log.read() if isinstance(item, Envelope)]
        assert [event.on for event in facts if isinstance(event, SagaServed)] == ["chain.asked"]
        await second.kill()
        await client.publish("chain.asked", {"n": 2})
        await cast.orchestrator("chain")
        await eventually(lambda: _started(client, "chain-2"), within_s=30)
        assert not await _started(client, "chain-1")
    await connection.close()


async def test_what_is_published_while_a_process_is_only_just_starting_is_not_lost(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    connection = await connect(nats_url, name="tests")
    async with Cast(nats_url, space, tmp_path) as cast, Client(connection, space) as client:
        await client.log.ensure()
        await client.publish("chain.asked", {"n": 1})
        earlier = await cast.orchestrator("approved")
        await earlier.says("ready")
        await earlier.stop()
        (tmp_path / "closed").touch()
        process = await cast.orchestrator("chain")
        await client.publish("chain.asked", {"n": 2})
        assert process.errors == ""  # it has not even begun to look at the stream
        (tmp_path / "closed").unlink()
        await eventually(lambda: _started(client, "chain-2"), within_s=30)
        assert not await _started(client, "chain-1")
    await connection.close()


@pytest.mark.parametrize(("age_s", "counted"), [(0.0, []), (3600.0, ["chain-1"])])
async def test_a_new_saga_counts_from_when_its_process_began(
    nats_url: str, space: str, age_s: float, counted: list[str]
) -> None:
    async with Desk(nats_url, space) as desk:
        await desk.stage.stop()
        await desk.client.publish("chain.asked", {"n": 1})
        service = functools.partial(OrchestratorService, age_s=age_s)
        stage = await desk.prepare(chain, service=service)
        await asyncio.wait_for(stage.service.in_place.wait(), 30)
        await desk.client.publish("chain.asked", {"n": 2})
        await desk.saw("chain-2", "started")
        assert await begun(desk) == [*counted, "chain-2"]


async def _started(client: Client, run_id: str) -> bool:
    return bool(await client.log.first_sequence(client.log.subjects.run(run_id, "started")))


# --- inboxes ---


class Lively(Bank):
    """Its death is soon noticed."""

    heartbeat_s = 0.1


async def test_nothing_is_kept_of_the_inbox_of_an_instance_that_died(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Lively]) as desk:
        inboxes = desk.stage.service._inboxes
        for turn in range(3):
            await eventually(lambda: len(inboxes) == 1)
            instance = desk.crews[-1].host.instances[0].id
            with contextlib.suppress(UnavailableError):
                await desk.crews[-1].die() if turn else await desk.crews[-1].stop()
            await desk.sees(lambda name=instance: desk.health(name) in ("lost", "stopped"))  # type: ignore[misc]
            await eventually(lambda: len(inboxes) == 0)
            await desk.hire(Lively)


async def test_an_instance_that_was_given_up_and_comes_back_has_its_inbox_again(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Lively]) as desk:
        log, instance = desk.client.log, desk.crews[0].host.instances[0].id
        js = log.connection.jetstream()
        name = f"bank__{instance}"

        async def is_there() -> bool:
            return name in {info.name for info in await js.consumers_info(log.subjects.stream)}

        await eventually(is_there)
        await js.delete_consumer(log.subjects.stream, name)
        await log.append(log.subjects.agent("bank", instance, "lost"), AgentLost(silent_s=9.0))
        await eventually(is_there)
        await desk.sees(lambda: desk.health(instance) == "healthy")


async def test_one_that_decides_no_longer_forgets_the_inboxes_and_sees_to_them_when_it_decides_again(
    nats_url: str, space: str
) -> None:
    async with Desk(nats_url, space, agents=[Bank]) as desk:
        service = desk.stage.service
        await eventually(lambda: len(service._inboxes) == 1)
        leases = await desk.client.log.connection.jetstream().key_value(f"{space}_leases")
        await leases.put("orchestrator", b"somebody else")  # who does not renew it
        await eventually(lambda: not service.deciding.is_set())
        assert len(service._inboxes) == 0
        await desk.sees(lambda: len(service._inboxes) == 1 and service.deciding.is_set())
