"""Plays whose logs are recorded: between them, every type of event happens, and messages come in every form."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cuebook.actors import Agent, Retry, Run, Saga, Task, handler, saga
from cuebook.actors.orchestrator import dispatcher
from cuebook.actors.rolling import Roller
from cuebook.embedded.nats_edge import nats_edge
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from tests.actors.cast import Bank, Number, approved, awaited, chain, fan, first_steps
from tests.actors.desk import Crew, Desk
from tests.actors.site import Site
from tests.commands import started
from tests.waiting import eventually

__all__ = ["SCENES", "Scene"]

SPACE = "cue"
CE = {"ce-specversion": "1.0", "ce-source": "/shop", "ce-type": "com.example.paid", "ce-id": "paid-2"}


class Clerk(Agent):
    """Works with what goes wrong."""

    name = "clerk"
    version = "1.2"
    concurrency = 10
    labels = {"zone": "eu"}  # noqa: RUF012 - as authors write it
    recycle_after = 0
    heartbeat_s = 0.2

    gate: asyncio.Event

    async def start(self) -> None:
        """Close the gate."""
        Clerk.gate = asyncio.Event()

    @handler(timeout_s=20, retry=Retry(attempts=2, backoff_s=0.01))
    async def fail(self, number: Number) -> Number:
        raise ValueError(f"no {number.n}")

    @handler(timeout_s=20)
    async def hold(self, number: Number, task: Task) -> Number:
        await task.progress("holding", 0.5)
        await Clerk.gate.wait()
        return number

    @handler(timeout_s=0.2, retry=Retry(attempts=1))
    async def sleep(self, number: Number) -> Number:
        await asyncio.sleep(60)
        return number

    @handler(timeout_s=20)
    async def insist(self, number: Number) -> Number:
        while not Clerk.gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await Clerk.gate.wait()
        return number

    @insist.compensation
    async def give_in(self, number: Number, insisted: Number) -> None: ...


@saga()
async def doomed(run: Run, number: Number) -> None:
    raise run.abort("nothing was done")


@saga()
async def changing(run: Run, number: Number) -> Number:
    """As it was, and as it is again in the end."""
    first = await run.call(Bank.add, number)
    return await run.wait_for("changed", Number, match={"n": first.n})


@saga(name="changing")
async def changed(run: Run, number: Number) -> Number:
    """As somebody changed it while a run was under way."""
    return await run.call(Bank.add, Number(n=number.n + 100))


@saga()
async def patient(run: Run, number: Number) -> None:
    """Its answer never comes."""
    await run.wait_for("never", Number, timeout=0.1)


Scene = Callable[[], AbstractAsyncContextManager[EventLog]]


@contextlib.asynccontextmanager
async def every_event() -> AsyncIterator[EventLog]:
    """Each type of event at least once, and each form in which others write."""
    sagas: list[Saga[Any, Any]] = [chain, fan, approved, awaited, first_steps, doomed, changing, patient]
    quick = patch.multiple(dispatcher, CANCEL_GRACE_S=0.2, UNKNOWN_AGENT_GRACE_S=0.5)
    with tempfile.TemporaryDirectory() as folder, quick:
        async with nats_server(Path(folder)) as server, Desk(server.url, SPACE, sagas=sagas, agents=[Bank]) as desk:
            clerk = await desk.hire(Clerk)
            await _from_others(desk)
            await _runs(desk)
            await _tasks(desk)
            await _people(desk)
            await _forks(desk)
            await _agents(desk, clerk)
            await Roller(desk.client.log, by="test", say=lambda _: None).roll()
            yield desk.client.log


async def _from_others(desk: Desk) -> None:
    """Plain JSON, CloudEvents, and what is neither."""
    js = desk.client.log.connection.jetstream(timeout=30)

    async def write(subject: str, body: bytes, **headers: str) -> None:
        await js.publish(
            f"{SPACE}.{subject}", body, headers={name.replace("_", "-"): it for name, it in headers.items()}
        )

    await write("event.chain.asked", b'{"n": 1}', Nats_Msg_Id="from-outside")
    structured = (
        b'{"specversion": "1.0", "id": "paid-1", "source": "/shop", "type": "com.example.paid", "data": {"n": 2}}'
    )
    await write("event.paid", structured, content_type="application/cloudevents+json")
    await js.publish(f"{SPACE}.event.chain.asked", b'{"n": 13}', headers=CE | {"ce-correlationid": "thread%2012"})
    await write("run.plain-task.task.0.requested.bank", b'{"handler": "add", "input": {"n": 5}}')
    await write("run.plain-run.requested.fan", b'{"input": {"n": 3}}')
    await write("event.chain.asked", b'{"n": "one"}')
    await write("event.noise", b"\xff\xfe")
    await write("run.plain-run.task.0.Garbage", b"{")
    await write("run.nobody.completed", b"{}")
    await write("run.unheard.requested.opera", b'{"input": 1}')
    await write("run.wrong.task.0.requested.bank", b'{"handler": "add", "input": {"n": "x"}}')
    await write("run.stranger.task.0.requested.blank", b'{"input": {"n": 1}}')
    for run_id in ("chain-1", "chain-13", "plain-task", "plain-run", "unheard", "wrong", "stranger"):
        await desk.client.wait(run_id, timeout_s=60)
    await write("run.plain-task.task.0.requested.bank", b'{"handler": "add", "input": {"n": 5}}')


async def _runs(desk: Desk) -> None:
    client = desk.client
    for name in ("doomed", "patient", "first_steps"):
        await client.submit_run(name, {"n": 1}, run_id=name)
    await client.submit_run("awaited", {"n": 7}, run_id="matched")
    await client.submit_run("awaited", {"n": 8}, run_id="cancelled")
    await desk.saw("matched", "waiting")
    await desk.saw("cancelled", "waiting")
    await client.publish("paid", {"n": 7})
    await client.cancel("cancelled", reason="not wanted")
    await client.submit_run("changing", {"n": 1}, run_id="changing")
    await desk.saw("changing", "waiting")
    await desk.stage.stop()
    await desk.direct(changed)
    await desk.saw("changing", "stuck")
    await desk.stage.stop()
    await desk.direct()
    await client.retry("changing", note="it is as it was")
    await desk.saw("changing", "resumed")
    await client.publish("changed", {"n": 2})
    for run_id in ("doomed", "patient", "matched", "cancelled", "changing"):
        await client.wait(run_id, timeout_s=60)
    await client.retry("doomed", note="once more")


async def _tasks(desk: Desk) -> None:
    client = desk.client
    await client.submit_task(
        "clerk", {"n": 1}, handler="hold", run_id="held", affinity="a", labels={"zone": "eu"}, priority=7
    )
    await client.submit_task("clerk", {"n": 1}, handler="hold", run_id="dropped")
    await client.submit_task("clerk", {"n": 1}, handler="insist", run_id="insisted")
    await client.submit_task("clerk", {"n": 1}, handler="sleep", run_id="slept")
    await client.submit_task("clerk", {"n": 1}, handler="hold", run_id="choosy", labels={"zone": "moon"})
    progress = desk.client.log.subjects.progress("held", 0)
    await eventually(lambda: _has(desk, progress))
    for run_id in ("dropped", "insisted", "choosy"):
        await client.cancel(run_id, n=0 if run_id == "choosy" else None, reason="changed my mind")
        await client.wait(run_id, timeout_s=60)
    Clerk.gate.set()
    await desk.saw("insisted", "reverted")
    await client.wait("held", timeout_s=60)
    await desk.saw("slept", "escalated")


async def _has(desk: Desk, subject: str) -> bool:
    return any(item.subject == subject for item in await desk.log())


async def _people(desk: Desk) -> None:
    client = desk.client
    for run_id in ("supplied", "given-up", "again"):
        await client.submit_task("clerk", {"n": 1}, handler="fail", run_id=run_id)
        await desk.saw(run_id, "escalated")
    await client.resolve("supplied", 0, action="supply", value={"n": 2}, note="by hand")
    await client.resolve("given-up", 0, action="abort", note="no use")
    await client.resolve("again", 0, action="retry")
    await desk.saw("again", "escalated", 2)
    for run_id in ("yes", "no", "open"):
        await client.submit_run("approved", {"n": 1}, run_id=run_id)
        await desk.saw(run_id, "asked")
    log = client.log
    js = log.connection.jetstream(timeout=30)
    await js.publish(log.subjects.step("yes", 1, "answered"), b'{"value": "perhaps"}')
    await desk.saw("yes", "refused")
    await client.resolve("yes", 1, value={"approved": True, "note": "fine"})
    await client.resolve("no", 1, value={"approved": False})
    for run_id in ("supplied", "given-up", "yes", "no"):
        await client.wait(run_id, timeout_s=60)


async def _forks(desk: Desk) -> None:
    """What was declined is approved, and what was undone is shared as it was."""
    await desk.client.fork("no", answers={1: {"approved": True, "note": "after all"}}, new_id="no-yes")
    await desk.client.fork("chain-13", new_id="chain-13-again")
    for run_id in ("no-yes", "chain-13-again"):
        await desk.client.wait(run_id, timeout_s=60)


async def _agents(desk: Desk, clerk: Crew) -> None:
    """One falls silent with a task and comes back; one drains."""
    Clerk.gate.clear()
    silent = clerk.host.instances[0].id
    await desk.client.submit_task("clerk", {"n": 9}, handler="hold", run_id="orphan")
    await eventually(lambda: clerk.host.instances[0].in_flight)
    clerk.connection.write = lambda frame: None  # type: ignore[method-assign]
    await desk.sees(lambda: desk.health(silent) == "lost")
    gate = Clerk.gate
    other = await desk.hire(Clerk)
    Clerk.gate.set()
    await desk.client.wait("orphan", timeout_s=60)
    del clerk.connection.write
    await desk.sees(lambda: desk.health(silent) == "healthy")
    gate.set()
    await desk.client.drain("clerk", other.host.instances[0].id, reason="deploy")
    await asyncio.wait_for(other.task, 60)
    await clerk.stop()


@contextlib.asynccontextmanager
async def support_desk() -> AsyncIterator[EventLog]:
    """The demo: twenty tickets, with retries, a question to a person, and a run that fails late and is undone."""
    with tempfile.TemporaryDirectory() as folder, started("demo", "--plain", "--keep", cwd=Path(folder)) as demo:
        await asyncio.to_thread(demo.line, "20 tickets, all as expected")
        await asyncio.to_thread(demo.line, "export CUEBOOK_NATS_URL")
        connection = await connect(demo.exported()["CUEBOOK_NATS_URL"], name="recorder")
        yield EventLog(connection, SPACE, source="recorder")
        await connection.close()
        demo.interrupt()
        await asyncio.to_thread(demo.end)


class Till(Agent):
    """At the edge, where it cannot always be heard."""

    name = "till"
    offline_for_s = 1.0
    heartbeat_s = 0.2

    gate: asyncio.Event

    async def start(self) -> None:
        """Close the gate."""
        Till.gate = asyncio.Event()

    @handler(timeout_s=20)
    async def count(self, number: Number) -> Number:
        await Till.gate.wait()
        return number

    @count.compensation
    async def recount(self, number: Number, counted: Number) -> None: ...


@contextlib.asynccontextmanager
async def edge() -> AsyncIterator[EventLog]:
    """An edge whose link is cut: an answer that is dropped and undone, and events that come later."""
    with tempfile.TemporaryDirectory() as folder:
        async with nats_edge(Path(folder)) as servers, Desk(servers.hub.url, SPACE) as desk:
            async with Site(servers, SPACE, Till) as site:
                await desk.client.submit_task("till", {"n": 1}, run_id="counted")
                await eventually(lambda: site.host.instances[0].in_flight == 1)
                servers.link.cut()
                await desk.client.cancel("counted")
                await desk.sees(lambda: desk.health(site.host.instances[0].id) == "lost")
                await desk.client.wait("counted", timeout_s=60)
                Till.gate.set()
                sensor = await connect(servers.url, name="sensor")
                await sensor.request(f"{SPACE}.event.door.opened", b'{"n": 1}', timeout=30)
                await sensor.close()
                servers.link.mend()
                await eventually(lambda: site.kept == 0 and site.forwarder.forwarded == 1, within_s=60)
            yield desk.client.log


SCENES: dict[str, Scene] = {"every_event": every_event, "support_desk": support_desk, "edge": edge}
"""By the name of the history."""
