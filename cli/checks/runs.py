"""Runs that do not go on, and what waits for a person."""

from __future__ import annotations

from typing import Any

from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.cli.output import counted

__all__ = ["ESCALATION_KINDS", "ESCALATION_LIMITS", "KINDS", "LIMITS", "check_escalations", "check_runs"]

STUCK = Kind(
    "runs.stuck",
    Level.WARNING,
    "Runs are stuck: they go on only after a person's decision.",
    "cuebook run show {run}; then cuebook run retry {run}, or cuebook run cancel {run}",
)
STRANDED = Kind(
    "runs.stranded",
    Level.WARNING,
    "Tasks wait for an instance that is not there: none that runs could take them.",
    "cuebook serve agents MODULE:AGENT, with the labels they ask for; cuebook task show {task}",
)
WAITING = Kind(
    "runs.waiting",
    Level.WARNING,
    "Tasks have waited long for a free slot: there are too few instances.",
    "start more instances: systemctl enable --now cuebook-agent@NAME-2, or raise CUEBOOK_SLOTS",
)
KINDS = (STUCK, STRANDED, WAITING)
LIMITS = {"runs.stuck": Limits(1, None), "runs.stranded": Limits(60, 3_600), "runs.waiting": Limits(900, None)}

OLD = Kind(
    "escalations.old",
    Level.WARNING,
    "Something has waited long for a person.",
    "cuebook escalation list; cuebook escalation show {first}",
)
ESCALATION_KINDS = (OLD,)
ESCALATION_LIMITS = {"escalations.oldest": Limits(14_400, None)}


def check_runs(facts: Facts, limits: Thresholds) -> Report:
    """The open runs, as the orchestrator counts them."""
    report = Report(area="runs")
    told = facts.overview
    if told is None:
        return report
    runs, waiting = sum(one["count"] for one in told["runs"]), sum(one["waiting"] for one in told["queues"])
    report.lines.append(f"{counted(runs, 'open run')}, {counted(waiting, 'task')} waiting for a slot")
    stuck = next((one for one in told["escalations"] if one["kind"] == "stuck"), None)
    count = stuck["count"] if stuck else 0
    if stuck and (level := limits["runs.stuck"].level(count)) is not Level.OK:
        message = f"{_runs(count)} stuck, the longest for {span(_age_s(told, stuck))}: {', '.join(stuck['first'])}"
        report.findings.append(STUCK.found(message, level=level, about=stuck["first"][0], run=stuck["first"][0]))
    for kind, name, stranded in ((STRANDED, "runs.stranded", True), (WAITING, "runs.waiting", False)):
        oldest_s = 0.0
        for queue in told["queues"]:
            if queue["stranded"] is not stranded:
                continue
            age_s = _age_s(told, queue)
            oldest_s = max(oldest_s, age_s)
            if (level := limits[name].level(age_s)) is not Level.OK:
                tasks = counted(queue["waiting"], "task")
                message = (
                    f"waiting for agent {queue['agent']!r}: {tasks}, the longest for {span(age_s)}: {queue['reason']}"
                )
                found = kind.found(message, level=level, about=queue["oldest"], task=queue["oldest"])
                report.findings.append(found)
        what = "that nobody here could take" if stranded else "that waits for a free slot"
        report.measures.append(
            Measure(name=name, value=round(oldest_s, 3), unit="s", limits=limits[name],
                    help=f"Age of the oldest task {what}.")
        )  # fmt: skip
    report.measures += [
        Measure(name="runs.stuck", value=count, limits=limits["runs.stuck"], help="Runs that are stuck."),
        Measure(name="runs.open", value=runs, help="Runs that have not ended."),
        Measure(name="runs.queued", value=waiting, help="Tasks that wait to be placed."),
    ]
    return report


def check_escalations(facts: Facts, limits: Thresholds) -> Report:
    """Escalated tasks and open questions; stuck runs are told with the runs."""
    report = Report(area="escalations")
    told = facts.overview
    if told is None:
        return report
    found = [one for one in told["escalations"] if one["kind"] != "stuck"]
    count = sum(one["count"] for one in found)
    oldest_s = max((_age_s(told, one) for one in found), default=0.0)
    report.lines.append(f"{count:,} waiting for a person" + (f", the longest for {span(oldest_s)}" if count else ""))
    for one in found:
        age_s = _age_s(told, one)
        if (level := limits["escalations.oldest"].level(age_s)) is not Level.OK:
            what = counted(one["count"], "escalated task" if one["kind"] == "task" else "question")
            message = f"waiting for a person: {what}, the longest for {span(age_s)}: {', '.join(one['first'])}"
            report.findings.append(OLD.found(message, level=level, about=one["first"][0], first=one["first"][0]))
    report.measures += [
        Measure(name="escalations.oldest", value=round(oldest_s, 3), unit="s", limits=limits["escalations.oldest"],
                help="How long the oldest has waited for a person."),
        Measure(name="escalations.open", value=count, help="Escalated tasks and open questions."),
    ]  # fmt: skip
    return report


def _age_s(told: dict[str, Any], one: dict[str, Any]) -> float:
    waited_us: int = told["at"] - one["oldest_at"]
    return max(waited_us / 1e6, 0.0)


def _runs(count: int) -> str:
    return f"{counted(count, 'run')} {'is' if count == 1 else 'are'}"
