"""What a segment says about itself: which messages, how many bytes, where they stand in the tree, and who signed it.

One line of JSON in a file of its own, written last: a segment is there when its manifest is. The line ends in the
SHA-256 of what stands before, as in an export.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self

from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.merkle import HASH_BYTES, Frontier

__all__ = ["FORMAT", "MANIFEST", "Blob", "Proof", "Segment", "digest_of", "name_of", "range_of"]

FORMAT: Final = 1
"""Of segments as they are written now. Older ones are read for ever; a newer one is refused."""
MANIFEST: Final = ".json"
DATA: Final = ".gz"
INDEX: Final = ".index"
_SUM: Final = b',"sum":"'
_MOST_NS: Final = 2**63
"""As the server counts nanoseconds."""
_match_name: Final = re.compile(r"([0-9]{12,19})-([0-9]{12,19})\.json").fullmatch
_AGAIN: Final = "get the file again from another copy, or write it again with 'cuebook space archive'"


def name_of(first: int, last: int) -> str:
    """What the files of a segment are called, without their ending; sorted by name they are in order."""
    return f"{first:012d}-{last:012d}"


def range_of(name: str) -> tuple[int, int] | None:
    """The sequences that the name of a manifest says; None for any other file."""
    found = _match_name(name)
    return (int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file, or its beginning: how many bytes, and their SHA-256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That the tree which ends with the segment is the beginning of one that was signed.

    `path` is the consistency proof of RFC 9162 from there to the tree of the checkpoint in `note`; empty when they are
    the same.
    """

    path: tuple[bytes, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Messages `first` to `last` of a log, without a gap. `before` and `after`: the tree's nodes around them.

    `first_ns`, `last_ns`: when the first and the last were recorded. `head` is the beginning of the index. Without a
    `proof` it is unsigned.
    """

    space: str
    log_first: int
    first: int
    last: int
    first_ns: int
    last_ns: int
    data: Blob
    index: Blob
    head: Blob
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]
    proof: Proof | None = None

    @property
    def name(self) -> str:
        """What its files are called, without their ending."""
        return name_of(self.first, self.last)

    @property
    def count(self) -> int:
        """Messages in it."""
        return self.last - self.first + 1

    @property
    def tree_before(self) -> Frontier:
        """The tree of all that stands before it, to grow on."""
        return Frontier(self.first - self.log_first, self.before)

    @property
    def tree_after(self) -> Frontier:
        """The tree of all up to its end, to grow on."""
        return Frontier(self.last - self.log_first + 1, self.after)

    def to_data(self) -> dict[str, Any]:
        """As JSON has it, always in this order."""
        proof = self.proof and {"path": _texts(self.proof.path), "checkpoint": self.proof.note}
        return {
            "cuebook": "segment",
            "format": FORMAT,
            "space": self.space,
            "log_first": self.log_first,
            "first": self.first,
            "last": self.last,
            "count": self.count,
            "first_ns": str(self.first_ns),
            "last_ns": str(self.last_ns),
            "data": _blob_data(self.data),
            "index": _blob_data(self.index),
            "head": _blob_data(self.head),
            "before": _texts(self.before),
            "after": _texts(self.after),
            "proof": proof,
        }

    @property
    def text(self) -> bytes:
        """As its file holds it."""
        data = json.dumps(self.to_data(), separators=(",", ":")).encode()[:-1]
        return b'%b%b%b"}\n' % (data, _SUM, sha256(data).hexdigest().encode())

    @classmethod
    def parse(cls, text: bytes, name: str) -> Self:
        """Read a manifest. Raises ExportError for what is none or is newer, TamperedError when it was altered."""
        data, cut, tail = text.rpartition(_SUM)
        if not text.startswith(b'{"cuebook":"segment"'):
            raise ExportError(f"{name} is no manifest of a segment", remedy=_AGAIN)
        if not cut or tail != sha256(data).hexdigest().encode() + b'"}\n':
            raise TamperedError(f"{name} was altered or cut short: its sum does not fit", remedy=_AGAIN)
        try:
            found = cls._of(json.loads(data + b"}"), name)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, Base64Error) as error:
            raise ExportError(f"{name} makes no sense: {error!r:.80}", remedy=_AGAIN) from error
        return found

    @classmethod
    def _of(cls, data: dict[str, Any], name: str) -> Self:
        if data["format"] > FORMAT:
            raise ExportError(
                f"{name} is of format {data['format']}, and this release reads up to {FORMAT}", remedy="upgrade cuebook"
            )
        proof = data["proof"]
        found = cls(
            space=str(data["space"]),
            log_first=int(data["log_first"]),
            first=int(data["first"]),
            last=int(data["last"]),
            first_ns=int(data["first_ns"]),
            last_ns=int(data["last_ns"]),
            data=_blob(data["data"]),
            index=_blob(data["index"]),
            head=_blob(data["head"]),
            before=_hashes(data["before"]),
            after=_hashes(data["after"]),
            proof=Proof(path=_hashes(proof["path"]), note=str(proof["checkpoint"])) if proof else None,
        )
        if not 1 <= found.log_first <= found.first <= found.last or found.count != data["count"]:
            raise ValueError(data["first"])
        if not (0 <= found.first_ns < _MOST_NS and 0 <= found.last_ns < _MOST_NS):
            raise ValueError(data["first_ns"], data["last_ns"])
        for tree in (found.tree_before, found.tree_after):
            tree.root()
        if range_of(name.rpartition("/")[2]) != (found.first, found.last):
            raise TamperedError(f"{name} is the manifest of {found.name}: it was renamed", remedy=_AGAIN)
        return found


def digest_of(segments: Iterable[Segment]) -> str:
    """One SHA-256 for what several segments hold, whoever signed them: each message, its place, and the indexes."""
    whole = sha256()
    for one in segments:
        whole.update(f"{one.name} {one.data.sha256} {one.index.sha256}\n".encode())
        whole.update(b"".join(one.after))
    return whole.hexdigest()


def _blob_data(blob: Blob) -> dict[str, Any]:
    return {"bytes": blob.bytes, "sha256": blob.sha256}


def _blob(data: dict[str, Any]) -> Blob:
    found = Blob(bytes=int(data["bytes"]), sha256=str(data["sha256"]))
    if found.bytes < 0 or len(bytes.fromhex(found.sha256)) != HASH_BYTES:
        raise ValueError(data)
    return found


def _texts(hashes: Iterable[bytes]) -> list[str]:
    return [b64encode(one).decode() for one in hashes]


def _hashes(texts: list[str]) -> tuple[bytes, ...]:
    found = tuple(b64decode(one, validate=True) for one in texts)
    if any(len(one) != HASH_BYTES for one in found):
        raise ValueError(texts)
    return found
