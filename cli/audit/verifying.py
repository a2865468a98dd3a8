"""What an auditor does without the system: verifying exports, checking proofs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuebook.cli.exits import InputError
from cuebook.cli.keys import public_key
from cuebook.cli.meter import Meter
from cuebook.cli.moments import iso
from cuebook.cli.options import Output
from cuebook.cli.output import fields, heading, line, show_one
from cuebook.events.errors import CuebookError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.exports import open_export
from cuebook.ledger.notes import Checkpoint
from cuebook.ledger.proofs import check_proof
from cuebook.ledger.record import Record, view_of
from cuebook.ledger.segments.manifest import MANIFEST, range_of
from cuebook.ledger.verify import Report, read_checkpoints, verify

__all__ = ["check", "record_view", "verify_export"]

_MAX_PROOF_BYTES = 4 * 1024 * 1024
_SHOWN = 20
"""Findings printed for people; programs get up to a thousand."""


def verify_export(path: str, key: str, files: Sequence[Path], output: Output) -> None:
    """Verify an export and print what was found. Raises TamperedError when anything is wrong with it."""
    if _is_of_segments(path):
        from cuebook.cli.space.segments import verify_directory

        asyncio.run(verify_directory(path, key, files, output))
        return
    if files and not key:
        public_key(key)
    if key and not files:
        raise InputError("a key without a checkpoint verifies nothing", remedy="say --checkpoint FILE")
    checkpoints = read_checkpoints(files, public_key(key)) if files else []
    with open_export(path) as reader:
        total = Path(path).stat().st_size if path != "-" else 0
        with Meter(1, total, silent=output.for_programs or not total, verb="verified") as meter:
            report = verify(reader, checkpoints, watch=lambda count, position: meter.reached(position, count))
    show_one(output, report.to_data(), lambda: _print_report(path, report, checkpoints))
    if not report.sound:
        one = report.findings[0]
        more = len(report.findings) + report.more_findings - 1
        raise TamperedError(
            f"{path} is not what was sealed: {one}" + (f"; and {more} more" if more else ""),
            remedy="get the export again, or compare the log itself with its backup",
        )
    if checkpoints and not report.sealed:
        sizes = f"{checkpoints[0].size} to {checkpoints[-1].size}" if len(checkpoints) > 1 else f"{checkpoints[0].size}"
        why = (
            "it leaves messages out, so its tree is another"
            if not report.header.whole
            else f"it has sequences {report.header.first} to {report.header.last}, and there are checkpoints of "
            f"{sizes} messages"
        )
        raise CuebookError(
            f"{path} is unaltered by its own sums, but could not be held against a checkpoint: {why}",
            remedy="prove single events with 'cuebook audit prove', or export everything up to a checkpoint",
        )


def _is_of_segments(path: str) -> bool:
    place = Path(path)
    return place.is_dir() or range_of(f"{place.name.partition('.')[0]}{MANIFEST}") is not None


def _print_report(path: str, report: Report, checkpoints: Sequence[Checkpoint]) -> None:
    header = report.header
    sealed = "not looked at" if not checkpoints else f"{len(report.agreed)} of {len(checkpoints)} fit"
    if report.others:
        sealed += f", {len(report.others)} are of another part of the log"
    open_ = report.header.last - report.sealed_to if report.sealed_to else 0
    fields(
        [
            ("export", path),
            ("of", f"space {header.space}, stream {header.stream}"),
            ("filters", ", ".join(header.filters)),
            ("events", f"{report.count}, sequences {header.first} to {header.last}"),
            ("checkpoints", sealed),
            ("sealed", f"up to sequence {report.sealed_to}" if report.sealed_to else ""),
            ("not sealed", f"the {open_} events after it" if open_ else ""),
            ("result", "unaltered" if report.sound else "ALTERED"),
        ]
    )
    if report.findings:
        heading("findings")
        for one in report.findings[:_SHOWN]:
            line(str(one))
        if (more := len(report.findings) + report.more_findings - _SHOWN) > 0:
            line(f"and {more} more")


def check(file: str, key: str, output: Output) -> None:
    """Check a proof and print what it proves. Raises TamperedError, ExportError."""
    try:
        if file == "-":
            text = sys.stdin.read(_MAX_PROOF_BYTES)
        else:
            with Path(file).open(encoding="utf-8", newline="") as opened:
                text = opened.read(_MAX_PROOF_BYTES)
    except (OSError, ValueError) as error:
        raise ExportError(f"{file!r} cannot be read: {error}", remedy="name the file of a proof") from error
    checkpoint, proved = check_proof(text, public_key(key))
    if isinstance(proved, Record):
        view = {"proves": "inclusion", **_of(checkpoint), **record_view(proved)}
    else:
        view = {"proves": "consistency", **_of(checkpoint), "grew_to": proved.size}
    show_one(output, view, lambda: fields(view.items()))


def _of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"log": checkpoint.origin, "checkpoint": checkpoint.size}


def record_view(record: Record) -> dict[str, Any]:
    """A message as a proof shows it."""
    return {
        "sequence": record.sequence,
        "recorded_at": iso(record.recorded_ns // 1000),
        "recorded_ns": str(record.recorded_ns),
        "subject": record.subject.decode("utf-8", "backslashreplace"),
        "headers": record.headers.decode("utf-8", "backslashreplace") or None,
        "view": json.loads(view_of(record.body)),
        "body": record.body,
    }
