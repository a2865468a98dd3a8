"""Tab: names from the live system, quickly, and nothing at all where that cannot work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading

import pytest

from cuebook.actors.client import Client
from cuebook.actors.runtime import AgentHost
from cuebook.cli import completion
from cuebook.cli.completion import ask_quickly
from tests.cli.conftest import Cli, command, reaches, wait_for_a_person

PATIENT = "from cuebook.cli import completion; completion.DEADLINE_S = 60.0"
"""Whoever is there answers here, if only the machine lets it."""


async def suggestions(cli: Cli, line: str, **env: str) -> list[str]:
    """What bash would offer at the end of the line."""
    words = line.split(" ")
    environment = {**os.environ, **cli.env, "_CUEBOOK_COMPLETE": "complete_bash", "COMP_WORDS": line,
                   "COMP_CWORD": str(len(words) - 1), **env}  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command([], first=PATIENT), env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode().split()


async def test_names_come_from_the_live_system(cli: Cli, client: Client, agents: AgentHost) -> None:
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    await wait_for_a_person(client, "o15/1")
    assert await suggestions(cli, "cuebook run show o") == ["o15"]
    assert await suggestions(cli, "cuebook escalation resolve ") == ["o15/1"]
    assert await suggestions(cli, "cuebook run submit --agent ") == ["echo", "faulty"]
    assert await suggestions(cli, "cuebook agent drain echo/") == [f"echo/{agents.instances[0].id}"]
    assert await suggestions(cli, "cuebook run submit ") == ["order", "doomed", "twice"]
    assert await suggestions(cli, "cuebook run show x") == []


async def test_commands_and_choices_are_completed_without_a_server(cli: Cli) -> None:
    nowhere = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    assert await suggestions(cli, "cuebook es", **nowhere) == ["escalation"]
    assert await suggestions(cli, "cuebook run su", **nowhere) == ["submit"]
    assert "compensating" in await suggestions(cli, "cuebook run list --status ", **nowhere)
    assert await suggestions(cli, "cuebook run show ", **nowhere) == []
    assert await suggestions(cli, "cuebook run show ", CUEBOOK_NATS_URL="tls://127.0.0.1:1") == []


@pytest.mark.parametrize("greeting", [b"", b"INFO {}\r\n", b"INFO {}\r\nPONG\r\n"])
def test_a_server_that_does_not_answer_is_not_waited_for(greeting: bytes) -> None:
    def greet() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):  # it may have given up already
            connection.sendall(greeting)
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        greeter = threading.Thread(target=greet)
        greeter.start()
        with pytest.raises((OSError, LookupError)):
            ask_quickly(f"nats://127.0.0.1:{server.getsockname()[1]}", "query.cue.runs")
        greeter.join()


async def test_nobody_who_could_answer(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "DEADLINE_S", 60.0)
    with pytest.raises(LookupError):
        await asyncio.to_thread(ask_quickly, nats_url, "query.nowhere.runs")
