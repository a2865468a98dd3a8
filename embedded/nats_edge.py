"""A hub and a leaf node on this machine, with a link between them that can be cut, for trying what happens then.

The leaf node runs with `nats/leaf.conf` as it would on a machine of its own; the link is a TCP proxy of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from cuebook.embedded.nats_server import EdgeMember, NatsServer
from cuebook.embedded.process import LOOPBACK, free_port

__all__ = ["Link", "NatsEdge", "nats_edge"]

_BLOCK: Final = 64 * 1024


class Link:
    """Passes bytes between the leaf node and the hub's port `to`, until it is cut; `port` is for the leaf node.

    `passed` counts the bytes, in both directions.
    """

    def __init__(self, to: int) -> None:
        """Take the port; `nats_edge` is the way to get one."""
        self.passed = 0
        self.accepted = 0
        self._to, self._is_cut = to, False
        self._budget: int | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where the leaf node connects."""
        assert self._server is not None, "it is open"
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)

    async def close(self) -> None:
        """Cut it for good."""
        self.cut()
        assert self._server is not None, "it is open"
        self._server.close()
        self._is_cut = True
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # whatever is left to write
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Break what is connected and refuse what tries to connect, until `mend`."""
        self._is_cut = True
        for pipe in self._pipes:
            pipe.cancel()

    def cut_after(self, size: int) -> None:
        """Cut it once so many bytes more have passed: that is in the middle of a message, as a rule."""
        self._budget = size

    def mend(self) -> None:
        """Let the leaf node connect again, which it tries every second."""
        self._is_cut, self._budget = False, None

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes."""
        return self._is_cut

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if not self._is_cut:
                self.accepted += 1
                hub_reader, hub_writer = await asyncio.open_connection(LOOPBACK, self._to)
                self._writers.update((writer, hub_writer))
                pipes = [
                    asyncio.create_task(self._pipe(reader, hub_writer, to_hub=True)),
                    asyncio.create_task(self._pipe(hub_reader, writer, to_hub=False)),
                ]
                self._pipes.update(pipes)
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.gather(*pipes, return_exceptions=True)
                self._pipes.difference_update(pipes)
                hub_writer.close()
        writer.close()

    async def is_lost(self, block: bytes, *, to_hub: bool) -> bool:  # noqa: ARG002 - for a worse link
        """Whether bytes that came do not arrive; asked for each block."""
        return False

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_hub: bool) -> None:
        while block := await reader.read(_BLOCK):
            if await self.is_lost(block, to_hub=to_hub):
                continue
            if self._budget is not None and self._budget < len(block):
                writer.write(block[: self._budget])
                self.passed += self._budget
                with contextlib.suppress(OSError):
                    await writer.drain()
                self._budget = None
                self.cut()
                return
            writer.write(block)
            self.passed += len(block)
            if self._budget is not None:
                self._budget -= len(block)
            await writer.drain()


class NatsEdge:
    """A hub, a leaf node, and the `link` between them.

    `uplink_url` is for who wants the hub's log, over the link; `keeper_url` for who keeps work at the edge; `url` for
    whoever publishes events there.
    """

    def __init__(self, hub: NatsServer, leaf: NatsServer, link: Link, password: str) -> None:
        """Take the parts; `nats_edge` is the way to start them."""
        self.hub, self.leaf, self.link, self._password = hub, leaf, link, password

    @property
    def url(self) -> str:
        """The leaf node, for devices."""
        return self.leaf.url

    @property
    def keeper_url(self) -> str:
        """The leaf node's own JetStream."""
        return self.leaf.url.replace("://", f"://keeper:{self._password}@")

    @property
    def uplink_url(self) -> str:
        """The hub, seen from the edge."""
        return self.leaf.url.replace("://", f"://uplink:{self._password}@")


@contextlib.asynccontextmanager
async def nats_edge(data_dir: Path, *, name: str = "shop-7") -> AsyncIterator[NatsEdge]:
    """Run a hub and a leaf node called `name` with their data in folders of `data_dir`.

    Raises ConfigurationError when a server cannot start.
    """
    password, listen = secrets.token_hex(8), free_port()
    folders = [data_dir.resolve() / one for one in ("hub", "edge")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    hub = NatsServer(
        folders[0],
        port=None,
        sync_always=False,
        member=EdgeMember(
            name="hub",
            configuration="development-hub.conf",
            settings={"CUEBOOK_LEAF_LISTEN": f"{LOOPBACK}:{listen}", "CUEBOOK_LEAF_PASSWORD": password},
        ),
    )
    link = Link(listen)
    await link.open()
    leaf = NatsServer(
        folders[1],
        port=None,
        sync_always=True,
        member=EdgeMember(
            name=name,
            configuration="leaf.conf",
            settings={
                "CUEBOOK_EDGE_NAME": name,
                "CUEBOOK_EDGE_PASSWORD": password,
                "CUEBOOK_HUB_URL": f"nats-leaf://edge:{password}@{LOOPBACK}:{link.port}",
            },
        ),
    )
    try:
        await hub.start()
        await leaf.start()
        yield NatsEdge(hub, leaf, link, password)
    finally:
        await leaf.stop()
        await link.close()
        await hub.stop()
