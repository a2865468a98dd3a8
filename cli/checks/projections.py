"""PostgreSQL and the tables in it: whether they are written, how far they are, and what stands there unused."""

from __future__ import annotations

from typing import Final

from cuebook.cli.checks.facts import DatabaseFacts, Facts
from cuebook.cli.checks.finding import UNSEEN, Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.cli.output import counted
from cuebook.projections.records import BEHIND as BUSY
from cuebook.projections.records import ProjectionRecord

__all__ = ["KINDS", "LIMITS", "check_projections"]

OLD_GENERATION_S: Final = 7 * 86_400

UNREACHABLE = Kind(
    "projections.unreachable",
    Level.CRITICAL,
    "PostgreSQL does not answer; the log goes on, and the tables stand still.",
    "systemctl status postgresql; see that --database-url is right",
)
PLAINTEXT = Kind(
    "projections.plaintext",
    Level.WARNING,
    "The connection to PostgreSQL crosses a network without TLS.",
    "add sslmode=verify-full to --database-url",
)
SLOW = Kind("projections.slow", Level.WARNING, "PostgreSQL takes long to answer.", "look at the load of its machine")
STORAGE = Kind(
    "projections.storage",
    Level.CRITICAL,
    "The disk of PostgreSQL is nearly full.",
    "enlarge it, or keep less: cuebook projection retention audit --keep-months 12; cuebook projection prune audit",
)
NONE = Kind(
    "projections.none",
    Level.WARNING,
    "The database holds no tables of this space.",
    "cuebook serve projections --space {space}",
)
STOPPED = Kind(
    "projections.stopped",
    Level.CRITICAL,
    "Nobody writes the tables that people read.",
    "cuebook serve projections --space {space}",
)
BEHIND = Kind(
    "projections.behind",
    Level.WARNING,
    "The tables lack the newest events.",
    "see the log of 'cuebook serve projections' and the load of PostgreSQL",
)
PARKED = Kind(
    "projections.parked",
    Level.WARNING,
    "Events could not be applied and wait for a decision.",
    "cuebook projection parked {projection}; then cuebook projection retry {projection} SEQUENCE, or skip",
)
REGRESSED = Kind(
    "projections.regressed",
    Level.CRITICAL,
    "The tables have read what the log no longer holds: one of the two was restored or truncated.",
    "compare the log with its backup; if the log is right, cuebook projection rebuild {projection} --trust-log",
)
ABANDONED = Kind(
    "projections.abandoned",
    Level.WARNING,
    "A rebuild has ended half-way.",
    "cuebook projection rebuild {projection} goes on with it; cuebook projection prune {projection} drops it",
)
OLD_GENERATION = Kind(
    "projections.old_generation",
    Level.WARNING,
    "Tables that nobody reads were kept for more than a week.",
    "cuebook projection prune {projection}",
)
ORPHAN = Kind(
    "projections.orphan",
    Level.WARNING,
    "A schema holds tables of which the bookkeeping knows nothing; no view can reach them.",
    'DROP SCHEMA "{schema}" CASCADE',
)
KINDS = (
    UNREACHABLE, PLAINTEXT, SLOW, STORAGE, NONE, STOPPED, BEHIND, PARKED, REGRESSED, ABANDONED, OLD_GENERATION, ORPHAN,
)  # fmt: skip
LIMITS = {
    "projections.lag": Limits(BUSY, 100 * BUSY),
    "projections.parked": Limits(1, None),
    "projections.latency": Limits(0.25, 2.0),
    "projections.storage": Limits(80, 90),
}


def check_projections(facts: Facts, limits: Thresholds) -> Report:
    """The database and every generation in it."""
    report = Report(area="projections")
    if not facts.has_database_url:
        report.lines.append("no database is named")
        return report
    database = facts.database
    if database is None:
        why = facts.failures.get("database", "no answer")
        if remedy := facts.remedies.get("database"):
            report.findings.append(UNREACHABLE.found(why, remedy=remedy))
        else:
            report.findings.append(UNREACHABLE.found(f"PostgreSQL does not answer: {why}"))
        return report
    if not (database.tls or database.local):
        report.findings.append(PLAINTEXT.found("the connection to PostgreSQL has no TLS"))
    if (level := limits["projections.latency"].level(database.latency_s)) is not Level.OK:
        report.findings.append(SLOW.found(f"PostgreSQL takes {span(database.latency_s)} to answer", level=level))
    report.measures.append(
        Measure(name="projections.latency", value=round(database.latency_s, 6), unit="s",
                limits=limits["projections.latency"], help="Time for one question to PostgreSQL and back.")
    )  # fmt: skip
    if (disk := database.disk) is not None:
        percent = 100 * disk.used / disk.total
        if (level := limits["projections.storage"].level(percent)) is not Level.OK:
            report.findings.append(STORAGE.found(f"the disk of {disk.path} is {percent:.0f} % full", level=level))
        report.measures.append(
            Measure(name="projections.storage", value=round(percent, 1), unit="%",
                    limits=limits["projections.storage"], help="How full the disk of PostgreSQL is.")
        )  # fmt: skip
    if database.projections is None:
        report.findings.append(NONE.found(database.why_not, remedy=database.remedy, space=facts.space))
        return report
    _check_all(report, facts, database, limits)
    for name in database.orphans:
        report.findings.append(ORPHAN.found(f"schema {name} belongs to no projection", about=name, schema=name))
    return report


def _check_all(report: Report, facts: Facts, database: DatabaseFacts, limits: Thresholds) -> None:
    shown = [one for one in database.projections or [] if one.shown]
    lags = {one.projection: max(facts.last_sequence - one.sequence, 0) for one in shown}
    lag, parked = max(lags.values(), default=0), sum(one.parked for one in shown)
    told = f"{counted(len(shown), 'projection')} in PostgreSQL {database.version.partition(' ')[0]}"
    if facts.log_info is not None:
        told += f", at most {counted(lag, 'event')} behind"
        report.measures.append(
            Measure(name="projections.lag", value=lag, limits=limits["projections.lag"],
                    help="Events that the projection furthest behind has still to apply.")
        )  # fmt: skip
    else:
        why = facts.no_log or "nobody tells of the log"
        report.findings.append(UNSEEN.found(f"how far behind is not known: {why}", about=report.area))
    report.lines.append(told)
    for one in database.projections or []:
        if one.shown:
            _check_shown(report, facts, one, lags[one.projection], limits)
        else:
            _check_beside(report, facts, one)
    for text in database.regressed:
        name = text.partition(":")[0]
        report.findings.append(REGRESSED.found(f"projection {text}", about=name, projection=name))
    report.measures.append(
        Measure(name="projections.parked", value=parked, limits=limits["projections.parked"],
                help="Events that could not be applied and wait for a decision.")
    )  # fmt: skip


def _check_shown(report: Report, facts: Facts, one: ProjectionRecord, lag: int, limits: Thresholds) -> None:
    name = one.projection
    if not one.written:
        behind = f", which is {counted(lag, 'event')} behind" if facts.log_info is not None else ""
        report.findings.append(STOPPED.found(f"nobody writes projection {name}{behind}", about=name, space=facts.space))
    elif (level := limits["projections.lag"].level(lag)) is not Level.OK:
        report.findings.append(BEHIND.found(f"projection {name} is {lag:,} events behind", level=level, about=name))
    if (level := limits["projections.parked"].level(one.parked)) is not Level.OK:
        are = "is" if one.parked == 1 else "are"
        message = f"{counted(one.parked, 'event')} {are} parked in projection {name}"
        report.findings.append(PARKED.found(message, level=level, about=name, projection=name))


def _check_beside(report: Report, facts: Facts, one: ProjectionRecord) -> None:
    name, number = one.projection, one.generation
    if one.health == "abandoned":
        message = f"the rebuild of projection {name} (generation {number}) has ended at {one.sequence}"
        report.findings.append(ABANDONED.found(message, about=name, projection=name))
    elif one.health == "kept" and one.hidden_at is not None:
        age_s = facts.now / 1e6 - one.hidden_at.timestamp()
        if age_s > OLD_GENERATION_S:
            message = f"generation {number} of projection {name} has not been read for {span(age_s)}"
            report.findings.append(OLD_GENERATION.found(message, about=name, projection=name))
