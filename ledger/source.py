"""A live log as something to export or to prove from: its messages as they were first recorded, byte for byte."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from cuebook.events.copies import original_of
from cuebook.events.errors import HistoryRegressedError
from cuebook.events.log import EventLog, Stored
from cuebook.events.stream import StreamFacts
from cuebook.ledger.manifest import End, Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.record import Record, leaf_of
from cuebook.ledger.seals import Seals

__all__ = ["Imported", "Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an imported stream says of itself: the export that it was filled from."""

    header: Header
    end: End

    @property
    def keeps_sequences(self) -> bool:
        """Whether each message stands where it stood: only if the export leaves nothing out."""
        return self.end.count == self.end.last - self.end.first + 1

    @property
    def text(self) -> str:
        """As it stands in the stream's metadata."""
        return json.dumps({**self.header.to_data(), "end": self.end.to_data()}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Imported:
        """Read it. Raises ExportError."""
        data = json.loads(text)
        return cls(header=Header.from_data(data), end=End.from_data(data.get("end")))


class Source:
    """One log. An imported one shows the messages of its origin: their subjects, sequences and times."""

    def __init__(self, log: EventLog, facts: StreamFacts) -> None:
        self._log, self._facts = log, facts
        self.imported = Imported.parse(facts.imported) if facts.imported else None
        self._space = log.subjects.space
        self._origin = self.imported.header.space if self.imported else self._space
        self._rerooted = self._origin != self._space
        self.log_first = self.imported.header.log_first if self.imported else max(facts.first_sequence, 1)

    async def header(self, *, after: int, until: int, filters: Sequence[str], view: bool) -> Header:
        """What an export of a part says at its beginning. The part is not empty."""
        header = Header(
            space=self._origin,
            stream=self.imported.header.stream if self.imported else self._log.subjects.stream,
            filters=tuple(self._rooted(one) for one in filters),
            first=after + 1,
            last=until,
            log_first=self.log_first,
            view=view,
        )
        if self.imported is not None:
            origin = self.imported.header
            if after + 1 <= self._facts.first_sequence and until >= self._facts.last_sequence and not filters:
                return replace(origin, view=view)
            if not self.imported.keeps_sequences:
                first, last = await self._original(after + 1), await self._original(until)
                return replace(header, first=first, last=last, filters=header.filters or origin.filters)
        if filters or header.first == self.log_first:
            return replace(header, before=None if filters else ())
        tree = await self.tree_before(header.first)
        return replace(header, before=None if tree is None else tuple(tree.nodes))

    async def batches(self, *, after: int, until: int, filters: Sequence[str] = ()) -> AsyncGenerator[list[Record]]:
        """Messages with stream sequences after one and up to another, in order. Errors as for `EventLog.read`."""
        async with aclosing(self._log.batches(after=after, until=until, filters=filters)) as batches:
            async for batch in batches:
                yield [self.record(message) for message in batch]

    def record(self, message: Stored) -> Record:
        """A stored message as it was first recorded."""
        subject, body, sequence, recorded_ns, headers = message
        block = headers or b""
        if self.imported is not None:
            if self._rerooted:
                subject = f"{self._origin}{subject[len(self._space) :]}"
            if (original := original_of(headers)) is not None:
                sequence, recorded_ns, block = original
        return Record(sequence, recorded_ns, subject.encode("utf-8", "surrogateescape"), block, body)

    async def tree_before(self, sequence: int) -> Frontier | None:
        """The Merkle tree of all that stands before a sequence, from the nearest seal on; None where it is lost."""
        size = sequence - self.log_first
        tree, known = Frontier(), self.log_first
        if self.imported is not None:
            before = self.imported.header.before
            if before is None or not self.imported.keeps_sequences:
                return None
            known = self.imported.header.first
            tree = Frontier(known - self.log_first, before)
        elif seal := await Seals(self._log.connection, self._space, None).last_within(size):
            tree = seal.frontier
        start = self.log_first + tree.size
        if start >= sequence:
            return tree if start == sequence else None
        async with aclosing(self.batches(after=start - 1, until=sequence - 1)) as batches:
            async for batch in batches:
                for record in batch:
                    if record.sequence != self.log_first + tree.size:
                        raise HistoryRegressedError(f"stream {self._facts.name} holds nothing at {record.sequence - 1}")
                    tree.add(leaf_of(record))
        return tree

    def _rooted(self, subject: str) -> str:
        return f"{self._origin}{subject[len(self._space) :]}" if self._rerooted else subject

    async def _original(self, sequence: int) -> int:
        async with aclosing(self.batches(after=sequence - 1, until=sequence)) as batches:
            async for batch in batches:
                return batch[0].sequence
        return sequence
