"""One space's log over one connection: append, read a range, follow from a position."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from cuebook.events.append import BACK_OFF_S, Appender, Done
from cuebook.events.batch import MAX_BATCH, Member, append_batch
from cuebook.events.codec import decode, encode
from cuebook.events.connection import Connection
from cuebook.events.copies import original_of
from cuebook.events.envelope import Envelope, EventIds, Position
from cuebook.events.errors import (
    ConcurrencyConflictError,
    HistoryRegressedError,
    PoisonMessageError,
    StreamMissingError,
    UnavailableError,
)
from cuebook.events.facts import Event
from cuebook.events.feed import OnMessage
from cuebook.events.generations import chain_of
from cuebook.events.log_feed import LogFeed
from cuebook.events.lookup import StoredMessage, first_match, last_match, matches, message_at, sequence_before
from cuebook.events.reading import OpenFeed, Stored, collected, stream_batches
from cuebook.events.stream import StreamFacts, ensure_stream, verify_stream
from cuebook.events.subjects import Subjects

__all__ = ["EventLog", "Stored", "Unreadable"]

P = ParamSpec("P")
T = TypeVar("T")


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


def _wherever_it_is(
    ask: Callable[Concatenate[EventLog, P], Awaitable[T]],
) -> Callable[Concatenate[EventLog, P], Coroutine[Any, Any, T]]:
    """Ask again where the log was rolled and a stream dropped since we looked, and we have not heard of it."""

    @functools.wraps(ask)
    async def asked(log: EventLog, /, *args: P.args, **options: P.kwargs) -> T:
        while True:
            await log.chain.known()
            before = log.chain.stream, log.chain.earlier
            try:
                return await ask(log, *args, **options)
            except StreamMissingError:
                await log.chain.look()
                if (log.chain.stream, log.chain.earlier) == before:
                    raise

    return asked


class EventLog:
    """The log of `space`. Use `async with`; the connection stays the caller's.

    `source` names the author in every envelope written here.
    """

    def __init__(self, connection: Connection, space: str, *, source: str) -> None:
        self.connection, self.subjects, self.source = connection, Subjects(space), source
        self.ids = EventIds()
        self.sees_originals = False
        """The stream holds copies; known once it was verified."""
        self.chain = chain_of(connection, self.subjects)
        self.appender = Appender(connection, first_after=self.first_after, known=self.chain)

    async def __aenter__(self) -> Self:
        await self.appender.__aenter__()
        self.chain.look_soon()
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
        if expected == 0:
            await self._refuse_used(scope)
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
        if expected == 0:
            await self._refuse_used(scope)
        for begin in range(0, len(members), MAX_BATCH):
            expected = await append_batch(
                self.connection,
                members[begin : begin + MAX_BATCH],
                scope=scope,
                expected=expected,
                first_after=self.first_after,
                generation=self.chain.generation,
            )
        return expected

    async def _refuse_used(self, scope: str) -> None:
        """The server knows no more of what ended before a roll: something may be under a scope where it sees nothing.

        Looks for as long as an append waits for its answer. Raises ConcurrencyConflictError, UnavailableError.
        """
        give_up = time.monotonic() + self.appender.give_up_s
        while True:
            try:
                used = [past for past in await self.chain.pasts() if await past.first_match(scope) is not None]
            except UnavailableError:
                if self.connection.is_closed or time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(BACK_OFF_S)
                continue
            if used:
                raise ConcurrencyConflictError(scope, 0)
            return

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

    def feed(
        self,
        on_message: OnMessage,
        *,
        after: int = 0,
        filters: Sequence[str] = (),
        held: Callable[[], bool] | None = None,
    ) -> LogFeed:
        """Raw messages after sequence `after`, for ever; see LogFeed. `held`: see Feed."""
        return LogFeed(
            self.connection,
            self.subjects,
            self.chain,
            filters=filters,
            start=after + 1,
            on_message=on_message,
            held=held,
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

    @_wherever_it_is
    async def scope_history(self, scope: str, *, after: int = 0) -> list[Envelope | Unreadable]:
        """What a scope holds after a sequence, by direct get: quick for the few events of one task."""
        found: list[StoredMessage] = []
        while (past := await self.chain.past_after(after)) is not None:
            found += await past.matches(scope, after)
            after = past.last
        chain = self.chain
        found += await matches(self.connection, chain.stream, scope, after, replicated=chain.replicated)
        return [self.decode(*message) for message in found]

    @_wherever_it_is
    async def current_history(self, scope: str, *, after: int = 0) -> list[Envelope | Unreadable]:
        """The same from the current stream alone: all of what was open when the log was rolled.

        Of what was over then it holds nothing, or its end, where much was open.
        """
        found = await matches(self.connection, self.chain.stream, scope, after, replicated=self.chain.replicated)
        return [self.decode(*message) for message in found]

    async def first_sequence(self, scope: str) -> int:
        """The first sequence stored under a subject filter, or 0."""
        found = await self.first_match(scope)
        return found.sequence if found else 0

    async def at(self, sequence: int) -> Envelope | Unreadable | None:
        """The message at one sequence, or None."""
        found = await self.message_at(sequence)
        return self.decode(*found) if found else None

    @_wherever_it_is
    async def message_at(self, sequence: int) -> StoredMessage | None:
        """The same as it is stored."""
        past = await self.chain.past_at(sequence)
        return await (past.at(sequence) if past else message_at(self.connection, self.chain.stream, sequence))

    @_wherever_it_is
    async def first_match(self, scope: str, after: int = 0) -> StoredMessage | None:
        """The first message stored under a subject filter after a sequence, as the stream's leader has it."""
        while (past := await self.chain.past_after(after)) is not None:
            if (found := await past.first_match(scope, after)) is not None:
                return found
            after = past.last
        return await first_match(self.connection, self.chain.stream, scope, after)

    @_wherever_it_is
    async def last_match(self, subject: str) -> StoredMessage | None:
        """The last message stored under a subject, as the stream's leader has it."""
        found = await last_match(self.connection, self.chain.stream, subject)
        if found is not None:
            return found
        for past in reversed(await self.chain.pasts()):
            if older := await past.matches(subject):
                return older[-1]
        return None

    @_wherever_it_is
    async def sequence_at(self, moment: int) -> int:
        """The last sequence recorded before `moment` (microseconds since 1970); 0 when all came later."""
        if self.sees_originals:
            return await self._original_before(moment)
        chain = self.chain
        found = await sequence_before(self.connection, chain.stream, moment, replicated=chain.replicated)
        if found > chain.start or not chain.earlier:
            return found
        for past in reversed(await chain.pasts()):  # the current stream has some older messages too, but not all
            if (found := await past.sequence_at(moment)) >= past.first:
                return found
        return 0

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
        if until is None:
            async with aclosing(collected(self._open_feed(after, filters), None)) as batches:
                async for batch in batches:
                    yield batch
            return
        while after < until and (past := await self.chain.past_after(after)) is not None:
            # one by one, since the log may be rolled while a long one is read
            try:
                async with aclosing(past.batches(after=after, until=min(until, past.last), filters=filters)) as batches:
                    async for batch in batches:
                        yield batch
                        after = batch[-1].sequence
                after = past.last
            except StreamMissingError:  # dropped in the middle: it is in segments now
                await self.chain.look()
                again = await self.chain.past_after(after)
                if again is None or again.name == past.name:
                    raise
        if after >= until:
            return
        every = filters or [self.subjects.all]
        own = stream_batches(self.connection, self.chain.stream, after=after, until=until, filters=every)
        async with aclosing(own) as batches:
            async for batch in batches:
                yield batch

    def _open_feed(self, after: int, filters: Sequence[str]) -> OpenFeed:
        def opened(on_message: OnMessage, held: Callable[[], bool], on_open: Callable[[], None]) -> LogFeed:
            return LogFeed(
                self.connection,
                self.subjects,
                self.chain,
                filters=filters,
                start=after + 1,
                on_message=on_message,
                held=held,
                on_open=on_open,
                exact=True,
            )

        return opened

    async def first_after(self, scope: str, after: int) -> tuple[int, str] | None:
        """Sequence and event id of the first message of a filter after a sequence, by the word of the leader.

        Asked after a conflict, or where an answer was lost: either may come of a roll that we have not heard of.
        """
        await self.chain.look()
        found = await self.first_match(scope, after)
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
