r"""Where things are in a segment: its blocks, and for each run, agent or topic the blocks that have something of it.

    "cuebook-index-v1\n", head, buckets

The head is the zlib of a MessagePack array `[blocks, buckets]`: of each block `[offset, bytes, first, last,
first_ns, SHA-256]`, of each bucket `[bytes, SHA-256]`. A bucket is the zlib of a map from the hash of a key (BLAKE2b of
six bytes) to numbers of blocks. A key is the first two, and the first three, tokens of a subject: `cue.run` and
`cue.run.<run id>`. So who looks for one run reads of each segment the head and one bucket, some ten kilobytes, and
knows that they are right.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from typing import Any, Final, NamedTuple

import msgpack

from cuebook.ledger.errors import TamperedError

__all__ = ["BUCKETS", "Block", "Head", "Keys", "bucket_of", "key_of_filter", "keys_of", "pack_index", "parse_bucket"]

MAGIC: Final = b"cuebook-index-v1\n"
BUCKETS: Final = 64
_HASH_BYTES: Final = 6
_MAX_BYTES: Final = 64 * 1024 * 1024
_TYPES: Final = [int, int, int, int, int, bytes]
"""Of what a block is made."""


class Block(NamedTuple):
    """A part of a segment that is read at once: where it is in the file, and which messages it has."""

    offset: int
    size: int
    first: int
    last: int
    first_ns: int
    sha256: bytes


class Bucket(NamedTuple):
    """A part of the index: `offset` in the file."""

    offset: int
    size: int
    sha256: bytes


class Head(NamedTuple):
    """What the index begins with."""

    blocks: list[Block]
    buckets: list[Bucket]

    @classmethod
    def parse(cls, data: bytes, name: str) -> Head:
        """Read it. Raises TamperedError."""
        try:
            if not data.startswith(MAGIC):
                raise ValueError(data[:20])  # noqa: TRY301 - one place that says what is wrong
            blocks, sizes = _unpack(data[len(MAGIC) :])
            offset, buckets = len(data), []
            for size, digest in sizes:
                buckets.append(Bucket(offset, size, digest))
                offset += size
            found = cls([Block(*one) for one in blocks], buckets)
            if len(buckets) != BUCKETS or not found.blocks:
                raise ValueError(len(buckets))  # noqa: TRY301
            if any([type(value) for value in one] != _TYPES for one in found.blocks):
                raise TypeError(blocks)  # noqa: TRY301
        except (ValueError, TypeError, zlib.error) as error:
            raise TamperedError(f"{name} is no index of a segment", remedy="get the file again") from error
        return found


class Keys:
    """Collects the keys of a segment while it is written; memory follows the number of its runs."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, list[int]] = {}

    def add(self, subjects: Iterable[bytes], block: int) -> None:
        """Take the subjects of the messages of one block; blocks come in order."""
        found = self._blocks
        for key in {key for subject in subjects for key in keys_of(subject)}:
            found.setdefault(hash_of(key), []).append(block)

    def buckets(self) -> list[dict[bytes, list[int]]]:
        """The same, divided."""
        divided: list[dict[bytes, list[int]]] = [{} for _ in range(BUCKETS)]
        for key in sorted(self._blocks):
            divided[key[0] % BUCKETS][key] = sorted(set(self._blocks[key]))
        return divided


def keys_of(subject: bytes) -> tuple[bytes, bytes]:
    """The keys under which a message is found."""
    tokens = subject.split(b".", 3)
    return b".".join(tokens[:2]), b".".join(tokens[:3])


def key_of_filter(text: str) -> bytes:
    """The key under which all that matches a subject filter is found; empty where only reading everything helps."""
    tokens = text.split(".")
    known = 0
    while known < min(len(tokens), 3) and tokens[known] not in ("*", ">"):
        known += 1
    if known < 2:
        return b""
    return ".".join(tokens[:known]).encode("utf-8", "surrogateescape")


def hash_of(key: bytes) -> bytes:
    """What stands for a key; two keys may share one, which costs a look into a block too many."""
    return blake2b(key, digest_size=_HASH_BYTES).digest()


def bucket_of(key: bytes) -> int:
    """The number of the bucket that a key is in."""
    return hash_of(key)[0] % BUCKETS


def parse_bucket(data: bytes, name: str) -> dict[bytes, list[int]]:
    """Read a bucket: from the hash of a key to blocks. Raises TamperedError."""
    try:
        found = _unpack(data)
        if not isinstance(found, dict):
            raise TypeError(found)  # noqa: TRY301
    except (ValueError, TypeError, zlib.error) as error:
        raise TamperedError(f"{name} is no index of a segment", remedy="get the file again") from error
    return found


def pack_index(blocks: Sequence[Block], keys: Keys) -> tuple[bytes, bytes]:
    """The index as its file holds it: head, and all buckets."""
    buckets = [_pack(one) for one in keys.buckets()]
    head = MAGIC + _pack([[list(one) for one in blocks], [[len(one), sha256(one).digest()] for one in buckets]])
    return head, b"".join(buckets)


def _pack(value: object) -> bytes:
    return zlib.compress(msgpack.packb(value), 6)


def _unpack(data: bytes) -> Any:
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(data, _MAX_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof or unpacker.unused_data:
        raise ValueError(len(data))
    return msgpack.unpackb(plain, strict_map_key=False)
