"""`cuebook serve agents --processes`: real processes that serve agents, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cuebook.actors.client import Client
from cuebook.cli.directory import ask_or_none
from cuebook.embedded.process import free_port
from tests.cli.conftest import Cli, Program, Start, reaches
from tests.monitoring.market import fetched
from tests.waiting import eventually

PATIENCE_S = 90.0


async def healthy(client: Client, count: int, *, without: set[int] | None = None) -> dict[int, dict[str, Any]]:
    """Wait until so many instances are healthy, none of them in the processes of `without`; they are by process id."""
    gone = without or set()

    async def there() -> Any:
        rows = (await ask_or_none(client, "agents") or {"agents": []})["agents"]
        found = {one["pid"]: one for one in rows if one["health"] == "healthy"}
        return found if len(found) == count and not gone & set(found) else None

    found: dict[int, dict[str, Any]] = await eventually(there, within_s=PATIENCE_S)
    return found


async def gone(pids: set[int]) -> None:
    """Wait until none of these processes runs any more."""
    await eventually(lambda: not any(_runs(pid) for pid in pids), within_s=PATIENCE_S)


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.asynccontextmanager
async def manager(tmp_path: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """A socket as systemd has one, and what was said on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        address, heard = str(tmp_path / "notify"), list[str]()
        listening.bind(address)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(listening, lambda: heard.extend(listening.recv(4096).decode().split("\n")))
        yield address, heard
        loop.remove_reader(listening)


@pytest.mark.usefixtures("orchestrator")
async def test_processes_are_ready_together_replaced_when_killed_and_drained_at_the_end(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    async with manager(workplace) as (address, heard):
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "CUEBOOK_PROCESSES": "2"}
        async with start("serve", "agents", "mydesk:Patient", **env) as program:
            await eventually(lambda: "READY=1" in heard, within_s=PATIENCE_S)
            before = await healthy(client, 2)
            await eventually(
                lambda: "STATUS=processes 2 of 2, slots 4, in flight 0, lag 0, done 0" in heard, within_s=PATIENCE_S
            )
            for number in range(4):
                await cli.ok(
                    "run", "submit", "--agent", "patient", "--handler", "wait", '{"n": 1}', "--id", f"p{number}"
                )
                await reaches(client, f"p{number}", "assigned")
            victim, other = before
            os.kill(victim, signal.SIGKILL)
            await program.says(f'pid={victim} ended="by SIGKILL"', within_s=PATIENCE_S)
            assert other in await healthy(client, 2, without={victim})
            (workplace / "gate").touch()
            for number in range(4):
                assert (await client.wait(f"p{number}", timeout_s=PATIENCE_S)).status == "completed"
            program.send(signal.SIGTERM)
            assert await program.ends(within_s=PATIENCE_S) == 0
            assert {"STOPPING=1", "WATCHDOG=1"} <= set(heard)
            assert "child=0" in program.errors
            assert "child=1" in program.errors
            assert "Traceback" not in program.errors


@pytest.mark.usefixtures("orchestrator")
async def test_nobody_outlives_a_supervisor_that_is_killed(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    async with start("serve", "agents", "mydesk:Patient", "--processes", "2") as program:
        pids = set(await healthy(client, 2))
        await cli.ok("run", "submit", "--agent", "patient", "--handler", "wait", '{"n": 1}', "--id", "p1")
        await reaches(client, "p1", "assigned")
        program.send(signal.SIGKILL)
        await gone({program.process.pid})
        await program.says("stopping", within_s=PATIENCE_S)
        (workplace / "gate").touch()
        assert (await client.wait("p1", timeout_s=PATIENCE_S)).status == "completed"
        await gone(pids)
    await eventually(lambda: all_have_left(client), within_s=PATIENCE_S)


async def all_have_left(client: Client) -> bool:
    """Whether each instance has said that it stops: none was merely missed."""
    answer = await ask_or_none(client, "agents")
    return answer is not None and {one["health"] for one in answer["agents"]} == {"stopped"}


@pytest.mark.usefixtures("orchestrator")
async def test_a_process_that_a_person_drains_stays_down_and_the_others_work_on(
    start: Start, cli: Cli, client: Client
) -> None:
    async with start("serve", "agents", "mydesk:Echo", "--processes", "2") as program:
        (one, drained), (other, kept) = (await healthy(client, 2)).items()
        await cli.ok("agent", "drain", f"echo/{drained['instance']}", "--wait-s", "60")
        await program.says("its agents were drained; its place stays empty", within_s=PATIENCE_S)
        await gone({one})
        assert set(await healthy(client, 1)) == {other}
        await cli.ok("agent", "drain", f"echo/{kept['instance']}")
        assert await program.ends(within_s=PATIENCE_S) == 0


@pytest.mark.usefixtures("orchestrator")
async def test_reload_rolls_to_the_code_and_the_settings_that_are_there_now(
    start: Start, client: Client, workplace: Path
) -> None:
    settings, module = workplace / "agents.env", workplace / "mydesk.py"
    settings.write_text("CUEBOOK_PROCESSES=2\nCUEBOOK_SLOTS=3\n")
    env = {"CUEBOOK_SETTINGS_FILES": str(settings), "CUEBOOK_PROCESSES": "2", "CUEBOOK_SLOTS": "3"}
    async with start("serve", "agents", "mydesk:Echo", **env) as program:
        old = await healthy(client, 2)
        assert {one["slots"] for one in old.values()} == {3}
        module.write_text(module.read_text().replace('name = "echo"', 'name = "echo"\n    version = "2"'))
        settings.write_text("CUEBOOK_PROCESSES=1\nCUEBOOK_SLOTS=5\n")
        program.send(signal.SIGHUP)
        fresh = await healthy(client, 1, without=set(old))
        assert [(one["version"], one["slots"]) for one in fresh.values()] == [("2", 5)]
        await gone(set(old))
        settings.write_text("CUEBOOK_PROCESSES=none\n")
        program.send(signal.SIGHUP)
        await program.says("not reloaded: 'none' is no number of processes", within_s=PATIENCE_S)
        assert set(await healthy(client, 1)) == set(fresh)
        program.send(signal.SIGINT)
        assert await program.ends(within_s=PATIENCE_S) == 0


@pytest.mark.usefixtures("orchestrator")
async def test_each_place_has_a_port_for_metrics_whoever_stands_in_it(start: Start, client: Client) -> None:
    """Prometheus has the same targets before, during and after a reload."""
    first = free_ports(2)

    async def serving() -> set[int]:
        found = set()
        for port in (first, first + 1):
            with contextlib.suppress(OSError):
                page = await asyncio.to_thread(fetched, f"http://127.0.0.1:{port}/metrics")
                found |= {int(pid) for pid in re.findall(r'service_instance_id="[^"]*-(\d+)"', page)}
        return found

    async def serve(pids: set[int]) -> None:
        async def do() -> bool:
            return await serving() == pids

        await eventually(do, within_s=PATIENCE_S)

    async with start("serve", "agents", "mydesk:Echo", "--processes", "2", CUEBOOK_METRICS=at(first)) as program:
        old = set(await healthy(client, 2))
        await serve(old)
        program.send(signal.SIGHUP)
        fresh = set(await healthy(client, 2, without=old))
        await serve(fresh)
        victim = min(fresh)
        os.kill(victim, signal.SIGKILL)
        await serve(set(await healthy(client, 2, without={victim})))
        program.send(signal.SIGTERM)
        assert await program.ends(within_s=PATIENCE_S) == 0


def at(port: int) -> str:
    return f"127.0.0.1:{port}"


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            for port in range(first, first + count):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


@pytest.mark.usefixtures("orchestrator")
async def test_who_hangs_is_replaced_and_a_second_signal_ends_all_at_once(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    with (workplace / "mydesk.py").open("a") as module:
        module.write(WEDGES)
    async with start("serve", "agents", "mydesk:Wedge", "--processes", "2", WATCHDOG_USEC="3000000") as program:
        before = await healthy(client, 2)
        await cli.ok("run", "submit", "--agent", "wedge", "--handler", "hang", '{"n": 1}', "--id", "w1")
        await program.says("a process hangs and is killed", within_s=PATIENCE_S)
        await program.says("in hang", within_s=PATIENCE_S)  # where its thread stood
        (workplace / "gate").touch()
        assert (await client.wait("w1", timeout_s=PATIENCE_S)).status == "completed"
        assert len(set(await healthy(client, 2)) & set(before)) == 1
        (workplace / "gate").unlink()
        await cli.ok("run", "submit", "--agent", "wedge", "--handler", "wait", '{"n": 1}', "--id", "w2")
        await reaches(client, "w2", "assigned")
        program.send(signal.SIGTERM)
        await program.says("stopping signal=SIGTERM", within_s=PATIENCE_S)
        pids = set(await live(program))
        program.send(signal.SIGTERM)
        assert await program.ends(within_s=PATIENCE_S) == 9
        await gone(pids)


async def live(program: Program) -> list[int]:
    return [one.pid for one in psutil.Process(program.process.pid).children()]


@pytest.mark.usefixtures("client")
async def test_what_is_written_wrong_is_said_once_and_ends_all(start: Start, cli: Cli) -> None:
    async with start("serve", "agents", "mydesk:Ecco", "--processes", "3") as program:
        assert await program.ends(within_s=PATIENCE_S) == 1
        assert program.errors.count("error: module mydesk has no 'Ecco'") == 1
    said = await cli.fails(2, "serve", "agents", "mydesk:Echo", "--processes", "some")
    assert "'some' is no number of processes" in said


WEDGES = """

class Wedge(Patient):
    name = "wedge"
    heartbeat_s = 0.5

    @handler(timeout_s=60)
    async def hang(self, given: In) -> Out:
        while not Path(os.environ["DESK_GATE"]).exists():
            time.sleep(0.01)
        return Out(n=given.n)
"""
