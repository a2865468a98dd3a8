"""`cuebook serve` as processes of their own, which a test may kill."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Self

from tests.actors import cast
from tests.waiting import eventually

__all__ = ["Cast", "Service"]

START_S = 60.0
_PLAYERS = """
import asyncio, time
from pathlib import Path
from cuebook.actors import Task, handler
from roles import *
from roles import note

while Path("closed").exists():
    time.sleep(0.01)

class Quick(Bank):
    name = "bank"
    heartbeat_s = 0.2

class Counter(Bank):
    name = "counter"
    concurrency = 2
    ahead = 20
    offline_for_s = 600
    heartbeat_s = 0.2

    @handler(timeout_s=120)
    async def hold(self, number: Number, task: Task) -> Number:
        note("hold", task)
        while not Path(f"{task.run_id}.open").exists():
            await asyncio.sleep(0.01)
        return number
"""
"""The same, with an agent whose death is soon noticed, and one that holds a task until there is a file for its run.

While there is a file `closed` nothing is served: a process that was started has not got any further.
"""


class Service:
    """One process. `errors` is what it has written to stderr."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process, self._errors = process, errors

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    async def says(self, text: str) -> None:
        """Wait until it has written this; fails at once when it ends before."""
        await eventually(lambda: text in self.errors or self._process.returncode is not None, within_s=START_S)
        assert text in self.errors, self.errors

    async def kill(self) -> None:
        """SIGKILL: it has no chance to put anything in order."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self._process.returncode is None:
            self._process.terminate()
        return await self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.returncode is None


class Cast:
    """Serves what is in `cast.py`, from a copy. Use `async with`; what still runs at its end is killed.

    What the agents do is noted in `ledger`.
    """

    def __init__(self, url: str, space: str, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self._folder = folder
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CUEBOOK_")},
            "CUEBOOK_NATS_URL": url,
            "CUEBOOK_SPACE": space,
            "CAST_LEDGER": str(self.ledger),
        }
        self._services: list[Service] = []
        shutil.copy(cast.__file__, folder / "roles.py")
        (folder / "players.py").write_text(_PLAYERS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(one.kill() for one in self._services if one.running))

    async def orchestrator(self, *sagas: str) -> Service:
        """Start an orchestrator; it is not waited for."""
        return await self._serve("orchestrator", *sagas)

    async def agents(self, *agents: str) -> Service:
        """Start a host of agents; it is not waited for."""
        return await self._serve("agents", *agents)

    async def projections(self, database_url: str) -> Service:
        """Start the projections; they are not waited for."""
        return await self._serve("projections", CUEBOOK_DATABASE_URL=database_url)

    async def edge(self, name: str, keeper_url: str, uplink_url: str, *agents: str) -> Service:
        """Start what `cuebook serve edge` does; it is not waited for."""
        return await self._serve(
            "edge", *agents, words=(name,), CUEBOOK_EDGE_URL=keeper_url, CUEBOOK_NATS_URL=uplink_url
        )

    async def _serve(self, kind: str, *names: str, words: tuple[str, ...] = (), **env: str) -> Service:
        errors = self._folder / f"{kind}-{len(self._services)}.txt"
        program = "from cuebook.cli.main import main; main()"
        with errors.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", program, "serve", kind, *words, *(f"players:{name}" for name in names)),
                cwd=self._folder,
                env={**self._env, **env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=file,
            )
        service = Service(process, errors)
        self._services.append(service)
        return service
