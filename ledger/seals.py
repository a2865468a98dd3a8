"""The second stream of a space, `<SPACE>_SEALS`: its signed checkpoints, each with what it takes to go on from there.

A seal is an inclusion proof of the last message that it covers. From the path of the last leaf follows the whole state
of the tree, so a sealer that was killed needs nothing but the last seal, and notices if the log does not hold that
message any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from cuebook.events.connection import Connection
from cuebook.events.errors import HistoryRegressedError, StreamMissingError
from cuebook.events.lookup import message_at
from cuebook.events.stream import StreamFacts, ensure_stream, verify_stream
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.merkle import Frontier, inclusion_root
from cuebook.ledger.notes import Checkpoint, PrivateKey, PublicKey
from cuebook.ledger.proofs import InclusionProof

__all__ = ["Seal", "SealNames", "Seals"]


@dataclass(frozen=True, slots=True)
class SealNames:
    """How the seals of a space are filed; see `events.stream.StreamNames`."""

    space: str

    @property
    def stream(self) -> str:
        """The stream."""
        return f"{self.space.upper()}_SEALS"

    @property
    def all(self) -> str:
        """The one subject in it."""
        return f"seals.{self.space}"

    @property
    def live(self) -> str:
        """Where each is heard once it is stored."""
        return f"live.seals.{self.space}"

    @property
    def purpose(self) -> str:
        """For its description."""
        return "signed checkpoints of the log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A checkpoint, the last leaf it covers, and that leaf's path."""

    checkpoint: Checkpoint
    leaf: bytes
    path: tuple[bytes, ...]

    @classmethod
    def make(cls, key: PrivateKey, before: Frontier, leaf: bytes) -> Seal:
        """Sign the tree that `before` becomes with this leaf."""
        path = tuple(before.path_of_next())
        root = inclusion_root(leaf, before.size, before.size + 1, path)
        assert root is not None
        return cls(checkpoint=key.checkpoint(before.size + 1, root), leaf=leaf, path=path)

    @classmethod
    def parse(cls, body: bytes, key: PublicKey | None) -> Seal:
        """Read a stored seal; without a key its signature is not looked at. Raises TamperedError, ExportError."""
        try:
            proof = InclusionProof.parse(body.decode())
        except UnicodeDecodeError as error:
            raise ExportError("this is no seal", remedy="nobody but the sealer writes to the seals") from error
        note = proof.note
        checkpoint = key.checkpoint(note) if key else Checkpoint.parse(note.rpartition("\n\n")[0] + "\n", note)
        if (
            proof.index != checkpoint.size - 1
            or inclusion_root(proof.extra, proof.index, checkpoint.size, proof.path) != checkpoint.root
        ):
            raise TamperedError(
                f"the seal of {checkpoint.size} messages does not agree with itself",
                remedy="compare the seals with the file of checkpoints",
            )
        return cls(checkpoint=checkpoint, leaf=proof.extra, path=proof.path)

    @property
    def body(self) -> bytes:
        """As it is stored."""
        proof = InclusionProof(
            index=self.checkpoint.size - 1, path=self.path, note=self.checkpoint.note, extra=self.leaf
        )
        return proof.text.encode()

    @property
    def frontier(self) -> Frontier:
        """The tree, to grow on."""
        tree = Frontier(self.checkpoint.size - 1, reversed(self.path))
        tree.add(self.leaf)
        return tree


class Seals:
    """The seals of one space."""

    def __init__(self, connection: Connection, space: str, key: PublicKey | None) -> None:
        self._connection, self.names, self._key = connection, SealNames(space), key

    async def ensure(self, *, replicas: int = 1) -> StreamFacts:
        """Make the stream, or check that it is as strict as the log's. Raises ConfigurationError, UnavailableError."""
        return await ensure_stream(self._connection, self.names, replicas=replicas)

    async def count(self) -> int:
        """How many there are; 0 also where nothing was ever sealed. Raises as `ensure`."""
        try:
            return (await verify_stream(self._connection, self.names)).last_sequence
        except StreamMissingError:
            return 0

    async def at(self, number: int) -> Seal:
        """One seal, counted from 1. Raises HistoryRegressedError when it is gone, TamperedError, ExportError."""
        stored = await message_at(self._connection, self.names.stream, number)
        if stored is None:
            raise HistoryRegressedError(f"stream {self.names.stream} holds no seal {number} any more")
        return Seal.parse(stored.body, self._key)

    async def last_within(self, size: int) -> Seal | None:
        """The newest seal of at most `size` messages, by halving; None when there is none. Raises as `at`."""
        low, high, found = 1, await self.count(), None
        while low <= high:
            middle = (low + high) // 2
            seal = await self.at(middle)
            if seal.checkpoint.size <= size:
                low, found = middle + 1, seal
            else:
                high = middle - 1
        return found

    async def first_beyond(self, size: int) -> Seal | None:
        """The oldest seal of at least `size` messages. Raises as `at`."""
        low, high, found = 1, await self.count(), None
        while low <= high:
            middle = (low + high) // 2
            seal = await self.at(middle)
            if seal.checkpoint.size >= size:
                high, found = middle - 1, seal
            else:
                low = middle + 1
        return found
