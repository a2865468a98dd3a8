"""Faults of servers and streams, each made to happen on a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cuebook.cli.checks.areas import LIMITS, look
from cuebook.cli.checks.facts import Disk
from cuebook.cli.checks.finding import Level, Limits
from cuebook.cli.diagnosis.probe import Sources, gather
from cuebook.cli.options import Target
from cuebook.embedded.nats_cluster import nats_cluster
from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.process import free_port
from cuebook.events.connection import connect
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import OutsideEvent
from cuebook.events.jetstream import js_request
from cuebook.events.stream import stream_config
from cuebook.events.subjects import Subjects
from tests.cli.checks.conftest import Doctor, System, opened, wrong
from tests.events.server import plain_server

WEEK_US = 7 * 86_400 * 10**6


async def test_a_dead_nats_is_a_finding_and_postgresql_is_still_looked_at(
    space: str, database_url: str, system: System, doctor: Doctor
) -> None:
    await system.projections(database_url)
    away = Doctor("nats://127.0.0.1:1", space, database_url)
    found = await away.finds()
    assert wrong(found) == ["log.unreachable"]
    assert "127.0.0.1:1" in found["log.unreachable"].message
    assert {one.about for one in away.findings(await away.facts())} > {"agents", "runs"}
    facts = await away.facts()
    assert facts.database is not None
    assert len(facts.database.projections or []) == 3
    [report] = look(facts, ["projections"], LIMITS)
    assert (report.level, "projections.lag" in {one.name for one in report.measures}) == (Level.UNKNOWN, False)


async def test_a_server_that_says_nothing_does_not_hold_anybody_up(space: str) -> None:
    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        silent = Doctor(f"nats://127.0.0.1:{port}", space, f"postgresql://postgres@127.0.0.1:{port}/x", timeout_s=0.3)
        async with asyncio.timeout(60):
            found = await silent.finds()
    assert wrong(found) == ["log.unreachable", "projections.unreachable"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"discard": "old", "max_bytes": 10**9}, "log.discards_old"),
        ({"max_age": 3600 * 10**9}, "log.limited"),
        ({"max_msgs": 1_000_000}, "log.limited"),
        ({"max_msgs_per_subject": 1}, "log.limited"),
        ({"duplicate_window": 10**9}, "log.duplicate_window"),
        ({"max_msg_size": 1000}, "log.message_size"),
        ({"allow_direct": False}, "log.settings"),
    ],
)
async def test_settings_that_lose_events_are_found_with_the_flag_that_mends_them(
    system: System, doctor: Doctor, settings: dict[str, Any], code: str
) -> None:
    assert wrong(await doctor.finds("log")) == []
    await system.change(doctor.space.upper(), **settings)
    found = await doctor.finds("log")
    assert wrong(found) == [code]
    assert found[code].level is Level.CRITICAL
    assert f"nats stream edit {doctor.space.upper()}" in found[code].remedy


async def test_of_a_sealed_stream_it_is_said_that_no_edit_mends_it(system: System, doctor: Doctor) -> None:
    await system.change(doctor.space.upper(), sealed=True)
    found = await doctor.finds("log")
    assert wrong(found) == ["log.sealed"]
    assert "nats stream backup" in found["log.sealed"].remedy
    with pytest.raises(ConfigurationError, match="is sealed: nothing is written to it any more"):
        await system.log.verify()


async def test_who_may_not_ask_jetstream_is_told_so(tmp_path: Path, space: str) -> None:
    settings = f"""
    jetstream {{ store_dir: "{tmp_path}" }}
    accounts {{ A {{ jetstream: enabled, users: [
        {{ user: a, password: a, permissions {{ publish: {{ deny: ["$JS.API.>"] }} }} }} ] }} }}
    """
    async with plain_server(tmp_path, settings) as url:
        found = await Doctor(url.replace("//", "//a:a@"), space).finds("log", "seals")
    assert found["log.no_leader"].message.endswith("does not let this user publish to $JS.API.STREAM.NAMES")
    assert "let the user publish to '$JS.API.>'" in found["log.no_leader"].remedy
    assert found["unseen"].about == "seals"


async def test_a_credentials_file_that_is_not_there_is_named_with_its_own_remedy(space: str) -> None:
    target = Target(nats_url="nats://127.0.0.1:1", creds="/nowhere/a.creds", space=space)
    facts = await gather(Sources(target=target, database_url="", monitor_url="", timeout_s=1.0, areas=["log"]))
    [report] = look(facts, ["log"], LIMITS)
    assert [one.remedy for one in report.findings] == ["correct --nats-creds"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"deny_delete": False}, "log.deletable"),
        ({"deny_purge": False}, "log.deletable"),
        ({"storage": "memory"}, "log.in_memory"),
    ],
)
async def test_settings_that_a_stream_is_made_with(
    nats_url: str, space: str, doctor: Doctor, settings: dict[str, Any], code: str
) -> None:
    connection = await connect(nats_url, name="tests")
    config = stream_config(Subjects(space), 1) | settings
    await js_request(connection, f"STREAM.CREATE.{space.upper()}", config)
    assert wrong(await doctor.finds("log")) == [code]
    if code == "log.deletable":  # as its remedy does
        await js_request(
            connection, f"STREAM.UPDATE.{space.upper()}", config | {"deny_delete": True, "deny_purge": True}
        )
        assert wrong(await doctor.finds("log")) == []
    await connection.close()


async def test_a_stream_that_is_nearly_full_and_one_with_hardly_room_for_consumers(
    system: System, doctor: Doctor
) -> None:
    stream = doctor.space.upper()
    await system.change(stream, max_bytes=1_000_000, max_consumers=10)
    for n in range(9):
        await js_request(
            system.log.connection,
            f"CONSUMER.DURABLE.CREATE.{stream}.c{n}",
            {"stream_name": stream, "config": {"durable_name": f"c{n}", "ack_policy": "none"}},
        )
    await system.log.append(system.log.subjects.event("x"), OutsideEvent(data="x" * 200_000))
    assert wrong(await doctor.finds("log")) == ["log.consumers_limit"]
    for _ in range(3):
        await system.log.append(system.log.subjects.event("x"), OutsideEvent(data="x" * 200_000))
    found = await doctor.finds("log")
    assert wrong(found) == ["log.consumers_limit", "log.full"]
    assert found["log.full"].level is Level.WARNING
    doctor.limits = {"log.bytes": Limits(10, 50)}
    assert (await doctor.finds("log"))["log.full"].level is Level.CRITICAL


async def test_a_space_that_nobody_has_made(doctor: Doctor) -> None:
    found = await doctor.finds("log")
    assert wrong(found) == ["log.missing"]
    assert f"--space {doctor.space}" in found["log.missing"].remedy
    reasons = {one.message for one in doctor.findings(await doctor.facts("agents", "runs"), "agents", "runs")}
    assert reasons == {f"not looked at: there is no stream {doctor.space.upper()}"}


async def test_a_server_that_syncs_lazily_or_does_not_say(tmp_path: Path, space: str) -> None:
    monitor = free_port()
    jetstream = f'jetstream {{ store_dir: "{tmp_path}" }}'
    async with plain_server(tmp_path, f"http: 127.0.0.1:{monitor}\n{jetstream}") as url, opened(url, space):
        told = Doctor(url, space, monitor_url=f"http://127.0.0.1:{monitor}")
        found = await told.finds("log")
        assert wrong(found) == ["log.lazy_sync"]
        assert "2m 0s" in found["log.lazy_sync"].message
        untold = await Doctor(url, space, monitor_url="http://127.0.0.1:1").finds("log")
        assert list(untold) == ["log.sync_unknown"]
        assert untold["log.sync_unknown"].level is Level.OK
        facts = await told.facts("log")
        assert facts.nats is not None
        assert facts.nats.disk is not None
        facts.nats.disk = Disk("/data", 95, 100)
        assert "log.storage" in {one.code for one in told.findings(facts, "log")}


async def test_a_strict_server_is_healthy_but_lacks_a_standby(tmp_path: Path, space: str) -> None:
    monitor = free_port()
    jetstream = f'jetstream {{ store_dir: "{tmp_path}", sync_interval: always }}'
    async with plain_server(tmp_path, f"http: 127.0.0.1:{monitor}\n{jetstream}") as url, opened(url, space) as there:
        await there.orchestrator()
        strict = Doctor(url, space, monitor_url=f"http://127.0.0.1:{monitor}")
        assert list(await strict.agrees(["orchestrator.no_standby"])) == ["orchestrator.no_standby"]
        await there.orchestrator(deciding=False)
        assert list(await strict.agrees([])) == []


async def test_a_server_without_jetstream_or_for_small_messages_only(tmp_path: Path, space: str) -> None:
    async with plain_server(tmp_path, "max_payload: 100KB") as url:
        found = wrong(await Doctor(url, space).finds("log"))
        [agents] = (await Doctor(url, space).finds("agents")).values()
    assert found == ["log.max_payload", "log.no_jetstream"]
    assert agents.message == "not looked at: JetStream is off"


async def test_a_server_that_refuses_us(tmp_path: Path, space: str) -> None:
    async with plain_server(tmp_path, "authorization { user: ann, password: right }") as url:
        found = (await Doctor(url.replace("//", "//ann:wrong@"), space).finds("log"))["log.unreachable"]
    assert ("refused us" in found.message, "wrong" in found.message) == (True, False)
    assert found.remedy == "check the credentials in the URL"


async def test_storage_that_is_nearly_full(tmp_path: Path, space: str) -> None:
    monitor = free_port()
    jetstream = f'jetstream {{ store_dir: "{tmp_path}", sync_interval: always, max_file_store: 4MB }}'
    async with plain_server(tmp_path, f"http: 127.0.0.1:{monitor}\n{jetstream}") as url, opened(url, space) as there:
        strict = Doctor(url, space, monitor_url=f"http://127.0.0.1:{monitor}")
        strict.limits = {"log.storage": Limits(1000, None)}  # whatever the disk of this machine is like
        assert wrong(await strict.finds("log")) == []
        for _ in range(16):
            await there.log.append(there.log.subjects.event("x"), OutsideEvent(data="x" * 220_000))
        strict.limits = {}
        found = (await strict.finds("log"))["log.storage"]
        assert "server's storage is 8" in found.message or "disk" in found.message


@pytest.mark.parametrize(
    ("version", "codes"),
    [
        ("2.11.9", ["log.server_too_old"]),
        ("2.12.14", ["log.server_known_bad"]),
        ("2.12.15", []),
        ("2.14.4", ["log.server_known_bad"]),
        ("2.14.5", []),
        ("2.15.0", []),
        ("2.16.0-beta.1", []),
        ("3.0.0", []),
    ],
)
async def test_releases_of_the_server(system: System, doctor: Doctor, version: str, codes: list[str]) -> None:
    facts = await doctor.facts("log")
    assert facts.nats is not None
    facts.nats.info["version"] = version
    assert [one.code for one in doctor.findings(facts, "log")] == codes


async def test_a_connection_across_a_network_should_have_tls_and_be_quick(system: System, doctor: Doctor) -> None:
    facts = await doctor.facts("log")
    assert facts.nats is not None
    facts.nats = replace(facts.nats, url="10.0.0.7:4222", latency_s=0.5)
    assert [one.code for one in doctor.findings(facts, "log")] == ["log.plaintext", "log.slow"]
    facts.nats = replace(facts.nats, tls=True, latency_s=0.01)
    assert doctor.findings(facts, "log") == []


async def test_a_recording_that_was_left(tmp_path: Path, space: str) -> None:
    async with nats_server(tmp_path) as server, opened(server.url, space), opened(server.url, f"{space}-rec") as other:
        await js_request(other.log.connection, f"STREAM.DELETE.{other.space.upper()}", {})
        await other.log.ensure(recording=True, origin="here")
        doctor = Doctor(server.url, space)
        facts = await doctor.facts("log")
        assert doctor.findings(facts, "log") == []
        facts.now += WEEK_US + 10**6
        [found] = [one for one in doctor.findings(facts, "log") if one.about == other.space.upper()]
        assert (found.code, found.remedy) == ("log.recording_left", f"nats stream rm {other.space.upper()}")


async def test_too_few_replicas_and_a_node_that_died(tmp_path: Path, space: str) -> None:
    async with nats_cluster(tmp_path / "nats") as cluster, opened(cluster.url, space) as there:
        clustered = Doctor(cluster.url, space)
        found = await clustered.finds("log")
        assert wrong(found) == ["log.replicas"]
        assert "1 of 3 replicas" in found["log.replicas"].message
        await there.change(space.upper(), num_replicas=3)

        await clustered.agrees([], "log")
        connected = there.log.connection.server_info["server_name"]
        victim = next(node for node in cluster.nodes if node.name != connected)
        await victim.kill()
        lost = await clustered.until("log.replica_lost", "log")
        assert victim.name in lost.message
        facts = await clustered.facts("log")
        assert facts.log_info is not None
        facts.log_info["cluster"]["leader"] = ""
        assert "log.no_leader" in {one.code for one in clustered.findings(facts, "log")}


async def test_a_server_that_is_killed_between_two_looks(tmp_path: Path, space: str) -> None:
    async with nats_server(tmp_path) as server, opened(server.url, space):
        own = Doctor(server.url, space)
        await own.agrees([], "log", "clocks")
        await server.kill()
        await own.agrees(["log.unreachable"], "log", "clocks")
        await server.restart()
        await own.agrees([], "log", "clocks")
