"""One space's log over one connection: append, read a range, follow from a position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from cuebook.events.append import Appender, Done
from cuebook.events.batch import MAX_BATCH, Member, append_batch
from cuebook.events.codec import decode, encode
from cuebook.events.connection import Connection
from cuebook.events.copies import original_of
from cuebook.events.envelope import Envelope, EventIds, Position, to_datetime
from cuebook.events.errors import HistoryRegressedError, PoisonMessageError
from cuebook.events.facts import Event
from cuebook.events.feed import UNACKED, Feed, OnMessage
from cuebook.events.jetstream import js_request
from cuebook.events.lookup import first_match, matches, message_at
from cuebook.events.stream import StreamFacts, ensure_stream, verify_stream
from cuebook.events.subjects import Subjects

__all__ = ["EventLog", "Stored", "Unreadable"]

READ_AHEAD = UNACKED
"""Messages a reader holds before the server is made to wait; it may send as many again."""
BATCH = READ_AHEAD // 4
"""Messages handed over at once: a reader that is slow with them shall not hold two loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A stored message that is no event. It keeps its place in the history and is never skipped silently.

    `subject` and `reason` are for people: what cannot be printed is escaped. `recorded_at`: microseconds since 1970.
    """

    subject: str
    sequence: int
    recorded_at: int
    body: bytes
    reason: str
    remedy: str = ""


class Stored(NamedTuple):
    """A message as the stream holds it, byte for byte; what is not UTF-8 in its subject is there as surrogates."""

    subject: str
    body: bytes
    sequence: int
    recorded_ns: int
    headers: bytes | None


class EventLog:
    """The log of `space`. Use `async with`; the connection stays the caller's.

    `source` names the author in every envelope written here.
    """

    def __init__(self, connection: Connection, space: str, *, source: str) -> None:
        self.connection, self.subjects, self.source = connection, Subjects(space), source
        self.ids = EventIds()
        self.sees_originals = False
        """The stream holds copies; known once it was verified."""
        self.appender = Appender(connection, first_after=self.first_after)

    async def __aenter__(self) -> Self:
        await self.appender.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.appender.__aexit__(*exc_info)

    async def ensure(self, *, replicas: int = 1, recording: bool = False, origin: str = "") -> StreamFacts:
        """Create the stream if it is missing and verify it; `recording` marks a new one as a copy of history.

        Raises ConfigurationError, UnavailableError.
        """
        facts = await ensure_stream(
            self.connection, self.subjects, replicas=replicas, recording=recording, origin=origin
        )
        return self._noted(facts)

    async def verify(self) -> StreamFacts:
        """Check the stream that must be there. Raises ConfigurationError, UnavailableError."""
        return self._noted(await verify_stream(self.connection, self.subjects))

    def _noted(self, facts: StreamFacts) -> StreamFacts:
        self.sees_originals = facts.recording or bool(facts.imported)
        return facts

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
        event_id: str = "",
        checked: bool = False,
        done: Done,
    ) -> str:
        """Append without waiting; `done` is called once with the outcome. Returns the event's id.

        `checked`: see `encode`. Raises at once, before anything is sent: PoisonMessageError when the event cannot be
        encoded, InvalidTokenError for a subject or scope that cannot be sent.
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
            checked=checked,
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

    async def append_all(
        self,
        events: Sequence[tuple[str, Event]],
        *,
        scope: str,
        expected: int,
        correlation_id: str = "",
        causation_id: str = "",
    ) -> int:
        """Append events, each with its subject under `scope`, in order; returns the sequence of the last one.

        Up to 1,000 are stored all or none. Of more, whole batches are: each names the one before it, so that nothing of
        somebody else's comes in between. Raises as `append`; when encoding fails nothing was sent.
        """
        members = []
        for subject, event in events:
            event_id = self.ids()
            try:
                body = encode(
                    event,
                    event_id=event_id,
                    source=self.source,
                    correlation_id=correlation_id,
                    causation_id=causation_id,
                )
            except PoisonMessageError as error:
                raise PoisonMessageError(f"{subject}: {error}", remedy=error.remedy) from error
            members.append(Member(subject, body, event_id))
        for begin in range(0, len(members), MAX_BATCH):
            expected = await append_batch(
                self.connection,
                members[begin : begin + MAX_BATCH],
                scope=scope,
                expected=expected,
                first_after=self.first_after,
            )
        return expected

    # --- reading ---

    def decode(
        self, subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None
    ) -> Envelope | Unreadable:
        """Decode a stored message; one that is no event comes back as Unreadable instead of raising.

        In a copy it has the time, the headers and the id that the original had.
        """
        original = original_of(headers) if self.sees_originals else None
        if original is not None:
            recorded_at, headers = original.recorded_ns // 1000, original.headers or None
        try:
            item = decode(self.subjects, subject, body, sequence=sequence, recorded_at=recorded_at, headers=headers)
            return item if original is None else _with_id_of(original.sequence, item)
        except PoisonMessageError as error:
            return Unreadable(
                subject=_printable(subject),
                sequence=sequence,
                recorded_at=recorded_at,
                body=body,
                reason=_printable(str(error)),
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

    async def follow(self, *, after: int = 0, filters: Sequence[str] = ()) -> AsyncGenerator[Envelope | Unreadable]:
        """Events after sequence `after`, those stored and then those to come, without end.

        Holds at most a couple of thousand messages in memory, however slowly they are taken. Raises UnavailableError
        when the connection is closed, HistoryRegressedError, ConfigurationError.
        """
        async with aclosing(self._iterate(after, filters, until=None)) as items:
            async for item in items:
                yield item

    async def read(
        self, *, after: int = 0, until: int | None = None, filters: Sequence[str] = ()
    ) -> AsyncGenerator[Envelope | Unreadable]:
        """Stored events with `after` < sequence <= `until` (default: the last one now), in order; may be none.

        Memory and errors as for `follow`.
        """
        last = (await self.verify()).last_sequence
        until = last if until is None else min(until, last)
        if until <= after:
            return
        async with aclosing(self._iterate(after, filters, until=until)) as items:
            async for item in items:
                yield item

    async def history(self, run_id: str, *, until: int | None = None) -> list[Envelope | Unreadable]:
        """Everything about one run up to a sequence, in order; empty when there was no such run."""
        scope = self.subjects.everything_of(run_id)
        first = await self.first_sequence(scope)
        if not first:
            return []
        async with aclosing(self.read(filters=[scope], after=first - 1, until=until)) as items:
            return [item async for item in items]

    async def scope_history(self, scope: str, *, after: int = 0) -> list[Envelope | Unreadable]:
        """What a scope holds after a sequence, by direct get: quick for the few events of one task.

        On a replicated stream it may lack the very latest.
        """
        found = await matches(self.connection, self.subjects.stream, scope, after)
        return [self.decode(*message) for message in found]

    async def first_sequence(self, scope: str) -> int:
        """The first sequence stored under a subject filter, or 0."""
        found = await first_match(self.connection, self.subjects.stream, scope)
        return found.sequence if found else 0

    async def at(self, sequence: int) -> Envelope | Unreadable | None:
        """The message at one sequence, or None."""
        found = await message_at(self.connection, self.subjects.stream, sequence)
        return self.decode(*found) if found else None

    async def sequence_at(self, moment: int) -> int:
        """The last sequence recorded before `moment` (microseconds since 1970); 0 when all came later."""
        if self.sees_originals:
            return await self._original_before(moment)
        config = {
            "deliver_policy": "by_start_time",
            "opt_start_time": to_datetime(moment).isoformat().replace("+00:00", "Z"),
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "inactive_threshold": 5 * 10**9,
        }
        stream = self.subjects.stream
        request = {"stream_name": stream, "config": config}
        answer = await js_request(self.connection, f"CONSUMER.CREATE.{stream}", request)
        self.connection.post(f"$JS.API.CONSUMER.DELETE.{stream}.{answer['name']}", b"")
        return int(answer["delivered"]["stream_seq"])

    async def _original_before(self, moment: int) -> int:
        """The same in an import, whose messages the server has stored much later: search by halves."""
        facts = await self.verify()
        low, high = facts.first_sequence - 1, facts.last_sequence
        while low < high:
            middle = (low + high + 1) // 2
            item = await self.at(middle)
            if item is not None and item.recorded_at < moment:
                low = middle
            else:
                high = middle - 1
        return low if facts.first_sequence <= low else 0

    async def verify_position(self, position: Position) -> None:
        """Raise HistoryRegressedError unless the event at `position` is still the one that was read there.

        A position without an event id is one of an unreadable message: then some message must be there.
        """
        if position.sequence == 0:
            return
        facts = await self.verify()
        if not facts.first_sequence <= position.sequence <= facts.last_sequence:
            raise HistoryRegressedError(
                f"stream {facts.name} holds {facts.first_sequence} to {facts.last_sequence}, "
                f"but {position.sequence} was already read"
            )
        item = await self.at(position.sequence)
        found = item.id if isinstance(item, Envelope) else ""
        if item is None or (position.event_id and found != position.event_id):
            raise HistoryRegressedError(
                f"sequence {position.sequence} of {facts.name} was event {position.event_id or '(unreadable)'}, "
                f"now it is {found or '(unreadable)'}"
            )

    async def _iterate(
        self, after: int, filters: Sequence[str], until: int | None
    ) -> AsyncGenerator[Envelope | Unreadable]:
        async with aclosing(self.batches(after=after, filters=filters, until=until)) as batches:
            async for batch in batches:
                for subject, body, sequence, recorded_ns, headers in batch:
                    if not subject.isascii():
                        subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                    yield self.decode(subject, body, sequence, recorded_ns // 1000, headers)

    async def batches(
        self, *, after: int = 0, until: int | None = None, filters: Sequence[str] = ()
    ) -> AsyncGenerator[list[Stored]]:
        """Messages as they are stored, undecoded, a few hundred at a time; `until` None: without end.

        `until` must be stored already. Memory and errors as for `follow`.
        """
        waiting: list[Stored] = []
        news = asyncio.Event()

        def receive(subject: str, body: bytes, sequence: int, recorded_ns: int, headers: bytes | None) -> None:
            waiting.append(Stored(subject, body, sequence, recorded_ns, headers))
            news.set()

        feed = Feed(
            self.connection,
            self.subjects.stream,
            filters=filters or [self.subjects.all],
            start=after + 1,
            on_message=receive,
            held=lambda: len(waiting) > READ_AHEAD,
            on_open=news.set,
            exact=True,
        )
        feed.failure.add_done_callback(lambda _: news.set())
        async with feed:
            while True:
                while waiting:
                    batch = waiting[:BATCH]
                    del waiting[:BATCH]
                    if len(waiting) <= READ_AHEAD // 2:
                        feed.resume()
                    if until is not None and batch[-1].sequence >= until:
                        if batch := [message for message in batch if message.sequence <= until]:
                            yield batch
                        return
                    yield batch
                if feed.failure.done():
                    feed.failure.result()
                if until is not None and feed.pending == 0:
                    await self._check_end(feed, until)
                    return
                feed.resume()
                news.clear()
                await news.wait()

    async def _check_end(self, feed: Feed, until: int) -> None:
        """Nothing more matches: because there is nothing, or because a server came back without its last messages?"""
        if feed.opened > 1 and (last := (await self.verify()).last_sequence) < until:
            raise HistoryRegressedError(f"stream {self.subjects.stream} ends at {last}, but it had {until} before")

    async def first_after(self, scope: str, after: int) -> tuple[int, str] | None:
        """Sequence and event id of the first message of a filter after a sequence, by the word of the leader."""
        found = await first_match(self.connection, self.subjects.stream, scope, after)
        if found is None:
            return None
        item = self.decode(*found)
        return found.sequence, item.id if isinstance(item, Envelope) else ""


def _with_id_of(sequence: int, item: Envelope) -> Envelope:
    """A message without an id is named by its place in the log where it was written first."""
    named = f"seq-{item.sequence}"
    if item.id != named or item.sequence == sequence:
        return item
    own = f"seq-{sequence}"
    return replace(item, id=own, correlation_id=own if item.correlation_id == named else item.correlation_id)


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
