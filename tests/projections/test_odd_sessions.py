"""What a database or its role sets for every session, and sessions that PostgreSQL ends by itself."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import ClassVar

import psycopg
import pytest
from psycopg import sql

from cuebook.events.log import EventLog
from cuebook.projections import queries
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Batch
from cuebook.projections.rebuild import rebuild
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.projections.story import Story
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks
from tests.waiting import eventually


async def set_for_all(tables: Tables, **settings: str) -> None:
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as admin:
        for name, value in settings.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
            await admin.execute(statement.format(sql.Identifier(admin.info.dbname), sql.SQL(name), sql.Literal(value)))


async def test_moments_are_the_same_in_any_style_and_zone(log: EventLog, tables: Tables) -> None:
    # In this style a moment is written with CST, which is read as a time in America.
    await set_for_all(tables, datestyle="SQL, DMY", timezone="Asia/Shanghai")
    last = await append_tasks(log, 3)
    await Runner(log, tables.url).run(until=last)
    assert {report.differences for report in await rebuild(log, tables.url, ALL)} == {0}
    async with queries.reading(tables.url, tables.space) as connection:
        run = await queries.find_run(connection, "r0")
    assert run.opened_at.tzinfo is not None
    assert run.opened_at.utcoffset() == UTC.utcoffset(None)
    (bound,) = await tables.row(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relispartition AND relname LIKE 'audit%%' "
        "AND relkind = 'r' AND relnamespace = (SELECT to_regnamespace(quote_ident(tables_in)) FROM checkpoints "
        "WHERE projection = 'audit' AND shown) AND %s",
        True,
    )
    assert bound.count("-01 00:00:00+00'") == 2


async def test_a_statement_may_take_longer_than_people_s(tables: Tables) -> None:
    story = Story()
    story.request("a")
    await tables.prepare()

    class Slow(Runs):
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            await tx.execute("SELECT pg_sleep(0.6)")
            await super().apply(batch, tx)

    await set_for_all(tables, statement_timeout="500ms")
    async with asyncio.timeout(60), tables.writer(Slow()) as writer:
        await writer.apply(story.items)
    assert await tables.rows("SELECT run_id FROM runs") == [("a",)]


async def test_making_tables_may_take_longer_too(log: EventLog, tables: Tables) -> None:
    class Large(Runs):
        tables: ClassVar[bytes] = Runs.tables + b"; SELECT pg_sleep(0.6)"

    last = await append_tasks(log, 1)
    await set_for_all(tables, statement_timeout="500ms")
    async with asyncio.timeout(60):
        await Runner(log, tables.url, projections=[Large()]).run(until=last)
        (report,) = await rebuild(log, tables.url, [Large()])
    assert (report.generation, report.switched, report.differences) == (2, True, 0)


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_a_process_that_was_paused_in_a_transaction_goes_on(tables: Tables, setting: str) -> None:
    story = Story()
    for run_id in ("a", "b"):
        story.request(run_id)
    await tables.apply(story.items[:1])
    pauses: list[int] = []

    class Paused(Runs):
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            if not pauses:
                pauses.append(tx.info.backend_pid)
                await tx.execute(f"SET {setting} = '1ms'".encode())
                await eventually(ended)
            await super().apply(batch, tx)

    async def ended() -> bool:
        return not await tables.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s", *pauses)

    async with tables.writer(Paused()) as writer:
        await writer.apply(story.items)
    assert await tables.rows("SELECT run_id FROM runs ORDER BY 1") == [("a",), ("b",)]
