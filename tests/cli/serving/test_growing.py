"""Agents, processes and machines come, go and die while 1,000 tasks a second are asked for: each has one outcome.

A machine is a supervisor with processes of its own. The rate is the load, not the claim: where the machine cannot hold
it, the client falls behind and says so. `just test-growing ROUNDS` goes through the story more than once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from cuebook.actors.client import Client
from cuebook.cli.directory import ask_or_none
from cuebook.events.envelope import Envelope
from cuebook.events.facts import TERMINAL_TASK_FACTS, TaskCompleted
from tests.cli.conftest import Cli, Program, Start
from tests.waiting import eventually

RATE = 1_000
MOST_OPEN = 3_000
"""Asked for and not done: where agents are few the client waits for them, as one with a bounded queue does."""
PATIENCE_S = 120.0
ROUNDS = int(os.environ.get("GROWING_ROUNDS", "1"))

MILL = '''
import asyncio, os
from pathlib import Path
from cuebook.actors import Agent, Retry, Task, handler
from pydantic import BaseModel


class Grain(BaseModel):
    n: int


class Mill(Agent):
    """Grinds; an outside system takes each effect once, by its idempotency key."""

    name = "mill"
    version = "1"
    concurrency = 100
    recycle_after = 0
    heartbeat_s = 0.5

    @handler(timeout_s=30, retry=Retry(attempts=5, backoff_s=0.05))
    async def grind(self, grain: Grain, task: Task) -> Grain:
        journal = Path(os.environ["MILL_JOURNAL"])
        with (journal / f"attempts-{os.getpid()}").open("a") as attempts:
            attempts.write(f"{task.idempotency_key}\\n")
        await asyncio.sleep(0.005)
        key = journal / "effects" / task.idempotency_key.replace("/", "-")
        try:
            key.symlink_to(str(grain.n + 1))
        except FileExistsError:
            pass
        return Grain(n=grain.n + 1)
'''


class Flow:
    """A client that asks for tasks at a rate, and counts what is done."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.asked: dict[str, int] = {}
        self.done = 0
        self.late_s = 0.0
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Ask until `stop`."""
        subject = f"live.{self._client.log.subjects.space}.run.*.task.*.completed"
        counting = await self._client.log.connection.listen(subject, self._on_done)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            n = 0
            while not self._over.is_set():
                if n - self.done > MOST_OPEN or (early_s := began + n / RATE - loop.time()) > 0.005:
                    await asyncio.sleep(0.005)
                    continue
                self.late_s = max(self.late_s, -early_s)
                group.create_task(self._ask(n))
                n += 1
        self.seconds = loop.time() - began
        await counting.close()

    def stop(self) -> None:
        self._over.set()

    async def more(self, count: int) -> None:
        """Wait until so many more are done."""
        enough = self.done + count
        await eventually(lambda: self.done >= enough, within_s=PATIENCE_S)

    async def _ask(self, n: int) -> None:
        run_id = f"g{n}"
        await self._client.submit_task("mill", {"n": n}, handler="grind", run_id=run_id)
        self.asked[run_id] = n

    def _on_done(self, *_: object) -> None:
        self.done += 1


@pytest.mark.timeout(300 * ROUNDS)
async def test_nothing_is_lost_or_doubled_while_agents_processes_and_machines_come_go_and_die(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    (workplace / "mill.py").write_text(MILL)
    (workplace / "effects").mkdir()
    env = {"MILL_JOURNAL": str(workplace)}
    async with AsyncExitStack() as stack:

        async def serve(*words: str, **more: str) -> Program:
            program = await stack.enter_async_context(start("serve", *words, **env, **more))
            ready = "all processes are ready" if "agents" in words else "this orchestrator decides now"
            await program.says(ready, within_s=PATIENCE_S)
            return program

        await serve("orchestrator")
        machine = await serve("agents", "mill:Mill", "--processes", "2")
        flow = Flow(client)
        async with asyncio.TaskGroup() as group:
            group.create_task(flow.run())
            for _ in range(ROUNDS):
                machine = await live_through(flow, machine, serve, cli)
            flow.stop()
        print(f"\n{len(flow.asked)} tasks in {flow.seconds:.1f} s, at most {flow.late_s:.1f} s late for {RATE}/s")
        await eventually(lambda: nothing_is_open(client), within_s=PATIENCE_S)
        machine.send(signal.SIGTERM)
        assert await machine.ends(within_s=PATIENCE_S) == 0
    check(await facts(client), flow.asked, workplace)


async def live_through(flow: Flow, first: Program, serve: Any, cli: Cli) -> Program:
    """Everything that can happen to a machine, once; returns the one that is left."""
    await flow.more(500)
    second = await serve("agents", "mill:Mill", "--processes", "1", "--max-tasks", "1500")  # a machine comes
    os.kill(children(first)[0], signal.SIGKILL)  # a process dies
    await first.says('ended="by SIGKILL"', within_s=PATIENCE_S)
    await second.says("tasks done, the limit is 1500", within_s=PATIENCE_S)  # one is spent, and replaced
    await flow.more(500)
    first.send(signal.SIGHUP)  # a rolling upgrade
    await eventually(lambda: first.errors.count("all processes are ready") == 2, within_s=PATIENCE_S)
    kept = [one for one in await cli.json("agent", "list") if one["pid"] in children(first)]
    await cli.ok("agent", "drain", f"mill/{kept[0]['instance']}")  # a person drains an agent
    await first.says("its place stays empty", within_s=PATIENCE_S)
    await flow.more(500)
    second.send(signal.SIGTERM)  # a machine goes
    assert await second.ends(within_s=PATIENCE_S) == 0
    third: Program = await serve("agents", "mill:Mill", "--processes", "1")
    family = children(first)
    first.send(signal.SIGKILL)  # a supervisor dies
    os.kill(family[0], signal.SIGKILL)  # and one of its processes with it
    await flow.more(500)
    return third


def children(program: Program) -> list[int]:
    return [one.pid for one in psutil.Process(program.process.pid).children()]


async def nothing_is_open(client: Client) -> bool:
    answer = await ask_or_none(client, "status")
    return answer is not None and answer["open_runs"] == 0


async def facts(client: Client) -> list[Envelope]:
    """All facts about tasks on the log, in order."""
    found: list[Envelope] = []
    async for item in client.log.read(filters=[f"{client.log.subjects.space}.run.>"]):
        assert isinstance(item, Envelope)
        found.append(item)
    return found


def check(log: list[Envelope], asked: dict[str, int], journal: Path) -> None:
    """Each task that was asked for has one terminal fact, with the effect that its outside system shows."""
    ends = Counter(item.address.run_id for item in log if item.address.fact in TERMINAL_TASK_FACTS)
    assert set(ends) == set(asked), "lost, or never asked for"
    assert set(ends.values()) == {1}, "an outcome was doubled"
    results = {item.address.run_id: item.event.output for item in log if isinstance(item.event, TaskCompleted)}
    assert results == {run_id: {"n": n + 1} for run_id, n in asked.items()}
    effects = {path.name.rpartition("-")[0]: str(path.readlink()) for path in (journal / "effects").iterdir()}
    assert effects == {run_id: str(n + 1) for run_id, n in asked.items()}
