"""Reports as monitoring wants them: one line of a plugin, or a file for Prometheus' textfile collector.

Source: Monitoring Plugins Development Guidelines, "Plugin Output for Nagios" and "Performance data"; Prometheus text
exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cuebook.cli.checks.finding import Finding, Level, Measure, Report, worst
from cuebook.cli.output import plain

__all__ = ["nagios_line", "nagios_status", "prometheus_text"]

NAGIOS: Final = {Level.OK: 0, Level.WARNING: 1, Level.CRITICAL: 2, Level.UNKNOWN: 3}
_MOST_TEXT: Final = 2_000
"""Characters. Nagios cuts off after 8,192 bytes, and after the text come the measures."""
_SUFFIXES: Final = {"s": "_seconds", "B": "_bytes", "%": "_percent", "": ""}


def nagios_status(level: Level) -> int:
    """The exit status of a plugin."""
    return NAGIOS[level]


def nagios_line(reports: Sequence[Report]) -> str:
    """One line: how it is, what is wrong, the worst first, and after the bar the measures."""
    findings = sorted((one for report in reports for one in report.findings), key=lambda one: -one.level)
    level = worst(one.level for one in findings)
    told = [_text(one) for one in findings if one.level > Level.UNKNOWN]
    told += [f"{message} ({', '.join(areas)})" for message, areas in _unknown(findings).items()]
    if not told:
        told = [*(report.summary for report in reports if report.summary), *map(_text, findings)]
    text = plain(_some(told)).replace("|", "/")  # the bar ends the text
    numbers = " ".join(_performance(one) for report in reports for one in report.measures)
    return f"CUEBOOK {level.name} - {text}" + (f" | {numbers}" if numbers else "")


def _unknown(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """What could not be looked at, by why: when NATS is down, that is nearly everything."""
    areas: dict[str, list[str]] = {}
    for one in findings:
        if one.level is Level.UNKNOWN:
            areas.setdefault(one.message, []).append(one.about)
    return areas


def _some(told: Sequence[str]) -> str:
    """As many as fit, and how many more there are."""
    fits = len(told)
    while fits > 1 and sum(len(one) + 2 for one in told[:fits]) > _MOST_TEXT:
        fits -= 1
    shown = [one if len(one) <= _MOST_TEXT else one[: _MOST_TEXT - 1] + "…" for one in told[:fits]]
    return "; ".join([*shown, *([f"and {len(told) - fits} more"] if fits < len(told) else [])])


def _text(finding: Finding) -> str:
    return f"{finding.message} [{finding.remedy}]" if finding.remedy else finding.message


def _performance(measure: Measure) -> str:
    limits = [_number(one) if one is not None else "" for one in (measure.limits.warning, measure.limits.critical)]
    most = "100" if measure.unit == "%" else ""
    return f"'{measure.name}'={_number(measure.value)}{measure.unit};{limits[0]};{limits[1]};0;{most}"


def prometheus_text(space: str, reports: Sequence[Report], at_s: float) -> str:
    """All measures as gauges, the status of each area as plugins count it, and what was found."""
    lines: list[str] = []
    of_space = {"space": space}
    for report in reports:
        for one in report.measures:
            name = f"cuebook_check_{one.name.replace('.', '_')}{_SUFFIXES[one.unit]}"
            lines += _family(name, one.help, [(of_space, one.value)])
    status = [({**of_space, "check": one.area}, float(nagios_status(one.level))) for one in reports]
    lines += _family("cuebook_check_status", "0: ok, 1: warning, 2: critical, 3: unknown.", status)
    counts: dict[tuple[str, str, str], int] = {}
    for report in reports:
        for found in report.findings:
            key = (report.area, found.code, found.level.word)
            counts[key] = counts.get(key, 0) + 1
    found_ = [
        ({**of_space, "check": area, "code": code, "level": level}, float(count))
        for (area, code, level), count in counts.items()
    ]
    lines += _family("cuebook_check_findings", "How often something was found.", found_)
    lines += _family("cuebook_check_time_seconds", "When this was written, seconds since 1970.", [(of_space, at_s)])
    return "\n".join(lines) + "\n"


def _family(name: str, help_: str, samples: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    told = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    escaped = help_.replace("\\", r"\\").replace("\n", r"\n")
    return [f"# HELP {name} {escaped}", f"# TYPE {name} gauge", *told]


def _labels(labels: dict[str, str]) -> str:
    parts = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return "{" + ",".join(parts) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")  # plugins know no exponents
