"""A nats-server with settings of the test's own, for what the embedded one does not allow to be set."""

from __future__ import annotations

import asyncio
import contextlib
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cuebook.embedded.process import free_port
from tests.waiting import eventually

__all__ = ["plain_server"]


@contextlib.asynccontextmanager
async def plain_server(directory: Path, settings: str) -> AsyncIterator[str]:
    """Run a server on loopback; gives its URL without credentials."""
    port = free_port()
    configuration = directory / "server.conf"
    configuration.write_text(f"host: 127.0.0.1\nport: {port}\n{settings}\n")
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    with (directory / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program, "-c", configuration, stdout=log, stderr=log)
    try:
        await eventually(_listens_on(port))
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


def _listens_on(port: int) -> Callable[[], bool | Awaitable[bool]]:
    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    return listens
