"""Setting a database up, for several spaces and several versions."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import psycopg
import pytest

from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import MAX_IDENTIFIER_BYTES, connect, schema_name
from cuebook.projections.runs import Runs
from tests.projections.story import Story
from tests.projections.tables import Tables


class RunsLater(Runs):
    """A version with other columns."""

    version = 2
    tables: ClassVar[bytes] = Runs.tables + b"; ALTER TABLE runs ADD COLUMN colour text DEFAULT 'red'"


async def test_any_number_may_set_a_database_up_at_once(tables: Tables) -> None:
    await asyncio.gather(*(tables.prepare() for _ in range(5)))
    assert await tables.rows("SELECT projection, version, shown FROM checkpoints ORDER BY 1") == [
        ("agents", 1, True), ("audit", 1, True), ("runs", 1, True),
    ]  # fmt: skip
    files = [(f"bookkeeping_{number:04d}.sql",) for number in (1, 2)]
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
    assert await tables.row("SELECT version FROM checkpoints WHERE projection = 'runs' AND shown") == (1,)


async def test_tables_and_columns_are_described(tables: Tables) -> None:
    await tables.prepare()
    schema = schema_name(tables.space)
    described = await tables.rows(
        "SELECT c.relname, obj_description(c.oid) IS NOT NULL, "
        "(SELECT count(*) > 0 FROM pg_description d WHERE d.objoid = c.oid AND d.objsubid > 0) "
        "FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%s)) AND c.relkind = 'v' ORDER BY 1",
        schema,
    )
    assert described == [(name, True, True) for name in ("agent_health", "agents", "audit", "runs", "tasks")]


async def test_readers_read_and_change_nothing(tables: Tables) -> None:
    story = Story(tables.space)
    story.request("r1")
    await tables.apply(story.items)
    async with await connect(tables.url, [schema_name(tables.space)]) as connection:
        await connection.execute("SET ROLE cuebook_reader")
        for table in ("runs", "tasks", "agents", "agent_health", "audit", "checkpoints", "parked_events"):
            await connection.execute(f"SELECT * FROM {table}".encode())
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
