"""Rows and checkpoint together, whatever PostgreSQL or an event does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from cuebook.embedded.postgres import Postgres, postgres
from cuebook.events.envelope import Envelope, Position
from cuebook.events.errors import ConfigurationError
from cuebook.projections import checkpoint
from cuebook.projections.audit import Audit
from cuebook.projections.checkpoint import ReadAgainError
from cuebook.projections.database import Transaction, connect, schema_name
from cuebook.projections.generations import make_generation
from cuebook.projections.projection import Batch
from cuebook.projections.runner import ALL
from cuebook.projections.runs import Runs
from cuebook.projections.writer import Writer
from tests.projections.proxy import Proxy
from tests.projections.story import Story
from tests.projections.tables import Tables
from tests.waiting import eventually


class Picky(Runs):
    """Raises on what concerns one run, after it has written the rest of the batch."""

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        await super().apply(batch, tx)
        for item in batch:
            if isinstance(item, Envelope) and item.address.run_id == "poison":
                raise RuntimeError("cannot stand this run\0")


class Sour(Audit):
    """Writes something that PostgreSQL refuses where it meets one run."""

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        await super().apply(batch, tx)
        for item in batch:
            if isinstance(item, Envelope) and item.address.run_id == "poison":
                await tx.execute("SELECT 1 / 0")


def story_with(*run_ids: str) -> Story:
    story = Story()
    for run_id in run_ids:
        story.request(run_id)
    return story


async def apply_again(writer: Writer, batch: Batch) -> None:
    """As the runner does: a crash of PostgreSQL may take the last commits with it, rows and checkpoint together."""
    try:
        await writer.apply(batch)
    except ReadAgainError:
        await writer.reload()
        await apply_again(writer, batch)


async def test_rows_and_checkpoint_are_committed_together_or_not_at_all(tables: Tables) -> None:
    story = story_with("a", "b", "c")
    await tables.apply(story.items[:1])
    async with tables.writer(Picky()) as writer:
        seen_inside: list[object] = []

        class Interrupted(Runs):
            async def apply(self, batch: Batch, tx: Transaction) -> None:
                await super().apply(batch, tx)
                cursor = await tx.execute("SELECT sequence FROM checkpoints WHERE projection = 'runs'")
                seen_inside.append(await cursor.fetchone())
                raise asyncio.CancelledError  # the process ends here

        writer.projection = Interrupted()
        with pytest.raises(asyncio.CancelledError):
            await writer.apply(story.items)
    assert seen_inside == [(3,)]
    assert await tables.rows("SELECT run_id FROM runs") == [("a",)]
    assert await tables.row("SELECT sequence FROM checkpoints WHERE projection = 'runs'") == (1,)
    await tables.apply(story.items)
    assert await tables.rows("SELECT run_id FROM runs ORDER BY 1") == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize(("projection", "error"), [(Picky(), "RuntimeError"), (Sour(), "DivisionByZero")])
async def test_an_event_that_cannot_be_applied_is_parked_and_the_rest_goes_on(
    database_url: str, space: str, projection: Runs | Audit, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    story = story_with("a", "b", "poison", "c", "d", "poison2", "e")
    others = [other for other in ALL if other.name != projection.name]
    tables = Tables(database_url, space, [projection, *others])
    with caplog.at_level(logging.ERROR):
        writers = await tables.apply(story.items)
    parked = await tables.row("SELECT projection, version, sequence, event_id, subject, reason FROM parked_events")
    assert parked[:5] == (projection.name, projection.version, 3, "e3", "cue.run.poison.task.0.requested.refund")
    assert parked[5].startswith(f"{error}: ")
    assert [writer.parked for writer in writers] == [1, 0, 0]
    assert [record.message for record in caplog.records] == ["parked an event that a projection cannot apply"]
    assert len(await tables.rows("SELECT 1 FROM audit")) == (7 if projection.name == "runs" else 6)
    assert len(await tables.rows("SELECT 1 FROM runs")) == (6 if projection.name == "runs" else 7)
    assert await tables.rows("SELECT DISTINCT sequence, event_id FROM checkpoints") == [(7, "e7")]


async def test_a_checkpoint_that_somebody_else_moved_stops_the_writer(tables: Tables) -> None:
    story = story_with("a", "b", "c")
    await tables.apply(story.items[:1])
    async with tables.writer(Runs()) as writer:
        await tables.rows("UPDATE checkpoints SET sequence = 2, event_id = 'e2' WHERE projection = 'runs' RETURNING 1")
        with pytest.raises(ConfigurationError, match="another process writes projection runs"):
            await writer.apply(story.items)
    assert await tables.rows("SELECT run_id FROM runs") == [("a",)]


async def test_of_two_writers_the_second_is_refused_until_the_first_is_gone(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CLAIM_WAIT", "1ms")
    await tables.prepare()
    async with tables.writer(Audit()):
        async with tables.writer(Runs()):
            pass  # of another projection
        with pytest.raises(ConfigurationError, match="another process writes projection audit"):
            await tables.writer(Audit()).reload()
    await tables.released()
    async with tables.writer(Audit()):
        pass


async def test_tables_that_hold_more_than_the_checkpoint_says_stop_the_projection(tables: Tables) -> None:
    story = story_with("a", "b")
    await tables.apply(story.items)
    await tables.rows("UPDATE checkpoints SET sequence = 1, event_id = 'e1' RETURNING 1")
    with pytest.raises(ConfigurationError, match="PostgreSQL refuses projection audit"):
        await tables.apply(story.items)
    assert await tables.rows("SELECT * FROM parked_events") == []


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Postgres]:
    """A PostgreSQL that the test may kill."""
    async with postgres(tmp_path, durable=False) as running:
        yield running


async def test_a_writer_waits_for_postgresql_and_says_so_once(
    server: Postgres, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cuebook.projections.database")
    tables, story = Tables(server.url, space), story_with("a", "b")
    await tables.apply(story.items[:1])
    async with tables.writer(Runs()) as writer:
        await server.kill()
        applied = asyncio.create_task(apply_again(writer, story.items))
        await eventually(lambda: caplog.messages)
        await server.restart()
        async with asyncio.timeout(60):
            await applied
        assert writer.position == Position(2, "e2")
    assert await tables.rows("SELECT run_id FROM runs ORDER BY 1") == [("a",), ("b",)]
    assert caplog.messages == [
        "PostgreSQL is unavailable; the projections wait", "PostgreSQL is available again",
    ]  # fmt: skip


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_without_an_answer_is_settled_by_looking(
    database_url: str, space: str, *, arrives: bool
) -> None:
    story = story_with("a", "b")
    direct = Tables(database_url, space)
    await direct.apply(story.items[:1])
    async with Proxy(database_url) as proxy, Tables(proxy.url, space).writer(Audit()) as writer:
        proxy.cut_at(b"COMMIT", forward=arrives)
        await writer.apply(story.items)
        assert proxy.cuts == 1
        assert writer.position == Position(2, "e2")
    assert await direct.rows("SELECT sequence FROM audit ORDER BY 1") == [(1,), (2,)]


async def test_a_database_restored_to_an_earlier_state_is_read_into_again(tables: Tables) -> None:
    story = story_with("a", "b", "c")
    await tables.apply(story.items[:1])
    async with tables.writer(Audit()) as writer:
        await writer.apply(story.items[:2])
        async with await connect(tables.url, [schema_name(space) for space in (tables.space,)]) as connection:
            # As after a crash that lost the last commit: rows and checkpoint are back where they were.
            await connection.execute("DELETE FROM audit WHERE sequence = 2")
            await connection.execute("UPDATE checkpoints SET sequence = 1, event_id = 'e1'")
            await connection.execute(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "  # and wait until it is gone
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with pytest.raises(ReadAgainError):
            await writer.apply(story.items[2:])
        await writer.reload()
        assert writer.position == Position(1, "e1")
        await writer.apply(story.items)
    assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(1,), (2,), (3,)]


async def test_a_role_without_rights_is_told(tables: Tables) -> None:
    await tables.prepare()
    async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as connection:
        await connection.execute(f"CREATE ROLE {tables.space} LOGIN".encode())
        await connection.execute(f"GRANT cuebook_reader TO {tables.space}".encode())
    reader = Tables(tables.url.replace("postgres@", f"{tables.space}@"), tables.space)
    try:
        async with reader.writer(Runs()) as writer:
            with pytest.raises(ConfigurationError, match="InsufficientPrivilege"):
                await writer.apply(story_with("a").items)
    finally:
        await tables.released()  # its session has temporary tables
        async with await psycopg.AsyncConnection.connect(tables.url, autocommit=True) as connection:
            await connection.execute(f"DROP ROLE {tables.space}".encode())


async def test_several_batches_in_one_transaction_are_as_if_each_had_its_own(database_url: str, space: str) -> None:
    story = story_with("a", "poison", "b")
    for run_id in ("a", "b"):
        story.assign(run_id)
        story.complete(run_id)
    story.ask_for("c")
    tables = Tables(database_url, space, [Picky()])
    await tables.prepare()
    batches = [story.items[:1], story.items[1:4], story.items[4:6], story.items[6:]]
    async with tables.writer(Picky()) as writer:

        async def half_of_it() -> None:
            async with writer.transaction():
                await writer.apply(batches[0])
                await writer.apply(batches[1])
                raise RuntimeError("after the first two")

        with pytest.raises(RuntimeError, match="after the first two"):
            await half_of_it()
        assert writer.position == Position()
        assert await tables.rows("SELECT 1 FROM runs") == []
        async with writer.transaction():
            for batch in batches:
                await writer.apply(batch)
            assert await tables.rows("SELECT 1 FROM runs") == []
        assert writer.position == Position(8, "e8")
    together = [await tables.rows(f"SELECT * FROM {table} ORDER BY 1") for table in ("runs", "tasks")]
    assert await tables.rows("SELECT sequence FROM parked_events") == [(2,)]
    await tables.drop()
    await tables.apply(*batches)
    assert [await tables.rows(f"SELECT * FROM {table} ORDER BY 1") for table in ("runs", "tasks")] == together
    assert await tables.row("SELECT status FROM runs WHERE run_id = 'b'") == ("completed",)


async def test_postgresql_that_goes_away_in_a_transaction_ends_it(database_url: str, space: str) -> None:
    story = story_with("a", "b")
    direct = Tables(database_url, space)
    await direct.prepare()
    async with Proxy(database_url) as proxy, Tables(proxy.url, space).writer(Runs()) as writer:

        async def cut_off() -> None:
            async with writer.transaction():
                await writer.apply(story.items[:1])
                proxy.cut_at(b"UPDATE checkpoints", forward=False)
                await writer.apply(story.items[1:])

        with pytest.raises(psycopg.OperationalError):
            await cut_off()
        assert writer.position == Position()
        assert await direct.rows("SELECT 1 FROM runs") == []
        await writer.reload()
        await writer.apply(story.items)
    assert await direct.rows("SELECT run_id FROM runs ORDER BY 1") == [("a",), ("b",)]


async def test_a_writer_whose_generation_was_taken_over_writes_nothing_more_and_then_the_new_one(
    tables: Tables,
) -> None:
    story = story_with("a", "b")
    await tables.apply(story.items[:1])
    async with tables.writer(Runs()) as writer:
        async with await connect(tables.url, [schema_name(tables.space)]) as connection, connection.transaction():
            assert await make_generation(connection, tables.space, Runs(), "building") == 2
            await connection.execute("SELECT show_generation('runs', 2)")
        with pytest.raises(ReadAgainError, match="generation 1 of projection runs is written no more"):
            await writer.apply(story.items)
        assert await tables.row("SELECT sequence FROM checkpoints WHERE projection = 'runs' AND generation = 1") == (1,)
        await writer.reload()
        assert (writer.generation.number, writer.position) == (2, Position())
        await writer.apply(story.items)
    assert await tables.rows("SELECT run_id FROM runs ORDER BY 1") == [("a",), ("b",)]
