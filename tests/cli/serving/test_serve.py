"""`cuebook serve` as processes: how they begin, what signals do to them, and that no work is lost by it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.process import free_port
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from tests.cli.conftest import Cli, Start, reaches
from tests.waiting import eventually


async def test_agents_wait_for_the_server_and_for_the_stream(start: Start, tmp_path: Path, space: str) -> None:
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    async with start("serve", "agents", "mydesk:Echo", CUEBOOK_NATS_URL=url) as program:
        await program.says("waiting for NATS")
        async with nats_server(tmp_path / "nats", port=port):
            await program.says("waiting for the stream")
            connection = await connect(url, name="tests")
            async with EventLog(connection, space, source="tests") as log:
                await log.ensure()
            await program.says("ready agents=echo")
            assert program.errors.count("waiting for NATS") == program.errors.count("waiting for the stream") == 1
            program.send(signal.SIGTERM)
            assert await program.ends() == 0
            await connection.close()


async def test_waiting_has_a_limit_and_can_be_stopped(start: Start) -> None:
    nowhere = {"CUEBOOK_NATS_URL": f"nats://127.0.0.1:{free_port()}"}
    async with start("serve", "orchestrator", "--wait-s", "0.2", **nowhere) as program:
        assert await program.ends() == 5
        assert "no NATS server answers" in program.errors
    async with start("serve", "projections", "--database-url", "postgresql://nowhere/x", **nowhere) as program:
        await program.says("waiting for NATS")
        program.send(signal.SIGINT)
        assert await program.ends() == 0


@pytest.mark.usefixtures("orchestrator")
@pytest.mark.parametrize("handler", ["wait", "block"])
async def test_a_task_in_flight_is_finished_before_the_process_ends(
    start: Start, cli: Cli, client: Client, workplace: Path, handler: str
) -> None:
    async with start("serve", "agents", "mydesk:Patient") as program:
        await program.says("ready")
        await cli.ok("run", "submit", "--agent", "patient", "--handler", handler, '{"n": 1}', "--id", "p1")
        await reaches(client, "p1", "assigned")
        program.send(signal.SIGTERM)
        await program.says("stopping signal=SIGTERM")
        (workplace / "gate").touch()
        assert await program.ends() == 0
        assert "Traceback" not in program.errors
    shown = await cli.json("run", "show", "p1")
    assert (shown["status"], [one["outcome"] for one in shown["items"][0]["attempts"]]) == ("completed", ["completed"])
    assert (await cli.json("agent", "list", "--all"))[0]["health"] == "stopped"


@pytest.mark.usefixtures("orchestrator")
@pytest.mark.parametrize("handler", ["wait", "block"])
async def test_what_is_not_finished_in_time_is_handed_back_and_done_by_another_process(
    start: Start, cli: Cli, client: Client, workplace: Path, handler: str
) -> None:
    async with start("serve", "agents", "mydesk:Patient", "--drain-s", "0.2") as first:
        await first.says("ready")
        await cli.ok("run", "submit", "--agent", "patient", "--handler", handler, '{"n": 1}', "--id", "p1")
        await reaches(client, "p1", "assigned")
        async with start("serve", "agents", "mydesk:Patient") as second:
            await second.says("ready")
            first.send(signal.SIGTERM)
            assert await first.ends() == 0
            await reaches(client, "p1", "assigned", attempt=2)
            (workplace / "gate").touch()
            assert (await client.wait("p1", timeout_s=60)).status == "completed"
    attempts = (await cli.json("task", "show", "p1"))["attempts"]
    assert [one["outcome"] for one in attempts] == ["handed back", "completed"]
    assert attempts[0]["instance"] != attempts[1]["instance"]


@pytest.mark.usefixtures("orchestrator")
async def test_a_second_signal_ends_the_process_at_once_and_the_work_goes_to_another(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    async with start("serve", "agents", "mydesk:Patient") as first:
        await first.says("ready")
        await cli.ok("run", "submit", "--agent", "patient", "--handler", "block", '{"n": 1}', "--id", "p1")
        await reaches(client, "p1", "assigned")
        async with start("serve", "agents", "mydesk:Patient") as second:
            await second.says("ready")
            first.send(signal.SIGTERM)
            await first.says("stopping signal=SIGTERM")
            first.send(signal.SIGINT)
            assert await first.ends() == 9
            await reaches(client, "p1", "assigned", attempt=2)
            (workplace / "gate").touch()
            assert (await client.wait("p1", timeout_s=60)).status == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_standby_takes_over_when_the_orchestrator_is_stopped(
    start: Start, cli: Cli, client: Client, number: signal.Signals
) -> None:
    async with start("serve", "orchestrator", "mydesk:doomed") as first:
        await first.says("this orchestrator decides now")
        async with start("serve", "orchestrator", "mydesk:doomed", "--log-format", "json") as second:
            await second.says('"ready"')
            first.send(number)
            assert await first.ends() == 0
            assert (await cli.run("run", "submit", "doomed", '{"n": 1}', "--wait", "--no-check")).exit_code == 10
            second.send(number)
            assert await second.ends() == 0
            lines = [json.loads(line) for line in second.errors.splitlines()]
            assert {"time", "level", "logger", "message"} <= lines[0].keys()
            assert any(line["message"] == "ready" and line["sagas"] == "doomed" for line in lines)


async def test_projections_are_kept_up_to_date_until_told_to_stop(
    start: Start, cli: Cli, client: Client, database_url: str
) -> None:
    env = {"CUEBOOK_DATABASE_URL": database_url}
    await cli.ok("run", "submit", "--agent", "echo", "1", "--no-check", "--id", "e1")
    async with start("serve", "projections", **env) as program:
        await program.says("ready")
        await listed(cli, env, ["e1"])
        await cli.ok("run", "submit", "--agent", "echo", "1", "--no-check", "--id", "e2")
        await listed(cli, env, ["e2", "e1"])
        program.send(signal.SIGTERM)
        assert await program.ends() == 0
    async with start("serve", "projections") as program:
        assert await program.ends() == 1
        assert "set --database-url or CUEBOOK_DATABASE_URL" in program.errors


async def listed(cli: Cli, env: dict[str, str], run_ids: list[str]) -> None:
    async def there() -> bool:
        result = await cli.run("run", "list", "-o", "json", env=env)
        return result.exit_code == 0 and [run["run_id"] for run in json.loads(result.stdout)] == run_ids

    await eventually(there, within_s=60)


async def test_a_wrong_name_ends_the_process_before_it_connects(start: Start) -> None:
    async with start("serve", "agents", "mydesk:Ecco", CUEBOOK_NATS_URL="nats://127.0.0.1:1") as program:
        assert await program.ends() == 1
        assert program.errors == "error: module mydesk has no 'Ecco'\nfix: did you mean mydesk:Echo?\n"
    async with start("serve", "agents", "mydesk:order", "--log-format", "json") as program:
        assert await program.ends() == 1
        assert json.loads(program.errors)["error"] == "mydesk:order is a saga, not an agent"


@pytest.mark.usefixtures("client")
async def test_an_agent_that_cannot_start_ends_the_process_and_says_where(start: Start) -> None:
    async with start("serve", "agents", "mydesk:Unfit") as program:
        assert await program.ends() == 1
        assert "ConnectionError: the shop is closed" in program.errors
        assert "mydesk.py" in program.errors


@pytest.mark.usefixtures("orchestrator")
async def test_the_process_ends_when_its_agents_were_drained(start: Start, cli: Cli) -> None:
    async with start("serve", "agents", "mydesk:Echo", "mydesk:Faulty") as program:
        await program.says("ready")
        await cli.ok("agent", "drain", "echo", "--wait-s", "60")
        await cli.ok("agent", "drain", "faulty")
        assert await program.ends() == 0


@pytest.mark.usefixtures("client")
async def test_systemd_is_told_when_it_is_ready_alive_and_stopping(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify")
        manager.bind(address)
        manager.setblocking(False)
        heard: list[str] = []

        def listen() -> None:
            heard.extend(manager.recv(4096).decode().split("\n"))

        asyncio.get_running_loop().add_reader(manager, listen)
        async with start("serve", "orchestrator", NOTIFY_SOCKET=address, WATCHDOG_USEC="40000") as program:
            await eventually(lambda: "READY=1" in heard and heard.count("WATCHDOG=1") > 2, within_s=60)
            program.send(signal.SIGTERM)
            assert await program.ends() == 0
        await eventually(lambda: "STOPPING=1" in heard)
        asyncio.get_running_loop().remove_reader(manager)


@pytest.mark.usefixtures("orchestrator")
async def test_sighup_takes_on_what_the_settings_files_say_now(
    start: Start, cli: Cli, client: Client, workplace: Path
) -> None:
    settings = workplace / "agents.env"
    settings.touch()
    async with start("serve", "agents", "mydesk:Patient", CUEBOOK_SETTINGS_FILES=str(settings)) as program:
        await program.says("ready")
        settings.write_text("CUEBOOK_SLOTS=5\nCUEBOOK_LOG_FORMAT=json\nCUEBOOK_NATS_URL=nats://elsewhere\n")
        program.send(signal.SIGHUP)
        await program.says('"message": "these count from the next start"')
        assert '"changed": "CUEBOOK_NATS_URL"' in program.errors
        await slots_are(cli, [5])
        settings.write_text("CUEBOOK_SLOTS=none\n")
        program.send(signal.SIGHUP)
        await program.says("not reloaded: invalid literal")
        settings.write_text("")
        program.send(signal.SIGHUP)
        await slots_are(cli, [2])
        program.send(signal.SIGTERM)
        assert await program.ends() == 0


async def slots_are(cli: Cli, slots: list[int]) -> None:
    """Wait until the agents at work have so many."""

    async def there() -> bool:
        return [one["slots"] for one in await cli.json("agent", "list") if one["health"] == "healthy"] == slots

    await eventually(there, within_s=60)


@pytest.mark.usefixtures("orchestrator")
@pytest.mark.parametrize("limit", [("--max-tasks", "2"), ("--max-memory", "1M")])
async def test_an_agent_process_that_is_spent_drains_and_ends_with_a_status_of_its_own(
    start: Start, cli: Cli, client: Client, limit: tuple[str, str]
) -> None:
    async with start("serve", "agents", "mydesk:Echo", *limit) as program:
        await program.says("ready")
        for number in range(2):
            await cli.ok("run", "submit", "--agent", "echo", '{"n": 1}', "--id", f"e{number}", "--no-check")
        assert await program.ends() == 17
        assert "recycling: a fresh process should take over" in program.errors
    async with start("serve", "agents", "mydesk:Echo"):
        for number in range(2):
            assert (await client.wait(f"e{number}", timeout_s=60)).status == "completed"


async def test_a_lost_connection_is_waited_for(start: Start, tmp_path: Path, space: str) -> None:
    async with nats_server(tmp_path / "nats") as server:
        connection = await connect(server.url, name="tests")
        async with EventLog(connection, space, source="tests") as log:
            await log.ensure()
        await connection.close()
        async with start("serve", "agents", "mydesk:Echo", CUEBOOK_NATS_URL=server.url) as program:
            await program.says("ready")
            await server.kill()
            await program.says("lost the connection to nats")
            await server.restart()
            await program.says("reconnected to nats")
            program.send(signal.SIGTERM)
            assert await program.ends() == 0
