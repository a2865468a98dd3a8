"""A TCP proxy between client and server that can swallow what the server says, hold it, or cut the line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

__all__ = ["Proxy", "proxy"]


class Proxy:
    """`url` is for the client. `swallow` sees each block from the server and says whether it is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.swallow: Callable[[bytes], bool] = lambda block: False
        self.swallowed = 0
        self.flows = asyncio.Event()
        """Cleared: nothing more passes, in either direction, and nothing is lost."""
        self.flows.set()
        self.accepted = 0
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection, as a network does."""
        for pipe in self._pipes:
            pipe.cancel()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # whatever is left to write
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.update((writer, server_writer))
            pipes = [
                asyncio.create_task(self._pipe(reader, server_writer, lambda block: False)),
                asyncio.create_task(self._pipe(server_reader, writer, lambda block: self.swallow(block))),
            ]
            self._pipes.update(pipes)
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            self._pipes.difference_update(pipes)
            await _close(server_writer)
        await _close(writer)

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallow: Callable[[bytes], bool]
    ) -> None:
        while block := await reader.read(65_536):
            await self.flows.wait()
            if swallow(block):
                self.swallowed += 1
                continue
            writer.write(block)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """Stand between clients and the server at `url`."""
    running = Proxy(int(url.rpartition(":")[2]))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
