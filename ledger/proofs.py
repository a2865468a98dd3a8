"""Proofs as files that anybody can check: that a message is in the sealed log, and that a log has only grown.

Inclusion is the text of C2SP tlog-proof, with the message's leaf data as its extra data, so that the file holds all
that is needed beside the public key. Consistency is the hashes of RFC 9162 between two checkpoints.

Source: C2SP tlog-proof@v1; RFC 9162 sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.merkle import HASH_BYTES, inclusion_root, leaf_hash, verify_consistency
from cuebook.ledger.notes import Checkpoint, PublicKey, read_notes
from cuebook.ledger.record import Record, parse_leaf_data

__all__ = ["ConsistencyProof", "InclusionProof", "check_proof"]

_INCLUSION = "c2sp.org/tlog-proof@v1"
_CONSISTENCY = "cuebook consistency-proof v1"
_MAX_STEPS = 64
_match_inclusion = re.compile(
    re.escape(_INCLUSION)
    + r"\n(?:extra ([A-Za-z0-9+/=]+)\n)?index (0|[1-9][0-9]{0,18})\n((?:[A-Za-z0-9+/=]+\n)*)\n(.*)",
    re.DOTALL,
).fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """That a leaf is number `index`, from 0, of the tree of the checkpoint in `note`; `extra` comes along unproved."""

    index: int
    path: tuple[bytes, ...]
    note: str
    extra: bytes = b""

    @property
    def text(self) -> str:
        """As it is written to a file."""
        extra = [f"extra {b64encode(self.extra).decode()}"] if self.extra else []
        return "\n".join([_INCLUSION, *extra, f"index {self.index}", *_lines(self.path), "", self.note])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it. Raises ExportError."""
        found = _match_inclusion(text)
        refusal = ExportError("this is no inclusion proof", remedy="make one: cuebook audit prove SEQUENCE")
        if found is None:
            raise refusal
        extra, index, path, note = found.groups("")
        try:
            return cls(index=int(index), path=_hashes(path), note=note, extra=b64decode(extra, validate=True))
        except (ValueError, binascii.Error) as error:
            raise refusal from error

    def check(self, key: PublicKey, leaf: bytes) -> Checkpoint:
        """The checkpoint whose tree holds this leaf. Raises TamperedError, ExportError."""
        checkpoint = key.checkpoint(self.note)
        if inclusion_root(leaf, self.index, checkpoint.size, self.path) != checkpoint.root:
            raise TamperedError(
                f"the proof does not lead to the root that was signed for {checkpoint.size} messages",
                remedy="message, proof or checkpoint was altered; make the proof again from the log",
            )
        return checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyProof:
    """That the log of the checkpoint in `new` begins with all that the checkpoint in `old` was signed for."""

    path: tuple[bytes, ...]
    old: str
    new: str

    @property
    def text(self) -> str:
        """As it is written to a file."""
        return "\n".join([_CONSISTENCY, *_lines(self.path), "", self.old, self.new])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it. Raises ExportError."""
        head, _, rest = text.partition("\n\n")
        first, _, path = head.partition("\n")
        notes, left = read_notes(rest)
        refusal = ExportError("this is no consistency proof", remedy="make one: cuebook audit grown OLD")
        if first != _CONSISTENCY or len(notes) != 2 or left:
            raise refusal
        try:
            return cls(path=_hashes(path), old=notes[0], new=notes[1])
        except (ValueError, binascii.Error) as error:
            raise refusal from error

    def check(self, key: PublicKey) -> tuple[Checkpoint, Checkpoint]:
        """The two checkpoints. Raises TamperedError, ExportError."""
        old, new = key.checkpoint(self.old), key.checkpoint(self.new)
        if not verify_consistency(old.size, old.root, new.size, new.root, self.path):
            raise TamperedError(
                f"the proof does not lead from the tree of {old.size} messages to that of {new.size}",
                remedy="the log was rewritten, or the proof is of others; make it again from the log",
            )
        return old, new


def check_proof(text: str, key: PublicKey) -> tuple[Checkpoint, Record] | tuple[Checkpoint, Checkpoint]:
    """What a proof file proves: that the log of a checkpoint holds a message, or that it begins with another.

    Raises TamperedError, ExportError.
    """
    if text.startswith(_CONSISTENCY):
        return ConsistencyProof.parse(text).check(key)
    proof = InclusionProof.parse(text)
    checkpoint = proof.check(key, leaf_hash(proof.extra))
    try:
        return checkpoint, parse_leaf_data(proof.extra)
    except ValueError as error:
        raise ExportError(
            f"the proof holds no message: {error}", remedy="make it again: cuebook audit prove"
        ) from error


def _lines(path: Sequence[bytes]) -> list[str]:
    return [b64encode(step).decode() for step in path]


def _hashes(lines: str) -> tuple[bytes, ...]:
    found = tuple(b64decode(line, validate=True) for line in lines.split("\n") if line)
    if len(found) > _MAX_STEPS or any(len(step) != HASH_BYTES for step in found):
        raise ValueError(lines)
    return found
