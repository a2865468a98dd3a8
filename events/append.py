"""Appending: pipelined, acknowledged, each with the sequence its author believes in.

Many appends are under way at once over one inbox; acknowledgements are matched by number and read without a JSON parser.
An append ends in exactly one of: its sequence, ConcurrencyConflictError, CommandRejectedError (the server can never take
it), or UnavailableError after `give_up_s`. When an answer is late the same message is sent again: the expected sequence makes
that safe, and a conflict after a repetition is settled by reading back whether it was our own first attempt that won.

A guarded append carries no `Nats-Msg-Id`: its expected sequence is stronger, and the server's duplicate window would cost
250 bytes an event for two minutes. An unguarded append carries its event id there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable

from cuebook.events.connection import Connection, Listener
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, CuebookError, UnavailableError

__all__ = ["Appender", "Done"]

Done = Callable[[int, CuebookError | None], None]
"""Called once per append: with the stream sequence and None, or with 0 and the error."""

WINDOW = 2_000
"""Appends under way at once. Beyond 10,000 queued messages the server drops (429)."""
RESEND_AFTER_S = 2.0
BACK_OFF_S = 0.2
GIVE_UP_S = 30.0
_CONFLICTS = frozenset({10071, 10164})
_TRANSIENT = frozenset({429, 503})
_SEQUENCE = b'"seq":'


class _Append:
    """One append under way. `sent` counts how often it went out; times are monotonic seconds."""

    __slots__ = ("done", "due", "event_id", "expected", "frame", "give_up", "number", "scope", "sent", "subject")

    def __init__(
        self, number: int, subject: str, frame: bytes, event_id: str, scope: str, expected: int | None, done: Done
    ) -> None:
        self.number, self.subject, self.frame, self.event_id = number, subject, frame, event_id
        self.scope, self.expected, self.done = scope, expected, done
        self.sent = 0
        self.due = self.give_up = 0.0


class Appender:
    """Appends events to one stream over one connection. Use `async with`."""

    def __init__(
        self,
        connection: Connection,
        *,
        stored_ids: Callable[[str, int], Awaitable[list[tuple[int, str]]]],
        window: int = WINDOW,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """`stored_ids(scope, after)` reads back sequence and event id of what a scope holds after a sequence."""
        self._connection, self._stored_ids, self._window, self._give_up_s = connection, stored_ids, window, give_up_s
        self._pending: dict[int, _Append] = {}
        self._waiting: deque[_Append] = deque()
        self._number = 0
        self._settling: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Appender:
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._cut = len(self._inbox)
        self._listener: Listener = await self._connection.listen(f"{inbox}.*", self._on_ack)
        self._connection.on_reconnect.append(self._resend_all)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._sweeper.cancel()
        for task in self._settling:
            task.cancel()
        self._connection.on_reconnect.remove(self._resend_all)
        await self._listener.close()
        for entry in [*self._pending.values(), *self._waiting]:
            entry.done(0, UnavailableError(f"closed before {entry.subject} was acknowledged"))
        self._pending.clear()
        self._waiting.clear()

    @property
    def under_way(self) -> int:
        return len(self._pending) + len(self._waiting)

    async def flushed(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    def post(
        self, subject: str, body: bytes, *, event_id: str, scope: str = "", expected: int | None = None, done: Done
    ) -> None:
        """Append without waiting. With `expected`, only if the last message matching `scope` has that sequence."""
        self._number = number = self._number + 1
        if expected is None:
            header = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % event_id.encode()
        else:
            header = (
                b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n"
                b"Nats-Expected-Last-Subject-Sequence-Subject: %b\r\n\r\n" % (expected, scope.encode())
            )
        frame = b"HPUB %b %b%d %d %d\r\n%b%b\r\n" % (
            subject.encode(), self._inbox, number, len(header), len(header) + len(body), header, body,
        )  # fmt: skip
        entry = _Append(number, subject, frame, event_id, scope, expected, done)
        if len(self._pending) >= self._window:
            self._waiting.append(entry)
        else:
            self._send(entry)

    async def append(
        self, subject: str, body: bytes, *, event_id: str, scope: str = "", expected: int | None = None
    ) -> int:
        """Append and wait for the sequence. Raises as described in the module's docstring."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(sequence: int, error: CuebookError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(sequence)
            else:
                future.set_exception(error)

        self.post(subject, body, event_id=event_id, scope=scope, expected=expected, done=done)
        return await future

    def _send(self, entry: _Append) -> None:
        now = time.monotonic()
        if entry.sent == 0:
            entry.give_up = now + self._give_up_s
        entry.sent += 1
        entry.due = now + RESEND_AFTER_S
        self._pending[entry.number] = entry
        self._idle.clear()
        self._connection.write(entry.frame)

    def _on_ack(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        entry = self._pending.get(int(subject[self._cut :]))
        if entry is None:
            return  # the answer to an earlier sending of what is settled by now
        start = payload.find(_SEQUENCE)
        if payload[:8] == b'{"error"' or start < 0:
            self._on_refusal(entry, payload)
            return
        start += 6
        end = payload.find(b",", start)
        self._finish(entry, int(payload[start : end if end > 0 else payload.find(b"}", start)]), None)

    def _on_refusal(self, entry: _Append, payload: bytes) -> None:
        error = json.loads(payload)["error"] if payload else {"code": 503, "description": "no responders"}
        if error.get("err_code") in _CONFLICTS and entry.expected is not None:
            if entry.sent > 1:
                self._settle(entry)
            else:
                self._finish(entry, 0, ConcurrencyConflictError(entry.scope, entry.expected))
        elif error.get("code") in _TRANSIENT:
            entry.due = time.monotonic() + BACK_OFF_S * min(entry.sent, 10)
        else:
            description = f"{error.get('description')} (err_code {error.get('err_code')})"
            self._finish(entry, 0, CommandRejectedError(f"the server refused {entry.subject}: {description}"))

    def _finish(self, entry: _Append, sequence: int, error: CuebookError | None) -> None:
        if self._pending.pop(entry.number, None) is None:
            return
        if self._waiting:
            self._send(self._waiting.popleft())
        elif not self._pending:
            self._idle.set()
        entry.done(sequence, error)

    def _settle(self, entry: _Append) -> None:
        """After a repetition a conflict may be our own first attempt: look which event is stored."""
        entry.due = time.monotonic() + self._give_up_s
        task = asyncio.get_running_loop().create_task(self._settle_by_reading(entry))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle_by_reading(self, entry: _Append) -> None:
        assert entry.expected is not None
        try:
            stored = await self._stored_ids(entry.scope, entry.expected)
        except UnavailableError:
            entry.due = time.monotonic() + BACK_OFF_S
            return
        for sequence, event_id in stored:
            if event_id == entry.event_id:
                self._finish(entry, sequence, None)
                return
        self._finish(entry, 0, ConcurrencyConflictError(entry.scope, entry.expected))

    def _resend_all(self) -> None:
        for entry in list(self._pending.values()):
            self._send(entry)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(BACK_OFF_S)
            now = time.monotonic()
            for entry in list(self._pending.values()):
                if entry.give_up <= now:
                    reason = f"no answer for {entry.subject} in {self._give_up_s:g} s; whether it was stored is unknown"
                    self._finish(entry, 0, UnavailableError(reason))
                elif entry.due <= now and self._connection.is_connected:
                    self._send(entry)
