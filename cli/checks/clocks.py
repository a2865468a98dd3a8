"""Clocks against each other. The order of events never depends on them; timers, deadlines and what people read do."""

from __future__ import annotations

from typing import Final

from cuebook.cli.checks.facts import Clock, Facts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span

__all__ = ["KINDS", "LIMITS", "check_clocks"]

SKEW = Kind(
    "clocks.skew",
    Level.WARNING,
    "Two machines disagree about the time by more than it takes to ask them.",
    "on both machines: timedatectl set-ntp true",
)
KINDS = (SKEW,)
LATE_S: Final = 3.0
LIMITS = {"clocks.skew": Limits(1.0, 30.0)}


def check_clocks(facts: Facts, limits: Thresholds) -> Report:
    """Everybody's clock against that of the NATS server, which is the log's."""
    report = Report(area="clocks")
    clocks = _clocks(facts)
    if not clocks:
        report.lines.append("nobody was asked for the time")
        return report
    log = facts.nats.clock if facts.nats is not None and facts.nats.clock is not None else Clock(0.0, 0.0)
    furthest = 0.0
    for who, clock in clocks.items():
        ahead_s, error_s = clock.ahead_s - log.ahead_s, clock.error_s + log.error_s
        off_s = max(abs(ahead_s) - error_s, 0.0)
        furthest = max(furthest, off_s)
        if (level := limits["clocks.skew"].level(off_s)) is not Level.OK:
            way = "ahead of" if ahead_s > 0 else "behind"
            message = f"the clock of {who} is {span(abs(ahead_s))} {way} that of the NATS server"
            report.findings.append(SKEW.found(message, level=level, about=who))
    report.lines.append(f"{len(clocks) + 1} clocks agree within {span(furthest)}")
    report.measures.append(
        Measure(name="clocks.skew", value=round(furthest, 6), unit="s", limits=limits["clocks.skew"],
                help="How far the clock that is off the furthest is from that of the NATS server.")
    )  # fmt: skip
    return report


def _clocks(facts: Facts) -> dict[str, Clock]:
    """By whose they are, all but that of the NATS server; against this machine's."""
    clocks: dict[str, Clock] = {}
    if facts.nats is None or facts.nats.clock is None:
        return clocks
    clocks["this machine"] = Clock(0.0, 0.0)
    if facts.database is not None:
        clocks["PostgreSQL"] = facts.database.clock
    travel_s = facts.nats.latency_s + 0.05  # a heartbeat is read when our loop comes to it
    for one in facts.orchestrators or []:
        if isinstance(one.get("ahead_s"), float):
            clocks[str(one.get("name", "an orchestrator"))] = _one_way(one["ahead_s"], travel_s)
    for (agent, instance), beat in sorted((facts.beats or {}).items()):
        if beat.ahead_s is not None:
            clocks[f"{agent}/{instance}"] = _one_way(beat.ahead_s, travel_s)
    return clocks


def _one_way(ahead_s: float, travel_s: float) -> Clock:
    """A time that was sent without being asked for: on a busy machine it is read late, and so seems to be behind."""
    return Clock(ahead_s, travel_s if ahead_s > 0 else LATE_S)
