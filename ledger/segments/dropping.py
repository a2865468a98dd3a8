"""Removing the stream of an old generation, once all that was in it is in segments.

First what the segments hold is compared with the stream, message by message; then the space's current stream says where
that history is now; then the old stream goes. Killed in between, the same command goes on: a stream that is still there
is what is read.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from cuebook.events.errors import ConfigurationError, NotFoundError, UnavailableError
from cuebook.events.generations import BEFORE, marker_of
from cuebook.events.jetstream import NO_STREAM, js_request
from cuebook.events.log import EventLog
from cuebook.events.past import Generation, StreamPast, pack_generations
from cuebook.events.reading import Stored
from cuebook.events.reservation import reserved
from cuebook.ledger.errors import TamperedError
from cuebook.ledger.segments.opening import written_place
from cuebook.ledger.segments.past import SegmentPast, SegmentReader
from cuebook.ledger.segments.shelf import Shelf

__all__ = ["Dropped", "Dropping"]

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """What was removed: a stream, what it took on the server, and where its messages are now."""

    generation: int
    stream: str
    first: int
    last: int
    bytes: int
    messages: int
    subjects: int
    segments: str


class Dropping:
    """Removes the stream of one generation of a log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def find(self, number: int) -> Generation:
        """The generation, which may be dropped next. Raises NotFoundError, ConfigurationError."""
        facts = await self._log.verify()
        space = self._log.subjects.space
        if facts.rolling:
            raise ConfigurationError(
                f"space {space!r} is being rolled just now", remedy="wait, or complete it with 'cuebook space roll'"
            )
        if number == facts.generation:
            raise ConfigurationError(
                f"generation {number} is the current one of space {space!r}: all that is written goes there",
                remedy="let the log go on in a fresh stream first: cuebook space roll",
            )
        known = {one.generation: one for one in facts.earlier}
        if number not in known:
            raise NotFoundError(
                f"space {space!r} has no generation {number}, its current one is {facts.generation}",
                remedy="see 'cuebook space show'",
            )
        for one in facts.earlier:
            if one.generation < number and not one.segments:
                raise ConfigurationError(
                    f"generation {one.generation} is older and still has its stream {one.stream}",
                    remedy=f"drop that one first: cuebook space drop {one.generation}",
                )
        return known[number]

    async def is_there(self, about: Generation) -> bool:
        """Whether its stream is still on the server. Raises UnavailableError."""
        return (
            await js_request(self._log.connection, f"STREAM.INFO.{about.stream}", {}, none_for={NO_STREAM}) is not None
        )

    async def compare(self, about: Generation, shelf: Shelf, watch: Watch | None = None) -> None:
        """Read the stream and the segments side by side. Raises TamperedError at the first difference."""
        stream = StreamPast(self._log.connection, about)
        segments = SegmentPast(
            SegmentReader(shelf.store, None),
            shelf.covering(about.first, about.last),
            generation=about.generation,
            name=shelf.store.place,
            first=about.first,
            last=about.last,
        )
        count = 0
        theirs = _each(segments.batches(after=about.first - 1, until=about.last, filters=()))
        ours = _each(stream.batches(after=about.first - 1, until=about.last, filters=[self._log.subjects.all]))
        async with aclosing(theirs), aclosing(ours):
            async for message in ours:
                other = await anext(theirs, None)
                if other is None or other != message:
                    raise TamperedError(
                        f"at sequence {message.sequence} the segments in {shelf.store.place} hold something else than "
                        f"stream {about.stream}",
                        remedy="find out which of the two was altered; nothing was removed",
                    )
                count += 1
                if watch is not None and not count % 1000:
                    watch(message.sequence, count)
        if count != about.last - about.first + 1:
            raise TamperedError(
                f"stream {about.stream} holds {count} of the {about.last - about.first + 1} messages that it should",
                remedy="compare the stream with its backup; nothing was removed",
            )

    async def drop(self, about: Generation, shelf: Shelf) -> Dropped:
        """Write down where its messages are now, and remove the stream. Raises ConfigurationError, UnavailableError."""
        connection, names, space = self._log.connection, self._log.subjects, self._log.subjects.space
        moved = replace(about, segments=written_place(shelf.store), digest=shelf.digest(about.first, about.last))
        replicas = (await self._log.verify()).replicas
        async with reserved(connection, space, self._log.source, replicas=replicas) as reservation:
            info = await self._log.chain.look()
            chain = self._log.chain
            if chain.rolling or replace(about, created="") not in [replace(one, created="") for one in chain.earlier]:
                raise ConfigurationError(
                    f"the streams of space {space!r} were changed meanwhile", remedy="run the same command again"
                )
            earlier = [moved if one.generation == moved.generation else one for one in chain.earlier]
            await self._write(info, earlier)
            # who has a reader of the stream open looks again where its messages are
            connection.post(f"live.{marker_of(names)}", json.dumps({"dropped": about.generation}).encode())
            await connection.flush()
            reservation.check()
            answer = await js_request(
                connection, f"STREAM.DELETE.{about.stream}", {}, none_for={NO_STREAM}, timeout_s=120
            )
        if answer is not None and not answer.get("success"):
            raise UnavailableError(f"stream {about.stream} was not removed", remedy="run the same command again")
        await self._log.chain.look()
        return Dropped(
            generation=about.generation,
            stream=about.stream,
            first=about.first,
            last=about.last,
            bytes=about.bytes,
            messages=about.messages,
            subjects=about.subjects,
            segments=moved.segments,
        )

    async def _write(self, info: dict[str, object], earlier: Sequence[Generation]) -> None:
        config = info["config"]
        assert isinstance(config, dict)
        metadata = {**(config.get("metadata") or {}), BEFORE: pack_generations(earlier)}
        await js_request(
            self._log.connection, f"STREAM.UPDATE.{config['name']}", {**config, "metadata": metadata}, timeout_s=30
        )


async def _each(batches: AsyncGenerator[list[Stored]]) -> AsyncGenerator[Stored]:
    async with aclosing(batches):
        async for batch in batches:
            for message in batch:
                yield message
