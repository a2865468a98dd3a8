"""Rebuilding and rolling back projections, with a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from cuebook.cli.exits import DriftError, InputError
from cuebook.cli.moments import span
from cuebook.cli.options import Output, Target
from cuebook.cli.output import compact, line, note, show_list, show_one
from cuebook.cli.projections.status import KINDS, find, require_url
from cuebook.cli.session import session
from cuebook.projections.rebuild import Progress, RebuildReport
from cuebook.projections.rebuild import rebuild as rebuild_projections
from cuebook.projections.rebuild import rollback as rollback_projection
from cuebook.projections.runner import ALL
from cuebook.projections.timeseries import Timeseries

__all__ = ["Wanted", "rebuild", "rollback"]

PLAIN_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to rebuild, and how."""

    names: Sequence[str]
    all: bool
    dry_run: bool
    samples: int
    everything: bool
    trust_log: bool
    timeseries: Timeseries

    @property
    def words(self) -> str:
        """The same on the command line."""
        flags = {
            "--all": self.all,
            "--dry-run": self.dry_run,
            "--with-dropped": self.everything,
            "--trust-log": self.trust_log,
        }
        kind = [] if self.timeseries is Timeseries.AUTO else [f"--timeseries {self.timeseries.value}"]
        return " ".join([*self.names, *(flag for flag, given in flags.items() if given), *kind])


async def rebuild(target: Target, database_url: str, wanted: Wanted, output: Output) -> None:
    """Build, compare, switch and report. Raises InputError, NotFoundError, and DriftError where a dry run differs."""
    if bool(wanted.names) == wanted.all:
        raise InputError(
            "which projections?", remedy=f"name some of {', '.join(one.name for one in ALL)}, or say --all"
        )
    projections = list(ALL) if wanted.all else find(wanted.names)
    require_url(database_url)
    async with session(target, follows=True) as client:
        with _Meter(silent=output.for_programs) as meter:
            reports = await rebuild_projections(
                client.log,
                database_url,
                projections,
                dry_run=wanted.dry_run,
                trust_log=wanted.trust_log,
                everything=wanted.everything,
                timeseries=wanted.timeseries,
                samples=wanted.samples,
                on_progress=meter.at,
            )
    rows = [_view(report) for report in reports]
    show_list(output, rows, lambda: _print_all(reports))
    differences = sum(report.differences for report in reports)
    if wanted.dry_run and differences:
        raise DriftError(
            f"the live tables are not what the log gives; rows that differ: {differences}",
            remedy="the same command without --dry-run puts the rebuilt ones in their place",
        )


async def rollback(target: Target, database_url: str, name: str, output: Output, *, now: bool) -> None:
    """Show the generation before. Raises NotFoundError, ConfigurationError."""
    (projection,) = find([name])
    require_url(database_url)
    async with session(target, follows=True) as client:
        with _Meter(silent=output.for_programs) as meter:
            report = await rollback_projection(client.log, database_url, projection, now=now, on_progress=meter.at)
    text = (
        f"{name}: generation {report.generation} (version {report.version}) is read again in place of {report.before}, "
        f"at event {report.sequence}"
    )
    show_one(output, asdict(report), lambda: line(text))
    note(f"the same command goes forward to generation {report.before} again", output)


def _view(report: RebuildReport) -> dict[str, Any]:
    view = asdict(report)
    view["differences"] = report.differences
    return view


def _print_all(reports: Sequence[RebuildReport]) -> None:
    for report in reports:
        _print(report)


def _print(report: RebuildReport) -> None:
    rate = f", {report.events / report.seconds:.0f}/s" if report.seconds > 0 and report.events else ""
    resumed = f" (gone on with from {report.resumed_at})" if report.resumed_at else ""
    line(
        f"{report.projection}: generation {report.generation}, version {report.version}, built from {report.events} "
        f"events{resumed} in {span(report.seconds)}{rate}"
    )
    if report.compared_at is None:
        line(f"  not compared: {report.not_compared}")
    elif not report.differences:
        rows = sum(table.rows for table in report.tables)
        line(f"  the same as the live tables at event {report.compared_at}: {rows} rows, byte for byte")
    for table in report.tables:
        if table.uncompared:
            line(f"  {table.table}: not compared, since only one version has it: {', '.join(table.uncompared)}")
        if table.differences:
            line(
                f"  {table.table}: of {table.rows} rows, different {table.different}, only in the live table "
                f"{table.only_live}, only in the rebuilt one {table.only_rebuilt}"
            )
        for one in table.samples:
            if one.live is None or one.rebuilt is None:
                where = "only rebuilt" if one.live is None else "only live"
                line(f"    {compact(one.key)}  {where}")
            else:
                line(f"    {compact(one.key)}  live {compact(one.live)}  rebuilt {compact(one.rebuilt)}")
    if report.timeseries:
        line(f"  its histories are {KINDS[report.timeseries]}: {report.timeseries_why}")
    if report.parked:
        line(f"  {report.parked} events could not be applied: see 'cuebook projection parked {report.projection}'")
    if report.switched:
        line(
            f"  people read it now, at event {report.sequence}; "
            f"back to generation {report.before}: cuebook projection rollback {report.projection}"
        )
    else:
        line("  dropped again; people read what they read before")


class _Meter:
    """How far a rebuild is, on stderr: a bar with rate and time left on a terminal, else a line now and then."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._bar: Any = None
        self._task: Any = None
        self._stage = self._rate = ""
        self._began = time.monotonic()
        self._first: int | None = None
        self._next = 0.0

    def __enter__(self) -> Self:
        if not self._silent and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task("reading", total=None, rate="")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, progress: Progress) -> None:
        """Take the next report."""
        if self._silent or progress.stage == "done":
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = progress.first, now
        done, elapsed = progress.sequence - self._first, now - self._began
        rate = done / elapsed if elapsed > 0 else 0.0
        stage = progress.stage if progress.stage == "reading" else f"{progress.stage} {progress.projection}"
        if self._bar is not None:
            total = max(progress.last - self._first, 1)
            if rate and progress.stage == "reading":
                self._rate = f"{rate:,.0f}/s"
            self._bar.update(self._task, description=stage, completed=done, total=total, rate=self._rate)
        elif progress.stage != "reading":
            self._write(stage)
        elif stage != self._stage or now >= self._next or progress.sequence >= progress.last:
            self._next = now + PLAIN_EVERY_S
            left = f", {rate:.0f}/s, {span((progress.last - progress.sequence) / rate)} left" if rate else ""
            self._write(f"reading {progress.sequence} of {progress.last} events{left}")
        self._stage = stage

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
