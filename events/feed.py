"""Reading: an ordered, gap-free feed of stored messages from a sequence on.

The reader keeps its own position. Each message names its place in the delivery, so a lost one is noticed at the next
message or heartbeat, and the feed begins again after the last good one. It asks for that one too and compares: a server
that came back with another history, even a longer one, ends the feed. Nothing is ever skipped, nothing delivered twice.

Source of the mechanics: JetStream ADR-15 (subjects, flow control), ADR-17 (ordered consumer).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from cuebook.events.codec import parse_headers
from cuebook.events.connection import Connection, Listener, ended
from cuebook.events.errors import CuebookError, HistoryRegressedError, StreamMissingError, UnavailableError
from cuebook.events.jetstream import NO_STREAM, js_request
from cuebook.events.lookup import end_of

__all__ = ["Feed", "OnMessage", "delivery_numbers", "js_request"]

OnMessage = Callable[[str, bytes, int, int, bytes | None], None]
"""Called with subject, body, stream sequence, time recorded (microseconds since 1970) and the raw header block."""

HEARTBEAT_S = 2.0
MISSED_HEARTBEATS = 3
INACTIVE_S = 60
"""The server forgets a consumer that nobody has listened to for so long."""
RETRY_S = 0.5
ANSWER_WITHIN_S = 2.0
"""A request that a dying server took with it is given up after this; nothing else is waiting for it."""
UNACKED = 1_000
"""Messages the server sends ahead of a receiver that may be held."""
ACK_WAIT_S = 24 * 3600
_STORED = b"$JS.ACK."
_NOBODY = -1

logger = logging.getLogger(__name__)


def delivery_numbers(reply: bytes) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, nanoseconds since 1970 and messages pending, from a `$JS.ACK` subject.

    Source: ADR-15; nine tokens, or eleven and more in the form with domain and account that 2.15 sends by default.
    """
    tokens = reply.split(b".")
    base = 5 if len(tokens) == 9 else 7
    return int(tokens[base]), int(tokens[base + 1]), int(tokens[base + 2]), int(tokens[base + 3])


class Feed:
    """Calls `on_message` for every stored message matching `filters`, in order, from `start` on. Use `async with`.

    What `on_message` raises ends the feed: to go on would be to skip. Without `held` the server sends as fast as the
    connection takes it. With `held`, which says that the receiver is full, it sends at most `UNACKED` messages more,
    until `resume()`.

    Entering raises UnavailableError, ConfigurationError, StreamMissingError, and HistoryRegressedError when `start` is
    beyond the next sequence of the stream.
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
        on_open: Callable[[], None] | None = None,
        exact: bool = False,
        marker: str = "",
        successor: Callable[[int], Awaitable[str | None]] | None = None,
    ) -> None:
        """`start`: the first sequence wanted, from 1. `on_open` is called whenever delivery has begun (again).

        `exact`: times are nanoseconds, and what is not UTF-8 in a subject is there as surrogates instead of replaced.
        `marker`: the subject after which the log may go on in another stream, which `successor` names; see `Chain`.
        """
        self._connection, self._stream, self._filters, self._on_message = connection, stream, list(filters), on_message
        self._marker, self._successor, self._marked = marker.encode(), successor, 0
        self._shows_marker = not marker or any(_matches(one, marker) for one in filters)
        if not self._shows_marker:
            self._filters.append(marker)
        self._held, self._on_open = held, on_open
        self._time_unit_ns, self._undecodable = (1, "surrogateescape") if exact else (1000, "replace")
        self._next = max(start, 1)
        self._last: tuple[int, int] | None = None  # sequence and nanoseconds since 1970 of the last message taken
        self._delivered = 0
        self._listener: Listener | None = None
        self._consumer = ""
        self.opened = 0
        """How often delivery has begun; more than 1 after a loss or a reconnect."""
        self.pending = 0
        """Stored messages that match and have not come yet, as the server last said; another replica may have more."""
        self.replicated = False
        self._heard = 0.0
        self._acknowledged = 0
        self._owed = b""
        self._restart = asyncio.Event()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the feed can never go on; cancelled when it is left."""

    async def __aenter__(self) -> Self:
        await self._open()
        self._connection.on_reconnect.append(self._restart.set)
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._connection.on_reconnect.remove(self._restart.set)
        await ended(self._watcher)
        if not self.failure.cancel() and not self.failure.cancelled():
            self.failure.exception()  # somebody may not have looked; asyncio would complain about that
        await self._close()

    @property
    def next_sequence(self) -> int:
        """The lowest sequence that may still come."""
        return self._next

    @property
    def stream(self) -> str:
        """The one that is read."""
        return self._stream

    @property
    def last(self) -> tuple[int, int] | None:
        """Sequence and nanoseconds since 1970 of the last message that came."""
        return self._last

    def stands_at_marker(self) -> None:
        """All up to a marker was read elsewhere: the log may go on in another stream."""
        self._marked = self._next - 1
        self._restart.set()

    def resume(self) -> None:
        """The receiver has room again. May be called at any time."""
        if self._owed:
            self._acknowledge(self._owed)

    # --- opening and closing ---

    async def _open(self) -> None:
        self._delivered = self._acknowledged = 0
        self._owed, self._heard = b"", time.monotonic()
        inbox = self._connection.new_inbox()
        self._listener = await self._connection.listen(inbox, self._receive)
        try:
            await self._create_consumer(inbox)
        except BaseException:
            await self._close()
            raise
        self.opened += 1
        if self._on_open is not None:
            self._on_open()

    async def _create_consumer(self, inbox: str) -> None:
        already_read = self._next - 1
        start = self._last[0] if self._last else self._next
        request = {"stream_name": self._stream, "config": self._config(inbox, start)}
        answer = await self._ask("CONSUMER.CREATE", request)
        self._consumer = answer["name"]
        # Asked for more than it holds, the server just waits; and would skip what comes until then.
        end = await end_of(lambda: self._ask("STREAM.INFO", {}), reached=already_read)
        if end.last < already_read:
            raise self._regressed(f"ends at {end.last}", already_read)
        self.replicated = end.replicated
        if not self._delivered:
            self.pending = int(answer.get("num_pending", 0))

    async def _ask(self, what: str, request: dict[str, Any]) -> Any:
        subject = f"{what}.{self._stream}"
        answer = await js_request(self._connection, subject, request, ANSWER_WITHIN_S, none_for={NO_STREAM})
        if answer is None:
            raise StreamMissingError(f"there is no stream {self._stream} any more", remedy="restore it from its backup")
        return answer

    def _config(self, inbox: str, start: int) -> dict[str, Any]:
        config: dict[str, Any] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "replay_policy": "instant",
            "deliver_subject": inbox,
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "inactive_threshold": INACTIVE_S * 10**9,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self._held is None:
            config |= {"ack_policy": "none", "flow_control": True, "max_deliver": 1}
        else:  # flow control counts bytes, up to 32 MB; this counts messages, and nothing is ever redelivered
            config |= {"ack_policy": "all", "max_ack_pending": UNACKED, "ack_wait": ACK_WAIT_S * 10**9}
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        elif self._filters:
            config["filter_subjects"] = self._filters
        return config

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        consumer, self._consumer = self._consumer, ""
        self._delivered = _NOBODY  # what is still on its way is not ours any more
        if listener is not None:
            await listener.close()
        if consumer and self._connection.is_connected:
            self._connection.post(f"$JS.API.CONSUMER.DELETE.{self._stream}.{consumer}", b"")

    # --- receiving ---

    def _receive(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if not reply.startswith(_STORED):  # by the reply, which the server writes: an author may send any header
            self._on_status(reply, headers)
            return
        sequence, delivered, recorded_ns, pending = delivery_numbers(reply)
        if delivered != self._delivered + 1:
            self._restart.set()
            return
        self._delivered, self.pending = delivered, pending
        if sequence < self._next:
            self._compare(sequence, recorded_ns)
            return
        if delivered == 1 and self._last is not None:
            self._fail(self._regressed(f"begins again at {sequence}", self._next - 1))
            return
        self._next, self._last = sequence + 1, (sequence, recorded_ns)
        if subject == self._marker:
            self._marked = sequence
            self._restart.set()
            if not self._shows_marker:
                if not pending and self._on_open is not None:
                    self._on_open()
                return
        if self._held is not None and delivered - self._acknowledged >= UNACKED // 4:
            self._owed = reply
            if not self._held():
                self._acknowledge(reply)
        try:
            name, recorded_at = subject.decode("utf-8", self._undecodable), recorded_ns // self._time_unit_ns
            self._on_message(name, payload, sequence, recorded_at, headers)
        except Exception as error:  # noqa: BLE001 - of any kind: it is handed on
            self._fail(error)

    def _compare(self, sequence: int, recorded_ns: int) -> None:
        """The message before the next one has come again, as we asked: is it the same?"""
        if self._last == (sequence, recorded_ns):
            if self._on_open is not None:
                self._on_open()  # `pending` has changed
        elif self._delivered == 1 and self._last is not None and self._last[0] == sequence:
            self._fail(self._regressed(f"now holds another message at {sequence}", sequence))
        else:
            self._delivered = _NOBODY
            self._restart.set()  # no message of ours; opening again will tell

    def _acknowledge(self, reply: bytes) -> None:
        self._owed, self._acknowledged = b"", self._delivered
        self._connection.post(reply.decode(), b"+ACK")

    def _on_status(self, reply: bytes, headers: bytes | None) -> None:
        self._heard = time.monotonic()
        if reply:  # flow control: the answer lets the server go on
            self._connection.post(reply.decode(), b"")
            return
        status = parse_headers(headers)
        if int(status.get("nats-last-consumer", "0")) != self._delivered:
            self._restart.set()
        elif stalled := status.get("nats-consumer-stalled"):  # our answer was lost
            self._connection.post(stalled, b"")

    # --- watching ---

    async def _watch(self) -> None:
        try:
            while not self.failure.done():
                await self._wait_for_trouble()
                if not self._marked or self._successor is None:
                    await self._reopen()
                    continue
                marked = self._marked
                self._restart.clear()
                if following := await self._successor(marked):
                    await self._reopen(following)
                elif self._marked == marked:
                    self._marked, self._heard = 0, time.monotonic()  # nothing was rolled: it just says so
                else:
                    self._restart.set()
        except CuebookError as error:
            self._fail(error)
        except Exception as error:  # a mistake of ours must not look like a quiet log
            logger.exception("a feed ended", extra={"stream": self._stream})
            self._fail(error)

    async def _wait_for_trouble(self) -> None:
        delivered = self._delivered
        while not self._restart.is_set():
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._restart.wait()
            except TimeoutError:
                now = time.monotonic()
                if delivered != self._delivered:  # heartbeats come only when nothing else does
                    delivered, self._heard = self._delivered, now
                if self._connection.is_closed:
                    raise UnavailableError(f"the connection of the feed of {self._stream} was closed") from None
                if self._connection.is_connected and now - self._heard > HEARTBEAT_S * MISSED_HEARTBEATS:
                    return

    async def _reopen(self, following: str = "") -> None:
        await self._close()
        if following:
            self._stream, self._marked = following, 0
        self._restart.clear()
        level = logging.WARNING
        while not self.failure.done():
            try:
                await self._open()
            except UnavailableError as error:
                if self._connection.is_closed:
                    raise
                logger.log(level, "a feed waits for the server", extra={"stream": self._stream, "error": str(error)})
                level = logging.DEBUG  # once is enough
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _regressed(self, what: str, already_read: int) -> HistoryRegressedError:
        return HistoryRegressedError(f"stream {self._stream} {what}, but {already_read} was already read")

    def _fail(self, error: Exception) -> None:
        self._delivered = _NOBODY
        if not self.failure.done():
            self.failure.set_exception(error)
        self._restart.set()


def _matches(pattern: str, subject: str) -> bool:
    """Whether a subject filter takes in a subject."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for place, part in enumerate(wanted):
        if part == ">":
            return len(tokens) > place
        if place >= len(tokens) or part not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)
