"""Old history in segments: writing them, listing and verifying them, and dropping streams that they replace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cuebook.cli.exits import InputError, Interruption
from cuebook.cli.keys import public_key
from cuebook.cli.meter import Meter
from cuebook.cli.moments import day_and_clock, iso, parse_point
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, heading, line, note, show_list, show_one, table
from cuebook.cli.session import session
from cuebook.events.connection import Connection
from cuebook.events.errors import CuebookError, NotFoundError
from cuebook.events.log import EventLog
from cuebook.events.stream import StreamFacts, refuse_recording
from cuebook.ledger.errors import TamperedError
from cuebook.ledger.notes import Checkpoint, PrivateKey
from cuebook.ledger.seals import Seals
from cuebook.ledger.segments.archive import Archive
from cuebook.ledger.segments.blocks import MAX_EVENTS
from cuebook.ledger.segments.bucket import BucketStore
from cuebook.ledger.segments.check import Report, check_segments
from cuebook.ledger.segments.dropping import Dropping
from cuebook.ledger.segments.manifest import MANIFEST, Segment
from cuebook.ledger.segments.opening import default_bucket, store_at
from cuebook.ledger.segments.shelf import Gap, Shelf, read_shelf
from cuebook.ledger.segments.store import DirectoryStore, SegmentStore
from cuebook.ledger.source import Source
from cuebook.ledger.verify import read_checkpoints

__all__ = ["Wanted", "archive", "drop", "list_segments", "verify_directory", "verify_segments"]

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to archive, and how it is proved; what is empty is not said."""

    generation: int | None = None
    before: str = ""
    to: str = ""
    key: Path | None = None
    unsigned: bool = False
    events: int = MAX_EVENTS
    replicas: int = 0


def _store(
    connection: Connection, space: str, facts: StreamFacts, directory: str, *, replicas: int = 0
) -> SegmentStore:
    """Where a person says, else where the newest history is that was dropped, else the bucket."""
    if directory:
        return DirectoryStore(Path(directory))
    written = [one.segments for one in facts.earlier if one.segments]
    if written:
        return store_at(connection, written[-1])
    return BucketStore(connection, default_bucket(space), replicas=replicas or facts.replicas)


async def archive(target: Target, wanted: Wanted, output: Output, interruption: Interruption) -> None:
    """Write history as segments. Raises InputError, NotFoundError, TamperedError, ConfigurationError."""
    key = PrivateKey.load(wanted.key) if wanted.key else None
    async with session(target, follows=True) as client:
        log = client.log
        facts = await log.verify()
        refuse_recording(facts)
        last = await _last_wanted(log, facts, wanted)
        source = Source(log, facts)
        seals = Seals(log.connection, target.space, key.public if key else None)
        if key is None and not wanted.unsigned:
            await _refuse_unsealed(seals, target.space, last, source.log_first)
        store = _store(log.connection, target.space, facts, wanted.to, replicas=wanted.replicas)
        interruption.resume = f"cuebook space archive --before {last + 1}{_flags(wanted)}{target.hint}"
        with Meter(source.log_first, last, silent=output.for_programs, verb="archived") as meter:
            done = await Archive(source, target.space, seals, store, key=key).write(
                source.log_first, last, max_events=wanted.events, watch=meter.reached
            )
    view = {"space": target.space, "place": store.place, "first": source.log_first, "last": last, **asdict(done)}
    show_one(output, view, lambda: fields(view.items()))
    if done.unsigned:
        note(
            f"warning: {done.unsigned} segments are not signed, so nobody can tell later whether they were altered: "
            "run the sealer, or name its key (--key), and say the same command again",
            output,
        )


def _flags(wanted: Wanted) -> str:
    """Those of a command that goes on."""
    said = {"--to": wanted.to, "--key": wanted.key, "--events": wanted.events if wanted.events != MAX_EVENTS else ""}
    return "".join(f" {name} {value}" for name, value in said.items() if value) + " --unsigned" * wanted.unsigned


async def _last_wanted(log: EventLog, facts: StreamFacts, wanted: Wanted) -> int:
    space = log.subjects.space
    if wanted.generation is not None and wanted.before:
        raise InputError("--generation and --before both say where to end", remedy="say one of them")
    if not facts.last_sequence:
        raise InputError(f"space {space} holds no events yet", remedy="look again when something happened")
    if wanted.before:
        point = parse_point(wanted.before)
        before = point.sequence if point.sequence is not None else await log.sequence_at(point.moment) + 1
        if not facts.first_sequence < before:
            raise InputError(
                f"nothing was recorded before {wanted.before}: the log begins at sequence {facts.first_sequence}",
                remedy="say a later --before",
            )
        if before > facts.last_sequence + 1:
            raise InputError(
                f"sequence {before - 1} is in the future: the log ends at {facts.last_sequence}",
                remedy="say an earlier --before",
            )
        return before - 1
    if wanted.generation is not None:
        for one in facts.earlier:
            if one.generation == wanted.generation:
                return one.last
        if wanted.generation == facts.generation:
            raise InputError(
                f"generation {wanted.generation} is the current one and still grows",
                remedy="say --before with a sequence or a time, or roll the space first",
            )
        raise NotFoundError(f"space {space} has no generation {wanted.generation}", remedy="see 'cuebook space show'")
    if not facts.earlier:
        raise InputError(
            f"no generation of space {space} has ended: it was never rolled",
            remedy="say --before with a sequence or a time, or roll it first: cuebook space roll",
        )
    return facts.earlier[-1].last


async def _refuse_unsealed(seals: Seals, space: str, last: int, log_first: int) -> None:
    count = await seals.count()
    if not count:
        raise InputError(
            f"nothing of space {space} was ever sealed, so nothing would prove the segments",
            remedy="start the sealer (cuebook serve sealer --key FILE), or sign them here with a key of your own "
            "(cuebook audit key FILE, then --key FILE), or say --unsigned",
        )
    newest = await seals.at(count)
    until = log_first + newest.checkpoint.size - 1
    if until < last:
        raise InputError(
            f"space {space} is sealed up to sequence {until} only, and {last} is wanted",
            remedy=f"wait for the sealer, say --before {until + 1}, or sign with its key: --key FILE",
        )


async def list_segments(target: Target, directory: str, output: Output) -> None:
    """Print the segments that are in a place. Raises NotFoundError when there are none."""
    async with session(target) as client:
        store = _store(client.log.connection, target.space, await client.log.verify(), directory)
        shelf = await read_shelf(store, target.space)
    if not shelf.segments and not output.for_programs:
        raise NotFoundError(f"there are no segments in {store.place}", remedy="write some: cuebook space archive")
    rows = [_row(one) for one in shelf.segments]
    show_list(output, rows, lambda: _table(shelf))


def _row(segment: Segment) -> dict[str, Any]:
    checkpoint = _checkpoint(segment)
    return {
        "segment": segment.name,
        "first": segment.first,
        "last": segment.last,
        "count": segment.count,
        "first_at": iso(segment.first_ns // 1000),
        "last_at": iso(segment.last_ns // 1000),
        "bytes": segment.data.bytes,
        "index_bytes": segment.index.bytes,
        "sha256": segment.data.sha256,
        "checkpoint": checkpoint.size if checkpoint else None,
        "log": checkpoint.origin if checkpoint else None,
    }


def _checkpoint(segment: Segment) -> Checkpoint | None:
    if segment.proof is None:
        return None
    note = segment.proof.note
    return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n", note)


def _table(shelf: Shelf) -> None:
    cells = []
    for one in shelf.segments:
        checkpoint = _checkpoint(one)
        cells.append(
            [
                str(one.first), str(one.last), str(one.data.bytes + one.index.bytes),
                day_and_clock(one.first_ns // 1000), day_and_clock(one.last_ns // 1000),
                str(checkpoint.size) if checkpoint else "unsigned",
            ]
        )  # fmt: skip
    table(["FIRST", "LAST", "BYTES", "FROM", "TO", "CHECKPOINT"], cells, empty="")
    for gap in shelf.gaps(shelf.segments[0].log_first, shelf.segments[-1].last):
        note(f"{gap} are in no segment")


async def verify_segments(target: Target, which: str, directory: str, key: str, output: Output) -> None:
    """Verify all segments of a space, or one. Raises TamperedError when anything is wrong, CuebookError if unsigned."""
    async with session(target) as client:
        facts = await client.log.verify()
        dropped = [one for one in facts.earlier if one.segments]
        store = _store(client.log.connection, target.space, facts, directory)
        should = (dropped[0].first, dropped[-1].last) if dropped else (0, 0)
        report = await _verified(store, target.space, which, key, [], should, output)
    _tell(report, key, output)


async def verify_directory(path: str, key: str, files: Sequence[Path], output: Output) -> None:
    """Verify segments in a directory, or one of them by the name of a file of it, offline. Raises as above."""
    place = Path(path)
    which = "" if place.is_dir() else place.name.partition(".")[0]
    store = DirectoryStore(place if place.is_dir() else place.parent)
    checkpoints = read_checkpoints(files, public_key(key)) if files else []
    report = await _verified(store, "", which, key, checkpoints, (0, 0), output)
    _tell(report, key, output)


async def _verified(
    store: SegmentStore,
    space: str,
    which: str,
    key: str,
    checkpoints: Sequence[Checkpoint],
    should: tuple[int, int],
    output: Output,
) -> Report:
    damaged: list[Exception] = []
    shelf = await read_shelf(store, space, damaged=damaged)
    if not shelf.segments and not damaged:
        raise NotFoundError(f"there are no segments in {store.place}", remedy="write some: cuebook space archive")
    segments = list(shelf.segments)
    if which:
        named = [error for error in damaged if f"{which}{MANIFEST}" in str(error)]
        segments = _chosen(shelf, which, missing_ok=bool(damaged))
        damaged = named if segments or named else damaged  # it may be what cannot be read
    gaps: list[Gap] = []
    if not which and segments:
        first = should[0] or min(segments[0].log_first, segments[0].first)
        gaps = shelf.gaps(first, max(should[1], segments[-1].last))
    total = sum(one.count for one in segments)
    with Meter(1, total, silent=output.for_programs, verb="verified") as meter:
        report = await check_segments(
            shelf,
            segments,
            key=public_key(key) if key else None,
            gaps=gaps,
            checkpoints=checkpoints,
            watch=lambda _, count: meter.reached(count, count),
        )
    for error in damaged:
        report.find("unreadable", 0, 0, store.place, str(error))
    return report


def _chosen(shelf: Shelf, which: str, *, missing_ok: bool) -> list[Segment]:
    number = int(which) if which.isascii() and which.isdigit() and len(which) < 19 else 0
    found = [one for one in shelf.segments if one.name == which or one.first <= number <= one.last]
    if not found and not missing_ok:
        raise NotFoundError(
            f"no segment in {shelf.store.place} is called {which!r} or holds that sequence",
            remedy="see 'cuebook space segments list'",
        )
    return found


def _tell(report: Report, key: str, output: Output) -> None:
    show_one(output, report.to_data(), lambda: _print_report(report, key))
    if not report.sound:
        one, more = report.findings[0], len(report.findings) - 1
        raise TamperedError(
            f"the segments in {report.place} are not what was archived: {one}" + (f"; and {more} more" if more else ""),
            remedy="get these files from another copy, or remove them and run 'cuebook space archive' again while the "
            "stream is there",
        )
    if key and report.signed < len(report.segments):
        raise CuebookError(
            f"{len(report.segments) - report.signed} of {len(report.segments)} segments are unaltered by their own "
            "sums, but not signed",
            remedy="run the sealer or name its key, and archive again: cuebook space archive --key FILE",
        )
    if not key:
        note("only the segments' own sums were checked; who alters them may alter those: say --key", output)


def _print_report(report: Report, key: str) -> None:
    segments = report.segments
    fields(
        [
            ("segments", f"{len(segments)} in {report.place}"),
            ("events", f"{report.count}, sequences {segments[0].first} to {segments[-1].last}" if segments else ""),
            ("signed", f"{report.signed} of {len(segments)}" if key else "not looked at"),
            ("whole", "from the first event of the log on" if report.whole else "a part of the log"),
            ("result", "unaltered" if report.sound else "ALTERED"),
        ]
    )
    if report.findings:
        heading("findings")
        for one in report.findings[:_SHOWN]:
            line(str(one))
        if (more := len(report.findings) - _SHOWN) > 0:
            line(f"and {more} more")


async def drop(
    target: Target, number: int, name: str, directory: str, key: str, output: Output, *, unsigned: bool
) -> None:
    """Remove the stream of a generation that is in segments. Raises InputError, TamperedError, ConfigurationError."""
    if name != target.space:
        said = f"--yes {name} names another space" if name else "the stream would be gone for ever"
        raise InputError(
            f"{said}: nothing was removed", remedy=f"say --yes {target.space} if generation {number} shall be dropped"
        )
    if not key and not unsigned:
        raise InputError(
            "without the public key nobody knows whether the segments are those that were sealed",
            remedy="say --key FILE.pub, or --unsigned to believe what they say of themselves",
        )
    async with session(target, follows=True) as client:
        log = client.log
        dropping = Dropping(log)
        about = await dropping.find(number)
        if not await dropping.is_there(about):
            raise NotFoundError(
                f"generation {number} of space {target.space} was dropped before; it is in {about.segments or '?'}",
                remedy="see 'cuebook space show'",
            )
        store = _store(log.connection, target.space, await log.verify(), directory)
        shelf = await read_shelf(store, target.space)
        if gaps := shelf.gaps(about.first, about.last):
            raise CuebookError(
                f"{', '.join(map(str, gaps[:3]))} of generation {number} are in no segment in {store.place}: "
                "nothing was removed",
                remedy=f"archive them first: cuebook space archive --generation {number}{target.hint}",
            )
        segments = shelf.covering(about.first, about.last)
        count = sum(one.count for one in segments)
        with Meter(1, count, silent=output.for_programs, verb="verified") as meter:
            report = await check_segments(
                shelf,
                segments,
                key=public_key(key) if key else None,
                watch=lambda _, done: meter.reached(done, done),
            )
        if not report.sound or not unsigned:
            _refuse_unsound(report)
        with Meter(about.first, about.last, silent=output.for_programs, verb="compared") as meter:
            await dropping.compare(about, shelf, watch=meter.reached)
        done = await dropping.drop(about, shelf)
    view = {"space": target.space, **asdict(done)}
    show_one(output, view, lambda: fields(view.items()))
    if directory and os.environ.get("CUEBOOK_SEGMENTS", "") != directory:
        note(f"programs on other machines need --segments or CUEBOOK_SEGMENTS to find {store.place}", output)


def _refuse_unsound(report: Report) -> None:
    if not report.sound:
        raise TamperedError(
            f"the segments in {report.place} are not what was archived: {report.findings[0]}; nothing was removed",
            remedy="see 'cuebook space segments verify'; remove what is wrong and archive again",
        )
    if report.signed < len(report.segments):
        raise CuebookError(
            f"{len(report.segments) - report.signed} of {len(report.segments)} segments are not signed; "
            "nothing was removed",
            remedy="archive again while the sealer runs or with --key; or say --unsigned",
        )
