"""`cuebook demo` and `cuebook dev` as people run them: they do what they say, and leave nothing running."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cuebook.actors.client import Client, Outcome
from cuebook.events.connection import connect
from tests.commands import DEADLINE_S, Command, started
from tests.waiting import eventually

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


def names(command: Command) -> set[str]:
    return {process.name() for process in command.still_running()}


def test_the_demo_comes_out_as_expected_and_leaves_nothing_behind(demonstration: Command) -> None:
    text = "\n".join(demonstration.lines)
    assert demonstration.end() == 0, text
    assert "outcomes  7 refunded, 2 answered, 2 thanked, 8 escalated, 1 compensated" in text
    assert "work      96 tasks, 5 retries, 1 question to a person, answered by the demo" in text
    assert "money     8 refunds over 1,891.10 EUR in Stripe's ledger; 1 undone, 79.90 EUR charged again" in text
    assert "20 tickets, all as expected by the log, Stripe's ledger and the tables" in text
    assert len(demonstration.family) > 9  # two servers, the stand-in, orchestrator, projections, five agents
    assert demonstration.still_running() == []
    assert demonstration.left_behind == []


@pytest.mark.parametrize("moment", ["starting nats-server", "the shop is open", "t-02  answered"])
def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    with started("demo", "--plain", cwd=tmp_path) as demo:
        demo.line(moment)
        demo.interrupt()
        assert demo.end() == INTERRUPTED
    assert demo.still_running() == []
    assert demo.left_behind == []


def test_killing_the_orchestrator_and_an_agent_changes_nothing_about_the_outcome(tmp_path: Path) -> None:
    with started("demo", "--plain", cwd=tmp_path) as demo:
        demo.line("t-05  opened")
        for name in ("orchestrator", "cuebook.examples.support.orders:Orders"):
            (process,) = demo.running(name)
            process.kill()
        assert demo.end() == 0, "\n".join(demo.lines)
    assert "outcomes  7 refunded, 2 answered, 2 thanked, 8 escalated, 1 compensated" in demo.lines
    assert "20 tickets, all as expected by the log, Stripe's ledger and the tables" in demo.lines


async def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    with started("demo", "--plain", cwd=tmp_path) as demo:
        demo.line("t-02  answered")
        demo.process.kill()
    await eventually(lambda: not demo.still_running(), within_s=60)


async def test_dev_serves_the_example_and_keeps_its_data(tmp_path: Path) -> None:
    ports = ("--nats-port", "0", "--postgres-port", "0")
    with started("dev", "--example", *ports, cwd=tmp_path) as dev:
        dev.line("Ctrl-C stops everything; the data stays")
        assert {"nats-server", "postgres"} <= names(dev)
        ticket = {"id": "t-17", "text": "my blender arrived broken, order 8812"}
        outcome = await opened(dev.exported(), "ticket.opened", ticket, "support-t-17")
        assert outcome.result["resolution"] == "refunded"
        dev.interrupt()
        assert dev.end() == 0
    assert dev.lines[-1] == "stopped"
    assert dev.still_running() == []
    assert any("survives a crash of the server, but not a power cut" in line for line in dev.lines)

    with started("dev", *ports, cwd=tmp_path) as again:
        again.line("Ctrl-C stops everything")
        connection = await connect(again.exported()["CUEBOOK_NATS_URL"], name="test")
        async with connection, Client(connection, "cue") as client:
            assert (await client.state("support-t-17")).result == outcome.result
        again.process.terminate()
        assert again.end() == 0
    assert again.still_running() == []


async def test_dev_runs_on_the_servers_that_the_environment_names(
    tmp_path: Path, nats_url: str, database_url: str, space: str
) -> None:
    (tmp_path / "desk.py").write_text(GREETER)
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_DATABASE_URL": database_url, "CUEBOOK_SPACE": space}
    served = ("--sagas", "desk:welcome", "--agents", "desk:Greeter")
    with started("dev", *served, cwd=tmp_path, env=env) as dev:
        dev.line("Ctrl-C stops everything")
        assert dev.exported() == env
        assert not {"nats-server", "postgres"} & names(dev)
        outcome = await opened(env, "visitor.came", {"id": "first", "name": "Ada"}, "welcome-first")
        dev.process.terminate()
        assert dev.end() == 0
    assert outcome.result == "Hello, Ada!"
    assert dev.still_running() == []
    assert not (tmp_path / ".cuebook").exists()


async def test_dev_starts_a_killed_agent_again(tmp_path: Path, nats_url: str, database_url: str, space: str) -> None:
    (tmp_path / "desk.py").write_text(GREETER)
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_DATABASE_URL": database_url, "CUEBOOK_SPACE": space}
    with started("dev", "--sagas", "desk:welcome", "--agents", "desk:Greeter", cwd=tmp_path, env=env) as dev:
        dev.line("Ctrl-C stops everything")
        (agent,) = dev.running("desk:Greeter")
        agent.kill()
        dev.line(r"greeter +\| ended by SIGKILL; starts again")
        dev.line(r"greeter +\| .* ready ")
        dev.process.terminate()
        assert dev.end() == 0


def test_dev_says_what_cannot_be_served_before_anything_starts(tmp_path: Path) -> None:
    with started("dev", "--agents", "desk:Greeter", cwd=tmp_path) as dev:
        assert dev.end() == 1
    assert dev.lines[0] == "error: there is no module 'desk'"
    assert dev.family == set()


def test_a_taken_port_is_said_with_a_way_out(tmp_path: Path, nats_url: str) -> None:
    port = nats_url.rpartition(":")[2]
    with started("dev", "--nats-port", port, cwd=tmp_path) as dev:
        assert dev.end() == 1
    assert dev.lines == [
        f"error: port {port} is taken",
        "fix: set CUEBOOK_NATS_URL to use what runs there, or choose another with --nats-port",
    ]


def test_a_server_that_is_named_and_not_there_is_said_with_a_way_out(tmp_path: Path) -> None:
    with started("dev", "--nats-url", "nats://127.0.0.1:1", "--postgres-port", "0", cwd=tmp_path) as dev:
        assert dev.end() == 5
    assert dev.lines[-1] == "fix: start that server, or unset CUEBOOK_NATS_URL: then one is started here"
