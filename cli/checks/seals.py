"""Whether the log is sealed as it should be, where it is sealed at all."""

from __future__ import annotations

from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import UNSEEN, Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.cli.output import counted

__all__ = ["KINDS", "LIMITS", "check_seals"]

BEHIND = Kind(
    "seals.behind",
    Level.WARNING,
    "The newest events are not sealed: the sealer has stopped or does not keep up.",
    "cuebook serve sealer --key FILE --space {space}",
)
KINDS = (BEHIND,)
LIMITS = {"seals.unsealed": Limits(120, 3_600)}


def check_seals(facts: Facts, limits: Thresholds) -> Report:
    """The newest seal against the log."""
    report = Report(area="seals")
    if facts.seals is None and (why := facts.no_log or facts.failures.get("seals")):
        report.findings.append(UNSEEN.found(f"not looked at: {why}", about="seals"))
        return report
    if facts.seals is None:
        report.lines.append("the log is not sealed")
        return report
    size = facts.seals.seal.checkpoint.size if facts.seals.seal is not None else 0
    waits_s = (facts.server_now - facts.seals.first_unsealed_at) / 1e6 if facts.seals.first_unsealed_at else 0.0
    waits_s = max(waits_s, 0.0)
    report.lines.append(f"{_events(size)} sealed")
    if (level := limits["seals.unsealed"].level(waits_s)) is not Level.OK:
        message = f"{_events(size)} sealed, and the next one has waited for {span(waits_s)}"
        report.findings.append(BEHIND.found(message, level=level, space=facts.space))
    report.measures += [
        Measure(name="seals.unsealed", value=round(waits_s, 3), unit="s", limits=limits["seals.unsealed"],
                help="Age of the oldest event that is not sealed."),
        Measure(name="seals.size", value=size, help="Events that are sealed."),
    ]  # fmt: skip
    return report


def _events(size: int) -> str:
    return f"{counted(size, 'event')} {'is' if size == 1 else 'are'}"
