"""The moment in which another generation is shown: answers that are lost, readers that stay, and what is left over."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
from psycopg import sql

from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect as connect_nats
from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.projections import checkpoint, queries
from cuebook.projections.database import Transaction, connect, schema_name
from cuebook.projections.generations import drop_obsolete
from cuebook.projections.parked import skip_parked
from cuebook.projections.projection import Batch
from cuebook.projections.rebuild import Progress, RebuildReport, rebuild, rollback
from cuebook.projections.runner import Runner
from cuebook.projections.runs import Runs
from tests.projections.proxy import Proxy
from tests.projections.tables import Tables
from tests.projections.test_parked import parked, refusing
from tests.projections.test_rebuild import Killed, generations, one
from tests.projections.test_runner import append_tasks, running
from tests.waiting import eventually


def cutting(proxy: Proxy, needle: bytes, *, forward: bool = True) -> Callable[[Progress], None]:
    def at(progress: Progress) -> None:
        if progress.stage == "switching":
            proxy.cut_at(needle, forward=forward)

    return at


async def test_a_switch_whose_answer_is_lost_is_reported_as_done(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    async with Proxy(tables.url) as proxy:
        (report,) = await rebuild(log, proxy.url, [Runs()], on_progress=cutting(proxy, b"COMMIT"))
        assert (proxy.cuts, report.switched, report.before, report.sequence) == (1, True, 1, last)
        last = await append_tasks(log, 1, prefix="later")
        await Runner(log, tables.url).run(until=last)
        # Whoever was told that nothing was done would roll back again, and that is forward.
        back = await rollback(log, proxy.url, Runs(), on_progress=cutting(proxy, b"COMMIT"))
    assert (proxy.cuts, back.generation, back.before, back.events, back.sequence) == (2, 1, 2, 3, last)
    assert [(number, shown) for number, _, _, shown in await generations(tables, "runs")] == [(1, True), (2, False)]
    assert await tables.row("SELECT count(*) FROM runs") == (4,)


async def test_what_is_shown_counts_although_the_old_tables_could_not_be_dropped(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    await one(log, tables, Runs())
    async with Proxy(tables.url) as proxy:
        cut = cutting(proxy, b"DELETE FROM checkpoints", forward=False)
        (report,) = await rebuild(log, proxy.url, [Runs()], on_progress=cut)
        assert (proxy.cuts, report.switched, report.generation, report.dropped) == (1, True, 3, ())
    assert (await one(log, tables, Runs())).dropped == (1, 2)


async def test_while_the_views_are_in_use_less_is_left_to_do_each_time(
    log: EventLog, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cuebook.projections.switch")
    applied: Counter[int] = Counter()

    class Counting(Runs):
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            await super().apply(batch, tx)
            applied.update(item.sequence for item in batch)

    def attempts() -> int:
        return caplog.messages.count("the views are in use; trying again")

    await append_tasks(log, 3)
    service = Runner(log, tables.url, projections=[Runs()])
    async with running(service):
        await eventually(lambda: service.status().positions["runs"].sequence == 9)
        async with queries.reading(tables.url, tables.space) as reader, reader.transaction():
            await reader.execute("SELECT 1 FROM runs")
            async with asyncio.TaskGroup() as group:
                rebuilding = group.create_task(one(log, tables, Counting()))
                await eventually(attempts)
                last = await append_tasks(log, 3, prefix="meanwhile")
                await eventually(lambda: service.status().positions["runs"].sequence == last)
                seen = attempts()
                await eventually(lambda: attempts() > seen + 2)
                await reader.execute("COMMIT")
    assert rebuilding.result().switched
    assert max(applied[sequence] for sequence in range(10, last + 1)) <= 2  # the first time it was rolled back


async def test_a_rebuild_that_was_broken_off_is_dropped_when_that_is_said(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)

    def die(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        await one(log, tables, Runs(), on_progress=die)
    async with queries.writing(tables.url, tables.space) as connection:
        assert await drop_obsolete(connection, "runs") == []
        assert await drop_obsolete(connection, "runs", keep_previous=False) == [2]
    assert (
        await tables.rows("SELECT 1 FROM pg_namespace WHERE nspname LIKE %s", f"cuebook_{tables.space}@runs%g2") == []
    )


async def test_a_rebuild_under_way_is_not_dropped(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    dropped: list[list[int]] = []

    class Pruned(Runs):
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            async with queries.writing(tables.url, tables.space) as connection:
                dropped.append(await drop_obsolete(connection, "runs", keep_previous=False))
            await super().apply(batch, tx)

    assert (await one(log, tables, Pruned())).switched
    assert dropped == [[]]


async def test_a_decision_is_about_the_event_and_not_about_its_place(
    space: str, database_url: str, tmp_path: Path
) -> None:
    tables = Tables(database_url, space, [refusing(Runs, 2)])
    for directory in ("first", "second"):
        async with nats_server(tmp_path / directory) as server:
            connection = await connect_nats(server.url, name="tests")
            async with EventLog(connection, space, source="tests") as log:
                await log.ensure()
                last = await append_tasks(log, 2, prefix=directory)
                if directory == "first":
                    await Runner(log, database_url, projections=tables.projections).run(until=last)
                    async with queries.writing(database_url, space) as writing:
                        await skip_parked(writing, "runs", 2, by="ann")
                else:
                    await rebuild(log, database_url, tables.projections, trust_log=True)
            await connection.close()
    assert [(sequence, skipped) for _, sequence, _, skipped in await parked(tables)] == [(2, False)]


async def test_of_two_rebuilds_that_begin_at_once_one_is_refused(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    both = asyncio.Barrier(2)

    class Together(EventLog):
        async def verify_position(self, position: Position) -> None:
            await super().verify_position(position)
            await both.wait()

    async def begin() -> RebuildReport | ConfigurationError:
        async with Together(log.connection, log.subjects.space, source="tests") as own:
            try:
                return await one(own, tables, Runs())
            except ConfigurationError as error:
                return error

    found = await asyncio.gather(begin(), begin())
    (report,) = (one for one in found if isinstance(one, RebuildReport))
    (refusal,) = (one for one in found if isinstance(one, ConfigurationError))
    assert report.switched
    assert str(refusal) == "a rebuild of projection runs is under way"


class RunsAndMore(Runs):
    """A version with another table."""

    version = Runs.version + 1
    tables: ClassVar[bytes] = Runs.tables + b"; CREATE TABLE more (run_id text PRIMARY KEY)"
    session: ClassVar[bytes] = Runs.session + b"; CREATE TEMPORARY TABLE changed_more AS TABLE more WITH NO DATA"


async def test_the_way_back_is_open_while_the_service_of_the_release_before_goes_on(
    log: EventLog, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CLAIM_WAIT", "1ms")
    last = await append_tasks(log, 3)
    service = Runner(log, tables.url, projections=[Runs()])
    async with running(service):
        await eventually(lambda: service.status().positions["runs"].sequence == last)
        (report,) = await rebuild(log, tables.url, [RunsAndMore()])
        with pytest.raises(ConfigurationError, match="a service writes generation 1 of runs") as refusal:
            await rollback(log, tables.url, RunsAndMore())
        assert refusal.value.remedy == "roll back with --now: that service keeps it up to date"
        back = await rollback(log, tables.url, RunsAndMore(), now=True)
        assert (back.generation, back.before, back.sequence) == (1, report.generation, last)
        last = await append_tasks(log, 3, prefix="later")
        await eventually(lambda: service.status().positions["runs"].sequence == last)
    assert await tables.row("SELECT count(*) FROM runs") == (6,)
    assert await tables.row("SELECT to_regclass('more') IS NULL") == (True,)


@pytest.mark.native
async def test_a_view_that_a_release_adds_does_not_make_readers_wait_for_a_reader(
    log: EventLog, tables: Tables
) -> None:
    await Runner(log, tables.url).run(until=await append_tasks(log, 1))
    (schema,) = await tables.row("SELECT tables_in FROM checkpoints WHERE projection = 'audit'")
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        for place in (schema_name(tables.space), schema):
            await connection.execute(sql.SQL("DROP VIEW {}").format(sql.Identifier(place, "agent_actions")))
    async with queries.reading(tables.url, tables.space) as reader, reader.transaction():
        await reader.execute("SELECT 1 FROM audit")
        async with asyncio.timeout(30):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await tables.prepare()
    await tables.prepare()
    assert await tables.row("SELECT sum(actions) FROM agent_actions") == (3,)
