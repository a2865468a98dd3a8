"""The command line in this process for what it says, and as a process of its own for how it lives and dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.orchestrator.state import TaskState
from cuebook.actors.runtime import AgentHost
from cuebook.cli.directory import ask_or_none
from cuebook.cli.main import app
from cuebook.events.connection import connect
from cuebook.events.errors import NotFoundError
from cuebook.events.log import EventLog
from tests.cli import desk
from tests.waiting import eventually


class Cli:
    """Runs commands against one space."""

    def __init__(self, nats_url: str, space: str) -> None:
        self.env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_BY": "ann"}
        self._runner = CliRunner()

    async def run(self, *words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        """One command, in a thread, since it has an event loop of its own. Its logging ends with it."""
        root, ours = logging.getLogger(), logging.getLogger("cuebook")
        handlers, level, own_level = root.handlers[:], root.level, ours.level
        try:
            return await asyncio.to_thread(
                self._runner.invoke, app, words, input=stdin, env={**self.env, **(env or {})}, catch_exceptions=False
            )
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            ours.setLevel(own_level)

    async def ok(self, *words: str, **options: Any) -> str:
        """What a command that succeeds prints."""
        result = await self.run(*words, **options)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    async def json(self, *words: str, **options: Any) -> Any:
        """What a command that succeeds prints with -o json."""
        return json.loads(await self.ok(*words, "-o", "json", **options))

    async def fails(self, status: int, *words: str, **options: Any) -> str:
        """What a command that ends with this status says on stderr."""
        result = await self.run(*words, **options)
        assert result.exit_code == status, (result.exit_code, result.stdout, result.stderr)
        return result.stderr


class Program:
    """The command line as a process. `errors` grows with what it writes to stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors = ""
        self.output = ""
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.ensure_future(self._read(process.stdout, "output")),
            asyncio.ensure_future(self._read(process.stderr, "errors")),
        ]

    async def _read(self, stream: asyncio.StreamReader, name: str) -> None:
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + chunk.decode())

    async def says(self, text: str, *, within_s: float = 60.0) -> None:
        """Wait until it has written this to stderr."""
        await eventually(lambda: text in self.errors or self._gone(), within_s=within_s)
        assert text in self.errors, self.errors

    async def prints(self, text: str, *, within_s: float = 60.0) -> None:
        """Wait until it has written this to stdout."""
        await eventually(lambda: text in self.output or self._gone(), within_s=within_s)
        assert text in self.output, (self.output, self.errors)

    def _gone(self) -> bool:
        return self.process.returncode is not None and all(reader.done() for reader in self._readers)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ends(self, *, within_s: float = 60.0) -> int:
        """Its exit status, once it has ended."""
        async with asyncio.timeout(within_s):
            status = await self.process.wait()
            await asyncio.gather(*self._readers)
        return status


Start = Callable[..., AbstractAsyncContextManager[Program]]


@pytest.fixture
def cli(nats_url: str, space: str) -> Cli:
    return Cli(nats_url, space)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the user's module `mydesk`."""
    shutil.copy(desk.__file__, tmp_path / "mydesk.py")
    return tmp_path


@pytest.fixture
def start(cli: Cli, workplace: Path) -> Start:
    """Start the command line as a process in the workplace, killed if the test leaves it running."""

    @contextlib.asynccontextmanager
    async def started(*words: str, first: str = "", **env: str) -> AsyncIterator[Program]:
        process = await asyncio.create_subprocess_exec(
            *command(words, first=first),
            cwd=workplace,
            env={**os.environ, **cli.env, "DESK_GATE": str(workplace / "gate"), "PYTHONUNBUFFERED": "1", **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        program = Program(process)
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await program.ends()

    return started


async def reaches(client: Client, run_id: str, status: str = "", *, items: int = 0, attempt: int = 0) -> None:
    """Wait until a run is in a status, has so many tasks and steps, or its task 0 is at an attempt."""

    async def there() -> bool:
        try:
            state = await client.state(run_id)
        except NotFoundError:
            return False
        task = state.items.get(0)
        at_attempt = not attempt or (isinstance(task, TaskState) and task.attempt == attempt)
        return (not status or state.outcome() == status) and len(state.items) >= items and at_attempt

    condition: Callable[[], bool | Awaitable[bool]] = there
    await eventually(condition, within_s=60)


async def wait_for_a_person(client: Client, *names: str) -> None:
    """Wait until the orchestrator says that these wait for a person, and nothing else: it reads the log a bit later."""

    async def told() -> bool:
        answer = await ask_or_none(client, "escalations")
        return answer is not None and sorted(one["id"] for one in answer["escalations"]) == sorted(names)

    await eventually(told)


def command(words: Sequence[str], *, first: str = "") -> list[str]:
    """The argument list of the installed console script; `-P`: the folder it is called in is not on the path yet.

    `first`: what the process does before it becomes that.
    """
    return [sys.executable, "-P", "-c", f"{first}\nfrom cuebook.cli.main import main; main()", *words]


@pytest.fixture
async def client(nats_url: str, space: str) -> AsyncIterator[Client]:
    """A client of a space whose stream is there."""
    connection = await connect(nats_url, name="tests")
    async with Client(connection, space, by="tests") as opened:
        await opened.log.ensure()
        yield opened
    await connection.close()


@pytest.fixture
def log(client: Client) -> EventLog:
    return client.log


@pytest.fixture
async def orchestrator(client: Client, nats_url: str, space: str) -> AsyncIterator[OrchestratorService]:
    """The deciding orchestrator of the space, with the desk's sagas."""
    connection = await connect(nats_url, name="tests orchestrator")
    service = OrchestratorService(connection, space, [desk.order, desk.doomed, desk.twice])
    running = asyncio.create_task(service.run(), name="orchestrator")
    await asyncio.wait([running, asyncio.ensure_future(service.deciding.wait())], return_when="FIRST_COMPLETED")
    yield service
    service.stop()
    await running
    await connection.close()


@pytest.fixture
async def agents(orchestrator: OrchestratorService, nats_url: str, space: str) -> AsyncIterator[AgentHost]:
    """The desk's agents, in this process."""
    connection = await connect(nats_url, name="tests agents")
    host = AgentHost(connection, space, [desk.Echo, desk.Faulty])
    running = asyncio.create_task(host.run(drain_s=1))
    await asyncio.wait([running, asyncio.ensure_future(host.ready.wait())], return_when="FIRST_COMPLETED")
    yield host
    host.stop()
    await running
    await connection.close()
