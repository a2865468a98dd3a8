"""NATS as a server: whether it answers, whether it is one to trust with a log, and whether there is room."""

from __future__ import annotations

from typing import Final

from cuebook.cli.checks.facts import Facts, NatsFacts
from cuebook.cli.checks.finding import Kind, Level, Limits, Measure, Report, Thresholds
from cuebook.cli.moments import span
from cuebook.events.stream import MAX_MESSAGE_BYTES, MINIMUM_SERVER

__all__ = ["KINDS", "LIMITS", "check_server"]

FIXED_IN: Final = {(2, 12): 15, (2, 14): 5}
"""The first release of a line without the known ways to lose or give away data; newer lines have none of them.

Source: security advisories 2026-16, -18 and -26; nats-server issues 7564 and 8475."""

UNREACHABLE = Kind(
    "log.unreachable",
    Level.CRITICAL,
    "No NATS server answers, or it refuses us.",
    "systemctl status cuebook-nats; see that --nats-url is right",
)
SLOW = Kind("log.slow", Level.WARNING, "The server takes long to answer.", "look at the load of its machine and disk")
PLAINTEXT = Kind(
    "log.plaintext",
    Level.WARNING,
    "The connection crosses a network without TLS.",
    "add a tls block to nats.conf, and write tls:// in --nats-url",
)
TOO_OLD = Kind(
    "log.server_too_old",
    Level.CRITICAL,
    f"nats-server is older than {'.'.join(map(str, MINIMUM_SERVER))}, which cuebook needs.",
    "upgrade nats-server to 2.15 or newer",
)
KNOWN_BAD = Kind(
    "log.server_known_bad",
    Level.WARNING,
    "This release of nats-server has a known way to lose or give away data.",
    "upgrade nats-server to 2.15, or at least to 2.14.5 or 2.12.15",
)
NO_JETSTREAM = Kind(
    "log.no_jetstream",
    Level.CRITICAL,
    "JetStream is off, or not for this account.",
    "cuebook serve nats /etc/cuebook/nats.conf",
)
LAZY = Kind(
    "log.lazy_sync",
    Level.WARNING,
    "The server acknowledges before it has written to disk: a power cut loses the last events.",
    "set 'sync_interval: always' in nats.conf, as nats/production.conf does, and restart the server",
)
SYNC_UNKNOWN = Kind(
    "log.sync_unknown",
    Level.OK,
    "The server does not say whether acknowledged means on disk.",
    "say --nats-monitor-url http://HOST:8222, or look for sync_always in the server's /varz",
)
SMALL_PAYLOAD = Kind(
    "log.max_payload",
    Level.CRITICAL,
    "The server takes only messages that are smaller than an event may be.",
    "set 'max_payload: 1MB' in nats.conf, and 'systemctl reload cuebook-nats'",
)
STORAGE = Kind(
    "log.storage",
    Level.CRITICAL,
    "What JetStream may store, or the disk it stores on, is nearly full.",
    "enlarge the disk or jetstream.max_file_store; see 'How big a log gets'",
)
KINDS = (UNREACHABLE, SLOW, PLAINTEXT, TOO_OLD, KNOWN_BAD, NO_JETSTREAM, LAZY, SYNC_UNKNOWN, SMALL_PAYLOAD, STORAGE)
LIMITS = {"log.latency": Limits(0.25, 2.0), "log.storage": Limits(80, 90)}


def check_server(facts: Facts, limits: Thresholds) -> Report:
    """The server that answers, or that none does."""
    report = Report(area="log")
    nats = facts.nats
    if nats is None:
        report.findings.append(
            UNREACHABLE.found(facts.failures.get("nats", "no NATS server answers"), remedy=facts.remedies.get("nats"))
        )
        return report
    version = str(nats.info.get("version", "?"))
    secure = "TLS" if nats.tls else "no TLS"
    report.lines.append(f"nats-server {version} at {nats.url} answers in {nats.latency_s * 1000:.1f} ms, {secure}")
    _check_version(report, version)
    _check_settings(report, nats)
    if (level := limits["log.latency"].level(nats.latency_s)) is not Level.OK:
        report.findings.append(SLOW.found(f"NATS takes {span(nats.latency_s)} to answer", level=level))
    if "clock" in facts.failures:
        report.findings.append(UNREACHABLE.found(f"NATS stopped answering: {facts.failures['clock']}"))
    report.measures.append(
        Measure(
            name="log.latency", value=round(nats.latency_s, 6), unit="s", limits=limits["log.latency"],
            help="Time for one question to NATS and back, the best of five.",
        )
    )  # fmt: skip
    _check_storage(report, nats, limits["log.storage"])
    return report


def _check_version(report: Report, version: str) -> None:
    numbers = [int(part) for part in version.partition("-")[0].split(".") if part.isdigit()]
    if len(numbers) < 3:
        return
    line, patch = (numbers[0], numbers[1]), numbers[2]
    if line < MINIMUM_SERVER:
        report.findings.append(TOO_OLD.found(f"nats-server {version} is older than cuebook can use"))
    elif line <= max(FIXED_IN) and patch < FIXED_IN.get(line, 10**9):
        report.findings.append(KNOWN_BAD.found(f"nats-server {version} has known ways to lose or give away data"))


def _check_settings(report: Report, nats: NatsFacts) -> None:
    if not (nats.tls or nats.is_local):
        report.findings.append(PLAINTEXT.found(f"the connection to {nats.url} has no TLS"))
    if not nats.info.get("jetstream"):
        report.findings.append(NO_JETSTREAM.found(f"JetStream is off on {nats.url}"))
    if (most := int(nats.info.get("max_payload", 0))) < MAX_MESSAGE_BYTES:
        message = f"the server takes messages of {most} bytes, an event may have {MAX_MESSAGE_BYTES}"
        report.findings.append(SMALL_PAYLOAD.found(message))
    if nats.is_development:
        report.lines[-1] += "; a server for development: a power cut may cost the last events"
    elif nats.syncs_always is False:
        every = (nats.varz or {}).get("jetstream", {}).get("config", {}).get("sync_interval", 0) / 1e9
        message = f"the server syncs to disk only every {span(every)}: acknowledged does not mean on disk"
        report.findings.append(LAZY.found(message))
    elif nats.syncs_always is None:
        report.findings.append(SYNC_UNKNOWN.found("it is not known whether acknowledged means on disk"))


def _check_storage(report: Report, nats: NatsFacts, limits: Limits) -> None:
    """The fullest of what limits the log: the account, the server, the disk."""
    shares: list[tuple[float, str]] = []
    account = nats.account or {}
    tiers = [(account, account.get("limits", {})), *((one, one.get("limits", {})) for one in _tiers(account))]
    for used, limit in tiers:
        _add_share(shares, used.get("storage", 0), limit.get("max_storage", -1), "the account's storage")
    jetstream = (nats.varz or {}).get("jetstream", {})
    told, most = jetstream.get("stats", {}), jetstream.get("config", {}).get("max_storage", -1)
    _add_share(shares, told.get("storage", 0), most, "the server's storage")
    if nats.disk is not None:
        _add_share(shares, nats.disk.used, nats.disk.total, f"the disk of {nats.disk.path}")
    if not shares:
        return
    percent, what = max(shares)
    if (level := limits.level(percent)) is not Level.OK:
        report.findings.append(STORAGE.found(f"{what} is {percent:.0f} % full", level=level))
    report.lines[-1] += f"; {what} is {percent:.0f} % full"
    report.measures.append(
        Measure(name="log.storage", value=round(percent, 1), unit="%", limits=limits,
                help="How full the fullest is: the account, the server, the disk.")
    )  # fmt: skip


def _tiers(account: dict[str, object]) -> list[dict[str, dict[str, int]]]:
    tiers = account.get("tiers")
    return list(tiers.values()) if isinstance(tiers, dict) else []


def _add_share(shares: list[tuple[float, str]], used: int, most: int, what: str) -> None:
    if most > 0:
        shares.append((100 * used / most, what))
