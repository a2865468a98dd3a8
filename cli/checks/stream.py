"""The stream that holds the log, and what stands beside it: settings that lose events, copies, room, recordings."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rich import filesize

from cuebook.cli.checks.facts import Facts, NatsFacts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.cli.output import counted
from cuebook.events.stream import RECORDING, find_differences
from cuebook.events.subjects import Subjects

__all__ = ["KINDS", "LIMITS", "check_stream"]

RECORDING_OLD_S: Final = 7 * 86_400
SILENT_S: Final = 5.0
"""Replicas say something every second."""

MISSING = Kind(
    "log.missing",
    Level.CRITICAL,
    "The space has no stream.",
    "cuebook serve orchestrator MODULE:SAGA --space {space}",
)
DISCARDS_OLD = Kind(
    "log.discards_old",
    Level.CRITICAL,
    "A full stream would throw away its oldest events.",
    "nats stream edit {stream} --discard=new",
)
LIMITED = Kind(
    "log.limited",
    Level.CRITICAL,
    "The stream drops events by age or count.",
    "nats stream edit {stream} --max-age=0 --max-msgs=-1 --max-msgs-per-subject=-1",
)
DELETABLE = Kind(
    "log.deletable",
    Level.CRITICAL,
    "Events may be deleted or purged.",
    "nats stream edit {stream} --deny-delete --deny-purge",
)
IN_MEMORY = Kind(
    "log.in_memory",
    Level.CRITICAL,
    "The stream is held in memory: a restart of the server loses the log.",
    "cuebook events export FILE --space {space} keeps what is there; then begin a new space with --space",
)
DUPLICATES = Kind(
    "log.duplicate_window",
    Level.CRITICAL,
    "The duplicate window is so short that a repeated append is stored twice.",
    "nats stream edit {stream} --dupe-window=2m",
)
MESSAGE_SIZE = Kind(
    "log.message_size",
    Level.CRITICAL,
    "The stream refuses events that are allowed to be.",
    "nats stream edit {stream} --max-msg-size=266240",
)
SEALED = Kind(
    "log.sealed",
    Level.CRITICAL,
    "The stream is sealed: nothing is written to it any more, and no edit undoes that.",
    "nats stream backup {stream} FOLDER keeps what is there; then begin a new space with --space",
)
SETTINGS = Kind(
    "log.settings",
    Level.CRITICAL,
    "Another setting of the stream could lose or change events.",
    "correct it with 'nats stream edit {stream}'",
)
CONSUMERS = Kind(
    "log.consumers_limit",
    Level.WARNING,
    "The stream allows hardly more consumers; each agent instance needs one.",
    "nats stream edit {stream} --interactive, and set max_consumers to 100000",
)
FULL = Kind(
    "log.full",
    Level.CRITICAL,
    "The stream has nearly reached its own limit in bytes; then it refuses every event.",
    "nats stream edit {stream} --max-bytes=-1, or begin a new space",
)
REPLICAS = Kind(
    "log.replicas",
    Level.WARNING,
    "A stream has fewer replicas than the cluster could hold: it is lost, or away, with one node.",
    "nats stream edit {stream} --replicas={wanted}",
)
NO_LEADER = Kind(
    "log.no_leader",
    Level.CRITICAL,
    "A stream has no leader, so that nothing can be appended.",
    "start the nodes that are down; 'nats server report jetstream' shows which",
)
REPLICA_LOST = Kind(
    "log.replica_lost",
    Level.WARNING,
    "A replica is offline or behind: one failure less can be borne.",
    "start node {node}, or see why it lags with 'nats stream info {stream}'",
)
RECORDING_LEFT = Kind(
    "log.recording_left",
    Level.WARNING,
    "A recording was left for more than a week, and takes room.",
    "nats stream rm {stream}",
)
KINDS = (
    MISSING, DISCARDS_OLD, LIMITED, DELETABLE, IN_MEMORY, DUPLICATES, MESSAGE_SIZE, SEALED, SETTINGS, CONSUMERS, FULL,
    REPLICAS, NO_LEADER, REPLICA_LOST, RECORDING_LEFT,
)  # fmt: skip
LIMITS = {"log.consumers": Limits(80, 95), "log.bytes": Limits(80, 90)}

_SORTED: Final = {
    "discard": DISCARDS_OLD,
    "max_age": LIMITED,
    "max_msgs": LIMITED,
    "max_msgs_per_subject": LIMITED,
    "deny_delete": DELETABLE,
    "deny_purge": DELETABLE,
    "storage": IN_MEMORY,
    "duplicate_window": DUPLICATES,
    "max_msg_size": MESSAGE_SIZE,
    "sealed": SEALED,
}
"""By setting; the others are SETTINGS."""


def check_stream(facts: Facts, limits: Thresholds) -> Report:
    """The log and the streams beside it."""
    report = Report(area="log")
    nats = facts.nats
    if nats is None or not nats.info.get("jetstream"):
        return report
    info = facts.log_info
    if nats.streams is None:
        message = f"JetStream does not say which streams there are: {facts.failures.get('streams', 'no answer')}"
        report.findings.append(NO_LEADER.found(message, remedy=facts.remedies.get("streams")))
        return report
    for name in nats.mute:
        if name.startswith((facts.space.upper(), f"KV_{facts.space}_", f"OBJ_{facts.space}_")):
            report.findings.append(NO_LEADER.found(f"nobody answers about stream {name}", about=name))
    if facts.stream in nats.mute:
        return report
    if info is None:
        message = f"there is no stream {facts.stream} for space {facts.space!r}"
        report.findings.append(MISSING.found(message, space=facts.space))
        return report
    config, state = info["config"], info["state"]
    report.lines.append(
        f"stream {facts.stream} holds {counted(state['messages'], 'event')} up to {state['last_seq']}, "
        f"{filesize.decimal(state['bytes'])}, {counted(state.get('num_subjects', 0), 'subject')}"
    )
    for name, text in find_differences(config, Subjects(facts.space)).items():
        message = f"stream {facts.stream}: {text}"
        kind = _SORTED.get(name, SETTINGS)
        report.findings.append(kind.found(message, about=name, stream=facts.stream, space=facts.space))
    _check_room(report, facts, config, state, limits)
    for name in _ours(facts):
        _check_copies(report, nats, nats.streams[name])
    _check_recordings(report, facts, nats.streams)
    report.measures += [
        Measure(name="log.sequence", value=state["last_seq"], help="The last sequence of the log."),
        Measure(name="log.size", value=state["bytes"], unit="B", help="What the log takes on disk."),
        Measure(name="log.subjects", value=state.get("num_subjects", 0), help="Subjects, each of which takes memory."),
    ]
    return report


def _check_room(
    report: Report, facts: Facts, config: dict[str, Any], state: dict[str, Any], limits: Thresholds
) -> None:
    most, has = config.get("max_consumers", -1), state["consumer_count"]
    if most > 0 and (level := limits["log.consumers"].level(100 * has / most)) is not Level.OK:
        message = f"stream {facts.stream} has {has} of at most {most} consumers"
        report.findings.append(CONSUMERS.found(message, level=level, stream=facts.stream))
    most = config.get("max_bytes", -1)
    if most > 0 and (level := limits["log.bytes"].level(100 * state["bytes"] / most)) is not Level.OK:
        message = f"stream {facts.stream} takes {state['bytes']} of at most {most} bytes"
        report.findings.append(FULL.found(message, level=level, stream=facts.stream))


def _ours(facts: Facts) -> list[str]:
    """Those of the space's streams that exist."""
    names = [facts.stream, f"KV_{facts.space}_leases", f"OBJ_{facts.space}_snapshots", f"{facts.space.upper()}_SEALS"]
    streams = facts.nats.streams if facts.nats is not None else None
    return [name for name in names if name in (streams or {})]


def _check_copies(report: Report, nats: NatsFacts, info: dict[str, Any]) -> None:
    cluster, name = info.get("cluster"), info["config"]["name"]
    if not cluster or not nats.info.get("cluster"):
        return
    has, nodes = info["config"].get("num_replicas", 1), 1 + len(nats.info.get("connect_urls") or [])
    nodes = max(nodes, _cluster_size(nats), 1 + len(cluster.get("replicas") or []))
    wanted = min(3, nodes if nodes % 2 else nodes - 1)
    if has < wanted:
        message = f"stream {name} has {has} of {wanted} replicas that a cluster of {nodes} can hold"
        report.findings.append(REPLICAS.found(message, about=name, stream=name, wanted=wanted))
    if not cluster.get("leader"):
        report.findings.append(NO_LEADER.found(f"stream {name} has no leader", about=name))
    replicas = cluster.get("replicas") or []
    for one in replicas:
        if how := _what_ails(one):
            message = f"replica {one['name']} of stream {name} {how}"
            report.findings.append(REPLICA_LOST.found(message, about=name, node=one["name"], stream=name))
    if cluster.get("leader") and len(replicas) + 1 < has:
        message = f"stream {name} has {len(replicas) + 1} of {has} replicas"
        report.findings.append(REPLICA_LOST.found(message, about=name, node="of the others", stream=name))


def _what_ails(replica: dict[str, Any]) -> str:
    silent_s = replica.get("active", 0) / 1e9
    if silent_s > SILENT_S:
        return f"has said nothing for {span(silent_s)}"
    if replica.get("offline"):
        return "is offline"
    return "has not caught up yet" if not replica.get("current") and not silent_s else ""


def _cluster_size(nats: NatsFacts) -> int:
    """As JetStream's meta group counts it, where the server says."""
    return int((nats.varz or {}).get("jetstream", {}).get("meta", {}).get("cluster_size", 0))


def _check_recordings(report: Report, facts: Facts, streams: dict[str, dict[str, Any]]) -> None:
    for name, info in sorted(streams.items()):
        if name == facts.stream or RECORDING not in (info["config"].get("metadata") or {}):
            continue
        if info["config"].get("sealed"):
            continue  # an import that is complete: somebody keeps it on purpose
        age_s = facts.server_now / 1e6 - datetime.fromisoformat(info["created"][:19] + "+00:00").timestamp()
        if age_s > RECORDING_OLD_S:
            message = f"recording {name} was left {span(age_s)} ago and takes {info['state']['bytes'] / 1e6:.1f} MB"
            report.findings.append(RECORDING_LEFT.found(message, about=name, stream=name))
