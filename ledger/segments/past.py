"""A generation of the log that is only in segments: reads as it did when its stream was still there.

Of one run out of millions of messages only what the index names is read. Everything that comes from a store is held
against the SHA-256 that its manifest, or its index, says.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from hashlib import sha256
from typing import Final, TypeVar

from cuebook.events.errors import ConfigurationError
from cuebook.events.lookup import StoredMessage
from cuebook.events.reading import Stored
from cuebook.ledger.errors import SegmentsMissingError, TamperedError
from cuebook.ledger.record import Record
from cuebook.ledger.segments.blocks import parse_block
from cuebook.ledger.segments.cache import Cache
from cuebook.ledger.segments.index import Block, Bucket, Head, bucket_of, hash_of, key_of_filter, parse_bucket
from cuebook.ledger.segments.manifest import DATA, INDEX, Segment
from cuebook.ledger.segments.store import SETTING, SegmentFileMissingError, SegmentStore

__all__ = ["SegmentPast", "SegmentReader"]

_Matches = Callable[[Stored], bool]
_K = TypeVar("_K")
_V = TypeVar("_V")

_HEADS: Final = 256
_BLOCKS: Final = 8
_BUCKETS: Final = 512
"""Kept in memory, each some kilobytes to a megabyte."""


class SegmentReader:
    """Reads parts of segments, each checked, and keeps a few of them."""

    def __init__(self, store: SegmentStore, cache: Cache | None) -> None:
        self._store, self._cache = store, cache if store.remote else None
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], list[Record]] = OrderedDict()
        self._buckets: OrderedDict[tuple[str, int], dict[bytes, list[int]]] = OrderedDict()
        self.bytes_read = 0
        """Fetched from the store, without what the cache had."""

    async def head(self, segment: Segment) -> Head:
        """What the index of a segment begins with. Raises TamperedError, SegmentsMissingError, UnavailableError."""
        found = self._heads.get(segment.name)
        if found is None:
            blob, name = segment.head, f"{segment.name}{INDEX}"
            data = await self._part(name, 0, blob.bytes, bytes.fromhex(blob.sha256), segment)
            found = Head.parse(data, name)
            _keep(self._heads, segment.name, found, _HEADS)
        return found

    async def block(self, segment: Segment, block: Block) -> list[Record]:
        """The messages of a block. Raises as `head`."""
        key = (segment.name, block.offset)
        found = self._blocks.get(key)
        if found is None:
            name = f"{segment.name}{DATA}"
            data = await self._part(name, block.offset, block.size, block.sha256, segment, block)
            found = await asyncio.to_thread(parse_block, data, block)
            _keep(self._blocks, key, found, _BLOCKS)
        return found

    async def blocks_of(self, segment: Segment, filters: Sequence[str]) -> list[Block]:
        """The blocks that may hold something under one of the filters, in order. Raises as `head`."""
        head = await self.head(segment)
        keys = {key_of_filter(one) for one in filters}
        if not keys or b"" in keys:
            return head.blocks
        numbers: set[int] = set()
        for key in keys:
            bucket = await self._bucket(segment, head, bucket_of(key))
            numbers.update(bucket.get(hash_of(key), ()))
        return [head.blocks[number] for number in sorted(numbers) if number < len(head.blocks)]

    async def _bucket(self, segment: Segment, head: Head, number: int) -> dict[bytes, list[int]]:
        key = (segment.name, number)
        found = self._buckets.get(key)
        if found is None:
            bucket: Bucket = head.buckets[number]
            name = f"{segment.name}{INDEX}"
            data = await self._part(name, bucket.offset, bucket.size, bucket.sha256, segment)
            found = parse_bucket(data, name)
            _keep(self._buckets, key, found, _BUCKETS)
        return found

    async def _part(
        self, name: str, start: int, size: int, digest: bytes, segment: Segment, block: Block | None = None
    ) -> bytes:
        if self._cache is not None and (data := await asyncio.to_thread(self._cache.get, digest)) is not None:
            return data
        try:
            data = await self._store.read(name, start, size)
        except (SegmentFileMissingError, ConfigurationError) as error:  # it was there when its manifest was read
            raise SegmentsMissingError(
                f"sequences {segment.first} to {segment.last} are only in segments, and cannot be read: {error}",
                remedy=f"bring the segments here and say where they are: {SETTING}",
            ) from error
        self.bytes_read += size
        if sha256(data).digest() != digest:
            first, last = (block.first, block.last) if block else (segment.first, segment.last)
            raise TamperedError(
                f"{name} in {self._store.place} was altered: bytes {start} to {start + size - 1}, which concern "
                f"sequences {first} to {last}, have another SHA-256",
                remedy="get the file again from another copy, or write it again with 'cuebook space archive'",
            )
        if self._cache is not None:
            await asyncio.to_thread(self._cache.put, digest, data)
        return data


class SegmentPast:
    """See `events.past.Past`. `segments` follow each other and hold `first` to `last`, perhaps more."""

    def __init__(
        self, reader: SegmentReader, segments: Sequence[Segment], *, generation: int, name: str, first: int, last: int
    ) -> None:
        self._reader, self._segments = reader, list(segments)
        self._ends = [one.last for one in segments]
        self.generation, self.name, self.first, self.last = generation, name, first, last

    async def batches(self, *, after: int, until: int, filters: Sequence[str]) -> AsyncGenerator[list[Stored]]:
        """See Past."""
        after, until = max(after, self.first - 1), min(until, self.last)
        matches = _matcher(filters)
        for segment in self._within(after, until):
            for block in await self._reader.blocks_of(segment, filters):
                if block.last <= after:
                    continue
                if block.first > until:
                    return
                batch = [
                    one
                    for record in await self._reader.block(segment, block)
                    if after < record.sequence <= until and matches(one := _stored(record))
                ]
                if batch:
                    yield batch

    async def at(self, sequence: int) -> StoredMessage | None:
        """See Past."""
        async for batch in self.batches(after=sequence - 1, until=sequence, filters=()):
            return _message(batch[0])
        return None

    async def first_match(self, scope: str, after: int = 0) -> StoredMessage | None:
        """See Past."""
        async for batch in self.batches(after=after, until=self.last, filters=[scope]):
            return _message(batch[0])
        return None

    async def matches(self, scope: str, after: int = 0) -> list[StoredMessage]:
        """See Past."""
        batches = self.batches(after=after, until=self.last, filters=[scope])
        return [_message(one) async for batch in batches for one in batch]

    async def sequence_at(self, moment: int) -> int:
        """See Past. Server clocks may step back: then this is the last of the messages before the first later one."""
        found = self.first - 1
        for segment in self._within(self.first - 1, self.last):
            if segment.last_ns // 1000 < moment:
                found = min(segment.last, self.last)
                continue
            for block in reversed((await self._reader.head(segment)).blocks):
                if block.first_ns // 1000 >= moment:
                    continue
                for record in await self._reader.block(segment, block):
                    if record.recorded_ns // 1000 < moment and record.sequence <= self.last:
                        found = max(found, record.sequence)
                return found
            return found
        return found

    def _within(self, after: int, until: int) -> Sequence[Segment]:
        begin = bisect_right(self._ends, after)
        return [one for one in self._segments[begin:] if one.first <= until]


def _matcher(filters: Sequence[str]) -> _Matches:
    """Whether a message is under one of the filters; without any, all are."""
    if not filters:
        return lambda _: True
    pattern = "|".join(_pattern(one) for one in filters)
    found = re.compile(pattern, re.DOTALL).fullmatch
    return lambda message: found(message.subject) is not None


def _pattern(text: str) -> str:
    tokens = text.split(".")
    known = {"*": r"[^.]+", ">": r".+"}
    return r"\.".join(known.get(token, re.escape(token)) for token in tokens)


def _stored(record: Record) -> Stored:
    sequence, recorded_ns, subject, headers, body = record
    return Stored(subject.decode("utf-8", "surrogateescape"), body, sequence, recorded_ns, headers or None)


def _message(message: Stored) -> StoredMessage:
    subject, body, sequence, recorded_ns, headers = message
    if not subject.isascii():
        subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return StoredMessage(subject, body, sequence, recorded_ns // 1000, headers)


def _keep(kept: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
