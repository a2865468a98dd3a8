"""`cuebook projection`: what an operator sees and does about the tables, also while the service runs."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from cuebook.actors.client import Client
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from cuebook.projections.database import connect as connect_database
from cuebook.projections.database import schema_name
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.timeseries import Timeseries
from tests.cli.conftest import Cli, Program, Start
from tests.commands import started
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks
from tests.waiting import eventually

VERSIONS = {one.name: one.version for one in sorted(ALL, key=lambda one: one.name)}


@pytest.fixture
def tables(cli: Cli, database_url: str) -> Tables:
    """The tables of the space; commands find them by themselves."""
    cli.env["CUEBOOK_DATABASE_URL"] = database_url
    return Tables(database_url, cli.env["CUEBOOK_SPACE"])


@pytest.fixture
async def filled(log: EventLog, tables: Tables) -> int:
    """Twenty runs in log and tables; the last sequence."""
    last = await append_tasks(log, 20)
    await Runner(log, tables.url).run(until=last)
    await tables.released()
    return last


@asynccontextmanager
async def serving(start: Start) -> AsyncIterator[Program]:
    """`cuebook serve projections`, which ends well."""
    async with start("serve", "projections") as program:
        await program.says("ready")
        yield program
        program.send(signal.SIGTERM)
        assert await program.ends() == 0, program.errors


async def reaches(tables: Tables, sequence: int, *, projections: int = 3) -> None:
    async def there() -> bool:
        try:
            rows = await tables.rows("SELECT 1 FROM checkpoints WHERE shown AND sequence = %s", sequence)
        except psycopg.errors.UndefinedTable:
            return False
        return len(rows) == projections

    await eventually(there, within_s=60)


async def test_position_lag_version_and_health_of_each(
    cli: Cli, log: EventLog, tables: Tables, filled: int, start: Start
) -> None:
    rows = await cli.json("projection", "list")
    assert [(row["projection"], row["version"], row["sequence"], row["lag"], row["health"]) for row in rows] == [
        (name, version, filled, 0, "stopped") for name, version in VERSIONS.items()
    ]
    assert {row["shown"] for row in rows} == {True}
    async with serving(start):
        last = await append_tasks(log, 1, prefix="more")
        await reaches(tables, last)
        rows = await cli.json("projection", "list")
        assert {(row["health"], row["lag"], row["written"]) for row in rows} == {("healthy", 0, True)}
    await tables.released()
    text = await cli.ok("projection", "list")
    assert text.splitlines()[0].startswith("PROJECTION")
    assert "stopped" in text
    shown = await cli.json("projection", "show", "runs")
    assert [(table["name"], table["partitioned"]) for table in shown["generations"][0]["tables"]] == [
        ("runs", False), ("tasks", False),
    ]  # fmt: skip
    assert "PARTITIONS" in await cli.ok("projection", "show", "audit")


async def test_what_histories_are_made_of_is_shown_with_the_reason(
    cli: Cli, filled: int, timeseries: Timeseries
) -> None:
    rows = await cli.json("projection", "list")
    assert [row["timeseries"] for row in rows] == [timeseries.value, timeseries.value, None]
    assert timeseries.value in await cli.ok("projection", "list")
    why = rows[1]["timeseries_why"]
    assert "TimescaleDB" in why
    text = await cli.ok("projection", "show", "audit")
    kind = "hypertables" if timeseries is Timeseries.TIMESCALE else "native partitions"
    assert f"generation 1: its histories are {kind}: {why}" in text
    shown = await cli.json("projection", "show", "audit")
    assert [(one["name"], one["partitioned"], one["partitions"]) for one in shown["generations"][0]["tables"]] == [
        ("audit", True, 1)
    ]
    (report,) = await cli.json("projection", "rebuild", "audit", "--timeseries", "native")
    assert (report["timeseries"], report["timeseries_why"], report["differences"]) == ("native", "as asked for", 0)


@pytest.mark.native
async def test_hypertables_that_cannot_be_had_are_refused_with_what_is_missing(cli: Cli, filled: int) -> None:
    text = await cli.fails(1, "projection", "rebuild", "audit", "--timeseries", "timescale")
    assert "error: hypertables are wanted, but TimescaleDB is not installed on the server" in text
    assert "fix: install TimescaleDB 2.18 or later" in text
    assert len(await cli.json("projection", "list")) == 3


async def test_a_rebuild_says_what_it_compared_and_where_people_read_now(cli: Cli, filled: int, tables: Tables) -> None:
    live = await tables.dump()
    result = await cli.run("projection", "rebuild", "runs", "audit")
    assert result.exit_code == 0, result.stderr
    assert f"built from {filled} events" in result.stdout
    assert f"the same as the live tables at event {filled}: 40 rows, byte for byte" in result.stdout
    assert "cuebook projection rollback runs" in result.stdout
    assert f"reading {filled} of {filled} events" in result.stderr
    assert "\x1b" not in result.stderr
    assert await tables.dump() == live
    reports = await cli.json("projection", "rebuild", "--all")
    assert [(one["projection"], one["generation"], one["differences"]) for one in reports] == [
        ("audit", 3, 0), ("runs", 3, 0), ("agents", 2, 0),
    ]  # fmt: skip
    await tables.released()
    rows = await cli.json("projection", "list")
    assert [(row["projection"], row["generation"], row["health"]) for row in rows] == [
        ("agents", 1, "kept"), ("agents", 2, "stopped"), ("audit", 2, "kept"), ("audit", 3, "stopped"),
        ("runs", 2, "kept"), ("runs", 3, "stopped"),
    ]  # fmt: skip
    back = await cli.json("projection", "rollback", "runs")
    assert (back["generation"], back["before"], back["sequence"]) == (2, 3, filled)
    assert f"generation 3 (version {VERSIONS['runs']}) is read again in place of 2" in await cli.ok(
        "projection", "rollback", "runs"
    )
    dropped = await cli.json("projection", "prune", "runs")
    assert dropped == [{"projection": "runs", "generation": 2}]
    assert "no generation that was shown before" in await cli.fails(3, "projection", "rollback", "runs")
    assert await tables.dump() == live


async def test_a_dry_run_that_finds_differences_names_rows_and_changes_nothing(
    cli: Cli, filled: int, tables: Tables
) -> None:
    await tables.rows("UPDATE runs SET status = 'failed' WHERE run_id = 'r7' RETURNING 1")
    result = await cli.run("projection", "rebuild", "runs", "--dry-run")
    assert result.exit_code == 8
    assert "runs: of 20 rows, different 1, only in the live table 0, only in the rebuilt one 0" in result.stdout
    assert '{"run_id": "r7"}  live {"status": "failed"}  rebuilt {"status": "completed"}' in result.stdout
    assert "without --dry-run puts the rebuilt ones in their place" in result.stderr
    result = await cli.run("projection", "rebuild", "runs", "--dry-run", "--differences", "0", "-o", "json")
    (report,) = json.loads(result.stdout)
    assert (result.exit_code, report["differences"], report["tables"][0]["samples"]) == (8, 1, [])
    assert json.loads(result.stderr)["error"].endswith("rows that differ: 1")
    assert await tables.row("SELECT status FROM runs WHERE run_id = 'r7'") == ("failed",)
    assert len(await cli.json("projection", "list")) == 3
    await cli.ok("projection", "rebuild", "runs")
    assert await tables.row("SELECT status FROM runs WHERE run_id = 'r7'") == ("completed",)
    await cli.ok("projection", "rebuild", "runs", "--dry-run")


async def test_the_running_service_goes_over_and_back_without_a_restart(
    cli: Cli, log: EventLog, tables: Tables, start: Start
) -> None:
    last = await append_tasks(log, 30)
    async with serving(start) as program:
        await reaches(tables, last)
        for generation in (2, 3):
            (report,) = await cli.json("projection", "rebuild", "runs")
            assert (report["generation"], report["differences"], report["not_compared"]) == (generation, 0, "")
            last = await append_tasks(log, 5, prefix=f"g{generation}x")
            await reaches(tables, last)
        await cli.ok("projection", "rollback", "runs")
        last = await append_tasks(log, 5, prefix="back")
        await reaches(tables, last)
        await cli.ok("projection", "rollback", "runs", "--now")  # the service brings it up to date
        await reaches(tables, last)
        assert "error" not in program.errors.lower()
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (45,)
    rows = await cli.json("projection", "list")
    assert [(row["generation"], row["shown"]) for row in rows if row["projection"] == "runs"] == [(2, False), (3, True)]
    await cli.ok("projection", "rebuild", "--all", "--dry-run")


@pytest.mark.parametrize("stage", ["beginning", "comparing", "switching"])
async def test_killed_with_sigkill_it_is_resumed_and_nobody_sees_half_of_it(
    cli: Cli, log: EventLog, tables: Tables, start: Start, stage: str
) -> None:
    last = await append_tasks(log, 20)
    async with serving(start) as service:
        await reaches(tables, last)
        live = await tables.dump()
        (schema,) = await tables.row("SELECT tables_in FROM checkpoints WHERE projection = 'runs'")
        hindrance = {
            "beginning": "SELECT pg_advisory_xact_lock(claim_key('runs', 2))",
            "comparing": f'LOCK TABLE "{schema}".runs',
            "switching": "SELECT * FROM runs",  # somebody reads the view in a long transaction
        }[stage]
        async with (
            await connect_database(tables.url, [schema_name(tables.space)]) as connection,
            connection.transaction(),
            start("projection", "rebuild", "runs") as program,
        ):
            await connection.execute(hindrance.encode())
            await eventually(lambda: hindered(tables), within_s=60)
            program.process.kill()
            assert await program.ends() == -signal.SIGKILL
        await tables.released("runs", 2)
        assert await tables.dump() == live
        rows = [row for row in await cli.json("projection", "list") if row["projection"] == "runs"]
        assert [(row["health"], row["sequence"]) for row in rows] == [
            ("healthy", last), ("abandoned", 0 if stage == "beginning" else last),
        ]  # fmt: skip
        (report,) = await cli.json("projection", "rebuild", "runs")
        assert (report["generation"], report["resumed_at"]) == (2, rows[1]["sequence"])
        assert (report["switched"], report["differences"], report["compared_at"]) == (True, 0, last)
        assert await tables.dump() == live
        last = await append_tasks(log, 1, prefix="after")
        await reaches(tables, last)
        assert "ERROR" not in service.errors
    assert [row["state"] for row in await cli.json("projection", "list")] == ["live", "live", "previous", "live"]


async def hindered(tables: Tables) -> bool:
    """Whether somebody waits for a lock."""
    return bool(await tables.rows("SELECT 1 FROM pg_locks WHERE NOT granted AND database IS NOT NULL"))


async def test_a_bar_with_rate_and_time_left_where_somebody_looks(cli: Cli, filled: int, tmp_path: Path) -> None:
    with started("projection", "rebuild", "runs", cwd=tmp_path, terminal=True, env=cli.env) as command:
        assert await asyncio.to_thread(command.end) == 0
    text = "\n".join(command.lines)
    assert re.search(rf"switching runs ━+ {filled}/{filled} [\d,]+/s 0:00:00", text), text
    assert "generation 2" in text


async def test_a_poison_event_is_listed_mended_and_left_out_while_the_others_go_on(
    cli: Cli, log: EventLog, tables: Tables, filled: int, start: Start
) -> None:
    (schema,) = await tables.row("SELECT tables_in FROM checkpoints WHERE projection = 'runs'")
    await execute(tables, f"""ALTER TABLE "{schema}".tasks ADD CONSTRAINT strict CHECK (run_id NOT LIKE 'odd%')""")
    async with serving(start):
        last = await append_tasks(log, 2, prefix="odd")
        last = await append_tasks(log, 1, prefix="even")
        await reaches(tables, last)
        parked = await cli.json("projection", "parked")
        assert [(one["projection"], one["sequence"]) for one in parked] == [("runs", 61), ("runs", 64)]
        assert parked[0]["reason"].startswith("CheckViolation")
        assert "CheckViolation" in await cli.ok("projection", "parked", "runs")
        assert {row["projection"]: row["health"] for row in await cli.json("projection", "list")} == {
            "agents": "healthy", "audit": "healthy", "runs": "parked",
        }  # fmt: skip
        assert "still cannot be applied to runs" in await cli.fails(1, "projection", "retry", "runs", "61")
        await cli.ok("projection", "skip", "runs", "64")
        await execute(tables, f"""ALTER TABLE "{schema}".tasks DROP CONSTRAINT strict""")
        assert (await cli.json("projection", "retry", "runs", "61"))["applied"] == 3
        assert await cli.json("projection", "parked") == []
        everything = await cli.json("projection", "parked", "--all")
        assert [(one["sequence"], one["skipped_by"]) for one in everything] == [(64, "ann")]
        assert {row["health"] for row in await cli.json("projection", "list")} == {"healthy"}
        assert await tables.row("SELECT status FROM runs WHERE run_id = 'odd0'") == ("completed",)
        assert "no event 61 is parked in runs" in await cli.fails(3, "projection", "retry", "runs", "61")
        await cli.ok("projection", "retry", "runs", "64")
    await cli.ok("projection", "rebuild", "runs", "--dry-run")


async def execute(tables: Tables, statement: str) -> None:
    async with await connect_database(tables.url, [schema_name(tables.space)]) as connection:
        await connection.execute(statement.encode())


async def test_a_rewritten_log_stops_the_service_and_a_person_decides(
    cli: Cli, tables: Tables, start: Start, tmp_path: Path
) -> None:
    for directory, count in (("first", 5), ("second", 2)):
        async with nats_server(tmp_path / directory) as server:
            cli.env["CUEBOOK_NATS_URL"] = server.url
            connection = await connect(server.url, name="tests")
            async with EventLog(connection, tables.space, source="tests") as log:
                await log.ensure()
                last = await append_tasks(log, count, prefix=directory)
                if directory == "first":
                    async with serving(start):
                        await reaches(tables, last)
                else:
                    async with start("serve", "projections") as program:
                        assert await program.ends() == 8
                        assert "holds 1 to 6, but 15 was already read" in program.errors
                        assert "fix: compare the stream with its backup" in program.errors
                    assert {row["health"] for row in await cli.json("projection", "list")} == {"regressed"}
                    refusal = await cli.fails(8, "projection", "rebuild", "--all")
                    assert "read from another log" in refusal
                    assert "rebuild with --trust-log" in refusal
                    assert await tables.row("SELECT count(*) FROM runs") == (5,)
                    text = await cli.ok("projection", "rebuild", "--all", "--trust-log")
                    assert "not compared: the live tables were read from another log" in text
                    async with serving(start):
                        await reaches(tables, await append_tasks(log, 1, prefix="later"))
            await connection.close()
    assert await tables.row("SELECT count(*) FROM runs") == (3,)


async def test_months_are_kept_as_long_as_somebody_says(cli: Cli, filled: int, tables: Tables) -> None:
    assert [(row["projection"], row["keep_months"]) for row in await cli.json("projection", "retention")] == [
        ("agents", None), ("audit", None),
    ]  # fmt: skip
    (row,) = await cli.json("projection", "retention", "audit", "--keep-months", "3")
    assert (row["keep_months"], row["dropped"]) == (3, [])
    assert "the beginning" in await cli.ok("projection", "retention")
    (row,) = await cli.json("projection", "retention", "audit", "--keep-all")
    assert row["keep_months"] is None
    assert await tables.row("SELECT count(*) FROM audit") == (filled,)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["rebuild", "run"], 3, "there is no projection 'run'\nfix: did you mean 'runs'?"),
        (["rebuild"], 2, "which projections?\nfix: name some of audit, runs, agents, or say --all"),
        (["rebuild", "runs", "--all"], 2, "which projections?"),
        (["show", "registry"], 3, "there is no projection 'registry'\nfix: did you mean 'agents'?"),
        (["show", "ledger"], 3, "there is no projection 'ledger'\nfix: known projections: agents, audit, runs"),
        (["rollback", "agent"], 3, "did you mean 'agents'?"),
        (["retry", "audits", "1"], 3, "did you mean 'audit'?"),
        (["skip", "runs", "1"], 3, "no event 1 is parked in runs"),
        (["retention", "runs", "--keep-months", "1"], 2, "no table of runs is partitioned by time"),
        (["retention", "--keep-months", "1"], 2, "which projection?"),
        (["retention", "audit", "--keep-months", "1", "--keep-all"], 2, "say one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_meant(cli: Cli, filled: int, words: list[str], status: int, complaint: str) -> None:
    assert complaint in await cli.fails(status, "projection", *words)


async def test_a_database_that_is_not_there_not_ours_or_not_named(
    cli: Cli, client: Client, tables: Tables, database_url: str
) -> None:
    assert "holds no projections of space" in await cli.fails(1, "projection", "list")
    nowhere = {"CUEBOOK_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    assert "PostgreSQL is unavailable" in await cli.fails(5, "projection", "rebuild", "runs", env=nowhere)
    assert "set --database-url" in await cli.fails(1, "projection", "rebuild", "runs", env={"CUEBOOK_DATABASE_URL": ""})
    schema = schema_name(tables.space)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
        for table in ("checkpoints", "migrations"):
            await connection.execute(f'CREATE TABLE "{schema}".{table} (mine text)'.encode())
        complaint = await cli.fails(1, "projection", "rebuild", "runs")
        assert f"schema {schema} holds tables that are not cuebook's: checkpoints, migrations" in complaint
        assert "fix: use another database or space" in complaint
        assert "holds no projections of space" in await cli.fails(1, "projection", "list")
        cursor = await connection.execute(f'SELECT * FROM "{schema}".checkpoints'.encode())
        assert await cursor.fetchall() == []


async def test_an_empty_log_rebuilds_to_empty_tables(cli: Cli, client: Client, tables: Tables) -> None:
    reports = await cli.json("projection", "rebuild", "--all")
    assert {(one["events"], one["switched"], one["not_compared"]) for one in reports} == {
        (0, True, "the live tables are empty")
    }
    assert {row["sequence"] for row in await cli.json("projection", "list")} == {0}
