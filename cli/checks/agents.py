"""The agents: who has fallen silent, who cannot be reached, and who is of another release than the others."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any, Final

from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.variants import Variant
from cuebook.cli.checks.facts import Facts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.cli.output import counted
from cuebook.events.release import release

__all__ = ["KINDS", "LIMITS", "check_agents"]

LOST_IS_NEWS_S: Final = 3_600
"""An instance that was lost longer ago, and whose work others do, is history."""
SHARED_IS_NEWS_S: Final = 3_600
UPGRADE_S: Final = 3_600
"""Versions that differ are an upgrade under way for so long."""
DRAIN_S: Final = 600
SILENT_BEATS: Final = 2
"""Intervals: whoever says less often that it lives may be well, as far as we have listened."""

SUSPECT = Kind(
    "agents.suspect",
    Level.WARNING,
    "An instance misses heartbeats; nothing new is placed there.",
    "look at process {pid} on {host}: cuebook agent show {agent}",
)
LOST = Kind(
    "agents.lost",
    Level.WARNING,
    "An instance was lost within the last hour; its tasks went to others.",
    "see why process {pid} on {host} ended: journalctl -u 'cuebook-agent@*'",
)
SILENT = Kind(
    "agents.silent",
    Level.WARNING,
    "An instance counts as healthy and is not heard: nobody notices its death while no orchestrator decides.",
    "look at process {pid} on {host}: cuebook agent show {agent}",
)
GONE = Kind(
    "agents.gone",
    Level.CRITICAL,
    "No instance of an agent is healthy, and not because somebody stopped them.",
    "cuebook serve agents MODULE:AGENT; 'cuebook agent list {agent} --all' says how the others ended",
)
DRAINING = Kind(
    "agents.draining",
    Level.WARNING,
    "An instance has been draining for more than ten minutes.",
    "cuebook agent show {agent}; then end process {pid} on {host}",
)
NO_INBOX = Kind(
    "agents.no_inbox",
    Level.CRITICAL,
    "A healthy instance has no consumer: what is assigned to it does not reach it.",
    "cuebook agent drain {agent}/{instance}, and start it again",
)
UNHEARD = Kind(
    "agents.unheard",
    Level.WARNING,
    "Nobody listens at the consumer of a healthy instance.",
    "cuebook agent drain {agent}/{instance}, and start it again",
)
STALLED = Kind(
    "agents.stalled",
    Level.WARNING,
    "Assignments pile up at a consumer and are not delivered.",
    "cuebook agent drain {agent}/{instance}, and start it again",
)
VERSIONS = Kind(
    "agents.versions",
    Level.WARNING,
    "Instances of one agent have different handlers or schemas for more than an hour.",
    "finish the upgrade: restart the older instances; 'cuebook agent show {agent}' says what differs",
)
RELEASES = Kind(
    "agents.releases",
    Level.WARNING,
    "Agents run another release of cuebook than this command, for more than an hour.",
    "pip install cuebook=={release} there, then systemctl restart 'cuebook-agent@*'",
)
EDGE_SHARED = Kind(
    "agents.edge_shared",
    Level.WARNING,
    "Two machines have served an edge under the same name within the last hour; they take each other's place.",
    "give each a name of its own: CUEBOOK_EDGE_NAME in /etc/cuebook/edge.env",
)
KINDS = (SUSPECT, LOST, SILENT, GONE, DRAINING, NO_INBOX, UNHEARD, STALLED, VERSIONS, RELEASES, EDGE_SHARED)
LIMITS = {"agents.lost": Limits(1, None), "agents.pending": Limits(100, 10_000)}


def check_agents(facts: Facts, limits: Thresholds) -> Report:
    """All instances that have not stopped."""
    report = Report(area="agents")
    if facts.directory is None:
        return report
    registry = facts.directory.registry
    present = [one for one in registry.instances.values() if one.health not in ("stopped", "unregistered")]
    healthy = [one for one in present if one.health == "healthy"]
    agents = {one.agent for one in present}
    slots = sum(one.slots for one in healthy)
    report.lines.append(
        f"{counted(len(healthy), 'healthy instance')} of {counted(len(agents), 'agent')}, {counted(slots, 'slot')}"
    )
    lost = [one for one in present if one.health == "lost" and _age_s(facts, one) < LOST_IS_NEWS_S]
    for one in present:
        if one.health != "lost":
            _check_health(report, facts, one)
    if (level := limits["agents.lost"].level(len(lost))) is not Level.OK:
        for one in lost:
            name, age = f"{one.agent}/{one.instance}", span(_age_s(facts, one))
            message = f"{name} was lost {age} ago"
            report.findings.append(LOST.found(message, level=level, about=name, pid=one.pid, host=one.host))
    for agent in sorted(agents - {one.agent for one in present if one.health in ("healthy", "draining", "suspect")}):
        count = sum(one.agent == agent for one in present)
        message = f"no instance of agent {agent!r} is healthy; {count} were lost"
        report.findings.append(GONE.found(message, about=agent, agent=agent))
    _check_inboxes(report, facts, healthy, limits["agents.pending"])
    _check_versions(report, facts, healthy)
    _check_edges(report, facts)
    report.measures += [
        Measure(name="agents.healthy", value=len(healthy), help="Healthy instances."),
        Measure(name="agents.slots", value=slots, help="Slots of healthy instances."),
        Measure(name="agents.lost", value=len(lost), limits=limits["agents.lost"],
                help="Instances that were lost within the last hour."),
    ]  # fmt: skip
    return report


def _age_s(facts: Facts, one: InstanceState) -> float:
    return max((facts.server_now - one.changed_at) / 1e6, 0.0)


def _check_health(report: Report, facts: Facts, one: InstanceState) -> None:
    name = f"{one.agent}/{one.instance}"
    names: dict[str, Any] = {"agent": one.agent, "instance": one.instance, "pid": one.pid, "host": one.host}
    age = span(_age_s(facts, one))
    match one.health:
        case "suspect" if (one.agent, one.instance) not in (facts.beats or {}):  # else it is back already
            report.findings.append(SUSPECT.found(f"{name} has missed heartbeats for {age}", about=name, **names))
        case "draining":
            if _age_s(facts, one) > DRAIN_S:
                report.findings.append(DRAINING.found(f"{name} has been draining for {age}", about=name, **names))
    long_enough = one.registered_at <= facts.server_now and facts.listened_s >= one.heartbeat_s * SILENT_BEATS
    expected = one.health in ("healthy", "draining") and facts.beats is not None and long_enough
    if expected and (one.agent, one.instance) not in (facts.beats or {}):
        message = f"{name} counts as {one.health}, and was not heard for {span(facts.listened_s)}"
        report.findings.append(SILENT.found(message, about=name, **names))


def _check_inboxes(report: Report, facts: Facts, healthy: list[InstanceState], limits: Limits) -> None:
    if facts.nats is None or facts.nats.consumers is None or not _is_directed(facts):
        return  # without an orchestrator nobody makes them
    consumers = {one["name"]: one for one in facts.nats.consumers}
    for one in healthy:
        name = f"{one.agent}/{one.instance}"
        names: dict[str, Any] = {"agent": one.agent, "instance": one.instance}
        consumer = consumers.get(f"{one.agent}__{one.instance}")
        if consumer is None:
            if _age_s(facts, one) > 1:  # it registered this moment, and its consumer is being made
                report.findings.append(NO_INBOX.found(f"{name} has no consumer", about=name, **names))
        elif not consumer.get("push_bound"):
            report.findings.append(UNHEARD.found(f"nobody listens at the consumer of {name}", about=name, **names))
        elif (level := limits.level(pending := consumer.get("num_pending", 0))) is not Level.OK:
            message = f"{pending:,} assignments wait at the consumer of {name}"
            report.findings.append(STALLED.found(message, level=level, about=name, **names))


def _is_directed(facts: Facts) -> bool:
    return any(one.get("deciding") for one in facts.orchestrators or [])


def _check_edges(report: Report, facts: Facts) -> None:
    for edge, those in sorted(facts.forwarding.items()):
        seen: set[str] = set()
        for before, one in pairwise(those):
            seen.add(before.stream)
            recent = (facts.server_now - one.began_at) / 1e6 < SHARED_IS_NEWS_S
            if one.stream in seen and recent:  # a stream that is made anew is not followed by the old one
                message = f"two machines forward events under the name of edge {edge!r}, by turns"
                report.findings.append(EDGE_SHARED.found(message, about=edge))
                break


def _check_versions(report: Report, facts: Facts, healthy: list[InstanceState]) -> None:
    variants: dict[str, dict[Variant, list[InstanceState]]] = defaultdict(lambda: defaultdict(list))
    for one in healthy:
        if one.variant is not None:
            variants[one.agent][one.variant].append(one)
    for agent, found in sorted(variants.items()):
        if len(found) < 2:
            continue
        newest = max(min(one.registered_at for one in those) for those in found.values())
        since_s = (facts.server_now - newest) / 1e6
        if since_s > UPGRADE_S:
            counts = " and ".join(f"{len(those)} of version {those[0].version or '(none)'}" for those in found.values())
            message = f"agent {agent!r} has had instances that differ for {span(since_s)}: {counts}"
            report.findings.append(VERSIONS.found(message, about=agent, agent=agent))
    _check_releases(report, facts, healthy)


def _check_releases(report: Report, facts: Facts, healthy: list[InstanceState]) -> None:
    registered = {(one.agent, one.instance): one.registered_at for one in healthy}
    others: dict[str, list[str]] = defaultdict(list)
    for key, beat in sorted((facts.beats or {}).items()):
        old = (facts.server_now - registered.get(key, facts.server_now)) / 1e6 > UPGRADE_S
        if beat.release != release() and old:
            others[beat.release or "of an earlier release"].append("/".join(key))
    for theirs, names in sorted(others.items()):
        message = f"{counted(len(names), 'instance')} of cuebook {theirs}, this is {release()}: {', '.join(names[:3])}"
        report.findings.append(RELEASES.found(message, about=theirs, release=release()))
