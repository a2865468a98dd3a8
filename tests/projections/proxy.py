"""A TCP proxy in front of PostgreSQL that cuts the connection where a statement passes."""

from __future__ import annotations

import asyncio
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["Proxy"]


class Proxy:
    """Use `async with`; `url` leads through it."""

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        self._needle = b""
        self._forward = False
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = make_conninfo(**{**self._target, "host": "127.0.0.1", "port": port})
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    def cut_at(self, needle: bytes, *, forward: bool) -> None:
        """Cut once, at the first statement with these bytes; with `forward` it still reaches the server."""
        self._needle, self._forward = needle, forward

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection(str(self._target["host"]), int(str(self._target["port"])))
        try:
            async with asyncio.TaskGroup() as group:
                back = group.create_task(_pump(upstream[0], writer))
                while block := await reader.read(65_536):
                    if self._needle and self._needle in block:
                        self._needle = b""
                        self.cuts += 1
                        back.cancel()  # the answer, if there is one, is lost
                        if self._forward:
                            upstream[1].write(block)
                            await upstream[0].read(65_536)
                        break
                    upstream[1].write(block)
                    await upstream[1].drain()
                back.cancel()
        finally:
            upstream[1].close()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(65_536):
        writer.write(block)
        await writer.drain()
