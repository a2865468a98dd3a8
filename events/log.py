"""One space's log over one connection: append, read a range, follow from a position."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats.errors

from cuebook.events.append import Appender, Done
from cuebook.events.codec import decode, encode, parse_headers
from cuebook.events.connection import Connection
from cuebook.events.envelope import Envelope, EventIds, Position, to_datetime
from cuebook.events.errors import HistoryRegressedError, PoisonMessageError, UnavailableError
from cuebook.events.facts import Event
from cuebook.events.feed import Feed, OnMessage, js_request
from cuebook.events.stream import StreamFacts, ensure_stream, verify_stream
from cuebook.events.subjects import Subjects

__all__ = ["EventLog", "Unreadable"]

READ_AHEAD = 2_000
"""Messages a reader holds before the server is made to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A stored message that is no event. It keeps its place in the history and is never skipped silently."""

    subject: str
    sequence: int
    recorded_at: int
    body: bytes
    reason: str
    remedy: str = ""


class EventLog:
    """The log of `space`. Use `async with`; the connection stays the caller's.

    `source` names the author in every envelope written here.
    """

    def __init__(self, connection: Connection, space: str, *, source: str) -> None:
        self.connection, self.subjects, self.source = connection, Subjects(space), source
        self.ids = EventIds()
        self.appender = Appender(connection, stored_ids=self._stored_ids)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> EventLog:
        await self._stack.enter_async_context(self.appender)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def ensure(self, *, replicas: int = 1) -> StreamFacts:
        """Create the stream if it is missing and verify it. Raises ConfigurationError, UnavailableError."""
        return await ensure_stream(self.connection, self.subjects, replicas=replicas)

    async def verify(self) -> StreamFacts:
        """Check the stream that must be there. Raises ConfigurationError, UnavailableError."""
        return await verify_stream(self.connection, self.subjects)

    # --- writing ---

    def post(
        self,
        subject: str,
        event: Event,
        *,
        scope: str = "",
        expected: int | None = None,
        correlation_id: str = "",
        causation_id: str = "",
        traceparent: str = "",
        event_type: str = "",
        done: Done,
    ) -> str:
        """Append without waiting; `done` is called once with the outcome. Returns the event's id.

        Raises PoisonMessageError at once, before anything is sent, when the event cannot be encoded.
        """
        event_id = self.ids()
        body = encode(
            event,
            event_id=event_id,
            source=self.source,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            event_type=event_type,
        )
        self.appender.post(subject, body, event_id=event_id, scope=scope, expected=expected, done=done)
        return event_id

    async def append(
        self,
        subject: str,
        event: Event,
        *,
        scope: str = "",
        expected: int | None = None,
        correlation_id: str = "",
        causation_id: str = "",
        traceparent: str = "",
        event_type: str = "",
        event_id: str = "",
    ) -> int:
        """Append one event and return its stream sequence.

        `expected` is the last sequence the author has read under `scope` (0: nothing yet); without it the event is
        stored unconditionally, once per `event_id`. Raises ConcurrencyConflictError, PoisonMessageError,
        CommandRejectedError, UnavailableError.
        """
        event_id = event_id or self.ids()
        body = encode(
            event,
            event_id=event_id,
            source=self.source,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            event_type=event_type,
        )
        return await self.appender.append(subject, body, event_id=event_id, scope=scope, expected=expected)

    # --- reading ---

    def decode(
        self, subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None
    ) -> Envelope | Unreadable:
        """Decode a stored message; one that is no event comes back as Unreadable instead of raising."""
        try:
            return decode(self.subjects, subject, body, sequence=sequence, recorded_at=recorded_at, headers=headers)
        except PoisonMessageError as error:
            return Unreadable(
                subject=subject,
                sequence=sequence,
                recorded_at=recorded_at,
                body=body,
                reason=str(error),
                remedy=error.remedy,
            )

    def feed(self, on_message: OnMessage, *, after: int = 0, filters: Sequence[str] = ()) -> Feed:
        """Raw messages after sequence `after`, for ever; see Feed."""
        return Feed(
            self.connection,
            self.subjects.stream,
            filters=filters or [self.subjects.all],
            start=after + 1,
            on_message=on_message,
        )

    async def follow(self, *, after: int = 0, filters: Sequence[str] = ()) -> AsyncIterator[Envelope | Unreadable]:
        """Events after sequence `after`, those stored and then those to come, without end."""
        async for item in self._iterate(after, filters, until=None):
            yield item

    async def read(
        self, *, after: int = 0, until: int | None = None, filters: Sequence[str] = ()
    ) -> AsyncIterator[Envelope | Unreadable]:
        """Stored events with `after` < sequence <= `until` (default: the last one now), in order; may be none.

        Holds at most a couple of thousand events in memory, whatever the range.
        """
        last = (await self.verify()).last_sequence
        until = last if until is None else min(until, last)
        if until <= after:
            return
        async for item in self._iterate(after, filters, until=until):
            yield item

    async def history(self, run_id: str) -> list[Envelope | Unreadable]:
        """Everything about one run, in order; empty when there is no such run."""
        return [
            item
            async for item in self.read(
                filters=[self.subjects.everything_of(run_id)], after=await self._before_first(run_id)
            )
        ]

    async def sequence_at(self, moment: int) -> int:
        """The last sequence recorded before `moment` (microseconds since 1970); 0 when all came later."""
        config = {
            "deliver_policy": "by_start_time",
            "opt_start_time": to_datetime(moment).isoformat().replace("+00:00", "Z"),
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "inactive_threshold": 5 * 10**9,
        }
        stream = self.subjects.stream
        answer = await js_request(
            self.connection, f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config}
        )
        self.connection.post(f"$JS.API.CONSUMER.DELETE.{stream}.{answer['name']}", b"")
        return int(answer["delivered"]["stream_seq"])

    async def verify_position(self, position: Position) -> None:
        """Raise HistoryRegressedError unless the event at `position` is still the one that was read there."""
        if position.sequence == 0:
            return
        facts = await self.verify()
        if facts.last_sequence < position.sequence or facts.first_sequence > position.sequence + 1:
            raise HistoryRegressedError(
                f"stream {facts.name} holds {facts.first_sequence} to {facts.last_sequence}, "
                f"but {position.sequence} was already read"
            )
        item = await self.at(position.sequence)
        found = item.id if isinstance(item, Envelope) else ""
        if found != position.event_id:
            raise HistoryRegressedError(
                f"sequence {position.sequence} of {facts.name} was event {position.event_id or '(unreadable)'}, "
                f"now it is {found or '(unreadable)'}"
            )

    async def at(self, sequence: int) -> Envelope | Unreadable | None:
        """The message at one sequence, or None."""
        async for item in self.read(after=sequence - 1, until=sequence):
            return item if item.sequence == sequence else None
        return None

    async def _iterate(
        self, after: int, filters: Sequence[str], until: int | None
    ) -> AsyncIterator[Envelope | Unreadable]:
        waiting: deque[Envelope | Unreadable] = deque()
        arrived = asyncio.Event()

        def receive(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
            waiting.append(self.decode(subject, body, sequence, recorded_at, headers))
            arrived.set()

        feed = Feed(
            self.connection,
            self.subjects.stream,
            filters=filters or [self.subjects.all],
            start=after + 1,
            on_message=receive,
            held=lambda: len(waiting) > READ_AHEAD,
        )
        async with feed:
            while True:
                while waiting:
                    item = waiting.popleft()
                    if until is not None and item.sequence > until:
                        return
                    yield item
                    if item.sequence == until:
                        return
                if until is not None and feed.pending == 0:
                    return
                feed.resume()
                arrived.clear()
                wait = asyncio.ensure_future(arrived.wait())
                try:
                    await asyncio.wait([wait, feed.failure], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    wait.cancel()
                if feed.failure.done():
                    feed.failure.result()

    async def _before_first(self, run_id: str) -> int:
        found = await self._direct_get({"next_by_subj": self.subjects.everything_of(run_id), "seq": 1})
        return found[0][0] - 1 if found else 0

    async def first_sequence(self, scope: str) -> int:
        """The first sequence stored under a subject filter, or 0."""
        found = await self._direct_get({"next_by_subj": scope, "seq": 1})
        return found[0][0] if found else 0

    async def _stored_ids(self, scope: str, after: int) -> list[tuple[int, str]]:
        found = await self._direct_get({"next_by_subj": scope, "seq": after + 1, "batch": 64})
        ids = []
        for sequence, subject, body, recorded_at, headers in found:
            item = self.decode(subject, body, sequence, recorded_at, headers)
            ids.append((sequence, item.id if isinstance(item, Envelope) else ""))
        return ids

    async def scope_history(self, scope: str, *, after: int = 0) -> list[Envelope | Unreadable]:
        """What a scope holds after a sequence, by direct get: quick for the few events of one task."""
        found = await self._direct_get({"next_by_subj": scope, "seq": after + 1, "batch": 256})
        return [
            self.decode(subject, body, sequence, recorded_at, headers)
            for sequence, subject, body, recorded_at, headers in found
        ]

    async def _direct_get(self, request: dict[str, Any]) -> list[tuple[int, str, bytes, int, bytes | None]]:
        """`$JS.API.DIRECT.GET` with its batch form (ADR-31); a single get answers with one message and no end mark."""
        request = {"batch": 1, **request}
        inbox = self.connection.new_inbox()
        found: list[tuple[int, str, bytes, int, bytes | None]] = []
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def receive(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            facts = parse_headers(headers)
            if headers is not None and headers.startswith(b"NATS/1.0 "):
                status = headers[9:12]
                if status not in (b"204", b"404") and not ended.done():
                    ended.set_exception(
                        UnavailableError(f"direct get answered {headers[9:64].split(bytes([13]))[0]!r}")
                    )
                elif not ended.done():
                    ended.set_result(None)
                return
            recorded_at = _microseconds(facts.get("nats-time-stamp", ""))
            found.append((int(facts["nats-sequence"]), facts["nats-subject"], payload, recorded_at, headers))

        listener = await self.connection.listen(inbox, receive)
        try:
            await self.connection.publish(
                f"$JS.API.DIRECT.GET.{self.subjects.stream}", json.dumps(request).encode(), reply=inbox
            )
            async with asyncio.timeout(5):
                await ended
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"direct get did not answer: {error or type(error).__name__}") from error
        finally:
            await listener.close()
        return found


def _microseconds(stamp: str) -> int:
    """The server's RFC 3339 time with up to nine decimals, exactly."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp()) if whole else 0
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))
