"""Several nats-servers on this machine that are one cluster, for trying what happens when one of them goes.

Streams with three replicas go on while two of three nodes live. On one machine that protects from nothing but the crash
of a server: use it to look, and `nats/production.conf` on three machines to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cuebook.embedded.nats_server import ClusterMember, NatsServer
from cuebook.embedded.process import LOOPBACK, free_port
from cuebook.events.errors import UnavailableError

__all__ = ["NatsCluster", "nats_cluster"]

ELECTION_DEADLINE_S: Final = 30.0
POLL_S: Final = 0.1
_INBOX: Final = "_INBOX.cuebook"


class NatsCluster:
    """A running cluster; each of `nodes` may be killed and started again. `url` names them all, for clients."""

    def __init__(self, nodes: Sequence[NatsServer]) -> None:
        """Take the nodes; `nats_cluster` is the way to start them."""
        self.nodes = nodes

    @property
    def url(self) -> str:
        """Where clients connect: to one of the nodes, and to another when that goes."""
        return ",".join(node.url for node in self.nodes)

    @property
    def monitor_url(self) -> str:
        """Where the nodes answer HTTP about themselves."""
        return ",".join(node.monitor_url for node in self.nodes)

    async def elected(self) -> None:
        """Wait until the cluster has a leader that answers for JetStream. Raises UnavailableError."""
        deadline = asyncio.get_running_loop().time() + ELECTION_DEADLINE_S
        while not await self._has_leader():
            if asyncio.get_running_loop().time() > deadline:
                logs = ", ".join(str(node.log) for node in self.nodes)
                raise UnavailableError("the NATS cluster has no leader", remedy=f"see {logs}")
            await asyncio.sleep(POLL_S)

    async def _has_leader(self) -> bool:
        """Ask JetStream about the account on any node that listens; only with a leader is there an answer."""
        for node in self.nodes:
            with contextlib.suppress(OSError, TimeoutError, ValueError):
                async with asyncio.timeout(1):
                    return await _asks_jetstream(urlsplit(node.url).port or 0)
        return False


@contextlib.asynccontextmanager
async def nats_cluster(
    data_dir: Path, *, nodes: int = 3, first_port: int | None = None, sync_always: bool = False
) -> AsyncIterator[NatsCluster]:
    """Run `nodes` servers with their data in folders of `data_dir`; streams from earlier are served again.

    `first_port`: the others take those after it; None takes free ones. `sync_always`: as for `nats_server`.
    Raises ConfigurationError when a server cannot start, UnavailableError when they do not find each other.
    """
    meeting = [f"{LOOPBACK}:{free_port()}" for _ in range(nodes)]
    servers = []
    for number, listen in enumerate(meeting):
        folder = data_dir.resolve() / f"node-{number + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        member = ClusterMember(
            name=f"node-{number + 1}", listen=listen, routes=[f"nats-route://{address}" for address in meeting]
        )
        port = first_port + number if first_port else None
        servers.append(NatsServer(folder, port=port, sync_always=sync_always, member=member))
    cluster = NatsCluster(servers)
    try:
        started = await asyncio.gather(*(server.start() for server in servers), return_exceptions=True)
        if errors := [outcome for outcome in started if isinstance(outcome, BaseException)]:
            raise errors[0]
        await cluster.elected()
        yield cluster
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def _asks_jetstream(port: int) -> bool:
    """Whether JetStream answers there, by the bare protocol: a few lines of text each way."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    with contextlib.closing(writer):
        request = f"SUB {_INBOX} 1\r\nPUB $JS.API.INFO {_INBOX} 0\r\n\r\n"
        writer.write(f'CONNECT {{"verbose":false}}\r\n{request}'.encode())
        while line := await reader.readline():
            if line.startswith(b"MSG "):
                answer = json.loads(await reader.readexactly(int(line.split()[-1])))
                return "error" not in answer
    return False
