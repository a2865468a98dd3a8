"""Appending: pipelined, acknowledged, each with the sequence its author believes in.

Many appends are under way at once over one inbox; acknowledgements are matched by number and read without a JSON
parser. An append ends in exactly one of: its sequence, ConcurrencyConflictError, CommandRejectedError (the server can
never take it), or UnavailableError (the outcome is unknown). When an answer is overdue the same message is sent again:
the expected sequence makes that safe, and a conflict after a repetition is settled by reading back whether it was our
own first attempt that won.

Of a replicated stream the leader may be the last to have what an author has read already: consumers deliver from
their own replica. Such a refusal looks like a conflict and is none: it is settled in the same way and sent again.

An append guarded within its own scope carries no `Nats-Msg-Id`: its expected sequence is stronger, and the server's
duplicate window would cost 250 bytes an event for two minutes. All others carry their event id there.

Source of the codes: nats-server `errors.json`; of the order of answers: one stream takes messages one after another;
of what a leader refuses: `checkMsgHeadersPreClusteredProposal` in nats-server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self

from cuebook.events.connection import Connection, Listener, ended
from cuebook.events.errors import (
    CommandRejectedError,
    ConcurrencyConflictError,
    CuebookError,
    InvalidTokenError,
    PoisonMessageError,
    UnavailableError,
)
from cuebook.events.jetstream import CONFLICTS, FULL, IN_THE_AIR, NO_ROOM, WRONG_SEQUENCE, passes

__all__ = ["Appender", "Done", "LogShape"]

Done = Callable[[int, CuebookError | None], None]
"""Called once per append: with the stream sequence and None, or with 0 and the error. What it raises is logged."""

WINDOW = 512
"""Appends under way at once. The server works off what is queued and only then sends its answers, so that with an fsync
for each message a larger window means seconds of silence and no more throughput. Beyond 10,000, of all clients, it
drops (429). Source: measurement on 2.15.1."""
WINDOW_BYTES = 16 * 1024 * 1024
"""The same in bytes; the server's queue takes 128 MB. One append is always under way, whatever its size."""
RESEND_AFTER_S = 2.0
"""Doubled with every repetition, but for the oldest: in a silence that one asks whether the log answers again."""
BACK_OFF_S = 0.2
GIVE_UP_S = 30.0
_SEQUENCE = b'"seq":'
_is_subject = re.compile(r"[a-z0-9_.-]{1,512}").fullmatch
_is_scope = re.compile(r"[a-z0-9_.*>-]{1,512}").fullmatch
_is_event_id = re.compile(r"[!-~]{1,128}").fullmatch

logger = logging.getLogger(__name__)


class _Append:
    """One append under way. Times are monotonic seconds.

    `sent` counts its sendings; `began` and `turn` are the first's and the last's place in the order of all.
    """

    __slots__ = (
        "began", "done", "due", "event_id", "expected", "frame", "full", "give_up", "number", "posted", "refusal",
        "scope", "sent", "settling", "subject", "turn",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        subject: str,
        frame: bytes,
        event_id: str,
        scope: str,
        expected: int | None,
        done: Done,
        posted: float,
        give_up: float,
    ) -> None:
        self.number, self.subject, self.frame, self.event_id, self.posted = number, subject, frame, event_id, posted
        self.scope, self.expected, self.done, self.give_up = scope, expected, done, give_up
        self.sent = self.began = self.turn = 0
        self.due = 0.0
        self.settling = self.full = False
        self.refusal = ""


class LogShape(Protocol):
    """What an author has to know of a log that was rolled; `Chain` is one."""

    @property
    def generation(self) -> int:
        """The newest one. What shall be the first under its scope was looked for in those before it."""

    @property
    def kept(self) -> int:
        """What is older than this sequence is not in the stream any more."""

    async def may_hold(self, scope: str, sequence: int) -> bool:
        """Whether the stream has a message of a scope at a sequence, or may come to have one since its leader lags.

        Raises UnavailableError.
        """


class _Whole:
    generation, kept = 1, 0

    async def may_hold(self, scope: str, sequence: int) -> bool:  # noqa: ARG002 - it came with an acknowledgement
        return False


_WHOLE: Final = _Whole()


class Appender:
    """Appends events to one stream over one connection. Use `async with`; leaving it gives up what is under way."""

    def __init__(
        self,
        connection: Connection,
        *,
        first_after: Callable[[str, int], Awaitable[tuple[int, str] | None]],
        known: LogShape = _WHOLE,
        window: int = WINDOW,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """`first_after(filter, after)`: sequence and event id of the first message of a filter after a sequence.

        It must see everything that was acknowledged, so it asks the stream's leader, and raises UnavailableError when
        that does not answer. `known`: how the log was rolled, as far as the author knows. `window` counts appends.
        `give_up_s` is how long an append may go unanswered.
        """
        self._connection, self._first_after, self._window = connection, first_after, window
        self.give_up_s = give_up_s
        self._known = known
        self._pending: dict[int, _Append] = {}
        self._pending_bytes = 0
        self._waiting: deque[_Append] = deque()
        self._number = self._turn = self._answered_turn = 0
        self._answered_at = self._asked_at = 0.0
        self._settling: set[asyncio.Task[None]] = set()
        self._inbox, self._cut = b"", 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = self._is_full = False
        self.stored = self.conflicts = self.refused = self.unanswered = 0
        """How many appends ended so, since the start."""
        self.resent = 0
        self.on_stored: Callable[[float], None] | None = None
        """Called with the seconds that each append took which was stored."""

    async def __aenter__(self) -> Self:
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._cut = len(self._inbox)
        self._listener: Listener = await self._connection.listen(f"{inbox}.*", self._on_answer)
        self._connection.on_reconnect.append(self._resend_all)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        self._open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._open = False
        self._connection.on_reconnect.remove(self._resend_all)
        try:
            await ended(self._sweeper, *self._settling)
            await self._listener.close()
        finally:
            for entry in [*self._pending.values(), *self._waiting]:
                _tell(entry, 0, UnavailableError(f"closed before {entry.subject} was acknowledged; {_outcome(entry)}"))
            self._pending.clear()
            self._waiting.clear()
            self._idle.set()

    @property
    def under_way(self) -> int:
        """Appends that have no outcome yet."""
        return len(self._pending) + len(self._waiting)

    async def flushed(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    def post(
        self,
        subject: str,
        body: bytes,
        *,
        event_id: str,
        scope: str = "",
        expected: int | None = None,
        block: bytes | None = None,
        done: Done,
    ) -> None:
        """Append without waiting. With `expected`, only if the last message matching `scope` has that sequence.

        `block`: the whole header block of a message that is a copy; it says in its own way what `scope` and `expected`
        say, and `subject` is one that a stream has stored, with what is not UTF-8 as surrogates. Raises at once, before
        anything is sent: InvalidTokenError for a subject, scope or id that cannot stand in a header or protocol line,
        PoisonMessageError for a message larger than the server takes.
        """
        if _is_subject(subject) is None and block is None:
            raise InvalidTokenError(f"{subject[:80]!r} is no subject to append to")
        header = _header(subject, event_id, scope, expected) if block is None else block
        if expected is not None and (known := self._known).generation > 1:
            if expected == 0:
                header = b"%bCuebook-Generation: %d\r\n\r\n" % (header[:-2], known.generation)
            elif expected < known.kept:
                header = _header(subject, event_id, scope, 0)
        size = len(header) + len(body)
        if size > self._connection.max_payload:
            raise PoisonMessageError(
                f"{subject} takes {len(body)} bytes, more than the server's max_payload allows",
                remedy="keep the payload elsewhere and send a reference to it",
            )
        self._number = number = self._number + 1
        frame = b"HPUB %b %b%d %d %d\r\n%b%b\r\n" % (
            subject.encode("utf-8", "surrogateescape"), self._inbox, number, len(header), size, header, body,
        )  # fmt: skip
        now = time.monotonic()
        entry = _Append(number, subject, frame, event_id, scope, expected, done, now, now + self.give_up_s)
        if not self._open:
            error = UnavailableError(f"{subject} came after the end; it was not sent")
            asyncio.get_running_loop().call_soon(_tell, entry, 0, error)
            return
        if not self._pending and not self._waiting:
            self._idle.clear()
            self._answered_at = now
        if self._has_room():
            self._send(entry, now)
        else:
            self._waiting.append(entry)

    async def append(
        self, subject: str, body: bytes, *, event_id: str, scope: str = "", expected: int | None = None
    ) -> int:
        """Append and wait for the sequence. Raises as described in the module's docstring and at `post`."""
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

    # --- sending ---

    def _has_room(self) -> bool:
        return not self._pending or (len(self._pending) < self._window and self._pending_bytes < WINDOW_BYTES)

    def _send(self, entry: _Append, now: float) -> None:
        self._turn = entry.turn = self._turn + 1
        if entry.sent == 0:
            self._pending[entry.number] = entry
            self._pending_bytes += len(entry.frame)
            entry.began, entry.give_up = entry.turn, now + self.give_up_s
        else:
            self.resent += 1
        entry.due = now + RESEND_AFTER_S * (1 << min(entry.sent, 4))
        entry.sent += 1
        self._connection.write(entry.frame)

    def resend(self) -> None:
        """The log answers again after a while: what waits for an answer is sent again now."""
        self._resend_all()

    def _resend_all(self) -> None:
        now = time.monotonic()
        for entry in self._pending.values():
            if not entry.settling:
                self._send(entry, now)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(BACK_OFF_S)
            now = time.monotonic()
            self._ask_in_silence(now)
            for entry in list(self._pending.values()):
                if entry.give_up <= now:
                    self._finish(entry, 0, self._silence(entry))
                elif entry.due <= now and not entry.settling and self._is_overdue(entry, now):
                    self._send(entry, now)
            # What waits for its turn may wait for as long as the server answers the others.
            while self._waiting and self._waiting[0].give_up <= now and self._answered_at + self.give_up_s <= now:
                entry = self._waiting.popleft()
                self.unanswered += 1
                _tell(entry, 0, self._silence(entry))
            if not self._pending and not self._waiting:
                self._idle.set()

    def _ask_in_silence(self, now: float) -> None:
        if max(self._answered_at, self._asked_at) + RESEND_AFTER_S > now:
            return
        oldest = next((entry for entry in self._pending.values() if not entry.settling), None)
        if oldest is not None and self._is_overdue(oldest, now):
            self._asked_at = now
            self._send(oldest, now)

    def _is_overdue(self, entry: _Append, now: float) -> bool:
        """Whether an answer should have come: one has to what was sent later, or there was none for long.

        Which of several sendings an answer is for cannot be seen, so it counts for the first.
        """
        if not self._connection.is_connected or self._connection.pending_data_size > WINDOW_BYTES // 4:
            return False
        return entry.turn < self._answered_turn or self._answered_at + RESEND_AFTER_S <= now

    def _silence(self, entry: _Append) -> UnavailableError:
        last = f" (the last answer: {entry.refusal})" if entry.refusal else ""
        text = f"{entry.subject} not acknowledged in {self.give_up_s:g} s{last}; {_outcome(entry)}"
        return UnavailableError(text, remedy=NO_ROOM if entry.full else "")

    # --- answers ---

    def _on_answer(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:  # noqa: ARG002
        entry = self._pending.get(int(subject[self._cut :]))
        if entry is None:
            return  # the answer to an earlier sending of what is settled by now
        start = payload.find(_SEQUENCE)
        if payload[:8] == b'{"error"' or start < 0:
            self._on_refusal(entry, payload)
            return
        start += 6
        end = payload.find(b",", start)
        self._note_answer()
        if entry.began > self._answered_turn:
            self._answered_turn = entry.began
        if self._is_full:
            self._note_room(full=False)
        self._finish(entry, int(payload[start : end if end > 0 else payload.find(b"}", start)]), None)

    def _note_answer(self) -> None:
        """The log answers. After a silence, what gets no answer soon was lost."""
        now = time.monotonic()
        if self._answered_at + RESEND_AFTER_S <= now:
            for entry in self._pending.values():
                entry.turn, entry.due = -1, min(entry.due, now + BACK_OFF_S)
        self._answered_at = now

    def _on_refusal(self, entry: _Append, payload: bytes) -> None:
        # An empty answer is the server's "no responders": no stream takes this subject, or it has no leader.
        error: dict[str, Any] = {"code": 503, "description": "no stream listens; is the space being rolled?"}
        if payload:
            error = json.loads(payload)["error"]
        err_code = error.get("err_code")
        entry.refusal = f"{error.get('description')}, err_code {err_code}"
        entry.full = err_code in FULL
        if err_code in CONFLICTS and entry.expected is not None:
            self._note_answer()
            if err_code == IN_THE_AIR:
                self._settle(entry, in_the_air=True)
            elif entry.sent > 1 or (err_code == WRONG_SEQUENCE and not _names_later(entry.refusal, entry.expected)):
                self._settle(entry)
            else:
                self._finish(entry, 0, ConcurrencyConflictError(entry.scope, entry.expected))
        elif passes(error):
            if entry.full:
                self._note_room(full=True)
            entry.turn, entry.due = -1, time.monotonic() + BACK_OFF_S * min(entry.sent, 10)
        else:
            self._finish(entry, 0, CommandRejectedError(f"the server refused {entry.subject}: {entry.refusal}"))

    def _note_room(self, *, full: bool) -> None:
        """Say once that the server has no room, and once that it has again."""
        if full is self._is_full:
            return
        self._is_full = full
        if full:
            logger.error("the log takes nothing more; work waits and goes on by itself: %s", NO_ROOM)
        else:
            logger.info("the log takes events again")

    def _finish(self, entry: _Append, sequence: int, error: CuebookError | None) -> None:
        if self._pending.pop(entry.number, None) is None:
            return
        self._pending_bytes -= len(entry.frame)
        if error is not None:
            self._count(error)
        else:
            self.stored += 1
            if self.on_stored is not None:
                self.on_stored(self._answered_at - entry.posted)
        if self._waiting:
            now = time.monotonic()
            while self._waiting and self._has_room():
                self._send(self._waiting.popleft(), now)
        elif not self._pending:
            self._idle.set()
        _tell(entry, sequence, error)

    def _count(self, error: CuebookError) -> None:
        if isinstance(error, ConcurrencyConflictError):
            self.conflicts += 1
        elif isinstance(error, CommandRejectedError):
            self.refused += 1
        else:
            self.unanswered += 1

    def _settle(self, entry: _Append, *, in_the_air: bool = False) -> None:
        """A conflict may be our own first attempt, or come of a leader that lags: look which event is stored."""
        if entry.settling:
            return
        entry.settling = True
        task = asyncio.get_running_loop().create_task(self._settle_by_reading(entry, in_the_air=in_the_air))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle_by_reading(self, entry: _Append, *, in_the_air: bool) -> None:
        assert entry.expected is not None
        try:
            outcome = await self._read_outcome(entry, entry.expected, in_the_air=in_the_air)
        except CuebookError as error:  # the link, or an old stream that cannot be read from here, or not now
            outcome, entry.refusal = None, str(error)
        finally:
            entry.settling = False
        if outcome is not None:
            self._finish(entry, *outcome)
        elif entry.sent == 1 and entry.number in self._pending:  # what was in the way has mostly come by now
            self._send(entry, time.monotonic())
        else:
            entry.turn, entry.due = -1, time.monotonic() + BACK_OFF_S

    async def _read_outcome(
        self, entry: _Append, expected: int, *, in_the_air: bool
    ) -> tuple[int, CuebookError | None] | None:
        """The outcome as the log has it; None while the leader still has it in the air."""
        conflict = ConcurrencyConflictError(entry.scope, expected)
        first = await self._first_after(entry.scope, expected)
        if first is None:
            if in_the_air or not expected or await self._known.may_hold(entry.scope, expected):
                return None
            return 0, conflict
        if first[1] == entry.event_id:
            return first[0], None
        if _covers(entry.scope, entry.subject):  # then ours would be the first: the guard let nothing in between
            return 0, conflict
        after = expected
        while (found := await self._first_after(entry.subject, after)) is not None:
            if found[1] == entry.event_id:
                return found[0], None
            after = found[0]
        return 0, conflict


def _names_later(refusal: str, expected: int) -> bool:
    """Whether a wrong last sequence is one after that which was expected; it is lower where the leader lags."""
    named = re.search(r"(\d+), err_code", refusal)
    return named is not None and int(named[1]) > expected


def _header(subject: str, event_id: str, scope: str, expected: int | None) -> bytes:
    if expected is None:
        return b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % _checked_id(event_id)
    if _is_scope(scope) is None:
        raise InvalidTokenError(f"{scope[:80]!r} is no scope of an append")
    own_id = b"" if _covers(scope, subject) else b"Nats-Msg-Id: %b\r\n" % _checked_id(event_id)
    return (
        b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n"
        b"Nats-Expected-Last-Subject-Sequence-Subject: %b\r\n%b\r\n" % (expected, scope.encode(), own_id)
    )  # fmt: skip


def _checked_id(event_id: str) -> bytes:
    if _is_event_id(event_id) is None:
        raise InvalidTokenError(f"event id {event_id[:80]!r} is not 1 to 128 printable ASCII characters")
    return event_id.encode()


def _covers(scope: str, subject: str) -> bool:
    """Whether what is stored under `subject` counts in `scope`, so that a repetition meets its own first attempt."""
    if scope.endswith(".>"):
        return subject.startswith(scope[:-1])
    if scope.endswith(".*"):
        return subject.startswith(scope[:-1]) and "." not in subject[len(scope) - 1 :]
    return subject == scope


def _outcome(entry: _Append) -> str:
    return "whether it was stored is unknown" if entry.sent else "it was never sent"


def _tell(entry: _Append, sequence: int, error: CuebookError | None) -> None:
    try:
        entry.done(sequence, error)
    except Exception:  # the other appends go on, and a person must see it
        logger.exception("a callback of an append raised", extra={"subject": entry.subject, "sequence": sequence})
