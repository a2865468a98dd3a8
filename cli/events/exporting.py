"""Writing a part of the log to a file, and filling a space from one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuebook.cli.exits import InputError, Interruption
from cuebook.cli.history.filters import subject_filters
from cuebook.cli.history.points import find_range, last_place
from cuebook.cli.meter import Meter
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, note, show_one
from cuebook.cli.session import session
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from cuebook.events.stream import verify_stream
from cuebook.events.subjects import Subjects
from cuebook.ledger.errors import ExportError
from cuebook.ledger.exports import format_of, new_export, open_export
from cuebook.ledger.importing import Importer
from cuebook.ledger.manifest import End
from cuebook.ledger.source import Imported, Source
from cuebook.ledger.verify import verify

__all__ = ["Part", "export", "import_", "part_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of the log; what is empty is not said."""

    filters: Sequence[str] = ()
    topics: Sequence[str] = ()
    runs: Sequence[str] = ()
    first: str = ""
    last: str = ""
    since: str = ""


async def part_of(log: EventLog, part: Part) -> tuple[int, int, list[str]]:
    """After which sequence the part begins, with which it ends, and its subject filters. Raises as `find_range`."""
    if part.first and part.since:
        raise InputError("--from and --since say both where to begin", remedy="say one of them")
    last = (await last_place(log)).sequence
    after, until = await find_range(log, part.first or part.since, part.last)
    begins_after = (await log.verify()).first_sequence - 1
    filters = subject_filters(log.subjects, part.filters, part.topics, part.runs)
    return max(after, begins_after), last if until is None else until, filters


async def export(target: Target, part: Part, path: str, said: str, output: Output, *, view: bool) -> None:
    """Write an export. Raises InputError for an empty part, ConfigurationError for a file that cannot be written."""
    name = format_of(path, said)
    if path != "-" and Path(path).is_dir():
        raise InputError(f"{path!r} is a folder", remedy="name a file")
    async with session(target, follows=True) as client:
        log = client.log
        after, until, filters = await part_of(log, part)
        source = Source(log, await log.verify())
        header = await source.header(after=after, until=until, filters=filters, view=view)
        count = 0
        with (
            new_export(path, header, name) as writer,
            Meter(after + 1, until, silent=output.for_programs, verb="exported") as meter,
        ):
            async with aclosing(source.batches(after=after, until=until, filters=filters)) as batches:
                async for batch in batches:
                    writer.add(batch)
                    count += len(batch)
                    meter.reached(batch[-1].sequence, count)
            if not count:
                raise InputError(
                    "nothing in the range has such a subject", remedy="see 'cuebook events tail' for what there is"
                )
            end = writer.close()
    _tell(path, name, header.to_data(), end, output)


def _tell(path: str, name: str, header: dict[str, Any], end: End, output: Output) -> None:
    facts = {
        "file": path,
        "format": name,
        "space": header["space"],
        "stream": header["stream"],
        "filters": header["filters"],
        **{key: value for key, value in end.to_data().items() if key != "cuebook"},
        "bytes": Path(path).stat().st_size if path != "-" else None,
    }
    if path == "-":
        note(f"{end.count} events, sequences {end.first} to {end.last}, sha256 {end.sha256}", output)
        return
    show_one(output, facts, lambda: fields((key, value) for key, value in facts.items()))


async def import_(
    target: Target,
    path: str,
    output: Output,
    interruption: Interruption,
    *,
    reroot: bool,
    live_effects: bool,
    replicas: int,
) -> None:
    """Fill a space from an export. Raises ExportError, TamperedError, ConfigurationError, UnavailableError."""
    imported = _sound(path)
    connection = await connect(target.nats_url, name="cuebook import", retry=False, **target.client_options)
    async with connection:
        importer = Importer(connection, target.space, imported, reroot=reroot, live_effects=live_effects)
        stored = await importer.prepare(replicas=replicas)
        flags = " --reroot" * reroot + " --live-effects" * live_effects
        interruption.resume = f"cuebook events import {path}{flags}{target.hint}"
        count = imported.end.count
        with open_export(path) as reader, Meter(1, count, silent=output.for_programs, verb="stored") as meter:
            came = await importer.fill(reader, stored=stored, watch=lambda done: meter.reached(done, done))
        facts = await verify_stream(connection, Subjects(target.space))
    view = {
        "space": target.space,
        "stream": facts.name,
        "origin": imported.header.space,
        "count": count,
        "stored_before": count - came,
        "first_sequence": facts.first_sequence,
        "last_sequence": facts.last_sequence,
        "keeps_sequences": imported.keeps_sequences,
        "recording": facts.recording,
    }
    show_one(output, view, lambda: fields(view.items()))
    if live_effects:
        note(f"space {target.space} is alive: an orchestrator that serves it goes on with what was open", output)


def _sound(path: str) -> Imported:
    """Read an export through before anything of it is stored."""
    with open_export(path) as reader:
        report = verify(reader)
    if not report.sound or report.end is None:
        first = report.findings[0]
        raise ExportError(f"{path}: {first}", remedy="get the file again; nothing of it was stored")
    return Imported(header=report.header, end=report.end)
