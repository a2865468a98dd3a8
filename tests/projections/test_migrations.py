"""Setting a database up, for several spaces and several versions."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import psycopg
import pytest

from cuebook.events.errors import ConfigurationError
from cuebook.projections import queries
from cuebook.projections.database import MAX_IDENTIFIER_BYTES, connect, schema_name
from cuebook.projections.runner import ALL
from cuebook.projections.runs import Runs
from cuebook.projections.statements import load_statements, migration_files
from tests.projections.story import Story
from tests.projections.tables import Tables


class RunsLater(Runs):
    """A version with other columns."""

    version = Runs.version + 1
    tables: ClassVar[bytes] = Runs.tables + b"; ALTER TABLE runs ADD COLUMN colour text DEFAULT 'red'"


async def test_any_number_may_set_a_database_up_at_once(tables: Tables) -> None:
    await asyncio.gather(*(tables.prepare() for _ in range(5)))
    assert await tables.rows("SELECT projection, version, shown FROM checkpoints ORDER BY 1") == [
        ("agents", 1, True), ("audit", 1, True), ("runs", Runs.version, True),
    ]  # fmt: skip
    files = [(f"bookkeeping_{number:04d}.sql",) for number in (1, 2, 3, 4)]
    assert await tables.rows("SELECT name FROM migrations ORDER BY 1") == files


@pytest.mark.parametrize("space", ["with-hyphen", "s" * 64, "9_9"])
async def test_a_space_may_have_any_name(database_url: str, space: str) -> None:
    tables, story = Tables(database_url, space), Story(space)
    story.request("r1")
    await tables.apply(story.items)
    assert await tables.row("SELECT count(*) FROM runs") == (1,)


def test_long_spaces_stay_apart() -> None:
    names = {schema_name("s" * 63 + end, "runs", 12, 345) for end in "abc"}
    assert len(names) == 3
    assert {len(name) for name in names} == {MAX_IDENTIFIER_BYTES}


async def test_spaces_share_a_database_and_nothing_else(database_url: str) -> None:
    for space, runs in (("one", 1), ("two", 2)):
        story = Story(space)
        for number in range(runs):
            story.request(f"r{number}")
        await Tables(database_url, space).apply(story.items)
    assert await Tables(database_url, "one").row("SELECT count(*) FROM runs") == (1,)
    assert await Tables(database_url, "two").row("SELECT count(*) FROM runs") == (2,)


async def test_another_version_is_filled_beside_the_one_that_is_read(tables: Tables) -> None:
    story = Story(tables.space)
    story.request("r1")
    await tables.apply(story.items)
    later = Tables(tables.url, tables.space, [RunsLater()])
    await later.prepare()
    assert await tables.row("SELECT count(*) FROM runs") == (1,)
    await later.apply(story.items)
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await tables.rows("SELECT colour FROM runs")
    await tables.rows("SELECT show_generation('runs', 2)")
    assert await tables.row("SELECT run_id, colour FROM runs") == ("r1", "red")
    assert await tables.row("SELECT count(*) FROM tasks") == (1,)
    await tables.rows("SELECT show_generation('runs', 1)")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await tables.rows("SELECT colour FROM runs")
    assert await tables.row("SELECT version FROM checkpoints WHERE projection = 'runs' AND shown") == (Runs.version,)


async def test_tables_and_columns_are_described(tables: Tables) -> None:
    await tables.prepare()
    schema = schema_name(tables.space)
    described = await tables.rows(
        "SELECT c.relname, obj_description(c.oid) IS NOT NULL, "
        "(SELECT count(*) > 0 FROM pg_description d WHERE d.objoid = c.oid AND d.objsubid > 0) "
        "FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%s)) AND c.relkind = 'v' ORDER BY 1",
        schema,
    )
    assert described == [
        (name, True, True) for name in ("agent_actions", "agent_health", "agents", "audit", "runs", "tasks")
    ]


async def test_readers_read_and_change_nothing(tables: Tables) -> None:
    story = Story(tables.space)
    story.request("r1")
    await tables.apply(story.items)
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        await connection.execute("SET ROLE cuebook_reader")
        for table in (
            "runs",
            "tasks",
            "agents",
            "agent_actions",
            "agent_health",
            "audit",
            "checkpoints",
            "parked_events",
        ):
            await connection.execute(f"SELECT * FROM {table}".encode())
        assert len(await queries.list_projections(connection, last_sequence=1)) == 3
        listed = await queries.list_tables(connection, f"cuebook_{tables.space}@runs_v{Runs.version}_g1")
        assert [one.name for one in listed] == ["runs", "tasks"]
        for statement in (b"DELETE FROM runs", b"UPDATE checkpoints SET sequence = 0", b"CREATE TABLE t ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement)


async def test_a_role_that_may_not_make_schemas_is_told(tables: Tables) -> None:
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {tables.space} LOGIN".encode())
        try:
            limited = Tables(tables.url.replace("postgres@", f"{tables.space}@"), tables.space)
            with pytest.raises(ConfigurationError, match="may not set up schema"):
                await limited.prepare()
        finally:
            await admin.execute(f"DROP ROLE {tables.space}".encode())


async def test_a_database_of_a_newer_release_is_left_alone(tables: Tables) -> None:
    await tables.prepare()
    await tables.rows("INSERT INTO migrations (name) VALUES ('bookkeeping_9999.sql') RETURNING 1")
    with pytest.raises(ConfigurationError, match="set up by a newer release"):
        await tables.prepare()


async def test_tables_without_a_checkpoint_are_made_again(tables: Tables) -> None:
    story = Story(tables.space)
    story.request("r1")
    await tables.apply(story.items)
    live = await tables.dump()
    await tables.rows("DELETE FROM checkpoints WHERE projection = 'runs' RETURNING 1")
    await tables.apply(story.items)
    assert await tables.dump() == live


async def test_a_database_of_the_release_before_is_taken_over_with_its_rows(tables: Tables) -> None:
    """As it was: versions without generations, their tables in schemas named after the version."""
    story = Story(tables.space)
    story.register()
    story.request("r1")
    await tables.apply(story.items)
    live, schema = await tables.dump(), schema_name(tables.space)
    await tables.drop()
    first, *_ = migration_files()
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
        await connection.execute(load_statements("migrations.sql")["table"])
        await connection.execute(first[1])
        await connection.execute("INSERT INTO migrations (name) VALUES (%s)", [first[0]])
        for projection in ALL:
            old = f"{schema}@{projection.name}_v{projection.version}"
            await connection.execute(f'CREATE SCHEMA "{old}"; SET search_path = "{old}"'.encode())
            made = projection.tables
            if projection.name == "agents":
                made = made.replace(b"USING brin (recorded_at) WITH (autosummarize = on)", b"(recorded_at)")
            await connection.execute(made)
            await connection.execute(f'SET search_path = "{schema}"'.encode())
            await connection.execute(
                "INSERT INTO checkpoints (projection, version, tables_in) VALUES (%s, %s, %s)",
                [projection.name, projection.version, old],
            )
            await connection.execute("SELECT show_version(%s, %s)", [projection.name, projection.version])
    await tables.apply(story.items)
    assert await tables.dump() == live
    rows = await tables.rows("SELECT generation, state, shown, tables_in FROM checkpoints ORDER BY projection")
    versions = sorted((projection.name, projection.version) for projection in ALL)
    assert rows == [(version, "live", True, f"{schema}@{name}_v{version}") for name, version in versions]
    assert await tables.row(
        "SELECT indexdef LIKE '%%brin%%' FROM pg_indexes "
        "WHERE schemaname = %s AND indexname = 'agent_health_recorded_at'",
        f"{schema}@agents_v1",
    ) == (True,)


@pytest.mark.parametrize(
    "theirs", ["TABLE checkpoints (mine text)", "TABLE migrations (name text)", "VIEW runs AS SELECT 1"]
)
async def test_what_is_not_ours_in_our_place_is_left_alone(tables: Tables, theirs: str) -> None:
    schema = schema_name(tables.space)
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
        await connection.execute(f"CREATE {theirs}".encode())
    with pytest.raises(ConfigurationError, match="holds tables that are not cuebook's") as refusal:
        await tables.prepare()
    assert "another database or space" in refusal.value.remedy
    assert await tables.rows("SELECT nspname FROM pg_namespace WHERE nspname LIKE %s", f"{schema}@%") == []


async def test_a_table_in_the_place_of_one_of_our_views_is_named(tables: Tables) -> None:
    await tables.prepare()
    await tables.rows("DELETE FROM checkpoints WHERE projection = 'runs' RETURNING 1")
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        await connection.execute("DROP VIEW runs; CREATE TABLE runs (mine text)")
    with pytest.raises(ConfigurationError, match='"runs" is not a view'):
        await tables.prepare()


async def test_a_schema_that_is_not_ours_is_never_dropped(tables: Tables) -> None:
    await tables.prepare()
    await tables.rows("DELETE FROM checkpoints WHERE projection = 'runs' RETURNING 1")
    schema = f"{schema_name(tables.space)}@runs_v{Runs.version}_g1"
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute(f'COMMENT ON SCHEMA "{schema}" IS NULL'.encode())
    with pytest.raises(ConfigurationError, match="is not cuebook's"):
        await tables.prepare()


async def test_nobody_reads_but_who_was_let_in(tables: Tables) -> None:
    await tables.prepare()
    schema = schema_name(tables.space)
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute(f"CREATE ROLE {tables.space} LOGIN".encode())
        try:
            for role, may in ((tables.space, False), ("cuebook_reader", True)):
                cursor = await connection.execute(
                    "SELECT bool_and(has_schema_privilege(%s, nspname, 'USAGE')) FROM pg_namespace WHERE nspname = %s",
                    [role, schema],
                )
                assert await cursor.fetchone() == (may,)
                cursor = await connection.execute(
                    "SELECT bool_or(has_schema_privilege(%s, nspname, 'USAGE')) "
                    "FROM pg_namespace WHERE nspname LIKE %s",
                    [role, f"{schema}@%"],
                )
                assert await cursor.fetchone() == (False,)  # tables are read through the views
                cursor = await connection.execute(
                    "SELECT bool_or(has_table_privilege(%s, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')), "
                    "bool_and(has_table_privilege(%s, c.oid, 'SELECT')) "
                    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                    "WHERE n.nspname = %s AND c.relkind IN ('r', 'v')",
                    [role, role, schema],
                )
                assert await cursor.fetchone() == (False, may)
        finally:
            await connection.execute(f"DROP ROLE {tables.space}".encode())
