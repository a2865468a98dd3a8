"""Proofs from the log or from an export. Of the log only what stands between two seals is read."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cuebook.cli.audit.verifying import record_view
from cuebook.cli.events.log_reading import find_message
from cuebook.cli.exits import InputError
from cuebook.cli.keys import public_key
from cuebook.cli.meter import Meter
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, note, show_one
from cuebook.cli.session import session
from cuebook.events.errors import ConfigurationError, NotFoundError
from cuebook.events.log import EventLog
from cuebook.ledger.errors import TamperedError
from cuebook.ledger.exports import open_export, sound_records
from cuebook.ledger.merkle import (
    Frontier,
    PathFinder,
    consistency_ranges,
    inclusion_ranges,
    inclusion_root,
    verify_consistency,
)
from cuebook.ledger.notes import Checkpoint
from cuebook.ledger.proofs import ConsistencyProof, InclusionProof
from cuebook.ledger.record import Record, leaf_data, leaf_of, view_of
from cuebook.ledger.seals import Seals
from cuebook.ledger.source import Source
from cuebook.ledger.verify import read_checkpoints

__all__ = ["Evidence", "print_checkpoints", "prove", "prove_growth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where leaves and checkpoints come from; what is empty comes from the space."""

    export: str
    key: str
    checkpoints: Sequence[Path]


async def prove(target: Target, event: str, path: str, evidence: Evidence, output: Output) -> None:
    """Write an inclusion proof. Raises NotFoundError, TamperedError, InputError."""
    async with _opened(target, evidence, output) as log:
        sequence = await log.find(event)
        index = sequence - log.first
        checkpoint = await log.at_least(index + 1)
        if checkpoint is None:
            raise NotFoundError(
                f"sequence {sequence} is in no checkpoint yet",
                remedy="wait for the sealer, or start it: cuebook serve sealer",
            )
        found: list[Record] = []
        finder = PathFinder(inclusion_ranges(index, checkpoint.size), index, await log.tree_before(index))
        await _read(log, checkpoint, finder, keep=lambda record, n: found.append(record) if n == index else None)
    steps = finder.roots()
    if inclusion_root(leaf_of(found[0]), index, checkpoint.size, steps) != checkpoint.root:
        raise _other_log(checkpoint)
    proof = InclusionProof(index=index, path=tuple(steps), note=checkpoint.note, extra=leaf_data(found[0]))
    _write(path or f"{sequence}.tlog-proof", proof.text)
    view = {"proof": path or f"{sequence}.tlog-proof", "log": checkpoint.origin, "checkpoint": checkpoint.size}
    view |= {"steps": len(steps)} | record_view(found[0])
    _tell(path, view, output)


async def prove_growth(target: Target, old: int, new: int, path: str, evidence: Evidence, output: Output) -> None:
    """Write a consistency proof. Raises NotFoundError, TamperedError, InputError."""
    async with _opened(target, evidence, output) as log:
        first, last = _found(await log.exactly(old), old), _found(await log.exactly(new), new)
        if last.size < first.size:
            raise InputError(f"{last.size} messages are fewer than {first.size}", remedy="say the smaller one first")
        ranges = consistency_ranges(first.size, last.size)
        finder = PathFinder(ranges, first.size, await log.tree_before(first.size))
        await _read(log, last, finder)
    steps = finder.roots()
    if not verify_consistency(first.size, first.root, last.size, last.root, steps):
        raise _other_log(last)
    name = path or f"{first.size}-{last.size}.consistency-proof"
    _write(name, ConsistencyProof(path=tuple(steps), old=first.note, new=last.note).text)
    _tell(path, {"proof": name, "log": last.origin, "old": first.size, "new": last.size, "steps": len(steps)}, output)


def _found(checkpoint: Checkpoint | None, size: int) -> Checkpoint:
    if checkpoint is None:
        raise NotFoundError(
            f"there is no checkpoint of {size or 'any'} messages", remedy="see 'cuebook audit checkpoints'"
        )
    return checkpoint


async def print_checkpoints(target: Target, key: str, *, last: bool) -> None:
    """Print the checkpoints in the stream of seals. Raises NotFoundError, TamperedError."""
    async with session(target) as client:
        seals = Seals(client.log.connection, target.space, public_key(key) if key else None)
        count = await seals.count()
        if not count:
            raise NotFoundError(
                f"nothing of space {target.space} is sealed", remedy="start the sealer: cuebook serve sealer"
            )
        for number in range(count if last else 1, count + 1):
            print((await seals.at(number)).checkpoint.note)  # noqa: T201 - a note ends its own lines


async def _read(
    log: _LiveLog | _ExportedLog,
    checkpoint: Checkpoint,
    finder: PathFinder,
    keep: Callable[[Record, int], None] | None = None,
) -> None:
    """Give the finder all leaves that it needs. Raises TamperedError when one is not there."""
    start = number = finder.size
    with Meter(start + 1, checkpoint.size, silent=log.output.for_programs) as meter:
        async with aclosing(log.leaves(start, checkpoint.size)) as records:
            async for record in records:
                if record.sequence != log.first + number:
                    break
                finder.add(number, leaf_of(record))
                if keep is not None:
                    keep(record, number)
                number += 1
                meter.at(number)
    if number != checkpoint.size:
        raise TamperedError(
            f"the log holds nothing at sequence {log.first + number}", remedy="compare it with its backup"
        )


def _other_log(checkpoint: Checkpoint) -> TamperedError:
    return TamperedError(
        f"the first {checkpoint.size} messages are not those that were signed",
        remedy="find out which: cuebook events export, then cuebook audit verify",
    )


@asynccontextmanager
async def _opened(target: Target, evidence: Evidence, output: Output) -> AsyncIterator[_LiveLog | _ExportedLog]:
    key = public_key(evidence.key) if evidence.key or evidence.checkpoints else None
    signed = read_checkpoints(evidence.checkpoints, key) if evidence.checkpoints and key else []
    if evidence.export:
        if not signed:
            raise InputError("an export has no checkpoints in it", remedy="say --checkpoint FILE and --key")
        yield _ExportedLog(evidence.export, signed, output)
        return
    async with session(target, follows=True) as client:
        source = Source(client.log, await client.log.verify())
        origin = source.imported
        if origin is not None and not (origin.keeps_sequences and origin.end.first == source.log_first):
            raise ConfigurationError(
                f"space {target.space} was imported from a part of a log, from which no tree can be made",
                remedy="import an export of all of it",
            )
        yield _LiveLog(client.log, source, Seals(client.log.connection, target.space, key), signed, output)


class _LiveLog:
    """The log of a space, with the checkpoints that were given or else those in its stream of seals."""

    def __init__(
        self, log: EventLog, source: Source, seals: Seals, signed: Sequence[Checkpoint], output: Output
    ) -> None:
        self._log, self._source, self._seals, self._signed, self.output = log, source, seals, signed, output
        self.first = source.log_first

    async def tree_before(self, size: int) -> Frontier:
        """The tree of the newest seal of at most so many messages; what it says is proved by the proof itself."""
        if self._source.imported is not None:
            return Frontier()
        seal = await self._seals.last_within(size)
        return seal.frontier if seal else Frontier()

    async def leaves(self, start: int, size: int) -> AsyncGenerator[Record]:
        """The messages that leaves `start` to `size` - 1 stand for."""
        last = self.first + size - 1
        async with aclosing(self._source.batches(after=self.first + start - 1, until=last)) as batches:
            async for batch in batches:
                for record in batch:
                    yield record

    async def find(self, name: str) -> int:
        """The sequence of an event. Raises NotFoundError."""
        return (await find_message(self._log, name, self.output)).sequence

    async def at_least(self, size: int) -> Checkpoint | None:
        """The oldest checkpoint of at least so many messages."""
        if self._signed:
            return _at_least(self._signed, size)
        seal = await self._seals.first_beyond(size)
        return seal.checkpoint if seal else None

    async def exactly(self, size: int) -> Checkpoint | None:
        """The checkpoint of so many messages, 0: the newest."""
        if self._signed:
            return _exactly(self._signed, size)
        count = await self._seals.count()
        if not size:
            return (await self._seals.at(count)).checkpoint if count else None
        seal = await self._seals.last_within(size)
        return seal.checkpoint if seal and seal.checkpoint.size == size else None


class _ExportedLog:
    """An export of all of a log, offline. Raises InputError for one of a part."""

    def __init__(self, path: str, signed: Sequence[Checkpoint], output: Output) -> None:
        with open_export(path) as reader:
            header = reader.header
        if not header.whole or header.first != header.log_first:
            raise InputError(
                f"{path} holds only a part of the log, from which no tree can be made",
                remedy="use an export of all of it",
            )
        self._path, self.output, self.first, self._last = path, output, header.first, header.last
        self._signed = [one for one in signed if one.size <= header.last - header.first + 1]

    async def tree_before(self, size: int) -> Frontier:  # noqa: ARG002 - the other one knows more
        """The empty tree: an export is read from its beginning."""
        return Frontier()

    async def leaves(self, start: int, size: int) -> AsyncGenerator[Record]:
        """The messages that leaves `start` to `size` - 1 stand for."""
        with open_export(self._path) as reader:
            for record in islice(sound_records(reader), start, size):
                yield record

    async def find(self, name: str) -> int:
        """The sequence of an event. Raises NotFoundError."""
        number = name.removeprefix("seq-")
        if number.isascii() and number.isdigit() and self.first <= int(number) <= self._last:
            return int(number)
        with open_export(self._path) as reader:
            for record in sound_records(reader):
                if _id_of(record) == name:
                    return record.sequence
        raise NotFoundError(f"no message in {self._path} has the id {name!r}", remedy="name its sequence")

    async def at_least(self, size: int) -> Checkpoint | None:
        """The oldest checkpoint of at least so many messages."""
        return _at_least(self._signed, size)

    async def exactly(self, size: int) -> Checkpoint | None:
        """The checkpoint of so many messages, 0: the newest."""
        return _exactly(self._signed, size)


def _id_of(record: Record) -> str:
    """The id in an envelope of ours; empty for what others wrote."""
    view = json.loads(view_of(record.body)) if record.body[:1] >= b"\x90" else None
    return str(view.get("id", "")) if isinstance(view, dict) else ""


def _at_least(signed: Sequence[Checkpoint], size: int) -> Checkpoint | None:
    return next((one for one in signed if one.size >= size), None)


def _exactly(signed: Sequence[Checkpoint], size: int) -> Checkpoint | None:
    if not size:
        return signed[-1] if signed else None
    return next((one for one in signed if one.size == size), None)


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")  # noqa: T201 - the proof itself
        return
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"{path!r} cannot be written: {error}", remedy="choose another file") from error


def _tell(path: str, view: dict[str, Any], output: Output) -> None:
    if path == "-":
        note(f"of {view['log']}", output)
    else:
        show_one(output, view, lambda: fields(view.items()))
