"""Reading: an ordered, gap-free feed of stored messages from a sequence on, over a consumer that needs no acks.

The reader keeps its own position. The server pushes under flow control; each message names its place in the delivery, so
a lost one is noticed at the next message or heartbeat and the feed begins again after the last good one. Nothing is ever
skipped and nothing is delivered twice. Source of the mechanics: JetStream ADR-15 (flow control), ADR-17 (ordered consumer).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import nats.errors

from cuebook.events.codec import parse_headers
from cuebook.events.connection import Connection, Listener
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, UnavailableError

__all__ = ["Feed", "OnMessage", "delivery_numbers", "js_request"]

OnMessage = Callable[[str, bytes, int, int, "bytes | None"], None]
"""Called with subject, body, stream sequence, time recorded (microseconds since 1970) and the raw header block."""

HEARTBEAT_S = 2.0
MISSED_HEARTBEATS = 3
INACTIVE_S = 60
RETRY_S = 0.5

logger = logging.getLogger(__name__)


def delivery_numbers(reply: bytes) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, nanoseconds since 1970 and messages pending, from a `$JS.ACK` subject.

    Source: ADR-15; nine tokens, or eleven and more in the form with domain and account that 2.15 sends by default.
    """
    tokens = reply.split(b".")
    base = 5 if len(tokens) == 9 else 7
    return int(tokens[base]), int(tokens[base + 1]), int(tokens[base + 2]), int(tokens[base + 3])


async def js_request(connection: Connection, subject: str, request: dict[str, Any], timeout_s: float = 5.0) -> Any:
    """One JetStream API call. Raises UnavailableError, or ConfigurationError with the server's own words."""
    try:
        answer = await connection.request(f"$JS.API.{subject}", json.dumps(request).encode(), timeout=timeout_s)
    except (nats.errors.Error, asyncio.TimeoutError) as error:
        raise UnavailableError(f"JetStream did not answer {subject}: {error or type(error).__name__}") from error
    content = json.loads(answer.data)
    if failure := content.get("error"):
        message = f"JetStream refused {subject}: {failure.get('description')} (err_code {failure.get('err_code')})"
        if failure.get("code") in (429, 503):
            raise UnavailableError(message)
        raise ConfigurationError(message)
    return content


class Feed:
    """Calls `on_message` for every stored message matching `filters`, in order, from `start` on. Use `async with`.

    `held()` may say that the receiver is full; the server then stops at its flow-control window until `resume()`.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        *,
        filters: Sequence[str],
        start: int,
        on_message: OnMessage,
        held: Callable[[], bool] | None = None,
    ) -> None:
        self._connection, self._stream, self._filters, self._on_message = connection, stream, list(filters), on_message
        self._held = held
        self._next = max(start, 1)
        self._delivered = 0
        self._listener: Listener | None = None
        self._consumer = ""
        self.pending = 0
        """Stored messages that match and have not come yet, as the server last said."""
        self._heard = 0.0
        self._flow_reply = ""
        self._restart = asyncio.Event()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the feed can never go on."""

    async def __aenter__(self) -> Feed:
        await self._open()
        self._connection.on_reconnect.append(self._restart.set)
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._watcher.cancel()
        self._connection.on_reconnect.remove(self._restart.set)
        self.failure.cancel()
        await self._close()

    @property
    def next_sequence(self) -> int:
        """The lowest sequence that may still come."""
        return self._next

    def resume(self) -> None:
        """The receiver has room again."""
        if self._flow_reply:
            self._connection.post(self._flow_reply, b"")
            self._flow_reply = ""

    async def _open(self) -> None:
        inbox = self._connection.new_inbox()
        self._delivered, self._flow_reply, self._heard = 0, "", time.monotonic()
        self._listener = await self._connection.listen(inbox, self._receive)
        config: dict[str, Any] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._next,
            "ack_policy": "none",
            "replay_policy": "instant",
            "deliver_subject": inbox,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "inactive_threshold": INACTIVE_S * 10**9,
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        elif self._filters:
            config["filter_subjects"] = self._filters
        request = {"stream_name": self._stream, "config": config}
        answer = await js_request(self._connection, f"CONSUMER.CREATE.{self._stream}", request)
        self._consumer = answer["name"]
        if not self._delivered:
            self.pending = int(answer.get("num_pending", 0))

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None or self._connection.is_closed:
            return
        await listener.close()
        if self._connection.is_connected and self._consumer:
            self._connection.post(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")

    def _receive(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and headers.startswith(b"NATS/1.0 100"):
            self._on_status(reply, headers)
            return
        sequence, delivered, recorded_ns, pending = delivery_numbers(reply)
        if delivered != self._delivered + 1:
            self._restart.set()
            return
        self._delivered, self._next, self.pending = delivered, sequence + 1, pending
        self._on_message(subject.decode(), payload, sequence, recorded_ns // 1000, headers)

    def _on_status(self, reply: bytes, headers: bytes) -> None:
        self._heard = time.monotonic()
        if reply:  # flow control: the answer lets the server go on
            if self._held is not None and self._held():
                self._flow_reply = reply.decode()
            else:
                self._connection.post(reply.decode(), b"")
            return
        status = parse_headers(headers)
        if int(status.get("nats-last-consumer", "0")) != self._delivered:
            self._restart.set()
        elif (stalled := status.get("nats-consumer-stalled")) and not self._flow_reply:
            self._connection.post(stalled, b"")

    async def _watch(self) -> None:
        silence_s = HEARTBEAT_S * MISSED_HEARTBEATS
        while True:
            try:
                await asyncio.wait_for(self._restart.wait(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                if time.monotonic() - self._heard < silence_s or not self._connection.is_connected:
                    continue
            self._restart.clear()
            await self._reopen()

    async def _reopen(self) -> None:
        await self._close()
        while True:
            try:
                info = await js_request(self._connection, f"STREAM.INFO.{self._stream}", {})
                if info["state"]["last_seq"] < self._next - 1:
                    raise HistoryRegressedError(
                        f"stream {self._stream} ends at {info['state']['last_seq']}, but {self._next - 1} was already read"
                    )
                await self._open()
            except UnavailableError as error:
                logger.warning("feed of %s waits for the server: %s", self._stream, error)
                await self._drop_listener()
                await asyncio.sleep(RETRY_S)
            except (HistoryRegressedError, ConfigurationError) as error:
                if not self.failure.done():
                    self.failure.set_exception(error)
                return
            else:
                return

    async def _drop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
