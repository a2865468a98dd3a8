"""Asking everybody, at the same time and none for longer than allowed. Whoever does not answer is a fact, too."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nats.errors

from cuebook.cli.checks.facts import Beat, Clock, Disk, Facts, NatsFacts, SealFacts
from cuebook.cli.diagnosis.probe_database import ask_database
from cuebook.cli.diagnosis.probe_log import count_from_log, find_forwarding, fold_agents
from cuebook.cli.durability import find_varz
from cuebook.cli.exits import InputError
from cuebook.cli.moments import now
from cuebook.cli.options import Target
from cuebook.cli.session import reading_segments
from cuebook.events.connection import Connection, connect, json_object
from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, CuebookError, HistoryRegressedError, UnavailableError
from cuebook.events.jetstream import NO_MESSAGE, NO_STREAM, js_request
from cuebook.events.log import EventLog
from cuebook.events.lookup import first_match
from cuebook.ledger.seals import SealNames, Seals

__all__ = ["Sources", "gather"]

PINGS = 5
ANSWERS_WITHIN_S = 1.0
QUIET_S = 0.15
"""Orchestrators answer at once; after the last of them there is silence."""
BEATS = 3.5
"""So many intervals without a heartbeat are silence."""
SILENCE_AT_LEAST_S = 2.5
"""But a busy machine may stand still for a moment."""
_MOST_STREAMS = 500
_Collect = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Whom to ask, and for how long each may take. `areas`: only what these need."""

    target: Target
    database_url: str
    monitor_url: str
    timeout_s: float
    areas: Collection[str]

    def wants(self, *areas: str) -> bool:
        """Whether any of these areas is to be looked at."""
        return not set(areas).isdisjoint(self.areas)


async def gather(sources: Sources) -> Facts:
    """Ask NATS, the orchestrators, the agents and PostgreSQL. Raises only for what cannot be meant, such as a URL."""
    space = sources.target.space
    facts = Facts(space=space, stream=space.upper(), now=now(), has_database_url=bool(sources.database_url))
    async with asyncio.TaskGroup() as group:
        group.create_task(_bounded(facts, "nats", 3 * sources.timeout_s + 1, lambda: _ask_nats(facts, sources)))
        if sources.database_url and sources.wants("projections", "clocks"):
            group.create_task(
                _bounded(facts, "database", sources.timeout_s, lambda: ask_database(facts, sources.database_url))
            )
    if facts.database is not None and facts.database.projections and facts.nats is not None:
        await _bounded(facts, "checkpoints", sources.timeout_s, lambda: _compare_checkpoints(facts, sources))
    return facts


async def _bounded(facts: Facts, what: str, timeout_s: float, collect: _Collect) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await collect()
    except TimeoutError:
        facts.failures.setdefault(what, f"no answer within {timeout_s:g} s")
    except CuebookError as error:
        facts.failures[what] = str(error)
        if isinstance(error, ConfigurationError | InputError):  # else it may come back by itself
            facts.remedies[what] = error.remedy
    except nats.errors.Error as error:
        facts.failures[what] = str(error) or type(error).__name__


# --- NATS ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _connected(sources: Sources) -> AsyncIterator[Connection]:
    target = sources.target
    connection = await connect(
        target.nats_url, name="cuebook doctor", retry=False, connect_timeout=sources.timeout_s, **target.client_options
    )
    try:
        yield reading_segments(connection)
    finally:
        await connection.close()


async def _ask_nats(facts: Facts, sources: Sources) -> None:
    async with _connected(sources) as connection:
        url = connection.connected_url
        info = connection.server_info
        told = NatsFacts(
            url=f"{url.hostname}:{url.port}" if url is not None else sources.target.nats_url,
            info=info,
            tls=bool(info.get("tls_required")) or (url is not None and url.scheme == "tls"),
        )
        facts.nats = told
        log = EventLog(connection, facts.space, source="doctor")
        with suppress(CuebookError, TimeoutError):  # what is wrong with it is said by who asks about it
            async with asyncio.timeout(sources.timeout_s):
                await log.chain.look()
                facts.stream = log.chain.stream
        questions: dict[str, tuple[bool, _Collect]] = {
            "clock": (True, lambda: _ask_time(connection, told)),
            "server": (sources.wants("log"), lambda: _ask_server(connection, told, sources.monitor_url)),
            "streams": (True, lambda: _ask_streams(connection, told, facts.space)),
            "consumers": (sources.wants("agents"), lambda: _ask_consumers(connection, told, facts.stream)),
            "lease": (sources.wants("orchestrator"), lambda: _ask_lease(connection, told, facts.space)),
            "orchestrator": (
                sources.wants("orchestrator", "clocks", "runs", "escalations", "agents"),
                lambda: _ask_orchestrators(connection, log, facts),
            ),
            "agents": (
                sources.wants("agents", "clocks"), lambda: _ask_agents(connection, log, facts, sources.timeout_s)
            ),
            "edges": (sources.wants("agents"), lambda: _ask_edges(log, facts)),
            "seals": (sources.wants("seals"), lambda: _ask_seals(log, facts)),
        }  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for what, (wanted, collect) in questions.items():
                if wanted:
                    group.create_task(_bounded(facts, what, sources.timeout_s * 2, collect))


async def _ask_time(connection: Connection, told: NatsFacts) -> None:
    latencies, clocks = [], []
    for _ in range(PINGS):
        began = time.perf_counter()
        await connection.flush(timeout=2)
        latencies.append(time.perf_counter() - began)
        wall, began = time.time(), time.perf_counter()
        answer = await connection.request("$SYS.REQ.USER.INFO", b"", timeout=2)
        took = time.perf_counter() - began
        if said := json.loads(answer.data).get("server", {}).get("time"):
            clocks.append(Clock(_seconds(said) - wall - took / 2, took / 2))
    told.latency_s = min(latencies)
    told.clock = min(clocks, key=lambda one: one.error_s, default=None)


def _seconds(stamp: str) -> float:
    """Of an RFC 3339 time with nanoseconds, which Python cannot read."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float("0." + (fraction or "0"))


async def _ask_server(connection: Connection, told: NatsFacts, monitor_url: str) -> None:
    told.account = await js_request(connection, "INFO", {})
    told.varz = await find_varz(connection, monitor_url)
    config = (told.varz or {}).get("jetstream", {}).get("config")
    if config:
        told.syncs_always = bool(config.get("sync_always", False))
    path = Path(config["store_dir"]) if config and config.get("store_dir") else None
    if path is not None and told.is_local and path.is_dir():
        usage = shutil.disk_usage(path)
        told.disk = Disk(str(path), usage.total - usage.free, usage.total)


async def _ask_streams(connection: Connection, told: NatsFacts, space: str) -> None:
    """Each by itself: a list of all waits for nodes that are down."""
    names: list[str] = []
    while True:
        page = await js_request(connection, "STREAM.NAMES", {"offset": len(names)})
        names += page["streams"] or []
        if len(names) >= page["total"] or not page["streams"]:
            break
    ours = re.compile(rf"(?:KV_|OBJ_)?{space}(?![a-z0-9-])", re.IGNORECASE).match
    names.sort(key=lambda name: ours(name) is None)  # those of this space count before whatever else is there
    found: dict[str, dict[str, Any]] = {}

    async def ask(name: str) -> None:
        try:
            info = await js_request(connection, f"STREAM.INFO.{name}", {}, ANSWERS_WITHIN_S * 2, none_for={NO_STREAM})
        except UnavailableError:
            told.mute.append(name)
        else:
            if info is not None:
                found[name] = info

    async with asyncio.TaskGroup() as group:
        for name in names[:_MOST_STREAMS]:
            group.create_task(ask(name))
    told.streams = found


async def _ask_consumers(connection: Connection, told: NatsFacts, stream: str) -> None:
    consumers: list[dict[str, Any]] = []
    while True:
        request = {"offset": len(consumers)}
        page = await js_request(connection, f"CONSUMER.LIST.{stream}", request, none_for={NO_STREAM})
        if page is None:
            return
        consumers += page["consumers"] or []
        if len(consumers) >= page["total"] or not page["consumers"]:
            break
    told.consumers = consumers


async def _ask_lease(connection: Connection, told: NatsFacts, space: str) -> None:
    none_for = {NO_STREAM, NO_MESSAGE}
    stream, key = f"KV_{space}_leases", f"$KV.{space}_leases.orchestrator"
    answer = await js_request(connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": key}, none_for=none_for)
    message = (answer or {}).get("message", {})
    if b"KV-Operation" not in base64.b64decode(message.get("hdrs", "")):  # else it was given back
        told.lease_holder = base64.b64decode(message.get("data", "")).decode("utf-8", "replace")


# --- the processes ---------------------------------------------------------------------------------------------------


async def _ask_orchestrators(connection: Connection, log: EventLog, facts: Facts) -> None:
    heard: list[dict[str, Any]] = []
    more = asyncio.Event()

    def receive(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        wall_us = time.time_ns() // 1000
        if said := json_object(payload):  # else the server says that nobody listens
            told = said.get("time")
            heard.append(said | ({"ahead_s": (told - wall_us) / 1e6} if isinstance(told, int) else {}))
        more.set()

    inbox = connection.new_inbox()
    listener = await connection.listen(inbox, receive)
    try:
        connection.post(log.subjects.query("orchestrators"), b"{}", inbox)
        wait_s = ANSWERS_WITHIN_S
        while await _set_within(more, wait_s):
            more.clear()
            if not heard:
                break
            wait_s = QUIET_S
    finally:
        await listener.close()
    if not heard:
        heard = await _ask_earlier_release(connection, log)
    facts.orchestrators = heard
    if not any(one.get("deciding") for one in heard):
        facts.overview = await count_from_log(log)
        return
    answer = await connection.request(log.subjects.query("overview"), b"{}", timeout=ANSWERS_WITHIN_S * 2)
    told = json.loads(answer.data)
    if "error" in told:
        raise ConfigurationError(f"the orchestrator cannot tell what is open: {told['error']}")
    facts.overview = told


async def _ask_earlier_release(connection: Connection, log: EventLog) -> list[dict[str, Any]]:
    """One from before orchestrators said who they are, if it decides."""
    try:
        answer = await connection.request(log.subjects.query("status"), b"{}", timeout=ANSWERS_WITHIN_S)
    except (nats.errors.Error, TimeoutError):
        return []
    told = json.loads(answer.data)
    name = "an orchestrator of an earlier release"
    return [{"name": name, "deciding": True, "sequence": told.get("sequence", 0), "snapshot_sequence": 10**18}]


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _ask_agents(connection: Connection, log: EventLog, facts: Facts, timeout_s: float) -> None:
    """Fold who is registered, and listen until everybody has been heard who should be."""
    beats: dict[tuple[str, str], Beat] = {}
    news = asyncio.Event()

    def receive(subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        wall_us = time.time_ns() // 1000
        *_, agent, instance = subject.decode("utf-8", "replace").split(".")
        if not (said := json_object(payload)):
            return  # not an agent's
        told = said.get("time")
        ahead_s = (told - wall_us) / 1e6 if isinstance(told, int) else None
        beats[agent, instance] = Beat(str(said.get("release", "")), ahead_s)
        news.set()

    listener = await connection.listen(log.subjects.heartbeat("a", "b").replace(".a.b", ".*.*"), receive)
    began = time.monotonic()
    try:
        directory = await fold_agents(log)
        expected = {
            key: one.heartbeat_s for key, one in directory.registry.instances.items()
            if one.health in ("healthy", "draining", "suspect")
        }  # fmt: skip
        while missing := expected.keys() - beats.keys():
            silence_s = max(max(expected[key] for key in missing) * BEATS, SILENCE_AT_LEAST_S)
            left_s = min(silence_s, timeout_s) - (time.monotonic() - began)
            news.clear()
            if left_s <= 0 or not await _set_within(news, left_s):
                directory = await fold_agents(log)  # who has left meanwhile need not be heard
                break
    finally:
        await listener.close()
    facts.listened_s = time.monotonic() - began
    facts.directory, facts.beats = directory, beats


async def _ask_edges(log: EventLog, facts: Facts) -> None:
    facts.forwarding = await find_forwarding(log)


# --- what is derived from the log ------------------------------------------------------------------------------------


async def _ask_seals(log: EventLog, facts: Facts) -> None:
    connection, chain = log.connection, log.chain
    names = SealNames(facts.space)
    info = await js_request(connection, f"STREAM.INFO.{names.stream}", {}, none_for={NO_STREAM})
    if info is None:
        return
    whole = await chain.look()
    number = info["state"]["last_seq"]
    seal = await Seals(connection, facts.space, None).at(number) if number else None
    begins = chain.earlier[0].first if chain.earlier else whole["state"]["first_seq"]
    sealed = max(begins, 1) - 1 + (seal.checkpoint.size if seal is not None else 0)
    first = await first_match(connection, facts.stream, f"{facts.space}.>", sealed)
    facts.seals = SealFacts(seal=seal, first_unsealed_at=first.recorded_at if first is not None else 0)


async def _compare_checkpoints(facts: Facts, sources: Sources) -> None:
    assert facts.database is not None
    async with _connected(sources) as connection:
        log = EventLog(connection, facts.space, source="doctor")
        for one in facts.database.projections or []:
            if not one.shown:
                continue
            try:
                await log.verify_position(Position(one.sequence, one.event_id))
            except HistoryRegressedError as error:
                facts.database.regressed.append(f"{one.projection}: {error}")
            except UnavailableError:
                return
