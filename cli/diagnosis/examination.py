"""`cuebook doctor` and `cuebook check`: ask everybody once, look at the answers, and say what was found."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from cuebook.cli.checks.areas import AREAS, LIMITS, look
from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import UNSEEN, Finding, Level, Limits, Report, worst
from cuebook.cli.diagnosis.formats import nagios_line, nagios_status, prometheus_text
from cuebook.cli.diagnosis.probe import Sources, gather
from cuebook.cli.exits import InputError
from cuebook.cli.moments import iso, now, parse_duration
from cuebook.cli.options import Output
from cuebook.cli.output import counted, line, show_one, styled
from cuebook.events.subjects import Subjects

__all__ = ["ALL", "check", "examine", "find_areas", "find_limits"]

ALL = "all"
_OF_A_KIND = 5
_STYLES = {"ok": "green", "unknown": "dim", "warning": "yellow", "critical": "bold red"}


async def examine(sources: Sources, output: Output) -> int:
    """Look at everything and print it. Returns the exit status: 0 healthy, 1 warnings, 2 something critical.

    Raises InvalidTokenError for what can be no space, ConfigurationError for an address that can be none.
    """
    facts, reports = await _look(sources, LIMITS)
    level = worst(report.level for report in reports)
    value = {
        "space": facts.space,
        "at": iso(facts.now),
        "level": level.word,
        "findings": [{"area": report.area, **one.view} for report in reports for one in _by_level(report)],
        "areas": [_area_view(report) for report in reports],
    }
    show_one(output, value, lambda: _print(facts, reports))
    return nagios_status(level) if level > Level.UNKNOWN else 0


async def check(sources: Sources, limits: dict[str, Limits], *, prometheus: bool) -> int:
    """Print what monitoring wants to read. Returns the status of a plugin; with `prometheus` 0. Raises as `examine`."""
    facts, reports = await _look(sources, limits)
    if prometheus:
        for text in prometheus_text(facts.space, reports, now() / 1e6).splitlines():
            line(text)
        return 0
    line(nagios_line(reports))
    return nagios_status(worst(report.level for report in reports))


async def _look(sources: Sources, limits: dict[str, Limits]) -> tuple[Facts, list[Report]]:
    Subjects(sources.target.space)
    logging.getLogger("cuebook").setLevel(logging.ERROR)  # what is wrong is what we are here to say
    facts = await gather(sources)
    return facts, look(facts, sources.areas, limits)


def find_areas(names: Sequence[str]) -> list[str]:
    """Which areas are meant. Raises InputError."""
    known = ", ".join([*AREAS, ALL])
    if not names:
        raise InputError("which check?", remedy=f"name some of {known}")
    for name in names:
        if name not in (*AREAS, ALL):
            raise InputError(f"there is no check {name!r}", remedy=f"name some of {known}")
    return list(AREAS) if ALL in names else [name for name in AREAS if name in names]


def find_limits(areas: Sequence[str], warnings: Sequence[str], criticals: Sequence[str]) -> dict[str, Limits]:
    """The thresholds with those given in their place, each as NUMBER or MEASURE=NUMBER. Raises InputError."""
    limits = dict(LIMITS)
    for texts, field in ((warnings, "warning"), (criticals, "critical")):
        for text in texts:
            name, equals, number = text.rpartition("=")
            if not equals:
                name = _main_measure(areas, text)
            if name not in LIMITS:
                raise InputError(f"no measure {name!r} has a threshold", remedy=f"name one of {', '.join(LIMITS)}")
            values = {"warning": limits[name].warning, "critical": limits[name].critical, field: _number(number)}
            limits[name] = Limits(**values)
    return limits


def _main_measure(areas: Sequence[str], text: str) -> str:
    if len(areas) != 1:
        raise InputError(f"what is {text!r} about?", remedy="write MEASURE=NUMBER, such as projections.lag=5000")
    return next(name for name in LIMITS if name.startswith(f"{areas[0]}."))


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return parse_duration(text)
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{text!r} is no threshold", remedy="say a number from 0 on, or a span such as 5m")
    return number


def _by_level(report: Report) -> list[Finding]:
    return sorted(report.findings, key=lambda one: -one.level)


def _area_view(report: Report) -> dict[str, Any]:
    return {
        "area": report.area,
        "level": report.level.word,
        "summary": report.summary or None,
        "measures": {one.name: one.value for one in report.measures},
    }


def _print(facts: Facts, reports: Sequence[Report]) -> None:
    width = max(len(report.area) for report in reports)
    margin = " " * (width + 12)
    for report in reports:
        level = report.level.word
        unseen = [one.message for one in report.findings if one.code == UNSEEN.code]
        first, *others = [*report.lines, *unseen] or [""]
        line(f"{styled(level.ljust(8), _STYLES[level])}  {report.area.ljust(width)}  {first}".rstrip())
        for other in others:
            line(margin + other)
        for one, more in _some(report):
            mark = styled({Level.CRITICAL: "✗", Level.WARNING: "!"}.get(one.level, "?"), _STYLES[one.level.word])
            line(f"{margin}{mark} {one.message}")
            if one.remedy:
                line(f"{margin}  {styled('→ ' + one.remedy, 'dim')}")
            if more:
                line(f"{margin}  and {more} more {one.code}: 'cuebook doctor -o json' has all of them")
    line("")
    line(_verdict(facts, reports))


def _some(report: Report) -> Iterator[tuple[Finding, int]]:
    """What people read: of many findings of one kind the first ones, and behind the last how many more there are."""
    found: dict[str, list[Finding]] = {}
    for one in _by_level(report):
        found.setdefault(one.code, []).append(one)
    found.pop(UNSEEN.code, None)
    for those in found.values():
        for position, one in enumerate(those[:_OF_A_KIND], start=1):
            yield one, len(those) - _OF_A_KIND if position == _OF_A_KIND else 0


def _verdict(facts: Facts, reports: Sequence[Report]) -> str:
    levels = [one.level for report in reports for one in report.findings]
    counts = [
        counted(count, *words)
        for level, words in ((Level.CRITICAL, ("critical", "critical")), (Level.WARNING, ("warning",)))
        if (count := levels.count(level))
    ]
    if counts:
        return f"space {facts.space}: {', '.join(counts)}"
    unknown = len(levels)
    return f"space {facts.space}: nothing is wrong" + (f", {unknown} not known" if unknown else "")
