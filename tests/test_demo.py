"""`cuebook demo` and `cuebook dev` as people run them: they do what they say, and leave nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from cuebook.actors.client import Client, Outcome
from cuebook.events.connection import connect
from tests.waiting import eventually

CUEBOOK = [sys.executable, "-m", "cuebook.cli.main"]
DEADLINE_S = 90.0
INTERRUPTED = 9

GREETER = """
from pydantic import BaseModel

from cuebook.actors import Agent, Run, handler, saga

class Visitor(BaseModel):
    id: str
    name: str

class Greeter(Agent):
    name = "greeter"

    @handler()
    async def greet(self, name: str) -> str:
        return f"Hello, {name}!"

@saga(on="visitor.came", key="id")
async def welcome(run: Run, visitor: Visitor) -> str:
    return await run.call(Greeter.greet, visitor.name)
"""


class Command:
    """A command under way, the lines it has printed, and every process that it or they have started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.family: set[psutil.Process] = set()

    async def line(self, pattern: str) -> str:
        """Read on to a line that matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while raw := await self.process.stdout.readline():
                self.lines.append(raw.decode().rstrip())
                self.look_around()
                if re.search(pattern, self.lines[-1]):
                    return self.lines[-1]
        raise AssertionError(f"ended without a line like {pattern!r}:\n" + "\n".join(self.lines))

    async def end(self) -> int:
        """Read to the end; returns the exit status."""
        with contextlib.suppress(AssertionError):
            await self.line("(?!)")
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()

    def look_around(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))

    def names(self) -> set[str]:
        return {process.name() for process in self.still_running()}

    def still_running(self) -> list[psutil.Process]:
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def urls(self) -> dict[str, str]:
        """What `export` lines tell so far."""
        exported = (re.fullmatch(r" *export (\w+)=(.*)", line) for line in self.lines)
        return {found[1]: found[2] for found in exported if found}


@contextlib.asynccontextmanager
async def started(*arguments: str, cwd: Path, **env: str) -> AsyncIterator[Command]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CUEBOOK_")}
    process = await asyncio.create_subprocess_exec(
        *CUEBOOK,
        *arguments,
        cwd=cwd,
        env={**own, "TMPDIR": str(cwd), "PYTHONUNBUFFERED": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        limit=1_000_000,
    )
    command = Command(process)
    try:
        yield command
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def opened(urls: dict[str, str], topic: str, data: object, run_id: str) -> Outcome:
    """Publish as any NATS client would, and wait for the run that this starts."""
    connection = await connect(urls["CUEBOOK_NATS_URL"], name="test")
    try:
        async with Client(connection, urls.get("CUEBOOK_SPACE", "cue")) as client:
            ended = await client.expect(run_id, "run")
            await connection.publish(client.log.subjects.event(topic), json.dumps(data).encode())
            return await asyncio.wait_for(ended, DEADLINE_S)
    finally:
        await connection.close()


async def test_the_demo_comes_out_as_expected_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with started("demo", cwd=tmp_path, CUEBOOK_NATS_URL="nats://127.0.0.1:1") as demo:  # which it does not use
        status = await demo.end()
    text = "\n".join(demo.lines)
    assert status == 0, text
    assert "outcomes  7 refunded, 2 answered, 2 thanked, 8 escalated, 1 compensated" in text
    assert "work      96 tasks, 5 retries, 1 question to a person, answered by the demo" in text
    assert "money     8 refunds over 1,891.10 EUR in Stripe's ledger; 1 undone, 79.90 EUR charged again" in text
    assert "20 tickets, all as expected by the log, Stripe's ledger and the tables" in text
    assert len(demo.family) > 9  # two servers, the stand-in, orchestrator, projections, five agents
    assert demo.still_running() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["starting nats-server", "the shop is open", "t-02  answered"])
async def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    async with started("demo", "--plain", cwd=tmp_path) as demo:
        await demo.line(moment)
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == INTERRUPTED
    assert demo.still_running() == []
    assert list(tmp_path.iterdir()) == []


async def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    async with started("demo", "--plain", cwd=tmp_path) as demo:
        await demo.line("t-02  answered")
        demo.process.kill()
    await eventually(lambda: not demo.still_running(), within_s=30)


async def test_dev_serves_the_example_and_keeps_its_data(tmp_path: Path) -> None:
    ports = ("--nats-port", "0", "--postgres-port", "0")
    async with started("dev", "--example", *ports, cwd=tmp_path) as dev:
        await dev.line("Ctrl-C stops everything; the data stays")
        assert {"nats-server", "postgres"} <= dev.names()
        ticket = {"id": "t-17", "text": "my blender arrived broken, order 8812"}
        outcome = await opened(dev.urls(), "ticket.opened", ticket, "support-t-17")
        assert outcome.result["resolution"] == "refunded"
        dev.process.send_signal(signal.SIGINT)
        assert await dev.end() == 0
    assert dev.lines[-1] == "stopped"
    assert dev.still_running() == []
    assert any("survives a crash of the server, but not a power cut" in line for line in dev.lines)

    async with started("dev", *ports, cwd=tmp_path) as again:
        await again.line("Ctrl-C stops everything")
        connection = await connect(again.urls()["CUEBOOK_NATS_URL"], name="test")
        async with connection, Client(connection, "cue") as client:
            assert (await client.state("support-t-17")).result == outcome.result
        again.process.terminate()
        assert await again.end() == 0
    assert again.still_running() == []


async def test_dev_runs_on_the_servers_that_the_environment_names(
    tmp_path: Path, nats_url: str, database_url: str, space: str
) -> None:
    (tmp_path / "desk.py").write_text(GREETER)
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_DATABASE_URL": database_url, "CUEBOOK_SPACE": space}
    served = ("--sagas", "desk:welcome", "--agents", "desk:Greeter")
    async with started("dev", *served, cwd=tmp_path, **env) as dev:
        await dev.line("Ctrl-C stops everything")
        assert dev.urls() == env
        assert not {"nats-server", "postgres"} & dev.names()
        outcome = await opened(env, "visitor.came", {"id": "first", "name": "Ada"}, "welcome-first")
        dev.process.terminate()
        assert await dev.end() == 0
    assert outcome.result == "Hello, Ada!"
    assert dev.still_running() == []
    assert not (tmp_path / ".cuebook").exists()


async def test_dev_starts_a_killed_agent_again(tmp_path: Path, nats_url: str, database_url: str, space: str) -> None:
    (tmp_path / "desk.py").write_text(GREETER)
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_DATABASE_URL": database_url, "CUEBOOK_SPACE": space}
    async with started("dev", "--sagas", "desk:welcome", "--agents", "desk:Greeter", cwd=tmp_path, **env) as dev:
        await dev.line("Ctrl-C stops everything")
        (agent,) = [process for process in dev.still_running() if "desk:Greeter" in process.cmdline()]
        agent.kill()
        await dev.line(r"greeter +\| ended by SIGKILL; starts again")
        await dev.line(r"greeter +\| .* ready ")
        dev.process.terminate()
        assert await dev.end() == 0


async def test_dev_says_what_cannot_be_served_before_anything_starts(tmp_path: Path) -> None:
    async with started("dev", "--agents", "desk:Greeter", cwd=tmp_path) as dev:
        assert await dev.end() == 1
    assert dev.lines[0] == "error: there is no module 'desk'"
    assert dev.family == set()


async def test_a_taken_port_is_said_with_a_way_out(tmp_path: Path, nats_url: str) -> None:
    port = nats_url.rpartition(":")[2]
    async with started("dev", "--nats-port", port, cwd=tmp_path) as dev:
        assert await dev.end() == 1
    assert dev.lines == [
        f"error: port {port} is taken",
        "fix: set CUEBOOK_NATS_URL to use what runs there, or choose another with --nats-port",
    ]
