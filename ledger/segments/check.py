"""Holding segments against the key that signed them: each by itself, and all as one log. Offline where they are files.

A segment is read once: its bytes against the manifest, its messages against its place and tree, its index against its
messages, and the tree against the signed checkpoint. Whatever is wrong is named by file and sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from cuebook.events.errors import ConfigurationError, NotFoundError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.merkle import verify_consistency
from cuebook.ledger.notes import Checkpoint, PublicKey
from cuebook.ledger.record import Record, is_of, leaf_of
from cuebook.ledger.segments.blocks import parse_block
from cuebook.ledger.segments.index import Block, Head, Keys, parse_bucket
from cuebook.ledger.segments.manifest import DATA, INDEX, Segment
from cuebook.ledger.segments.shelf import Gap, Shelf
from cuebook.ledger.segments.store import SegmentFileMissingError, SegmentStore

__all__ = ["Finding", "Report", "check_proof_of", "check_segments"]

MAX_FINDINGS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. It concerns the sequences from `first` to `last`; 0: none can be named."""

    kind: str
    first: int
    last: int
    place: str
    reason: str

    def __str__(self) -> str:
        which = f"sequence {self.first}" if self.first == self.last else f"sequences {self.first} to {self.last}"
        return f"{self.kind}: {f'{which}: ' if self.first else ''}{self.reason} ({self.place})"


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found. `signed`: the segments that a checkpoint covers, by the key given; `count`: messages read."""

    place: str
    segments: Sequence[Segment]
    count: int = 0
    signed: int = 0
    sealed_to: int = 0
    findings: list[Finding] = field(default_factory=list)
    log_first: int = 0

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    @property
    def whole(self) -> bool:
        """The segments are the log from its first message on, without a gap."""
        return bool(self.segments) and self.segments[0].first == self.segments[0].log_first and self.sound

    def to_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "sound": self.sound,
            "sealed": bool(self.segments) and self.signed == len(self.segments),
            "whole": self.whole,
            "place": self.place,
            "segments": len(self.segments),
            "signed": self.signed,
            "first": self.segments[0].first if self.segments else None,
            "last": self.segments[-1].last if self.segments else None,
            "count": self.count,
            "sealed_to": self.sealed_to,
            "findings": [
                {"kind": one.kind, "first": one.first, "last": one.last, "place": one.place, "reason": one.reason}
                for one in self.findings
            ],
        }

    def find(self, kind: str, first: int, last: int, place: str, reason: str) -> None:
        """Note something that is wrong."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind=kind, first=first, last=last, place=place, reason=reason))


Watch = Callable[[int, int], None]


async def check_segments(
    shelf: Shelf,
    segments: Sequence[Segment],
    *,
    key: PublicKey | None,
    gaps: Sequence[Gap] = (),
    checkpoints: Sequence[Checkpoint] = (),
    watch: Watch | None = None,
) -> Report:
    """Read segments and say what is wrong with them. Without a key only their own sums and trees are checked.

    `gaps`: what should be there and is not. `checkpoints`: more of them, to hold those trees against that they are of.
    `watch` is called with a sequence and the number of messages read. Raises UnavailableError.
    """
    report = Report(place=shelf.store.place, segments=segments)
    for gap in gaps:
        report.find("missing", gap.first, gap.last, shelf.store.place, "no segment has them")
    signed = {one.size: one for one in checkpoints}
    for segment in segments:
        before = len(report.findings)
        try:
            await _check_segment(shelf.store, segment, report, signed, watch)
            if key is not None and segment.proof is not None and len(report.findings) == before:
                check_proof_of(segment, key)
                report.signed += 1
                report.sealed_to = max(report.sealed_to, segment.last)
        except TamperedError as error:
            kind = "cut short" if "cut short" in str(error) else "altered"
            report.find(kind, segment.first, segment.last, segment.name, str(error))
        except SegmentFileMissingError as error:
            report.find("missing", segment.first, segment.last, segment.name, str(error))
        except (ExportError, NotFoundError, ConfigurationError) as error:
            report.find("unreadable", segment.first, segment.last, segment.name, str(error))
    return report


def check_proof_of(segment: Segment, key: PublicKey) -> Checkpoint:
    """The checkpoint that covers a segment. Raises TamperedError, ExportError; ConfigurationError without a proof."""
    if segment.proof is None:
        raise ConfigurationError(
            f"{segment.name} is not signed", remedy="run the sealer, or name its key: cuebook space archive --key FILE"
        )
    checkpoint = key.checkpoint(segment.proof.note)
    tree = segment.tree_after
    if not verify_consistency(tree.size, tree.root(), checkpoint.size, checkpoint.root, segment.proof.path):
        raise TamperedError(
            f"its tree does not lead to the one that was signed for {checkpoint.size} messages",
            remedy="segment, proof or checkpoint was altered, or it is of another log",
        )
    return checkpoint


async def _check_segment(
    store: SegmentStore, segment: Segment, report: Report, signed: dict[int, Checkpoint], watch: Watch | None
) -> None:
    """Raises TamperedError, SegmentFileMissingError for what concerns all of it; other findings are in the report."""
    head, index = await _read_index(store, segment)
    tree, keys, whole = segment.tree_before, Keys(), sha256()
    sound = True
    for number, block in enumerate(head.blocks):
        packed = await store.read(f"{segment.name}{DATA}", block.offset, block.size)
        whole.update(packed)
        try:
            records = parse_block(packed, block)
        except TamperedError as error:
            place = f"{segment.name}{DATA}, bytes {block.offset} to {block.offset + block.size - 1}"
            report.find("altered", block.first, block.last, place, str(error).partition(": ")[2] or str(error))
            sound = False
            continue
        report.count += len(records)
        keys.add([record.subject for record in records], number)
        for record in records:
            if not is_of(record, segment.space):
                raise TamperedError(f"no log of space {segment.space!r} can hold sequence {record.sequence}")
            tree.add(leaf_of(record))
            if (one := signed.get(tree.size)) is not None and sound and one.root != tree.root():
                raise TamperedError(f"the tree of {one.size} messages is not the one that was signed")
        if watch is not None:
            watch(block.last, report.count)
        if number == 0:
            _check_time(records[0], segment.first_ns)
        if number == len(head.blocks) - 1:
            _check_time(records[-1], segment.last_ns)
    if sound:
        _check_whole(segment, whole.hexdigest(), tree.nodes, keys, head, index)


async def _read_index(store: SegmentStore, segment: Segment) -> tuple[Head, bytes]:
    for blob, name in ((segment.data, f"{segment.name}{DATA}"), (segment.index, f"{segment.name}{INDEX}")):
        if (size := await store.size(name)) != blob.bytes:
            how = "is cut short" if size < blob.bytes else "has more than was written"
            raise TamperedError(f"{name} {how}: {size} bytes instead of {blob.bytes}")
    name = f"{segment.name}{INDEX}"
    index = await store.read(name, 0, segment.index.bytes)
    if sha256(index).hexdigest() != segment.index.sha256:
        raise TamperedError(f"{name}: its SHA-256 is another")
    if sha256(index[: segment.head.bytes]).hexdigest() != segment.head.sha256:
        raise TamperedError(f"{name}: the SHA-256 of its head is another")
    head = Head.parse(index[: segment.head.bytes], name)
    _check_places(head, segment)
    return head, index


def _check_places(head: Head, segment: Segment) -> None:
    expected, offset = segment.first, 0
    for block in head.blocks:
        _check_place(block, expected, offset)
        expected, offset = block.last + 1, offset + block.size
    if (expected, offset) != (segment.last + 1, segment.data.bytes):
        raise TamperedError(f"its index ends at sequence {expected - 1} and byte {offset}, its manifest does not")


def _check_place(block: Block, expected: int, offset: int) -> None:
    if block.first != expected or block.last < expected or block.offset != offset or block.size <= 0:
        raise TamperedError(f"its index has no place for sequence {expected}")


def _check_time(record: Record, said: int) -> None:
    if record.recorded_ns != said:
        raise TamperedError(f"sequence {record.sequence} was recorded at another time than the manifest says")


def _check_whole(segment: Segment, data: str, nodes: Sequence[bytes], keys: Keys, head: Head, index: bytes) -> None:
    if data != segment.data.sha256:
        raise TamperedError("the SHA-256 of its data is another")
    if list(nodes) != list(segment.after):
        raise TamperedError("its messages do not make the tree that its manifest says")
    for bucket, should in zip(head.buckets, keys.buckets(), strict=True):
        part = index[bucket.offset : bucket.offset + bucket.size]
        if sha256(part).digest() != bucket.sha256 or parse_bucket(part, segment.name) != should:
            raise TamperedError(f"{segment.name}{INDEX} names other blocks than its messages are in")
