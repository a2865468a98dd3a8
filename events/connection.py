"""The one module that reaches into nats-py: a client whose hot subscriptions skip queues, tasks and header parsing.

nats-py hands each message to a queue, a task and a `Msg`; that is most of the cost of a small message. `listen` calls a plain
function straight from the parser instead, with raw bytes. Measured with `just bench`; pinned to nats-py 2.16 and held by
`tests/events/test_connection.py`, which fails if the client's inner shape moves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from cuebook.events.errors import ConfigurationError, UnavailableError

__all__ = ["Connection", "Listener", "MessageCallback", "connect"]

MessageCallback = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with subject, reply, payload and raw header block (or None). Must not block; what it raises is logged."""

PING_INTERVAL_S = 10
RECONNECT_WAIT_S = 0.25
CONNECT_TIMEOUT_S = 5

logger = logging.getLogger(__name__)


class Listener:
    """A subscription whose messages go straight to a function. `await close()` ends it."""

    def __init__(self, connection: Connection, subscription: Subscription) -> None:
        self._connection, self._subscription = connection, subscription

    async def close(self) -> None:
        self._connection._direct.pop(self._subscription._id, None)
        if not self._connection.is_closed:
            await self._subscription.unsubscribe()


class Connection(Client):
    """A nats-py client with `listen` and `write` for the hot path, and several callbacks on reconnect."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, MessageCallback] = {}
        self.on_reconnect: list[Callable[[], None]] = []
        self.closed = asyncio.Event()

    async def listen(self, subject: str, callback: MessageCallback, *, queue: str = "") -> Listener:
        """Subscribe and call `callback` for each message, in order, on the event loop."""
        subscription = await self.subscribe(subject, queue=queue, cb=_never)
        self._direct[subscription._id] = callback
        return Listener(self, subscription)

    def write(self, frame: bytes) -> None:
        """Queue one or more complete protocol frames; they go out in one write with all others of this turn.

        While disconnected the frame is dropped: callers keep what must not be lost and send it again on reconnect.
        """
        if not self.is_connected:
            return
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    def post(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Core publish without waiting; at most once."""
        self.write(f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n")

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        callback = self._direct.get(sid)
        if callback is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            callback(subject, reply, data, headers)
        except Exception:  # the read loop must outlive any callback, and a person must see it
            logger.exception("a message callback raised", extra={"subject": subject.decode("utf-8", "replace")})


async def _never(message: Msg) -> None:
    raise AssertionError("a direct subscription was dispatched through the queue")


async def connect(url: str, *, name: str, retry: bool = True, **options: Any) -> Connection:
    """Connect to NATS; with `retry`, a lost connection is re-established for ever.

    Raises UnavailableError when no server answers at `url`, ConfigurationError when it refuses us.
    """
    connection = Connection()

    async def failed(error: Exception) -> None:
        logger.warning("nats connection: %s", error or type(error).__name__, extra={"client": name})

    async def reconnected() -> None:
        logger.info("reconnected to nats", extra={"client": name})
        for callback in list(connection.on_reconnect):
            callback()

    async def closed() -> None:
        connection.closed.set()

    async def quiet(error: Exception) -> None:
        pass

    try:
        # nats-py retries the very first connection for ever when told to reconnect for ever, so look once first.
        probe = Client()
        await asyncio.wait_for(
            probe.connect(url, allow_reconnect=False, connect_timeout=CONNECT_TIMEOUT_S, error_cb=quiet, **options),
            CONNECT_TIMEOUT_S + 1,
        )
        await probe.close()
        await connection.connect(
            url,
            name=name,
            error_cb=failed,
            reconnected_cb=reconnected,
            closed_cb=closed,
            allow_reconnect=retry,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            **options,
        )
    except (nats.errors.AuthorizationError, nats.errors.Error) as error:
        if "uthorization" in str(error):
            raise ConfigurationError(f"{url} refused us: {error}", remedy="check the credentials in the URL") from error
        raise _unreachable(url) from error
    except (OSError, asyncio.TimeoutError) as error:
        raise _unreachable(url) from error
    return connection


def _unreachable(url: str) -> UnavailableError:
    return UnavailableError(
        f"no NATS server answers at {url}", remedy="start one with 'cuebook dev', or set CUEBOOK_NATS_URL"
    )
