"""A TCP proxy between client and server that can swallow what the server says, hold it, or cut the line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from cuebook.embedded.nats_edge import Link

__all__ = ["Proxy", "proxy"]


class Proxy(Link):
    """`url` is for the client. `swallow` sees each block from the server and says whether it is lost."""

    def __init__(self, to: int) -> None:
        super().__init__(to)
        self.swallow: Callable[[bytes], bool] = lambda block: False
        self.swallowed = 0
        self.flows = asyncio.Event()
        """Cleared: nothing more passes, in either direction, and nothing is lost."""
        self.flows.set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection, as a network does; new ones may come at once."""
        super().cut()
        self.mend()

    async def is_lost(self, block: bytes, *, to_hub: bool) -> bool:
        await self.flows.wait()
        lost = not to_hub and self.swallow(block)
        self.swallowed += lost
        return lost


@contextlib.asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """Stand between clients and the server at `url`."""
    running = Proxy(int(url.rpartition(":")[2]))
    await running.open()
    try:
        yield running
    finally:
        await running.close()
