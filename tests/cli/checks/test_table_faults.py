"""Faults of PostgreSQL, its tables and the seals, each made to happen on real servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from cuebook.cli.checks.facts import Disk
from cuebook.cli.checks.finding import Level
from cuebook.cli.diagnosis.probe_database import disk_of
from cuebook.events.facts import OutsideEvent
from cuebook.events.jetstream import js_request
from cuebook.ledger.notes import PrivateKey
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.database import schema_name
from cuebook.projections.rebuild import rebuild
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.cli.checks.conftest import Doctor, System, wrong
from tests.ledger.test_sealer import sealing
from tests.projections.tables import Tables
from tests.projections.test_parked import refusing
from tests.projections.test_runner import append_tasks
from tests.waiting import eventually

TABLES = ("projections",)
DAY_US = 86_400 * 10**6


@pytest.fixture(autouse=True)
def _database(doctor: Doctor, database_url: str) -> None:
    doctor.database_url = database_url


async def test_postgresql_that_is_away_and_the_log_is_still_looked_at(system: System, doctor: Doctor) -> None:
    doctor.database_url = "postgresql://postgres@127.0.0.1:1/x"
    assert wrong(await doctor.finds("log", "clocks", *TABLES)) == ["projections.unreachable"]


async def test_a_disk_that_is_nearly_full(system: System, doctor: Doctor, database_url: str) -> None:
    await system.projections(database_url)
    facts = await doctor.facts(*TABLES)
    assert facts.database is not None
    doctor.limits = {}
    for used, level in ((79, None), (80, Level.WARNING), (90, Level.CRITICAL)):
        facts.database.disk = Disk("/data", used, 100)
        found = {one.code: one for one in doctor.findings(facts, *TABLES)}.get("projections.storage")
        assert (found.level if found is not None else None) == level


def test_a_disk_is_looked_at_where_it_is_one_of_this_machine(tmp_path: Path) -> None:
    disk = disk_of(str(tmp_path))
    assert disk is not None
    assert 0 < disk.used <= disk.total
    assert disk_of(str(tmp_path / "of another machine")) is None
    assert disk_of("/proc/self/cwd") is None


async def test_a_database_without_tables(system: System, doctor: Doctor) -> None:
    assert wrong(await doctor.finds(*TABLES)) == ["projections.none"]


async def test_tables_of_somebody_else_and_tables_that_one_may_not_read(system: System, doctor: Doctor) -> None:
    schema, url = schema_name(doctor.space), doctor.database_url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
        await connection.execute(f'CREATE TABLE "{schema}".checkpoints (theirs int)'.encode())
        assert wrong(await doctor.finds(*TABLES)) == ["projections.none"]
        await connection.execute(f'DROP SCHEMA "{schema}" CASCADE; CREATE ROLE "{schema}" LOGIN'.encode())
        try:
            await system.projections(url)
            doctor.database_url = psycopg.conninfo.make_conninfo(url, user=schema)
            found = await doctor.finds(*TABLES)
        finally:
            await connection.execute(f'DROP ROLE "{schema}"'.encode())
    assert wrong(found) == ["projections.none"]
    assert "may not read" in found["projections.none"].message
    assert found["projections.none"].remedy == "GRANT cuebook_reader TO the role"


async def test_tables_that_nobody_writes(system: System, doctor: Doctor) -> None:
    last = await append_tasks(system.log, 5)
    await Runner(system.log, doctor.database_url).run(until=last)
    await Tables(doctor.database_url, doctor.space).released()
    facts = await doctor.facts(*TABLES)
    found = doctor.findings(facts, *TABLES)
    assert {one.code for one in found} == {"projections.stopped"}
    assert {one.about for one in found} == {one.name for one in ALL}
    await system.projections(doctor.database_url)
    await doctor.agrees([], *TABLES)


async def test_events_that_are_parked(system: System, doctor: Doctor) -> None:
    last = await append_tasks(system.log, 4)
    runner = await system.projections(doctor.database_url, projections=[Audit(), refusing(Runs, 1, 5), Agents()])
    await eventually(lambda: min(one.sequence for one in runner.status().positions.values()) >= last)
    found = await doctor.agrees(["projections.parked"], *TABLES)
    assert found["projections.parked"].message.startswith("2 events are parked in projection runs")
    assert "cuebook projection parked runs" in found["projections.parked"].remedy


async def test_tables_that_are_behind_or_slow_or_across_a_network(system: System, doctor: Doctor) -> None:
    await system.projections(doctor.database_url)
    facts = await doctor.facts_when_well(*TABLES)
    assert facts.log_info is not None
    assert facts.database is not None
    facts.log_info["state"]["last_seq"] += 5_000
    assert {one.code for one in doctor.findings(facts, *TABLES)} == {"projections.behind"}
    facts = await doctor.facts_when_well(*TABLES)
    assert facts.database is not None
    facts.database = replace(facts.database, latency_s=3.0, local=False)
    found = {one.code: one.level for one in doctor.findings(facts, *TABLES)}
    assert found == {"projections.slow": Level.CRITICAL, "projections.plaintext": Level.WARNING}


async def test_tables_that_have_read_what_the_log_does_not_hold(system: System, doctor: Doctor) -> None:
    last = await append_tasks(system.log, 5)
    runner = await system.projections(doctor.database_url)
    await eventually(lambda: min(one.sequence for one in runner.status().positions.values()) >= last)
    runner.drain()
    await Tables(doctor.database_url, doctor.space).released()
    await js_request(system.log.connection, f"STREAM.DELETE.{doctor.space.upper()}", {})
    await system.log.ensure()
    found = await doctor.agrees(["projections.regressed", "projections.stopped"], *TABLES)
    assert found["projections.regressed"].level is Level.CRITICAL


async def test_what_stands_there_unused(system: System, doctor: Doctor) -> None:
    last = await append_tasks(system.log, 5)
    await Runner(system.log, doctor.database_url).run(until=last)
    await rebuild(system.log, doctor.database_url, [Runs()])
    await system.projections(doctor.database_url)
    facts = await doctor.facts_when_well(*TABLES)
    facts.now += 8 * DAY_US
    [found] = doctor.findings(facts, *TABLES)
    assert (found.code, found.remedy) == ("projections.old_generation", "cuebook projection prune runs")
    schema = f"{schema_name(doctor.space)}@runs_v1_g99"
    with psycopg.connect(doctor.database_url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{schema}"')
        connection.execute(
            f'INSERT INTO "{schema_name(doctor.space)}".checkpoints '
            "(projection, version, generation, state, tables_in, sequence, event_id) "
            "VALUES ('runs', 1, 98, 'building', 'elsewhere', 3, '')"
        )
    found_ = await doctor.agrees(["projections.abandoned", "projections.orphan"], *TABLES)
    assert schema in found_["projections.orphan"].remedy


async def test_a_sealer_that_has_stopped(system: System, doctor: Doctor, tmp_path: Path) -> None:
    assert wrong(await doctor.finds("seals")) == []
    await system.log.append(system.log.subjects.event("a"), OutsideEvent(data=1))
    async with sealing(system.log, PrivateKey.generate("tests/behind"), tmp_path / "seals", every=1) as sealer:
        await eventually(lambda: sealer.sealed == 1)
        assert wrong(await doctor.finds("seals")) == []
    await system.log.append(system.log.subjects.event("a"), OutsideEvent(data=2))
    facts = await doctor.facts("seals")
    assert doctor.findings(facts, "seals") == []
    facts.now += 600 * 10**6
    [found] = doctor.findings(facts, "seals")
    assert (found.code, "1 event is sealed" in found.message) == ("seals.behind", True)
