"""Writing history as segments: what is missing in a place is written there, then proved.

Killed at any moment it leaves whole segments behind, and perhaps files that the next one removes; run again it goes on
after the last. A segment's manifest is written last. Memory follows the size of one segment's index.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cuebook.events.errors import ConfigurationError, HistoryRegressedError
from cuebook.ledger.errors import TamperedError
from cuebook.ledger.merkle import Frontier, PathFinder, consistency_ranges, verify_consistency
from cuebook.ledger.notes import Checkpoint, PrivateKey
from cuebook.ledger.record import Record, leaf_of
from cuebook.ledger.seals import Seals
from cuebook.ledger.segments.blocks import SegmentWriter
from cuebook.ledger.segments.manifest import DATA, INDEX, MANIFEST, Proof, Segment
from cuebook.ledger.segments.shelf import Gap, read_shelf
from cuebook.ledger.segments.store import SegmentStore
from cuebook.ledger.source import Source

__all__ = ["Archive", "Archived"]

_part_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """What came of it: segments written now, those that were there before, and how many have no proof yet."""

    written: int
    kept: int
    events: int
    bytes: int
    proved: int
    unsigned: int


class Archive:
    """Writes the segments of one log to one place."""

    def __init__(
        self, source: Source, space: str, seals: Seals, store: SegmentStore, *, key: PrivateKey | None
    ) -> None:
        """`key`: signs where no checkpoint reaches; of its log there must be no other."""
        self._source, self._space, self._seals, self._store, self._key = source, space, seals, store, key
        self._log_first = source.log_first

    async def write(
        self, first: int, last: int, *, max_events: int, watch: Callable[[int, int], None] | None = None
    ) -> Archived:
        """Have sequences `first` to `last` in segments; `watch` is called with sequence and number of messages.

        Raises TamperedError when what is there is damaged or of another log; ConfigurationError, UnavailableError,
        HistoryRegressedError.
        """
        written = events = size = 0
        async with self._store.writing() as folder:
            shelf = await read_shelf(self._store, self._space)
            await self._check_ends(shelf.segments)
            before = {one.last: one for one in shelf.segments}
            for gap in shelf.gaps(first, last):
                tree = await self._tree(gap, before.get(gap.first - 1))
                async with aclosing(self._segments(folder, gap, tree, max_events, events, watch)) as segments:
                    async for segment in segments:
                        written, events = written + 1, events + segment.count
                        size += segment.data.bytes + segment.index.bytes
            shelf = await read_shelf(self._store, self._space)
            proved = await self._prove([one for one in shelf.covering(first, last) if one.proof is None])
        covering = shelf.covering(first, last)
        return Archived(
            written=written,
            kept=len(covering) - written,
            events=events,
            bytes=size,
            proved=proved,
            unsigned=sum(one.proof is None for one in covering) - proved,
        )

    async def _segments(
        self,
        folder: Path,
        gap: Gap,
        tree: Frontier,
        max_events: int,
        done: int,
        watch: Callable[[int, int], None] | None,
    ) -> AsyncGenerator[Segment]:
        """Write one after the other, from first to last."""
        records = self._records(gap)
        record = await anext(records, None)
        async with aclosing(records):
            while record is not None:
                path = folder / f"{next(_part_numbers)}.{record.sequence}.part"
                with _written(path) as file:
                    writer = SegmentWriter(file, tree)
                    while record is not None and not writer.full and writer.count < max_events:
                        writer.add(record)
                        done += 1
                        if watch is not None and not done % 1000:
                            watch(record.sequence, done)
                        record = await anext(records, None)
                    segment, index = writer.finish(self._space, self._log_first)
                tree = segment.tree_after
                await self._store.put(f"{segment.name}{DATA}", path)
                await self._store.put(f"{segment.name}{INDEX}", index)
                await self._store.put(f"{segment.name}{MANIFEST}", segment.text)
                yield segment

    async def _records(self, gap: Gap) -> AsyncGenerator[Record]:
        expected = gap.first
        async with aclosing(self._source.batches(after=gap.first - 1, until=gap.last)) as batches:
            async for batch in batches:
                for record in batch:
                    if record.sequence != expected:
                        raise HistoryRegressedError(f"the log holds nothing from {expected} to {record.sequence - 1}")
                    expected += 1
                    yield record
        if expected <= gap.last:
            raise HistoryRegressedError(f"the log holds nothing from {expected} to {gap.last}")

    async def _tree(self, gap: Gap, before: Segment | None) -> Frontier:
        """The tree of all that comes before a gap."""
        if before is not None:
            return before.tree_after
        tree = await self._source.tree_before(gap.first)
        if tree is None:
            raise HistoryRegressedError(f"the log does not hold what comes before {gap.first}")
        return tree

    async def _check_ends(self, segments: Sequence[Segment]) -> None:
        """What is there already must be of this very log: its last message still is what the log has."""
        for segment in segments[-1:]:
            if segment.log_first != self._log_first:
                raise self._other_log(segment)
            tree = segment.tree_before
            async with aclosing(self._source.batches(after=segment.first - 1, until=segment.last)) as batches:
                async for batch in batches:
                    for record in batch:
                        tree.add(leaf_of(record))
            if tree.nodes != list(segment.after):
                raise self._other_log(segment)

    def _other_log(self, segment: Segment) -> TamperedError:
        return TamperedError(
            f"{segment.name} in {self._store.place} holds other messages than the log",
            remedy="write to another place (--to), or find out which of the two was altered",
        )

    # --- proofs ---

    async def _prove(self, segments: list[Segment]) -> int:
        proved = 0
        for segment in segments:
            size = segment.tree_after.size
            seal = await self._seals.first_beyond(size)
            if seal is not None:
                path = await self._path(segment, seal.checkpoint)
                note = seal.checkpoint.note
            elif self._key is not None:
                path, note = (), self._key.checkpoint(size, segment.tree_after.root()).note
            else:
                continue
            signed = replace(segment, proof=Proof(path=path, note=note))
            await self._store.put(f"{segment.name}{MANIFEST}", signed.text)
            proved += 1
        return proved

    async def _path(self, segment: Segment, checkpoint: Checkpoint) -> tuple[bytes, ...]:
        """How the tree that ends with the segment leads to that of the checkpoint. Raises TamperedError."""
        tree, new = segment.tree_after, checkpoint.size
        if tree.size == new:
            steps: list[bytes] = []
        else:
            finder = PathFinder(consistency_ranges(tree.size, new), tree.size, tree)
            number = tree.size
            last = self._log_first + new - 1
            async with aclosing(self._source.batches(after=segment.last, until=last)) as batches:
                async for batch in batches:
                    for record in batch:
                        finder.add(number, leaf_of(record))
                        number += 1
            steps = finder.roots()
        if not verify_consistency(tree.size, tree.root(), new, checkpoint.root, steps):
            raise TamperedError(
                f"the log up to sequence {segment.last} is not what was signed for {new} messages",
                remedy="find out where: cuebook events export, then cuebook audit verify",
            )
        return tuple(steps)


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A new file. Raises ConfigurationError when it cannot be written."""
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise ConfigurationError(
            f"{str(path.parent)!r} cannot be written to: {error.strerror}",
            remedy="make room there, and run the same command again: it goes on where it was",
        ) from error
