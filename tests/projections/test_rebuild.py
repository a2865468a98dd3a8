"""Building tables again beside those that are read, and switching, while everything goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect as connect_nats
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, NotFoundError
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog
from cuebook.projections import checkpoint, queries
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.database import Transaction, connect, schema_name
from cuebook.projections.projection import Batch
from cuebook.projections.rebuild import Progress, RebuildReport, rebuild, rollback
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.events.rolls import roll
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks, running
from tests.waiting import eventually


class RunsLater(Runs):
    """A version with another column."""

    version = Runs.version + 1
    tables: ClassVar[bytes] = Runs.tables + b"; ALTER TABLE runs ADD COLUMN colour text DEFAULT 'red'"


class Killed(BaseException):
    """As if the process had ended here."""


async def generations(tables: Tables, projection: str) -> list[tuple[int, int, str, bool]]:
    return await tables.rows(
        "SELECT generation, version, state, shown FROM checkpoints WHERE projection = %s ORDER BY 1", projection
    )


async def one(log: EventLog, tables: Tables, projection: Runs | Audit | Agents, **options: object) -> RebuildReport:
    (report,) = await rebuild(log, tables.url, [projection], **options)  # type: ignore[arg-type]
    return report


async def test_what_is_rebuilt_is_the_live_table_again_and_takes_its_place(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 60)
    await Runner(log, tables.url, batch_size=7).run(until=last)
    live = await tables.dump()
    reports = await rebuild(log, tables.url, ALL, batch_size=50)
    assert [report.projection for report in reports] == ["audit", "runs", "agents"]
    for report in reports:
        assert (report.switched, report.before, report.generation, report.differences) == (True, 1, 2, 0)
        assert (report.compared_at, report.sequence, report.events) == (last, last, last)
        version = next(projection.version for projection in ALL if projection.name == report.projection)
        assert await generations(tables, report.projection) == [
            (1, version, "previous", False), (2, version, "live", True)
        ]  # fmt: skip
    assert {table.table: table.rows for report in reports for table in report.tables} == {
        "audit": last, "runs": 60, "tasks": 60, "agents": 0, "agent_health": 0, "parked_events": 0,
    }  # fmt: skip
    assert await tables.dump() == live
    assert len(await tables.rows("SELECT 1 FROM pg_namespace WHERE nspname LIKE %s", f"cuebook_{tables.space}@%")) == 6
    assert (await one(log, tables, Runs())).dropped == (1,)
    assert await tables.dump() == live


async def test_a_log_that_is_rolled_under_the_service_is_followed_and_rebuilt_from_its_first_event(
    log: EventLog, tables: Tables
) -> None:
    await append_tasks(log, 20)
    runner = Runner(log, tables.url, batch_size=7)
    async with running(runner):
        await runner.ready.wait()
        for prefix in ("second", "third"):
            await roll(log)
            last = await append_tasks(log, 20, prefix=prefix)
        await eventually(lambda: _reached(tables, last))
    live = await tables.dump()
    for report in await rebuild(log, tables.url, ALL, batch_size=50):
        assert (report.switched, report.differences, report.events) == (True, 0, last)
    assert await tables.dump() == live
    assert await tables.row("SELECT count(*) FROM runs") == (60,)


async def _reached(tables: Tables, last: int) -> bool:
    return await tables.rows("SELECT min(sequence) FROM checkpoints WHERE state = 'live'") == [(last,)]


async def test_each_row_that_differs_is_reported_by_table_and_key(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 5)
    await Runner(log, tables.url).run(until=last)
    await tables.rows("UPDATE runs SET status = 'failed', reason = 'nobody' WHERE run_id = 'r1' RETURNING 1")
    await tables.rows("DELETE FROM tasks WHERE run_id = 'r2' RETURNING 1")
    await tables.rows(
        "INSERT INTO tasks SELECT (jsonb_populate_record(t, '{\"n\": 7}')).* FROM tasks AS t "
        "WHERE run_id = 'r3' RETURNING 1"
    )
    report = await one(log, tables, Runs(), dry_run=True)
    runs, tasks = (table for table in report.tables if table.table != "parked_events")
    assert (runs.table, runs.only_live, runs.only_rebuilt, runs.different) == ("runs", 0, 0, 1)
    assert runs.samples[0].key == {"run_id": "r1"}
    assert runs.samples[0].live == {"status": "failed", "reason": "nobody"}
    assert runs.samples[0].rebuilt == {"status": "completed", "reason": None}
    assert (tasks.only_live, tasks.only_rebuilt, tasks.different) == (1, 1, 0)
    assert [(sample.key, sample.live is None) for sample in tasks.samples] == [
        ({"run_id": "r2", "n": 0}, True), ({"run_id": "r3", "n": 7}, False),
    ]  # fmt: skip
    assert report.differences == 3
    assert len((await one(log, tables, Runs(), dry_run=True, samples=1)).tables[1].samples) == 1


async def test_a_difference_in_bytes_alone_is_one(log: EventLog, tables: Tables) -> None:
    await log.append(log.subjects.event("price"), OutsideEvent(data={"cents": 1.0}))
    await Runner(log, tables.url).run(until=1)
    await tables.rows("""UPDATE audit SET data = '{"cents": 1.00}' RETURNING 1""")
    assert await tables.row("""SELECT data = '{"cents": 1.0}' FROM audit""") == (True,)
    assert (await one(log, tables, Audit())).differences == 1


async def test_a_dry_run_compares_and_leaves_nothing(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 5)
    await Runner(log, tables.url).run(until=last)
    live = await tables.dump()
    report = await one(log, tables, Runs(), dry_run=True)
    assert (report.switched, report.compared_at, report.differences) == (False, last, 0)
    assert await generations(tables, "runs") == [(1, Runs.version, "live", True)]
    assert len(await tables.rows("SELECT 1 FROM pg_namespace WHERE nspname LIKE %s", f"cuebook_{tables.space}@%")) == 3
    assert await tables.dump() == live


async def test_the_service_goes_on_with_the_new_tables_and_back_without_a_restart(
    log: EventLog, tables: Tables
) -> None:
    await append_tasks(log, 50)
    runner = Runner(log, tables.url)
    async with running(runner):
        await eventually(lambda: runner.status().positions["runs"].sequence == 150)
        assert (await one(log, tables, Runs())).generation == 2
        # On a quiet log too: the old tables are let go of, so that a rollback can have them.
        back = await rollback(log, tables.url, Runs())
        assert (back.generation, back.before, back.events) == (1, 2, 0)
        last = await append_tasks(log, 5, prefix="later")
        await eventually(lambda: runner.status().positions["runs"].sequence == last)
        assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (55,)
        forward = await rollback(log, tables.url, Runs())
        assert (forward.generation, forward.events) == (2, 15)
        last = await append_tasks(log, 1, prefix="last")
        await eventually(lambda: runner.status().positions["runs"].sequence == last)
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (56,)
    assert await tables.row("SELECT sequence FROM checkpoints WHERE projection = 'runs' AND generation = 1") == (165,)
    live = await tables.dump()
    await tables.drop()
    await Runner(log, tables.url).run(until=last)
    assert await tables.dump() == live


async def test_readers_notice_nothing_while_events_flow(log: EventLog, tables: Tables) -> None:
    """What they see never shrinks, and is never a mixture: every run has its task."""
    runner, reading = Runner(log, tables.url, batch_size=20), asyncio.Event()
    seen: list[tuple[int, int]] = []

    async def read() -> None:
        async with await connect(tables.url, [schema_name(tables.space)]) as connection:
            while not reading.is_set():
                cursor = await connection.execute(
                    "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM tasks), "
                    "(SELECT count(*) FROM checkpoints WHERE shown)"
                )
                found = await cursor.fetchone()
                assert found is not None
                assert found[0] == found[1]
                assert found[2] == 3
                seen.append(found[:2])

    async with running(runner):
        await append_tasks(log, 20, prefix="before")
        await eventually(lambda: runner.status().positions["runs"].sequence == 60)
        reader = asyncio.create_task(read())
        for number in range(3):
            writing = asyncio.create_task(append_tasks(log, 100, prefix=f"during{number}x"))
            report = await one(log, tables, Runs(), batch_size=30)
            assert report.switched
            assert report.differences == 0
            await writing
        last = await append_tasks(log, 1, prefix="after")
        await eventually(lambda: runner.status().positions["runs"].sequence == last)
        reading.set()
        await reader
    assert seen == sorted(seen)
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (321,)


async def test_another_version_is_built_beside_compared_where_it_can_be_and_shown(
    log: EventLog, tables: Tables
) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    report = await one(log, tables, RunsLater())
    assert (report.version, report.switched, report.differences) == (RunsLater.version, True, 0)
    assert [table.uncompared for table in report.tables] == [("colour",), (), ()]
    assert await tables.rows("SELECT DISTINCT colour FROM runs") == [("red",)]
    with pytest.raises(ConfigurationError, match=f"was written by version {Runs.version}") as refusal:
        await rollback(log, tables.url, RunsLater())
    assert "--now: as it stood at 9" in refusal.value.remedy
    await rollback(log, tables.url, RunsLater(), now=True)
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await tables.rows("SELECT colour FROM runs")
    await Runner(log, tables.url, projections=[Runs()]).run(until=last)  # the release that wrote it goes on with it
    assert await tables.row("SELECT count(*) FROM tasks") == (3,)


@pytest.mark.parametrize("stage", ["reading", "comparing", "switching"])
async def test_killed_half_way_the_next_one_goes_on(log: EventLog, tables: Tables, stage: str) -> None:
    last = await append_tasks(log, 20)
    await Runner(log, tables.url).run(until=last)
    live = await tables.dump()

    def die(progress: Progress) -> None:
        if progress.stage == stage and progress.sequence:
            raise Killed

    with pytest.raises((Killed, BaseExceptionGroup)):
        await one(log, tables, Runs(), batch_size=11, on_progress=die)
    assert await generations(tables, "runs") == [(1, Runs.version, "live", True), (2, Runs.version, "building", False)]
    built = await tables.row("SELECT sequence FROM checkpoints WHERE state = 'building'")
    assert built > (0,)
    assert await tables.dump() == live
    await tables.released()
    report = await one(log, tables, Runs())
    assert ((report.resumed_at,), report.generation, report.switched, report.differences) == (built, 2, True, 0)
    assert await tables.dump() == live


async def test_what_was_left_by_other_code_is_dropped(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 5)
    await Runner(log, tables.url).run(until=last)

    def die(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        await one(log, tables, Runs(), on_progress=die)
    await tables.released()
    report = await one(log, tables, RunsLater())
    assert report.resumed_at == 0
    assert [row[1:] for row in await generations(tables, "runs")][-1] == (RunsLater.version, "live", True)


async def test_of_two_rebuilds_of_a_projection_the_second_is_refused(
    log: EventLog, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CLAIM_WAIT", "1ms")
    await append_tasks(log, 5)
    refusals: list[str] = []
    others: list[asyncio.Task[None]] = []

    async def second() -> None:
        with pytest.raises(ConfigurationError, match="a rebuild of projection runs is under way") as refusal:
            await one(log, tables, Runs())
        refusals.append(str(refusal.value))

    class Slow(Runs):
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            if not others:
                others.append(asyncio.create_task(second()))
                await others[0]
            await super().apply(batch, tx)

    assert (await one(log, tables, Slow())).switched
    assert len(refusals) == 1


async def test_tables_of_another_log_are_rebuilt_only_when_that_is_said(
    space: str, database_url: str, tmp_path: Path
) -> None:
    tables = Tables(database_url, space)
    for directory, count in (("first", 4), ("second", 2)):
        async with nats_server(tmp_path / directory) as server:
            connection = await connect_nats(server.url, name="tests")
            async with EventLog(connection, space, source="tests") as log:
                await log.ensure()
                last = await append_tasks(log, count, prefix=directory)
                if directory == "first":
                    await Runner(log, database_url).run(until=last)
                else:
                    with pytest.raises(HistoryRegressedError, match="read from another log") as refusal:
                        await rebuild(log, database_url, ALL)
                    assert "--trust-log" in refusal.value.remedy
                    reports = await rebuild(log, database_url, ALL, trust_log=True)
                    assert {(report.switched, report.not_compared) for report in reports} == {
                        (True, "the live tables were read from another log")
                    }
                    await Runner(log, database_url).run(until=last)
            await connection.close()
    assert await tables.rows("SELECT run_id FROM runs ORDER BY 1") == [("second0",), ("second1",)]


async def test_an_empty_log_gives_empty_tables(log: EventLog, tables: Tables) -> None:
    reports = await rebuild(log, tables.url, ALL)
    assert {(report.events, report.not_compared, report.switched) for report in reports} == {
        (0, "the live tables are empty", True)
    }
    await tables.drop()
    with pytest.raises(NotFoundError, match="has no generation that was shown before"):
        await rollback(log, tables.url, Runs())


async def test_without_a_service_it_goes_to_the_end_of_the_log(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 10)
    await Runner(log, tables.url).run(until=20)
    await tables.released()
    report = await one(log, tables, Runs())
    assert (report.compared_at, report.sequence, report.differences) == (20, last, 0)
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (10,)


async def test_what_hangs_on_a_view_stays_or_is_named(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 2)
    await Runner(log, tables.url).run(until=last)
    schema = schema_name(tables.space)
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute("CREATE VIEW public.mine AS SELECT run_id FROM runs")
    await one(log, tables, Runs())
    assert await tables.rows("SELECT * FROM public.mine ORDER BY 1") == [("r0",), ("r1",)]
    with pytest.raises(ConfigurationError, match=r"something else is built on them.*mine"):
        await one(log, tables, RunsLater())
    assert [row for row in await generations(tables, "runs") if row[3]] == [(2, Runs.version, "live", True)]


async def test_dropped_months_stay_away_in_a_rebuild_unless_they_are_wanted(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 2)
    await Runner(log, tables.url).run(until=last)
    async with queries.writing(tables.url, tables.space) as connection:
        await connection.execute("UPDATE checkpoints SET kept_from = 'tomorrow' WHERE projection = 'audit'")
        await connection.execute("DELETE FROM audit")
    report = await one(log, tables, Audit())
    assert (report.differences, report.compared_at) == (0, last)
    assert await tables.row("SELECT count(*) FROM audit") == (0,)
    report = await one(log, tables, Audit(), everything=True)
    assert report.differences == 0  # compared is what both are to hold
    assert await tables.row("SELECT count(*) FROM audit") == (last,)


async def test_a_release_with_another_version_fills_beside_and_a_rebuild_shows_it(
    log: EventLog, tables: Tables
) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    await tables.released()
    later = Runner(log, tables.url, projections=[Audit(), RunsLater(), Agents()])
    async with running(later):
        await eventually(lambda: later.status().positions["runs"].sequence == last)
        assert await generations(tables, "runs") == [
            (1, Runs.version, "live", True),
            (2, RunsLater.version, "live", False),
        ]
        async with queries.reading(tables.url, tables.space) as connection:
            records = await queries.list_projections(connection, last_sequence=last, projection="runs")
        assert [record.health for record in records] == ["stopped", "beside"]
        assert (await one(log, tables, RunsLater())).dropped == (2,)
        last = await append_tasks(log, 1, prefix="later")
        await eventually(lambda: later.status().positions["runs"].sequence == last)
        assert await generations(tables, "runs") == [
            (1, Runs.version, "live", False),
            (3, RunsLater.version, "live", True),
        ]
        assert (await one(log, tables, RunsLater())).dropped == (1,)  # the way back is to the one shown before
    assert await tables.row("SELECT count(*) FROM runs WHERE colour = 'red'") == (4,)
