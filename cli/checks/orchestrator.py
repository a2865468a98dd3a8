"""Who decides: one, with a standby behind it, and with the code of all sagas whose runs are open."""

from __future__ import annotations

from typing import Any, Final

from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.output import counted
from cuebook.events.leases import EXPIRES_S

__all__ = ["KINDS", "LIMITS", "check_orchestrator"]

NONE = Kind(
    "orchestrator.none",
    Level.CRITICAL,
    "No orchestrator decides: nothing is placed, retried or timed out.",
    "cuebook serve orchestrator MODULE:SAGA --space {space}",
)
TWO = Kind(
    "orchestrator.two",
    Level.CRITICAL,
    "Two orchestrators believe that they decide; harmless for a moment, and wasteful for longer.",
    "restart {name}: systemctl restart cuebook-orchestrator",
)
NO_STANDBY = Kind(
    "orchestrator.no_standby",
    Level.WARNING,
    "No orchestrator stands by: when the one that decides dies, all waits until it is back.",
    "systemctl enable --now cuebook-orchestrator@standby",
)
BEHIND = Kind(
    "orchestrator.behind",
    Level.WARNING,
    "The orchestrator has not read the newest events yet.",
    "look at the load of its machine: top -p {pid}",
)
UNSERVED = Kind(
    "orchestrator.saga_unserved",
    Level.CRITICAL,
    "Runs are open whose saga the orchestrator has not got: they stand still.",
    "cuebook serve orchestrator MODULE:{saga} ..., with all the others",
)
LEASE_STUCK = Kind(
    "orchestrator.lease_of_the_dead",
    Level.CRITICAL,
    "The lease has no end or a long one: when its holder dies, no standby takes over.",
    "nats stream edit KV_{space}_leases --max-age=3s",
)
LEASE_HELD = Kind(
    "orchestrator.lease_held",
    Level.WARNING,
    "The lease is with an orchestrator that does not answer.",
    "see that {name} runs; the lease ends by itself 3 s after its holder",
)
SNAPSHOT_OLD = Kind(
    "orchestrator.snapshot_old",
    Level.WARNING,
    "The last snapshot is many events old: a start reads all of them.",
    "see the orchestrator's log for 'the snapshot was not saved'",
)
RELEASES = Kind(
    "orchestrator.releases",
    Level.WARNING,
    "The orchestrators run different releases of cuebook.",
    "finish the upgrade: systemctl restart cuebook-orchestrator cuebook-orchestrator@standby",
)
KINDS = (NONE, TWO, NO_STANDBY, BEHIND, UNSERVED, LEASE_STUCK, LEASE_HELD, SNAPSHOT_OLD, RELEASES)
LIMITS = {"orchestrator.lag": Limits(1_000, 100_000), "orchestrator.snapshot": Limits(500_000, None)}
_LEASE_MOST_S: Final = 10 * EXPIRES_S


def check_orchestrator(facts: Facts, limits: Thresholds) -> Report:
    """The orchestrators that answer."""
    report = Report(area="orchestrator")
    if facts.orchestrators is None:
        return report
    _check_lease(report, facts)
    deciding = [one for one in facts.orchestrators if one.get("deciding")]
    standing_by = len(facts.orchestrators) - len(deciding)
    report.measures += [
        Measure(name="orchestrator.deciding", value=len(deciding), help="Orchestrators that decide."),
        Measure(name="orchestrator.standby", value=standing_by, help="Orchestrators that stand by."),
    ]
    if not deciding:
        answer = f"; {standing_by} answer, and none has the lease" if standing_by else ""
        report.findings.append(NONE.found(f"no orchestrator decides in space {facts.space}{answer}", space=facts.space))
        return report
    if len(deciding) > 1:
        names = " and ".join(sorted(str(one.get("name")) for one in deciding))
        report.findings.append(TWO.found(f"{names} both believe that they decide", name=deciding[-1].get("name")))
    _check_one(report, facts, deciding[0], limits)
    if not standing_by and not (facts.nats is not None and facts.nats.is_development):
        report.findings.append(NO_STANDBY.found(f"nobody stands by for {deciding[0].get('name')}"))
    releases = sorted({str(one.get("release")) for one in facts.orchestrators})
    if len(releases) > 1:
        report.findings.append(RELEASES.found(f"the orchestrators run cuebook {' and '.join(releases)}"))
    return report


def _check_one(report: Report, facts: Facts, one: dict[str, Any], limits: Thresholds) -> None:
    lag = max(facts.last_sequence - int(one.get("sequence", 0)), 0)
    others = len(facts.orchestrators or []) - 1
    report.lines.append(f"{one.get('name')} decides, {others} standing by, {counted(lag, 'event')} behind")
    report.measures.append(
        Measure(name="orchestrator.lag", value=lag, limits=limits["orchestrator.lag"],
                help="Events that the orchestrator has still to read.")
    )  # fmt: skip
    if (level := limits["orchestrator.lag"].level(lag)) is not Level.OK:
        message = f"{one.get('name')} is {counted(lag, 'event')} behind the log"
        report.findings.append(BEHIND.found(message, level=level, pid=one.get("pid")))
    since = max(facts.last_sequence - int(one.get("snapshot_sequence", 0)), 0)
    report.measures.append(
        Measure(name="orchestrator.snapshot", value=since, limits=limits["orchestrator.snapshot"],
                help="Events since the last snapshot, which a start has to read.")
    )  # fmt: skip
    if (level := limits["orchestrator.snapshot"].level(since)) is not Level.OK:
        report.findings.append(SNAPSHOT_OLD.found(f"the last snapshot is {counted(since, 'event')} old", level=level))
    for saga in (facts.overview or {}).get("unserved", []):
        runs = ", ".join(saga["runs"])
        message = f"standing still: {counted(saga['count'], 'open run')}, for {saga['reason']}: {runs}"
        report.findings.append(UNSERVED.found(message, about=saga["saga"], saga=saga["saga"]))


def _check_lease(report: Report, facts: Facts) -> None:
    nats = facts.nats
    bucket = (nats.streams or {}).get(f"KV_{facts.space}_leases") if nats is not None else None
    if nats is None or bucket is None:
        return
    ends_s = bucket["config"].get("max_age", 0) / 1e9
    if not 0 < ends_s <= _LEASE_MOST_S:
        how = f"ends only after {ends_s:g} s" if ends_s else "never ends"
        report.findings.append(LEASE_STUCK.found(f"the lease of a dead orchestrator {how}", space=facts.space))
    names = {one.get("name") for one in facts.orchestrators or []}
    if nats.lease_holder and nats.lease_holder not in names:
        message = f"{nats.lease_holder} holds the lease and does not answer"
        report.findings.append(LEASE_HELD.found(message, name=nats.lease_holder))
