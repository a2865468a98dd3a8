"""The messages of a segment: gzip members of some hundred messages each, so that any of them is read by itself.

Unpacked (`zcat`) they are the leaf data of docs/audit.md, one after another: exactly the bytes that the Merkle tree is
made of. Nothing needs a second form to be checked, and they pack far better than the sums and the base64 of JSONL.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from hashlib import sha256
from itertools import pairwise
from typing import BinaryIO, Final

from cuebook.ledger.errors import TamperedError
from cuebook.ledger.merkle import Frontier, leaf_hash
from cuebook.ledger.record import DOMAIN, Record, leaf_data
from cuebook.ledger.segments.index import Block, Keys, pack_index
from cuebook.ledger.segments.manifest import Blob, Segment

__all__ = ["MAX_EVENTS", "MAX_SEGMENT_BYTES", "SegmentWriter", "parse_block"]

MAX_EVENTS: Final = 100_000
MAX_SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""A segment ends with the block that reaches either."""
BLOCK_EVENTS: Final = 500
BLOCK_BYTES: Final = 1024 * 1024
"""Of a block, unpacked; one message more than that may be in it."""
_MAX_BLOCK_BYTES: Final = BLOCK_BYTES + 4 * 1024 * 1024
_FIXED: Final = struct.Struct(">QQIII")
_START: Final = len(DOMAIN) + _FIXED.size
_GZIP: Final = 31
"""Window bits of zlib that mean a gzip member. Source: zlib manual, deflateInit2."""


class SegmentWriter:
    """Writes the messages of one segment to a file that is open for bytes; the file stays the caller's."""

    def __init__(self, file: BinaryIO, before: Frontier) -> None:
        """`before`: the tree of all that comes before."""
        self._file = file
        self.before, self._tree = before.copy(), before.copy()
        self._whole = sha256()
        self._blocks: list[Block] = []
        self._keys = Keys()
        self._waiting: list[Record] = []
        self._parts: list[bytes] = []
        self._waiting_bytes = self.bytes = self.count = 0
        self._first = self._last = self._first_ns = self._last_ns = 0

    def add(self, record: Record) -> None:
        """Take the next message."""
        data = leaf_data(record)
        self._tree.add(leaf_hash(data))
        if not self.count:
            self._first, self._first_ns = record.sequence, record.recorded_ns
        self._last, self._last_ns = record.sequence, record.recorded_ns
        self.count += 1
        self._waiting.append(record)
        self._parts.append(data)
        self._waiting_bytes += len(data)
        if len(self._waiting) >= BLOCK_EVENTS or self._waiting_bytes >= BLOCK_BYTES:
            self._flush()

    @property
    def full(self) -> bool:
        """Nothing more should come."""
        return self.count >= MAX_EVENTS or self.bytes >= MAX_SEGMENT_BYTES

    def finish(self, space: str, log_first: int) -> tuple[Segment, bytes]:
        """Complete the file. Returns the segment, without a proof yet, and its index."""
        if self._waiting:
            self._flush()
        self._file.flush()
        head, buckets = pack_index(self._blocks, self._keys)
        segment = Segment(
            space=space,
            log_first=log_first,
            first=self._first,
            last=self._last,
            first_ns=self._first_ns,
            last_ns=self._last_ns,
            data=Blob(bytes=self.bytes, sha256=self._whole.hexdigest()),
            index=Blob(bytes=len(head) + len(buckets), sha256=sha256(head + buckets).hexdigest()),
            head=Blob(bytes=len(head), sha256=sha256(head).hexdigest()),
            before=tuple(self.before.nodes),
            after=tuple(self._tree.nodes),
        )
        return segment, head + buckets

    def _flush(self) -> None:
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        packed = packer.compress(b"".join(self._parts)) + packer.flush()
        first, last = self._waiting[0], self._waiting[-1]
        block = Block(
            self.bytes, len(packed), first.sequence, last.sequence, first.recorded_ns, sha256(packed).digest()
        )
        self._keys.add([record.subject for record in self._waiting], len(self._blocks))
        self._blocks.append(block)
        self._file.write(packed)
        self._whole.update(packed)
        self.bytes += len(packed)
        self._waiting.clear()
        self._parts.clear()
        self._waiting_bytes = 0


def parse_block(packed: bytes, block: Block) -> list[Record]:
    """The messages of a block, which are those that it should have. Raises TamperedError, naming their sequences."""
    if len(packed) != block.size or sha256(packed).digest() != block.sha256:
        raise TamperedError(f"sequences {block.first} to {block.last}: their SHA-256 is another", remedy=_AGAIN)
    try:
        found = list(_records(_unpacked(packed)))
    except (ValueError, zlib.error, struct.error) as error:
        raise TamperedError(
            f"sequences {block.first} to {block.last} cannot be read: {error}", remedy=_AGAIN
        ) from error
    if (
        found[0].sequence != block.first
        or found[-1].sequence != block.last
        or any(after.sequence != record.sequence + 1 for record, after in pairwise(found))
    ):
        raise TamperedError(f"the block of {block.first} to {block.last} holds others", remedy=_AGAIN)
    return found


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    data = unpacker.decompress(packed, _MAX_BLOCK_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is no single gzip member")
    return data


def _records(data: bytes) -> Iterable[Record]:
    place, end = 0, len(data)
    while place < end:
        sequence, recorded_ns, subject, headers, body = _FIXED.unpack_from(data, place + len(DOMAIN))
        if not data.startswith(DOMAIN, place):
            raise ValueError("a message does not begin as it should")
        start = place + _START
        cut, until = start + subject, start + subject + headers
        place = until + body
        if place > end:
            raise ValueError("the last message is cut short")
        yield Record(sequence, recorded_ns, data[start:cut], data[cut:until], data[until:place])


_AGAIN: Final = "get the file again from another copy, or write it again with 'cuebook space archive'"
