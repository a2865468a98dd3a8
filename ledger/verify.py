"""Holding an export against the signed checkpoints of its log, offline.

An altered byte is found by the sums in the file and named by its message. Who alters the sums as well alters the tree:
then the first checkpoint that does not fit says between which two checkpoints it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.exports import Reader
from cuebook.ledger.manifest import Damage, End, Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.notes import Checkpoint, PublicKey, read_notes
from cuebook.ledger.record import Record, is_of, leaf_of

__all__ = ["Finding", "Report", "read_checkpoints", "verify"]

MAX_FINDINGS = 1_000
WATCH_EVERY = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. It concerns the messages from `first` to `last`; 0: none can be named."""

    kind: Literal["altered", "missing", "misplaced", "cut short", "other tree"]
    first: int
    last: int
    place: str
    reason: str

    def __str__(self) -> str:
        which = f"sequence {self.first}" if self.first == self.last else f"sequences {self.first} to {self.last}"
        return f"{self.kind}: {which if self.first else self.place}: {self.reason}" + (
            f" ({self.place})" if self.first and self.place else ""
        )


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found. `agreed` are the sizes of the checkpoints that fit, `sealed_to` the last sequence they cover.

    `others` are sizes of checkpoints of another part of the log. `anchored`: the export could be held against any.
    """

    header: Header
    end: End | None = None
    count: int = 0
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    agreed: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    sealed_to: int = 0
    anchored: bool = False

    @property
    def sound(self) -> bool:
        """Nothing is wrong with it."""
        return not self.findings

    @property
    def sealed(self) -> bool:
        """A checkpoint that fits covers something of it, not just what came before."""
        return self.sealed_to >= self.header.first

    def to_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "sound": self.sound,
            "sealed": self.sealed,
            "space": self.header.space,
            "stream": self.header.stream,
            "filters": list(self.header.filters),
            "first": self.header.first,
            "last": self.header.last,
            "count": self.count,
            "checkpoints": self.agreed,
            "checkpoints_elsewhere": self.others,
            "sealed_to": self.sealed_to,
            "findings": [
                {"kind": one.kind, "first": one.first, "last": one.last, "place": one.place, "reason": one.reason}
                for one in self.findings
            ],
            "more_findings": self.more_findings,
        }


def read_checkpoints(paths: Iterable[str | Path], key: PublicKey) -> list[Checkpoint]:
    """All checkpoints in files that the key has signed, by size, each once.

    Raises TamperedError for one that is altered, is not of this key, or says another tree for the same size;
    ExportError for a file without any.
    """
    found: dict[int, Checkpoint] = {}
    for path in paths:
        try:
            notes, rest = read_notes(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ExportError(f"{str(path)!r} is no file of checkpoints: {error}", remedy=_WHERE) from error
        if not notes:
            raise ExportError(f"{str(path)!r} holds no checkpoint: {rest[:40]!r}", remedy=_WHERE)
        for note in notes:
            checkpoint = key.checkpoint(note)
            other = found.setdefault(checkpoint.size, checkpoint)
            if other.root != checkpoint.root:
                raise TamperedError(
                    f"two different trees of {checkpoint.size} messages were signed for {key.name}",
                    remedy="keep both files: they prove that the log was shown in two versions",
                )
    return [found[size] for size in sorted(found)]


def verify(
    reader: Reader, checkpoints: Sequence[Checkpoint] = (), *, watch: Callable[[int, int], None] | None = None
) -> Report:
    """Read an export through and say what is wrong with it; `watch` is called now and then with messages and bytes."""
    header = reader.header
    report = Report(header=header)
    check = _Check(report, checkpoints)
    check.compare()
    for item in reader.items():
        if isinstance(item, Record):
            check.record(item)
            if watch is not None and not report.count % WATCH_EVERY:
                watch(report.count, reader.position)
        else:
            check.damage(item)
    report.end = reader.end
    check.finish()
    return report


class _Check:
    """One reading of an export."""

    def __init__(self, report: Report, checkpoints: Sequence[Checkpoint]) -> None:
        header = report.header
        self.report, self.whole = report, header.whole
        self.first, self.last = 0, header.first - 1
        self.altered_to = self.last
        self.alone = Frontier()
        self.tree: Frontier | None = None
        start = header.first - header.log_first
        if header.whole and header.before is not None:
            self.tree = Frontier(start, header.before)
        report.anchored = self.tree is not None
        end = header.last - header.log_first + 1
        report.others = [one.size for one in checkpoints if not start <= one.size <= end or self.tree is None]
        self.waiting = [one for one in reversed(checkpoints) if start <= one.size <= end and self.tree is not None]
        self.next_size = self.waiting[-1].size if self.waiting else -1

    def record(self, record: Record) -> None:
        sequence = record.sequence
        if sequence != self.last + 1 or sequence > self.report.header.last:
            self._jump(record)
        if not is_of(record, self.report.header.space):
            self._find("altered", sequence, sequence, f"no log of space {self.report.header.space!r} can hold it", "")
        self.report.count += 1
        self.first, self.last = self.first or sequence, sequence
        leaf = leaf_of(record)
        self.alone.add(leaf)
        if self.tree is not None:
            self.tree.add(leaf)
            if self.tree.size == self.next_size:
                self.compare()

    def _jump(self, record: Record) -> None:
        sequence, seen = record.sequence, max(self.last, self.altered_to)
        if sequence <= self.last or sequence > self.report.header.last:
            self._find("misplaced", sequence, sequence, f"it stands after {self.last}", "")
            self.tree = None
        elif self.whole and sequence > seen + 1:
            self._find("missing", seen + 1, sequence - 1, "the log has no gaps", "")
            self.tree = None

    def damage(self, damage: Damage) -> None:
        kind: Any = "cut short" if "cut short" in damage.reason else "altered"
        self._find(kind, damage.first, damage.last, damage.reason, damage.place)
        self.altered_to = max(self.altered_to, damage.last)
        self.tree = None

    def compare(self) -> None:
        """Hold the tree against the checkpoints of its size."""
        while self.tree is not None and self.waiting and self.waiting[-1].size == self.tree.size:
            checkpoint = self.waiting.pop()
            header, report = self.report.header, self.report
            if checkpoint.root == self.tree.root():
                report.agreed.append(checkpoint.size)
                report.sealed_to = header.log_first + checkpoint.size - 1
            else:
                first = max(report.sealed_to + 1, header.first)
                last = header.log_first + checkpoint.size - 1
                reason = f"the tree of {checkpoint.size} messages is not the one that was signed"
                if last < header.first:
                    reason, first, last = f"{reason}: what is said of messages before the export is wrong", 0, 0
                self._find("altered", first, last, reason, "")
                self.tree = None
        self.next_size = self.waiting[-1].size if self.waiting else -1

    def finish(self) -> None:
        end, report = self.report.end, self.report
        if end is not None:
            said, found = (end.count, end.first, end.last, end.root), (0, 0, 0, self.alone.root())
            if self.first:
                found = (self.alone.size, self.first, self.last, self.alone.root())
            if said != found or (self.whole and self.last != report.header.last):
                if self.whole and self.last < report.header.last:
                    self._find("missing", self.last + 1, report.header.last, "the export ends before it should", "")
                elif report.sound:
                    self._find("other tree", 0, 0, "the messages are not those that its end was written for", "the end")

    def _find(self, kind: Any, first: int, last: int, reason: str, place: str) -> None:
        if len(self.report.findings) < MAX_FINDINGS:
            self.report.findings.append(Finding(kind=kind, first=first, last=last, reason=reason, place=place))
        else:
            self.report.more_findings += 1


_WHERE = "name the file that 'cuebook serve sealer' writes"
