"""A generation of the log that has ended: nothing is added to it any more, and it reads as it always did.

Where it lies is its own business: a frozen stream here, elsewhere perhaps files. Readers see one numbering throughout.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError
from cuebook.events.lookup import StoredMessage, first_match, matches, message_at, sequence_before
from cuebook.events.reading import Stored, stream_batches

__all__ = [
    "MOST_METADATA", "Generation", "Past", "PastOpener", "StreamPast", "bytes_when_dropped", "pack_generations",
    "parse_generations",
]  # fmt: skip

MOST_METADATA: Final = 128 * 1024
"""Bytes that the metadata of a stream may take, keys and values together. Source: nats-server, JSMaxMetadataLen."""
_FORM: Final = 2


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


def pack_generations(earlier: Sequence[Generation]) -> str:
    """The generations of a log, from the first one on, as the metadata of a stream hold them: in few bytes.

    A space that is rolled every day has a thousand of them after three years, and metadata are limited. What follows
    from the others is left out; `created` is kept of the first one only, since that is when the log was made.
    """
    if not earlier:
        return "[]"
    places = sorted({one.segments for one in earlier if one.segments})
    rows = []
    for one in earlier:
        row: list[Any] = [one.last, one.bytes, one.messages, one.subjects]
        if one.segments:
            row += [places.index(one.segments), _packed(one.digest)]
        rows.append(row)
    first = earlier[0]
    data = {
        "form": _FORM, "stream": first.stream, "first": first.first, "created": first.created, "places": places,
        "generations": rows,
    }  # fmt: skip
    return json.dumps(data, separators=(",", ":"))


def parse_generations(text: str) -> list[Generation]:
    """Read what `pack_generations` gave, or the list of objects that came before it. Raises ConfigurationError."""
    try:
        data = json.loads(text)
        if isinstance(data, list):
            return [Generation.from_data(one) for one in data]
        if data["form"] != _FORM:
            raise ConfigurationError(
                f"the generations of the log are written in form {data['form']}, and this release reads up to {_FORM}",
                remedy="upgrade cuebook",
            )
        found: list[Generation] = []
        for number, (last, size, messages, subjects, *moved) in enumerate(data["generations"], start=1):
            one = Generation(
                generation=number,
                stream=data["stream"] if number == 1 else f"{data['stream']}@{number}",
                first=found[-1].last + 1 if found else data["first"],
                last=last,
                created="" if found else data["created"],
                bytes=size,
                messages=messages,
                subjects=subjects,
            )
            if moved:
                one = replace(one, segments=data["places"][moved[0]], digest=_unpacked(moved[1]))
            found.append(one)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigurationError(f"{text[:80]!r} describes no generations of a log") from error
    return found


def bytes_when_dropped(earlier: Sequence[Generation]) -> int:
    """What their list takes at the most once all of them are in segments, as a drop must still be able to say."""
    left = [one for one in earlier if not one.segments]
    place = max((len(one.segments) for one in earlier), default=0) + 256
    return len(pack_generations(earlier)) + len(left) * len(f',999,"{_packed("0" * 64)}"') + place


def _packed(digest: str) -> str:
    return b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def _unpacked(digest: str) -> str:
    return b64decode(digest + "=" * (-len(digest) % 4), validate=True).hex()


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
        found = await matches(self._connection, self.name, scope, max(after, self.first - 1), replicated=True)
        return [message for message in found if message.sequence <= self.last]

    async def sequence_at(self, moment: int) -> int:
        """See Past."""
        found = await sequence_before(self._connection, self.name, moment, replicated=True)
        return min(max(found, self.first - 1), self.last)
