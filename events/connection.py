"""The one module that reaches into nats-py: a client whose hot subscriptions skip queues, tasks and header parsing.

nats-py hands each message to a queue, a task and a `Msg`; that is most of the cost of a small message. `listen` calls
a plain function straight from the parser instead, with raw bytes. Measured with `just bench`; pinned to nats-py 2.16
and held by `tests/events/test_connection.py`, which fails if the client's inner shape moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
from collections.abc import Callable, Iterator
from typing import Any, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from cuebook.events.errors import (
    AccessDeniedError,
    ConfigurationError,
    CuebookError,
    InvalidTokenError,
    PoisonMessageError,
    UnavailableError,
)
from cuebook.events.parser import BlockParser

__all__ = ["Connection", "Listener", "MessageCallback", "connect", "ended", "json_object"]

MessageCallback = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with subject, reply, payload and raw header block (or None). Must not block; what it raises is logged."""

PING_INTERVAL_S = 10
MAX_OUTSTANDING_PINGS = 2
"""A dead link is noticed after PING_INTERVAL_S times one more than this. Source: nats-py, `_ping_interval`."""
RECONNECT_WAIT_S = 0.25
CONNECT_TIMEOUT_S = 5
ABANDON_S = 1.0
"""What closing takes at most that never was open: after a TLS handshake that failed nats-py would wait for ever."""

_REFUSED = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
"""Source: nats-server's `-ERR`, which nats-py gives in lower case."""

logger = logging.getLogger(__name__)


class Listener:
    """A subscription whose messages go straight to a function. `await close()` ends it."""

    def __init__(self, connection: Connection, subscription: Subscription, sid: int) -> None:
        self._connection, self._subscription, self._sid = connection, subscription, sid

    async def close(self) -> None:
        """End the subscription: the function is not called again. May be called twice, and after the connection."""
        await self._connection._unlisten(self._subscription, self._sid)  # noqa: SLF001 - its other half


class Connection(Client):
    """A nats-py client with `listen` and `write` for the hot path, and several callbacks on reconnect.

    `closed` is set when the connection has ended for good: by `close()`, or because the server refused us later on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = self._blocks = BlockParser(self, self._deliver)
        self._direct: dict[int, MessageCallback] = {}
        self._socket: _Socket | None = None
        self.on_reconnect: list[Callable[[], None]] = []
        self.shared: dict[object, Any] = {}
        """What those who use the connection know together, by keys of their own."""
        self.closed = asyncio.Event()
        self._refused: set[str] = set()

    def is_refused(self, subject: str) -> bool:
        """Whether the server has said on this connection that we may not publish there; it answers nobody who tries."""
        return subject.lower() in self._refused

    @property
    def has_jetstream(self) -> bool:
        """Whether the connected server says that it has JetStream."""
        return bool(self._server_info.get("jetstream"))

    @property
    def server_info(self) -> dict[str, Any]:
        """What the server has said about itself: name, cluster, version, limits. Source: NATS protocol, INFO."""
        return dict(self._server_info)

    async def listen(self, subject: str, callback: MessageCallback, *, queue: str = "") -> Listener:
        """Subscribe and call `callback` for each message, in order, on the event loop; also after a reconnect.

        Raises UnavailableError when the connection is closed.
        """
        sid = self._sid + 1  # the one that `subscribe` takes before it waits for anything
        self._direct[sid] = callback
        try:
            subscription = await self.subscribe(subject, queue=queue, cb=_never)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            del self._direct[sid]
            raise UnavailableError(f"the connection to NATS is closed: {subject} cannot be heard") from error
        except BaseException:
            del self._direct[sid]
            raise
        return Listener(self, subscription, sid)

    def write(self, frame: bytes) -> None:
        """Queue one or more complete protocol frames; they go out in one write with all others of this turn.

        While disconnected the frame is dropped: callers keep what must not be lost and send it again on reconnect.
        A frame must hold no more than `max_payload` bytes of headers and payload: the server closes the connection
        of who sends more, and nats-py does not come back from that.
        """
        if not self.is_connected:
            return
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if self._socket is not None:
            self._socket.send_soon()
        elif self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def pending_data_size(self) -> int:
        """Bytes that have not been given to the operating system yet."""
        return self._pending_data_size + (self._socket.unsent if self._socket is not None else 0)

    def post(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Core publish without waiting; at most once.

        Raises InvalidTokenError for a subject that cannot stand in a protocol line, PoisonMessageError for a payload
        that is larger than the server takes.
        """
        line = f"{subject} {reply}"
        if not line.isprintable() or line.count(" ") != 1 or not subject:
            raise InvalidTokenError(f"{subject!r} with reply {reply!r} cannot be published to")
        if len(payload) > self._max_payload:
            raise PoisonMessageError(f"{len(payload)} bytes for {subject}: the server takes {self._max_payload}")
        self.write(b"PUB %b %d\r\n%b\r\n" % (line.encode(), len(payload), payload))

    def _deliver(self, sid: bytes, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> bool:
        callback = self._direct.get(int(sid))
        if callback is None:
            return False
        try:
            callback(subject, reply, payload, headers)
        except Exception:  # the read loop must outlive any callback, and a person must see it
            logger.exception("a message callback raised", extra={"subject": subject.decode("utf-8", "replace")})
        return True

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if not self._deliver(b"%d" % sid, subject, reply, data, headers):
            await super()._process_msg(sid, subject, reply, data, headers)

    def _take_pending(self) -> bytes:
        pending, self._pending, self._pending_data_size = self._pending, [], 0
        return pending[0] if len(pending) == 1 else b"".join(pending)

    async def _read_loop(self) -> None:
        # In place of nats-py's: between the socket and the parser it has a buffer, a future and a task to wake.
        transport = self._transport
        if not isinstance(transport, TcpTransport):
            await super()._read_loop()
            return
        self._socket = socket = _Socket(self, transport)
        try:
            error = await socket.ended
        except asyncio.CancelledError:
            return  # as nats-py's does: whoever cancelled it closes the transport
        finally:
            socket.leave()
            if self._socket is socket:
                self._socket = None
        if isinstance(error, nats.errors.UnexpectedEOF):
            await self._error_cb(error)
        await self._process_op_err(error)

    # nats-py swallows a cancellation that comes while it flushes, and so does `asyncio.wait_for` of Python 3.11 when
    # the answer comes at the same moment. A loop around such a call could never be ended.

    async def request(self, *args: Any, **options: Any) -> Msg:
        """See nats-py; a cancellation is never lost."""
        with _cancellation_kept():
            return await super().request(*args, **options)

    async def flush(self, *args: Any, **options: Any) -> None:
        """See nats-py; a cancellation is never lost."""
        with _cancellation_kept():
            await super().flush(*args, **options)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        with _cancellation_kept():
            return await super()._flush_pending(force_flush)

    async def _connect_to_server(self, s: Any) -> None:
        # nats-py would leave open the line of an attempt that failed after the server had answered the phone.
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        try:
            with _cancellation_kept():
                await super()._connect_to_server(s)
        except asyncio.CancelledError:
            if self._transport:
                self._transport.close()  # type: ignore[no-untyped-call]
            raise

    async def _process_connect_init(self) -> None:
        with _cancellation_kept():
            await super()._process_connect_init()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Called before our credentials are sent. nats-py takes "tls://" for a wish; a server that offers none got them.
        server = self._current_server
        if initial_connection and server is not None and server.uri.scheme == "tls" and not info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # With anything left to write on a line that is broken, nats-py raises half way and `closed` is never set.
        pending, self._pending, self._pending_data_size = self._pending, [], 0
        if pending and self.is_connected and self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.writelines(pending)
                await self._transport.drain()  # type: ignore[no-untyped-call]
        await super()._close(status, do_cbs)
        reconnecting = self._reconnection_task
        if reconnecting is not None and reconnecting is not asyncio.current_task():
            await ended(reconnecting)  # nats-py waits for a moment only, and it may have got through meanwhile
            for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
                if task is not None and task is not asyncio.current_task():
                    task.cancel()
            self._status = status
            if self._transport:
                self._transport.close()  # type: ignore[no-untyped-call]

    async def _unlisten(self, subscription: Subscription, sid: int) -> None:
        if sid not in self._direct:
            return
        self._direct[sid] = _ignore  # messages that are on their way
        try:
            await subscription.unsubscribe()
        except nats.errors.Error:
            logger.debug("unsubscribed from a connection that is closed or draining")  # which ends it as well
        finally:
            self._direct.pop(sid, None)


class _Socket(asyncio.Protocol):
    """Takes over the socket from the stream that nats-py opened: received bytes go straight to the parser.

    What is written is written at the end of the turn, or of the block whose messages caused it.
    """

    def __init__(self, connection: Connection, transport: TcpTransport) -> None:
        reader, writer = transport._io_reader, transport._io_writer  # noqa: SLF001 - there is no other way to them
        assert reader is not None, "nats-py reads only once it is connected"
        assert writer is not None, "as above"
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._connection, self._parser = connection, connection._blocks  # noqa: SLF001 - its other half
        self._transport = cast(asyncio.Transport, writer.transport)
        self._stream: Any = self._transport.get_protocol()
        self._waiting: list[bytes] | None = None
        """What has come while nats-py's parser is at work."""
        self._sends_soon = self._held = False
        self._transport.set_protocol(self)
        if early := bytes(reader._buffer):  # type: ignore[attr-defined]  # noqa: SLF001
            self.data_received(early)
        if reader.at_eof():
            self._end(nats.errors.UnexpectedEOF())
        self._transport.resume_reading()

    @property
    def unsent(self) -> int:
        return int(self._transport.get_write_buffer_size())

    def send_soon(self) -> None:
        if not self._sends_soon:
            self._sends_soon = True
            self._loop.call_soon(self._send)

    def leave(self) -> None:
        """Nothing more is taken or sent."""
        self._end(nats.errors.ConnectionClosedError())

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        if self._waiting is not None:
            self._waiting.append(data)
            return
        self._sends_soon = True  # at the end of the block
        try:
            if not self._parser.take(data):
                self._waiting = []
                self._parsing = self._loop.create_task(self._parse())
        except Exception as error:  # noqa: BLE001 - of any kind: without its messages the connection is of no use
            self._end(error)
        self._send()

    def eof_received(self) -> bool | None:
        self._end(nats.errors.UnexpectedEOF())
        half_open = self._stream.eof_received()
        return bool(half_open) and self._transport.get_extra_info("ssl_object") is None  # TLS ends both ways at once

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or nats.errors.UnexpectedEOF())
        self._stream.connection_lost(error)

    def pause_writing(self) -> None:
        self._held = True
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._held = False
        self._stream.resume_writing()
        self.send_soon()

    def _send(self) -> None:
        self._sends_soon = False
        connection = self._connection
        if connection._pending_data_size and not self._held and not self.ended.done():  # noqa: SLF001 - its other half
            self._transport.write(connection._take_pending())  # noqa: SLF001

    async def _parse(self) -> None:
        """PING, INFO, an error, a message of a subscription of nats-py's own: its parser waits for things."""
        try:
            await self._parser.parse()
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                await self._parser.parse(data)
        except Exception as error:  # noqa: BLE001 - as above
            self._end(error)
        self._waiting = None

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_result(error)


async def connect(url: str, *, name: str, retry: bool = True, **options: Any) -> Connection:
    """Connect to NATS; with `retry`, a lost connection is re-established for ever, but the first one is not.

    `url` may name several servers, with commas; `options` go to nats-py, except those about reconnecting. Raises
    UnavailableError when no server answers, ConfigurationError when it refuses us or the URL is none.
    """
    connection = Connection()
    shown, servers = _without_password(url), url.split(",")

    async def failed(error: Exception) -> None:
        # While disconnected every attempt fails in the same way, and `disconnected` has said so already.
        level = logging.WARNING if connection.is_connected else logging.DEBUG
        if told := _REFUSED.search(_text(error)):
            connection._refused.add(told[1].lower())  # noqa: SLF001 - its other half
        logger.log(level, "nats reported an error", extra={"client": name, "error": _text(error)})

    async def disconnected() -> None:
        if not connection.is_closed:
            logger.warning("lost the connection to nats", extra={"client": name})

    async def reconnected() -> None:
        logger.info("reconnected to nats", extra={"client": name})
        connection._refused.clear()  # noqa: SLF001 - its other half
        for callback in list(connection.on_reconnect):
            try:
                callback()
            except Exception:  # the others must hear of it too, and nats-py would end its own task
                logger.exception("a reconnect callback raised", extra={"client": name})

    async def closed() -> None:
        connection.closed.set()

    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "ping_interval": PING_INTERVAL_S,
        "max_outstanding_pings": MAX_OUTSTANDING_PINGS,
        **options,
    }
    try:
        async with asyncio.timeout(settings["connect_timeout"] * len(servers) + 1):
            await connection.connect(
                servers,
                name=name,
                error_cb=failed,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                closed_cb=closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                **settings,
            )
    except (nats.errors.Error, OSError, ValueError) as error:
        tried = await _abandon(connection)
        raise _refusal(shown, error, tried=tried) from error
    except BaseException:
        await _abandon(connection)
        raise
    # nats-py would apply these to the very first attempt as well, and never say that there is no server.
    connection.options.update(allow_reconnect=retry, max_reconnect_attempts=-1, reconnect_time_wait=RECONNECT_WAIT_S)
    return connection


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever they raise."""
    running = {task for task in tasks if not task.done()}
    while running:  # again, because nats-py swallows a cancellation while it flushes
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=1)


def json_object(payload: bytes) -> dict[str, Any]:
    """What a message beside the log says; empty where it is no JSON object, since anybody may publish there."""
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


@contextlib.contextmanager
def _cancellation_kept() -> Iterator[None]:
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


def _refusal(url: str, error: Exception, *, tried: bool) -> CuebookError:
    text = _text(error)
    if not tried:
        return ConfigurationError(f"{url!r} is no URL of a NATS server: {text}", remedy="write nats://host:port")
    if "authorization" in text.lower() or "authentication" in text.lower():  # nats-py gives no code and one type
        return AccessDeniedError(f"{url} refused us: {text}", remedy="check the credentials in the URL")
    if isinstance(error, ssl.SSLError | nats.errors.SecureConnWantedError):
        return ConfigurationError(f"no TLS with {url}: {text}", remedy="check the certificates on both sides")
    return UnavailableError(
        f"no NATS server answers at {url}: {text}", remedy="start one with 'cuebook dev', or set CUEBOOK_NATS_URL"
    )


async def _abandon(connection: Connection) -> bool:
    """Close what could not be opened. Returns False when nats-py had not got as far as trying a server."""
    if connection._flush_queue is None:  # noqa: SLF001 - there is no other way to know
        return False
    closing = asyncio.ensure_future(connection.close())
    await asyncio.wait([closing], timeout=ABANDON_S)
    await ended(closing)
    return True


def _without_password(url: str) -> str:
    return ",".join(re.sub(r"^(\w+://|).*@", r"\1", server) for server in url.split(","))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _ignore(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
    pass


async def _never(message: Msg) -> None:
    raise AssertionError(f"{message.subject} of a direct subscription was dispatched through the queue")
