"""A generation of the log that has ended: nothing is added to it any more, and it reads as it always did.

Where it lies is its own business: a frozen stream here, elsewhere perhaps files. Readers see one numbering throughout.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError
from cuebook.events.lookup import StoredMessage, first_match, matches, message_at, sequence_before
from cuebook.events.reading import Stored, stream_batches

__all__ = ["Generation", "Past", "PastOpener", "StreamPast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generation of a space's log, as the metadata of its successor name it.

    Its own sequences are `first` to `last`. `stream`: where they were written; `created`: when that was made, by the
    server's clock. `bytes`, `messages` and `subjects` are the stream's when it ended, with what it had carried over.
    `segments`: where it is since its stream was dropped, and `digest` what those segments are; empty before that.
    """

    generation: int
    stream: str
    first: int
    last: int
    created: str = ""
    bytes: int = 0
    messages: int = 0
    subjects: int = 0
    segments: str = ""
    digest: str = ""

    @classmethod
    def from_data(cls, data: Any) -> Generation:
        """Read what `to_data` gave; what a later release has added is left out. Raises ConfigurationError."""
        try:
            known = {name: data[name] for name in cls.__slots__ if name in data}
            return cls(**known)
        except (TypeError, KeyError) as error:
            raise ConfigurationError(f"{data!r} describes no generation of a log") from error

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Past(Protocol):
    """What a reader asks of a generation that has ended. Only its own sequences count, `first` to `last`."""

    @property
    def generation(self) -> int:
        """Its number, from 1."""

    @property
    def name(self) -> str:
        """Where it lies, for people."""

    @property
    def first(self) -> int:
        """Its first sequence."""

    @property
    def last(self) -> int:
        """Its last one."""

    def batches(self, *, after: int, until: int, filters: Sequence[str]) -> AsyncGenerator[list[Stored]]:
        """Messages with `after` < sequence <= `until` as they were stored, in order, a few hundred at a time."""

    async def at(self, sequence: int) -> StoredMessage | None:
        """The message at one of its sequences, or None."""

    async def first_match(self, scope: str, after: int = 0) -> StoredMessage | None:
        """The first message under a subject filter after a sequence, or None."""

    async def matches(self, scope: str, after: int = 0) -> list[StoredMessage]:
        """All messages under a subject filter after a sequence, in order."""

    async def sequence_at(self, moment: int) -> int:
        """The last of its sequences recorded before `moment` (microseconds since 1970); `first` - 1 for none."""


PastOpener = Callable[[Connection, str, Generation], Awaitable[Past]]
"""Opens a generation of a space whose stream is not on the server any more. Raises ConfigurationError."""


class StreamPast:
    """A generation in its frozen stream, which may also hold messages that it had carried over from before."""

    def __init__(self, connection: Connection, about: Generation) -> None:
        self._connection, self._about = connection, about
        self.generation, self.name = about.generation, about.stream
        self.first, self.last = about.first, about.last

    async def batches(self, *, after: int, until: int, filters: Sequence[str]) -> AsyncGenerator[list[Stored]]:
        """See Past."""
        after, until = max(after, self.first - 1), min(until, self.last)
        if after >= until:
            return
        batches = stream_batches(self._connection, self.name, after=after, until=until, filters=filters)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    async def at(self, sequence: int) -> StoredMessage | None:
        """See Past."""
        if not self.first <= sequence <= self.last:
            return None
        return await message_at(self._connection, self.name, sequence)

    async def first_match(self, scope: str, after: int = 0) -> StoredMessage | None:
        """See Past."""
        found = await first_match(self._connection, self.name, scope, max(after, self.first - 1))
        return found if found is not None and found.sequence <= self.last else None

    async def matches(self, scope: str, after: int = 0) -> list[StoredMessage]:
        """See Past."""
        found = await matches(self._connection, self.name, scope, max(after, self.first - 1))
        return [message for message in found if message.sequence <= self.last]

    async def sequence_at(self, moment: int) -> int:
        """See Past."""
        found = await sequence_before(self._connection, self.name, moment)
        return min(max(found, self.first - 1), self.last)
