"""`/metrics` over HTTP, in a thread of its own: whoever asks, and however slowly, holds up nothing but himself.

The thread has an event loop of its own. A connection is answered once and closed; it has so many seconds for that, and
there are so many at a time. Values come from the loop that works; if that stands still, the last ones are told again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from concurrent.futures import Future
from typing import Final, Protocol

from cuebook.events.errors import ConfigurationError, UnavailableError

__all__ = ["Endpoint", "parse_address"]

MOST_CONNECTIONS: Final = 32
DEADLINE_S: Final = 10.0
"""For a whole connection; what Prometheus gives a scrape by default."""
LOOK_WITHIN_S: Final = 2.0
"""So long the working loop may take to tell how it is."""
MOST_REQUEST_BYTES: Final = 16 * 1024
END_WITHIN_S: Final = 1.0
RETRY_S: Final = 0.25

logger = logging.getLogger(__name__)


class Told(Protocol):
    """What is served; see `Metrics`."""

    async def look(self) -> None:
        """Called on the loop that works."""
        ...

    def write(self, accept: str) -> tuple[str, bytes]:
        """Called on the thread that serves."""
        ...


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[HOST]:PORT`; port 0 is any free one. Raises ConfigurationError."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif not {":", "[", "]"}.isdisjoint(host):
        host = ""
    if not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigurationError(
            f"{text!r} is no address to serve metrics at", remedy="say HOST:PORT, such as 127.0.0.1:9464"
        )
    return host, int(port)


class Endpoint:
    """Serves what `told` writes, from `start` to `close`. `loop` is the one that works."""

    def __init__(
        self,
        address: str,
        told: Told,
        loop: asyncio.AbstractEventLoop,
        *,
        most: int = MOST_CONNECTIONS,
        waits: bool = False,
    ) -> None:
        """Take the address; from here on others cannot have it. `most`: connections at a time.

        `waits`: for as long as another has it, whom we are to relieve. Raises ConfigurationError for an address that is
        none, UnavailableError for one that is taken and not waited for.
        """
        self._address = parse_address(address)
        self._told, self._working = told, loop
        self._socket: socket.socket | None = None
        try:
            self._socket = _listen(*self._address)
        except UnavailableError:
            if not waits:
                raise
        self._looking: Future[None] | None = None
        self._connections, self._most = 0, most
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="cuebook metrics", daemon=True)

    @property
    def url(self) -> str:
        """Where it is, or is to be."""
        host, port = self._socket.getsockname()[:2] if self._socket is not None else self._address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def start(self) -> None:
        """Serve from now on."""
        self._serving = self._loop.create_task(self._serve())
        self._thread.start()

    def close(self) -> None:
        """Serve no more; what is being sent is cut off."""
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(END_WITHIN_S)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.close()

    async def _serve(self) -> None:
        while self._socket is None:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(UnavailableError):
                self._socket = _listen(*self._address)
        logger.info("metrics are served", extra={"url": self.url})
        server = await asyncio.start_server(self._answer, sock=self._socket, limit=MOST_REQUEST_BYTES)
        try:
            await server.serve_forever()
        finally:
            connections = asyncio.all_tasks() - {self._serving}
            for one in connections:
                one.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # gone, too slow, or no HTTP
        except asyncio.CancelledError:
            pass  # we end, and nobody waits for this task; streams of Python 3.11 log a cancelled one as an error
        except Exception:  # a mistake of ours must not end the others' connections
            logger.exception("metrics could not be written")
        finally:
            self._connections -= 1
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # `drain` waits until all is sent
        if self._connections > self._most:
            writer.write(_response("503 Service Unavailable", "text/plain", b"too many connections\n"))
        else:
            writer.write(await self._response_to(await reader.readuntil(b"\r\n\r\n")))
        await writer.drain()
        writer.write_eof()
        while await reader.read(MOST_REQUEST_BYTES):  # until the other side closes: before, it may not have it all
            pass

    async def _response_to(self, request: bytes) -> bytes:
        first, _, rest = request.decode("latin-1").partition("\r\n")
        method, _, target = first.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"only GET\n")
        if path != "/metrics":
            return _response("404 Not Found", "text/plain", b"there is only /metrics\n")
        await self._look()
        fields = (line.partition(":") for line in rest.split("\r\n"))
        accept = next((value.strip() for name, _, value in fields if name.strip().lower() == "accept"), "")
        content_type, body = self._told.write(accept)
        return _response("200 OK", content_type, body, only_head=method == "HEAD")

    async def _look(self) -> None:
        """Let the loop that works tell how it is; one question at a time is enough for it."""
        if self._looking is None or self._looking.done():
            looking: Future[None] = Future()
            self._looking = looking

            def begin() -> None:
                task = self._working.create_task(self._told.look())
                task.add_done_callback(lambda _: looking.set_result(None))

            try:
                self._working.call_soon_threadsafe(begin)
            except RuntimeError:  # that loop has ended
                return
        answered = asyncio.shield(asyncio.wrap_future(self._looking))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_WITHIN_S):
                await answered


def _response(status: str, content_type: str, body: bytes, *, only_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if only_head else body)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=MOST_CONNECTIONS)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"metrics cannot be served at {host!r}: {error}", remedy="correct --metrics"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot be served at {host}:{port}: {error.strerror or error}",
            remedy="another process may have the port: give each one of its own by --metrics or CUEBOOK_METRICS",
        ) from error
