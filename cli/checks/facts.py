"""What is known of a space at one moment, as far as those who were asked have answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cuebook.cli.directory import Directory
from cuebook.cli.durability import is_development
from cuebook.ledger.seals import Seal
from cuebook.projections.records import ProjectionRecord

__all__ = ["Beat", "Clock", "DatabaseFacts", "Disk", "Facts", "Forwarding", "NatsFacts", "SealFacts"]


class Clock(NamedTuple):
    """How far a clock is ahead of this machine's, and how wrong that may be; in seconds."""

    ahead_s: float
    error_s: float


class Disk(NamedTuple):
    """Where a server keeps what it has, if that is on this machine; in bytes."""

    path: str
    used: int
    total: int


class Beat(NamedTuple):
    """The last heartbeat of an instance. `ahead_s`: its clock against ours; None of a release that does not say."""

    release: str
    ahead_s: float | None


class Forwarding(NamedTuple):
    """An edge began, or went on, to forward events of one stream of its own; `stream` by when that was made."""

    stream: str
    began_at: int


@dataclass(slots=True, kw_only=True)
class NatsFacts:
    """The server that answers.

    `streams`: STREAM.INFO of all that we may see, by name; None where nobody tells us. `mute`: streams about which
    nobody answers.
    """

    url: str
    info: dict[str, Any]
    tls: bool
    latency_s: float = 0.0
    clock: Clock | None = None
    account: dict[str, Any] | None = None
    varz: dict[str, Any] | None = None
    syncs_always: bool | None = None
    disk: Disk | None = None
    streams: dict[str, dict[str, Any]] | None = None
    mute: list[str] = field(default_factory=list)
    consumers: list[dict[str, Any]] | None = None
    lease_holder: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, as far as its address tells."""
        host = self.url.rpartition(":")[0]
        return host.startswith("127.") or host in ("localhost", "::1", "[::1]")

    @property
    def is_development(self) -> bool:
        """As the function of that name."""
        return is_development(self.info)


@dataclass(slots=True, kw_only=True)
class DatabaseFacts:
    """PostgreSQL that answers. `projections`: None when it holds none of the space; `why_not` says it then.

    `orphans`: schemas of the space's generations of which the bookkeeping knows nothing. `regressed`: projections whose
    checkpoint is not in the log.
    """

    version: str
    latency_s: float
    tls: bool
    local: bool
    clock: Clock
    disk: Disk | None = None
    projections: list[ProjectionRecord] | None = None
    why_not: str = ""
    remedy: str = ""
    orphans: list[str] = field(default_factory=list)
    regressed: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class SealFacts:
    """The newest seal, None when there is a stream of seals with none in it; when the first message after it came."""

    seal: Seal | None
    first_unsealed_at: int


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything. What is None or missing was not told; `failures` says why, by what was asked."""

    space: str
    stream: str
    now: int
    """By this machine's clock, microseconds since 1970."""
    has_database_url: bool = False
    nats: NatsFacts | None = None
    directory: Directory | None = None
    orchestrators: list[dict[str, Any]] | None = None
    overview: dict[str, Any] | None = None
    beats: dict[tuple[str, str], Beat] | None = None
    listened_s: float = 0.0
    forwarding: dict[str, list[Forwarding]] = field(default_factory=dict)
    """By edge, in order; lately, as far as its events are in the newest part of the log."""
    database: DatabaseFacts | None = None
    seals: SealFacts | None = None
    failures: dict[str, str] = field(default_factory=dict)
    remedies: dict[str, str] = field(default_factory=dict)
    """Of the failures that no waiting mends."""

    @property
    def log_info(self) -> dict[str, Any] | None:
        """STREAM.INFO of the log."""
        return (self.nats.streams or {}).get(self.stream) if self.nats is not None else None

    @property
    def no_log(self) -> str:
        """Why nobody can read the log; empty when it is there, as far as is known."""
        if self.nats is None:
            return "NATS does not answer"
        if not self.nats.info.get("jetstream"):
            return "JetStream is off"
        missing = self.nats.streams is not None and self.stream not in {*self.nats.streams, *self.nats.mute}
        return f"there is no stream {self.stream}" if missing else ""

    @property
    def last_sequence(self) -> int:
        """Of the log; 0 when it is empty or unknown."""
        return int(self.log_info["state"]["last_seq"]) if self.log_info else 0

    @property
    def server_now(self) -> int:
        """By the clock of the NATS server, which is the log's."""
        ahead_s = self.nats.clock.ahead_s if self.nats is not None and self.nats.clock is not None else 0.0
        return self.now + int(ahead_s * 1_000_000)
