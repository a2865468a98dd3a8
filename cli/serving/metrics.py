"""`/metrics` of a service process, where it is asked for; else nothing is loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cuebook.cli.durability import find_varz
from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, CuebookError
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog

if TYPE_CHECKING:  # each service imports only what it runs
    from cuebook.actors.edge import Edge
    from cuebook.actors.forwarder import Forwarder
    from cuebook.actors.handling import Handling
    from cuebook.actors.orchestrator.service import OrchestratorService
    from cuebook.actors.orchestrator.tallies import Tallies
    from cuebook.actors.runtime import AgentHost
    from cuebook.ledger.sealer import Sealer
    from cuebook.projections.runner import Runner
    from cuebook.telemetry.metric import Sample
    from cuebook.telemetry.metrics import Metrics

__all__ = [
    "following", "handling_of", "measured", "tallies_of", "watch_agents", "watch_edge", "watch_orchestrator",
    "watch_projections", "watch_readiness", "watch_sealer",
]  # fmt: skip

STORE_EVERY_S: Final = 30.0
STORE_WITHIN_S: Final = 1.0

logger = logging.getLogger(__name__)


@contextmanager
def measured(
    address: str, service: str, space: str, loop: asyncio.AbstractEventLoop, *, waits: bool = False
) -> Iterator[Metrics | None]:
    """Serve metrics at an address until the end of the block; None where it is empty.

    `loop` is the one that works, and may not run yet. `waits`: another has the address, and will leave it to us.
    Raises ConfigurationError, and UnavailableError where the address is taken and we do not wait.
    """
    if not address:
        yield None
        return
    from cuebook.telemetry.metrics import Metrics
    from cuebook.telemetry.scraping import Endpoint

    metrics = Metrics(service, space)
    endpoint = Endpoint(address, metrics, loop, waits=waits)
    metrics.install()
    metrics.loop_delay.start(loop)
    endpoint.start()
    try:
        yield metrics
    finally:
        endpoint.close()
        metrics.close()


def following(address: str, n: int) -> str:
    """The address of the process in the n-th place under one supervisor, from 0: its port is the given one + n.

    Port 0 stays: each takes a free one. An empty address stays empty. Raises ConfigurationError.
    """
    if not address:
        return ""
    from cuebook.telemetry.scraping import parse_address

    host, port = parse_address(address)
    if port + n > 65535:
        raise ConfigurationError(f"there are no {n + 1} ports from {address} on", remedy="begin with a lower one")
    return f"{f'[{host}]' if ':' in host else host}:{port + n if port else 0}"


def watch_readiness(metrics: Metrics, ready: Callable[[], bool]) -> None:
    """Tell from now on whether the service takes work."""
    from cuebook.telemetry import metric_names as names
    from cuebook.telemetry.metric import Sample

    async def look() -> list[Sample]:
        return [Sample(names.READY, (), int(ready()))]

    metrics.add(look)


def handling_of(metrics: Metrics | None) -> Handling | None:
    """Where a host of agents adds to, where metrics are served."""
    if metrics is None:
        return None
    from cuebook.actors.handling import Handling

    return Handling()


def watch_agents(metrics: Metrics | None, host: AgentHost, handling: Handling | None) -> None:
    """Tell from now on how a host of agents does. Without metrics nothing happens, here and below."""
    if metrics is not None and handling is not None:
        metrics.add(lambda: _told(handling.samples(host.instances)))
        _watch_log(metrics, host.log)


def watch_edge(metrics: Metrics | None, edge: Edge, forwarder: Forwarder) -> None:
    """Tell from now on what waits at an edge for the link; its agents are told of by `watch_agents`."""
    if metrics is None:
        return
    from cuebook.telemetry import metric_names as names
    from cuebook.telemetry.metric import Sample

    def samples() -> list[Sample]:
        return [
            Sample(names.EDGE_LINKED, (), int(edge.linked is True)),
            Sample(names.EDGE_CUT, (), edge.cut_for_s),
            Sample(names.EDGE_ANSWERS, (), edge.waiting),
            Sample(names.EDGE_EVENTS, (), forwarder.waiting),
            Sample(names.EDGE_FORWARDED, (), forwarder.forwarded),
        ]

    metrics.add(lambda: _told(samples()))


def tallies_of(metrics: Metrics | None) -> Tallies | None:
    """Where an orchestrator counts, where metrics are served."""
    if metrics is None:
        return None
    from cuebook.actors.orchestrator.tallies import Tallies

    return Tallies()


def watch_orchestrator(
    metrics: Metrics | None, service: OrchestratorService, tallies: Tallies | None, *, monitor_url: str = ""
) -> None:
    """Tell from now on what an orchestrator sees; `monitor_url` of the server, for how full its store is."""
    if metrics is None or tallies is None:
        return
    from cuebook.actors.orchestrator.observation import observe

    store = _Store(service.log.connection, monitor_url)

    async def look() -> list[Sample]:
        found = await observe(service, tallies)
        return found + (await store.samples() if service.deciding.is_set() else [])

    metrics.add(look)
    _watch_log(metrics, service.log)


def watch_projections(metrics: Metrics | None, runner: Runner, log: EventLog, database_url: str) -> None:
    """Tell from now on how far the tables are."""
    if metrics is not None:
        from cuebook.projections.observation import Observation

        metrics.add(Observation(runner, database_url, log.subjects.space).samples)
        _watch_log(metrics, log)


def watch_sealer(metrics: Metrics | None, sealer: Sealer, log: EventLog) -> None:
    """Tell from now on how far the log is sealed."""
    if metrics is not None:
        from cuebook.telemetry import metric_names as names
        from cuebook.telemetry.metric import Sample

        metrics.add(lambda: _told([Sample(names.SEALED, (), sealer.sealed)]))
        _watch_log(metrics, log)


async def _told(samples: list[Sample]) -> list[Sample]:
    return samples


def _watch_log(metrics: Metrics, log: EventLog) -> None:
    """Tell from now on how the connection is, and what is appended."""
    from cuebook.telemetry import metric_names as names
    from cuebook.telemetry.metric import Histogram, Sample

    appender, connection, times = log.appender, log.connection, Histogram()
    appender.on_stored = times.record

    async def look() -> list[Sample]:
        ended = {
            "stored": appender.stored,
            "conflict": appender.conflicts,
            "refused": appender.refused,
            "unanswered": appender.unanswered,
        }
        return [
            Sample(names.NATS_UP, (), int(connection.is_connected)),
            Sample(names.NATS_RECONNECTS, (), connection.stats["reconnects"]),
            *(Sample(names.APPENDS, (outcome,), count) for outcome, count in ended.items()),
            Sample(names.APPEND_DURATION, (), times.now()),
            Sample(names.APPENDS_IN_FLIGHT, (), appender.under_way),
            Sample(names.APPENDS_RESENT, (), appender.resent),
        ]

    metrics.add(look)


class _Store:
    """How full the log's store is: by the limit of the account, or else of the server if its monitoring says so."""

    def __init__(self, connection: Connection, monitor_url: str) -> None:
        self._connection, self._monitor_url = connection, monitor_url
        self._known: tuple[int, int] | None = None
        self._asked_at = 0.0

    async def samples(self) -> list[Sample]:
        """As the servers said in the last half minute; nothing where they do not."""
        from cuebook.telemetry import metric_names as names
        from cuebook.telemetry.metric import Sample

        now = time.monotonic()
        if not self._asked_at or now - self._asked_at >= STORE_EVERY_S:
            self._asked_at = now
            self._known = await self._ask()
        if self._known is None:
            return []
        used, limit = self._known
        return [Sample(names.STORE_USED, (), used), Sample(names.STORE_LIMIT, (), limit)]

    async def _ask(self) -> tuple[int, int] | None:
        try:
            async with asyncio.timeout(STORE_WITHIN_S):
                account = await js_request(self._connection, "INFO", {})
        except (CuebookError, TimeoutError):
            account = {}
        limit = _number(account, "limits", "max_storage")
        if limit > 0:
            return _number(account, "storage"), limit
        varz = await find_varz(self._connection, self._monitor_url)
        limit = _number(varz, "jetstream", "config", "max_storage")
        return (_number(varz, "jetstream", "stats", "storage"), limit) if limit > 0 else None


def _number(found: Mapping[str, Any] | None, *path: str) -> int:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) else 0
