"""What `cuebook projection` says to who asks too much of it, and whether what it advises works."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from cuebook.cli.checks.projections import REGRESSED
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.projections.runner import Runner
from tests.cli.conftest import Cli
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks


@pytest.fixture
async def tables(cli: Cli, log: EventLog, database_url: str) -> Tables:
    """Two runs in log and tables."""
    cli.env["CUEBOOK_DATABASE_URL"] = database_url
    await Runner(log, database_url).run(until=await append_tasks(log, 2))
    return Tables(database_url, cli.env["CUEBOOK_SPACE"])


@pytest.mark.parametrize("months", ["12001", "30000", "100000000", "99999999999"])
async def test_no_more_months_are_kept_than_a_calendar_has(cli: Cli, tables: Tables, months: str) -> None:
    await cli.fails(2, "projection", "retention", "audit", "--keep-months", months)
    assert await tables.rows("SELECT 1 FROM retention") == []
    (row,) = await cli.json("projection", "retention", "audit", "--keep-months", "12000")
    assert (row["keep_months"], row["dropped"]) == (12_000, [])


async def test_any_number_may_be_listed(cli: Cli, tables: Tables) -> None:
    assert len(await cli.json("run", "list", "--limit", str(2**64))) == 2
    assert await cli.json("projection", "parked", "--limit", str(2**64)) == []


async def test_who_may_only_read_is_told_so(cli: Cli, tables: Tables) -> None:
    role = sql.Identifier(tables.space)
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as admin:
        await admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE cuebook_reader").format(role))
        cli.env["CUEBOOK_DATABASE_URL"] = tables.url.replace("postgres@", f"{tables.space}@")
        try:
            for command in ("retry", "skip"):
                text = await cli.fails(1, "projection", command, "runs", "1")
                assert "the role may not change the projections" in text
                assert "fix: use the role that the projections run as" in text
        finally:
            await admin.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_what_is_advised_about_another_log_helps(cli: Cli, log: EventLog, tables: Tables) -> None:
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    await log.ensure()
    await append_tasks(log, 1, prefix="other")
    advice = REGRESSED.found("", projection="runs").remedy.partition("cuebook ")[2]
    await cli.ok(*advice.split())
    assert await tables.rows("SELECT run_id FROM runs") == [("other0",)]
