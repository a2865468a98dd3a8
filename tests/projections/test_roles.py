"""Commands and views of other roles than the one that the service runs as."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.projections.database import connect, schema_name
from cuebook.projections.rebuild import rebuild, rollback
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks
from tests.waiting import eventually


@pytest.fixture
async def service(tables: Tables) -> AsyncIterator[Tables]:
    """The tables for a role that may make schemas, and no more; it does not own those that `tables` makes."""
    role = sql.Identifier(tables.space)
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as admin:
        await admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        database = sql.Identifier(admin.info.dbname)
        await admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
        yield Tables(tables.url.replace("postgres@", f"{tables.space}@"), tables.space)

        async def left() -> bool:
            cursor = await admin.execute("SELECT 1 FROM pg_stat_activity WHERE usename = %s", [tables.space])
            return await cursor.fetchone() is None

        await eventually(left)
        await admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
        await admin.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_what_an_administrator_rebuilds_is_read_and_written_as_before(
    log: EventLog, tables: Tables, service: Tables
) -> None:
    last = await append_tasks(log, 3)
    await Runner(log, service.url).run(until=last)
    await rebuild(log, tables.url, ALL)
    async with await connect(service.url, [schema_name(tables.space)]) as connection:
        assert connection.info.user == tables.space
        cursor = await connection.execute("SELECT count(*) FROM tasks")
        assert await cursor.fetchone() == (3,)
    last = await append_tasks(log, 3, prefix="later")
    await Runner(log, service.url).run(until=last)
    await rollback(log, tables.url, Runs())
    last = await append_tasks(log, 1, prefix="last")
    await Runner(log, service.url).run(until=last)
    assert await service.row("SELECT count(*) FROM runs") == (7,)
    assert await tables.rows(
        "SELECT DISTINCT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname LIKE 'cuebook%%' AND %s", True
    ) == [(tables.space,)]


async def test_who_does_not_own_the_schema_is_told_who_does(tables: Tables, service: Tables) -> None:
    await tables.prepare()
    with pytest.raises(ConfigurationError, match="may not set up schema") as refusal:
        await service.prepare()
    assert refusal.value.remedy == "it belongs to postgres: use that role, or GRANT postgres to this one"


async def test_a_view_that_somebody_else_put_there_hinders_nothing(
    log: EventLog, tables: Tables, service: Tables
) -> None:
    last = await append_tasks(log, 3)
    await Tables(tables.url, f"{tables.space}x").prepare()  # so that there is a cuebook_reader
    await Runner(log, service.url).run(until=last)
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as admin:
        schema = schema_name(tables.space)
        view = sql.SQL("CREATE VIEW {} AS SELECT count(*) FROM {}")
        await admin.execute(view.format(sql.Identifier(schema, "report"), sql.Identifier(schema, "runs")))
        await Runner(log, service.url).run(until=last)
        (report,) = await rebuild(log, service.url, [Runs()])
        assert report.switched
        cursor = await admin.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'v') "
            "AND NOT has_table_privilege('cuebook_reader', oid, 'SELECT')",
            [schema],
        )
        assert await cursor.fetchall() == [("report",)]
