"""All that is looked at, by area, and what is said where an area could not be looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from cuebook.cli.checks import agents, clocks, orchestrator, projections, runs, seals, server, stream
from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import UNSEEN, Kind, Limits, Report, Thresholds

__all__ = ["AREAS", "KINDS", "LIMITS", "look"]


class _Area(NamedTuple):
    name: str
    checks: tuple[Callable[[Facts, Thresholds], Report], ...]
    kinds: tuple[Kind, ...]
    limits: dict[str, Limits]
    needs: tuple[str, ...]
    """Names of the facts without which nothing can be said about it."""


_AREAS: Final = (
    _Area("log", (server.check_server, stream.check_stream), (*server.KINDS, *stream.KINDS),
          {**server.LIMITS, **stream.LIMITS}, ()),
    _Area("clocks", (clocks.check_clocks,), clocks.KINDS, clocks.LIMITS, ("nats",)),
    _Area("orchestrator", (orchestrator.check_orchestrator,), orchestrator.KINDS, orchestrator.LIMITS,
          ("orchestrators",)),
    _Area("agents", (agents.check_agents,), agents.KINDS, agents.LIMITS, ("directory",)),
    _Area("runs", (runs.check_runs,), runs.KINDS, runs.LIMITS, ("overview",)),
    _Area("escalations", (runs.check_escalations,), runs.ESCALATION_KINDS, runs.ESCALATION_LIMITS, ("overview",)),
    _Area("projections", (projections.check_projections,), projections.KINDS, projections.LIMITS, ()),
    _Area("seals", (seals.check_seals,), seals.KINDS, seals.LIMITS, ("nats",)),
)  # fmt: skip
AREAS: Final = tuple(one.name for one in _AREAS)
KINDS: Final = (*(kind for one in _AREAS for kind in one.kinds), UNSEEN)
"""Every finding that can be made."""
LIMITS: Final[dict[str, Limits]] = {name: limits for one in _AREAS for name, limits in one.limits.items()}
"""By measure: from where on it is a warning, and critical."""
_WHY: Final = {
    "nats": ("nats", "NATS does not answer"),
    "orchestrators": ("orchestrator", "NATS does not answer"),
    "directory": ("agents", "NATS does not answer"),
    "overview": ("orchestrator", "no orchestrator answers"),
}


def look(facts: Facts, wanted: Collection[str], limits: Thresholds) -> list[Report]:
    """Check what is wanted, in the order of `AREAS`."""
    return [_look_at(one, facts, limits) for one in _AREAS if one.name in wanted]


def _look_at(area: _Area, facts: Facts, limits: Thresholds) -> Report:
    for name in area.needs:
        if getattr(facts, name) is None:
            asked, why = _WHY[name]
            why = facts.no_log or facts.failures.get(asked, why)
            return Report(area=area.name, findings=[UNSEEN.found(f"not looked at: {why}", about=area.name)])
    report = Report(area=area.name)
    for check in area.checks:
        part = check(facts, limits)
        report.findings += part.findings
        report.measures += part.measures
        report.lines += part.lines
    return report
