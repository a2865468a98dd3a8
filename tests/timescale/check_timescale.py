"""Hypertables on a PostgreSQL with TimescaleDB: how one comes to them, what holds on them alone, and the way back.

`just test-timescale` runs this, and with it what tests/projections says about tables of any kind.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from cuebook.embedded.postgres import postgres
from cuebook.events.connection import connect as connect_nats
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import AgentRegistered, AgentSuspected, Error, OutsideEvent, TaskFailed
from cuebook.events.log import EventLog
from cuebook.projections import queries
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.database import connect, schema_name
from cuebook.projections.generations import generations_of, shown_of
from cuebook.projections.projection import Item
from cuebook.projections.rebuild import rebuild, rollback
from cuebook.projections.retention import keep_months, retire
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.timescale import settle
from cuebook.projections.timeseries import Timeseries
from tests.conftest import PROGRAMS_OF_TIMESCALE, WITH_TIMESCALE
from tests.projections.story import START, Story, agent_stories, run_stories
from tests.projections.tables import Tables, cut
from tests.projections.test_runner import append_tasks
from tests.waiting import eventually

DAY = 86_400_000_000
on_postgres = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
stories = run_stories() | agent_stories()
cuts = st.lists(st.integers(1, 1_000), max_size=6)
_numbers = itertools.count()


@pytest.fixture
def tables(database_url: str, space: str) -> Tables:
    return Tables(database_url, space)


@pytest.fixture
async def log(nats_url: str, space: str) -> AsyncIterator[EventLog]:
    connection = await connect_nats(nats_url, name="tests")
    async with EventLog(connection, space, source="tests") as opened:
        await opened.ensure()
        yield opened
    await connection.close()


@asynccontextmanager
async def administration(tables: Tables) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as connection:
        yield connection


async def kinds(tables: Tables) -> list[tuple[str, int, str | None]]:
    return await tables.rows("SELECT projection, generation, timeseries FROM checkpoints ORDER BY 1, 2")


async def compress(tables: Tables) -> None:
    """What the database does by and by."""
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        for projection in ALL:
            shown = shown_of(await generations_of(connection, projection.name))
            assert shown is not None
            if shown.timeseries == Timeseries.TIMESCALE:
                await settle(connection, shown.tables_in, projection)


async def chunks(tables: Tables, table: str = "audit") -> list[bool]:
    """Whether each is compressed, by time."""
    rows = await tables.rows(
        "SELECT is_compressed FROM timescaledb_information.chunks JOIN checkpoints ON tables_in = hypertable_schema "
        "WHERE shown AND hypertable_name = %s ORDER BY range_start",
        table,
    )
    return [compressed for (compressed,) in rows]


def told(*, weeks: int = 4) -> Story:
    """Every day something, until a few weeks ago."""
    story = Story()
    for day in range(0, weeks * 7, 2):
        at = START + day * DAY
        story.tell(story.subjects.event("t"), OutsideEvent(data={"day": day}), at=at)
        registered = story.subjects.agent("refund", f"i{day}", "registered")
        story.tell(registered, AgentRegistered(slots=1, handlers={}), at=at + 1)
        failed = TaskFailed(error=Error(type="E", message="no"), attempt=1, duration_s=0.1 * day, by="refund/i1")
        story.tell(story.subjects.task(f"r{day}", 0, "failed"), failed, at=at + 2)
    return story


async def test_where_the_extension_is_there_histories_become_hypertables_and_that_is_said(
    tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await tables.prepare()
    assert await kinds(tables) == [("agents", 1, "timescale"), ("audit", 1, "timescale"), ("runs", 1, None)]
    said = [vars(one) for one in caplog.records if one.message == "made the tables of a projection"]
    assert [(one["projection"], one.get("timeseries")) for one in said] == [
        ("audit", "timescale"), ("runs", None), ("agents", "timescale"),
    ]  # fmt: skip
    (version,) = await tables.row("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    assert said[0]["why"] == f"TimescaleDB {version}"
    jobs = await tables.rows(
        "SELECT hypertable_name, proc_name FROM timescaledb_information.jobs WHERE hypertable_schema LIKE %s "
        "ORDER BY 1, 2",
        f"cuebook_{tables.space}@%",
    )
    assert jobs == [
        ("agent_actions", "policy_refresh_continuous_aggregate"),
        ("agent_health", "policy_compression"),
        ("audit", "policy_compression"),
    ]


async def test_the_database_compresses_and_adds_up_by_itself(tables: Tables) -> None:
    await tables.apply(told().items)
    async with administration(tables) as connection:
        await connection.execute("SELECT alter_job(job_id, next_start => now()) FROM timescaledb_information.jobs")

    async def done() -> bool:
        (materialized,) = await tables.row(
            "SELECT _timescaledb_functions.to_timestamp(_timescaledb_functions.cagg_watermark(mat_hypertable_id)) "
            "> 'epoch' FROM _timescaledb_catalog.continuous_agg"
        )
        return materialized and all(await chunks(tables)) and all(await chunks(tables, "agent_health"))

    await eventually(done, within_s=90)
    assert await tables.row("SELECT count(*) FROM audit") == (len(told().items),)


async def test_native_partitions_stay_until_a_rebuild_and_there_is_a_way_back(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 30)
    await Runner(log, tables.url, timeseries=Timeseries.NATIVE).run(until=last)
    native = await tables.dump()
    await Runner(log, tables.url).run(until=last)  # hypertables could be had now
    assert await kinds(tables) == [("agents", 1, "native"), ("audit", 1, "native"), ("runs", 1, None)]
    for number, wanted in enumerate([Timeseries.TIMESCALE, Timeseries.NATIVE, Timeseries.AUTO], start=2):
        reports = await rebuild(log, tables.url, [Audit(), Agents()], timeseries=wanted)
        kind = Timeseries.NATIVE if wanted is Timeseries.NATIVE else Timeseries.TIMESCALE
        assert [(one.timeseries, one.compared_at, one.differences) for one in reports] == [(kind, last, 0)] * 2
        assert ("audit", number, kind.value) in await kinds(tables)
        assert await tables.dump() == native
    back = await rollback(log, tables.url, Audit())
    assert (back.generation, back.before) == (3, 4)
    assert await tables.dump() == native
    assert (await rollback(log, tables.url, Audit())).generation == 4


async def test_a_difference_in_a_compressed_chunk_is_found(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 5)
    await Runner(log, tables.url, timeseries=Timeseries.NATIVE).run(until=last)
    await rebuild(log, tables.url, [Audit()])
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        cursor = await connection.execute("SELECT tables_in FROM checkpoints WHERE projection = 'audit' AND shown")
        found = await cursor.fetchone()
        assert found is not None
        await connection.execute(f"""SELECT public.compress_chunk(public.show_chunks('"{found[0]}".audit'))""".encode())
    assert await chunks(tables) == [True]
    await tables.rows("UPDATE audit SET source = 'somebody' WHERE sequence = 3 RETURNING 1")
    (report,) = await rebuild(log, tables.url, [Audit()], timeseries=Timeseries.NATIVE, dry_run=True)
    (audit, _) = report.tables
    assert (audit.rows, audit.different, audit.samples[0].key["sequence"]) == (last, 1, 3)


async def test_what_another_kind_has_left_half_way_is_begun_again(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 5)
    await Runner(log, tables.url).run(until=last)

    class Killed(BaseException):
        pass

    def die(progress: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        await rebuild(log, tables.url, [Audit()], timeseries=Timeseries.NATIVE, on_progress=die)
    (report,) = await rebuild(log, tables.url, [Audit()], timeseries=Timeseries.TIMESCALE)
    assert (report.timeseries, report.resumed_at, report.differences) == ("timescale", 0, 0)


async def test_late_rows_go_into_compressed_chunks_and_come_out_in_order(tables: Tables) -> None:
    story = told()
    await tables.apply(story.items)
    await compress(tables)
    assert all(await chunks(tables))
    story.tell(story.subjects.event("t"), OutsideEvent(data="late"), at=START + 5 * DAY)
    story.tell(story.subjects.agent("refund", "i0", "suspected"), AgentSuspected(silent_s=2), at=START + 6 * DAY)
    late = story.items[-2:]
    await tables.apply(late)
    assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(item.sequence,) for item in story.items]
    assert await tables.rows("SELECT health FROM agent_health WHERE instance = 'i0' ORDER BY sequence") == [
        ("healthy",), ("suspect",),
    ]  # fmt: skip
    native = Tables(tables.url, f"n{tables.space}", timeseries=Timeseries.NATIVE)
    await native.apply(story.items)
    assert await tables.dump() == await native.dump()
    await compress(tables)
    assert await tables.dump() == await native.dump()


async def test_a_row_that_is_there_is_refused_in_a_compressed_chunk_too(tables: Tables) -> None:
    await tables.apply(told().items)
    await compress(tables)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await tables.rows("INSERT INTO audit SELECT * FROM audit WHERE sequence = 4 RETURNING 1")


async def test_what_follows_from_a_parked_event_is_forgotten_in_compressed_chunks_too(
    log: EventLog, tables: Tables
) -> None:
    await tables.apply(told().items)
    await compress(tables)
    suspected = next(item for item in told().items if item.subject.endswith("i4.registered"))
    async with tables.writer(ALL[2]) as writer, writer.transaction() as tx:
        await ALL[2].forget(suspected, tx)
    assert await tables.rows("SELECT 1 FROM agent_health WHERE instance = 'i4'") == []
    assert await tables.row("SELECT count(*) FROM agent_health") == (13,)


@on_postgres
@given(items=stories, at=cuts)
async def test_law_both_kinds_hold_the_same_rows(tables: Tables, items: list[Item], at: list[int]) -> None:
    number = next(_numbers)
    native = Tables(tables.url, f"n{number}", timeseries=Timeseries.NATIVE)
    hypertables = Tables(tables.url, f"h{number}", timeseries=Timeseries.TIMESCALE)
    await native.apply(items)
    for batch in cut(items, at):
        await hypertables.apply(batch)
        await compress(hypertables)
    assert await hypertables.dump() == await native.dump()
    for one in (native, hypertables):
        await one.drop()


async def test_a_month_ends_on_its_last_day_also_within_a_chunk(tables: Tables) -> None:
    """And what was added up from it goes with it. Natively the same rows are left."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    horizon = int((first - timedelta(days=1)).replace(day=1).timestamp()) * 1_000_000
    story = Story()
    for hours in range(-20 * 24, 20 * 24, 7):
        at = horizon + hours * 3_600_000_000
        story.tell(story.subjects.agent("refund", "i1", "registered"), AgentRegistered(slots=1, handlers={}), at=at)
        story.tell(story.subjects.agent("refund", "i1", "suspected"), AgentSuspected(silent_s=1), at=at + 1)
    native = Tables(tables.url, f"n{tables.space}", timeseries=Timeseries.NATIVE)
    for one in (tables, native):
        await one.apply(story.items)
        await compress(one)
        await one.add_up()
        async with queries.writing(one.url, one.space) as connection:
            for name in ("audit", "agents"):
                await keep_months(connection, name, 1, by="ann")
                assert await retire(connection, name) != []
                assert await retire(connection, name) == []
    (oldest,) = await tables.row("SELECT min(recorded_at) FROM audit")
    assert oldest >= datetime.fromtimestamp(horizon / 1e6, UTC)
    assert await tables.row("SELECT min(hour) >= %s FROM agent_actions", datetime.fromtimestamp(horizon / 1e6, UTC))
    seen = {
        name: [await one.rows(f"SELECT * FROM {name} ORDER BY 1, 2, 3, 4") for one in (tables, native)]
        for name in ("audit", "agent_health", "agent_actions")
    }
    for theirs, ours in seen.values():
        assert theirs == ours != []


async def test_pruned_generations_leave_nothing_behind(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    for _ in range(3):
        await rebuild(log, tables.url, [Audit(), Agents()])
    assert [row[:2] for row in await kinds(tables)] == [
        ("agents", 3), ("agents", 4), ("audit", 3), ("audit", 4), ("runs", 1),
    ]  # fmt: skip
    left = await tables.row(
        "SELECT (SELECT count(*) FROM timescaledb_information.hypertables), "
        "(SELECT count(*) FROM timescaledb_information.continuous_aggregates), "
        "(SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema IS NOT NULL)"
    )
    assert left == (4, 2, 6)
    await tables.drop()
    assert await tables.row(
        "SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema IS NOT NULL"
    ) == (0,)


async def test_a_role_that_may_make_schemas_makes_hypertables_and_readers_only_read(tables: Tables) -> None:
    async with administration(tables) as admin:
        await admin.execute("CREATE EXTENSION timescaledb")
        await admin.execute(f"CREATE ROLE {tables.space} LOGIN CREATEROLE".encode())
        await admin.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(admin.info.dbname), sql.Identifier(tables.space)
            )
        )
        try:
            limited = Tables(tables.url.replace("postgres@", f"{tables.space}@"), tables.space)
            await limited.apply(told().items)
            assert ("audit", 1, "timescale") in await kinds(limited)
            await compress(limited)
            assert all(await chunks(limited))
            async with await connect(
                limited.url.replace(f"{tables.space}@", "postgres@"), [schema_name(tables.space)]
            ) as connection:
                await connection.execute("SET ROLE cuebook_reader")
                for table in ("audit", "agent_health", "agent_actions"):
                    cursor = await connection.execute(f"SELECT count(*) FROM {table}".encode())
                    found = await cursor.fetchone()
                    assert found is not None
                    assert found[0] > 10
                    with pytest.raises(psycopg.errors.Error):
                        await connection.execute(f"DELETE FROM {table}".encode())
                schema = f"cuebook_{tables.space}@audit_v1_g1"
                (audit,) = await queries.list_tables(connection, schema, timeseries="timescale")
                assert (audit.name, audit.partitions, audit.compressed) == (
                    "audit",
                    len(await chunks(tables)),
                    len(await chunks(tables)),
                )
                assert audit.bytes > 0
                for statement in (f'DELETE FROM "{schema}".audit', f'SELECT * FROM "{schema}".audit'):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        await connection.execute(statement.encode())
        finally:
            await limited.drop()
            await admin.execute(f"DROP OWNED BY {tables.space} CASCADE; DROP ROLE {tables.space}".encode())


async def test_an_administrator_may_keep_the_extension_in_a_schema_of_its_own(tables: Tables) -> None:
    async with administration(tables) as admin:
        await admin.execute('CREATE SCHEMA "time series"; CREATE EXTENSION timescaledb SCHEMA "time series"')
    await tables.apply(told().items)
    await compress(tables)
    assert ("audit", 1, "timescale") in await kinds(tables)
    assert all(await chunks(tables))
    async with queries.writing(tables.url, tables.space) as connection:
        await keep_months(connection, "audit", 1, by="ann")
        assert len(await retire(connection, "audit")) > 0
    async with queries.reading(tables.url, tables.space) as connection:
        listed = await queries.list_tables(connection, f"cuebook_{tables.space}@audit_v1_g1", timeseries="timescale")
    assert [one.name for one in listed] == ["audit"]


async def test_an_extension_that_cannot_be_made_is_a_reason(tables: Tables) -> None:
    async with administration(tables) as admin:
        await admin.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'not here'; END $$; "
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN tag IN ('CREATE EXTENSION') "
            "EXECUTE FUNCTION refuse()"
        )
    forced = Tables(tables.url, tables.space, timeseries=Timeseries.TIMESCALE)
    with pytest.raises(
        ConfigurationError, match="hypertables are wanted, but the extension cannot be made: not here"
    ) as refusal:
        await forced.prepare()
    assert "CREATE EXTENSION timescaledb" in refusal.value.remedy
    assert await tables.rows("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'cuebook%'") == []
    await tables.apply(told().items)
    assert await tables.row("SELECT timeseries, timeseries_why FROM checkpoints WHERE projection = 'audit'") == (
        "native", "the extension cannot be made: not here",
    )  # fmt: skip


async def test_several_spaces_may_make_the_extension_at_once(tables: Tables) -> None:
    spaces = [Tables(tables.url, f"{tables.space}{number}") for number in range(4)]
    await asyncio.gather(*(one.prepare() for one in spaces))
    for one in spaces:
        assert ("audit", 1, "timescale") in await kinds(one)


@pytest.mark.own_server
async def test_a_server_that_preloads_it_no_more_is_refused_before_anything_is_lost(tmp_path: Path, space: str) -> None:
    programs = Path(os.environ[PROGRAMS_OF_TIMESCALE])
    async with postgres(tmp_path, durable=False, programs=programs, settings=WITH_TIMESCALE) as server:
        tables = Tables(server.url, space)
        await tables.apply(told().items)
        live = await tables.dump()
    async with postgres(tmp_path, durable=False, programs=programs) as server:
        tables = Tables(server.url, space)
        with pytest.raises(ConfigurationError, match="PostgreSQL has not preloaded it") as refusal:
            await tables.prepare()
        assert "shared_preload_libraries" in refusal.value.remedy
        other = Tables(server.url.replace("/cuebook", "/postgres"), space)
        await other.prepare()  # available, and that is all
        assert await other.row("SELECT timeseries_why FROM checkpoints WHERE projection = 'audit'") == (
            "TimescaleDB is not preloaded",
        )
    async with postgres(tmp_path, durable=False, programs=programs, settings=WITH_TIMESCALE) as server:
        assert await Tables(server.url, space).dump() == live


@pytest.mark.own_server
async def test_the_edition_without_compression_is_a_reason(tmp_path: Path, space: str) -> None:
    programs = Path(os.environ[PROGRAMS_OF_TIMESCALE])
    apache = {**WITH_TIMESCALE, "timescaledb.license": "apache"}
    async with postgres(tmp_path, durable=False, programs=programs, settings=apache) as server:
        tables = Tables(server.url, space)
        await tables.prepare()
        assert await tables.row("SELECT timeseries, timeseries_why FROM checkpoints WHERE projection = 'audit'") == (
            "native", "TimescaleDB under the license 'apache' has no compression",
        )  # fmt: skip


async def test_an_extension_that_was_dropped_is_named_and_a_rebuild_does_without(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 10)
    await Runner(log, tables.url).run(until=last)
    live = await tables.dump()
    async with administration(tables) as admin:
        await admin.execute("DROP EXTENSION timescaledb CASCADE")
    with pytest.raises(
        ConfigurationError, match="hypertables of agents, audit are there, and TimescaleDB is not"
    ) as refusal:
        await Runner(log, tables.url).run(until=last)
    assert refusal.value.remedy.endswith("cuebook projection rebuild agents audit")
    await rebuild(log, tables.url, [Audit(), Agents()], timeseries=Timeseries.NATIVE)
    await Runner(log, tables.url).run(until=last)
    assert await tables.dump() == live
