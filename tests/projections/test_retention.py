"""Months that are over go, and stay away until somebody wants them back."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cuebook.events.facts import AgentRegistered, AgentSuspected, OutsideEvent
from cuebook.projections import queries
from cuebook.projections.retention import keep_months, retire
from cuebook.projections.runner import ALL
from cuebook.projections.timeseries import Timeseries
from tests.projections.story import Story
from tests.projections.tables import Tables

NOW = datetime.now(UTC)


def months_ago(months: int) -> int:
    """Microseconds: the middle of a month."""
    number = NOW.year * 12 + NOW.month - 1 - months
    return int(datetime(number // 12, number % 12 + 1, 15, tzinfo=UTC).timestamp()) * 1_000_000


Named = Callable[..., str]


@pytest.fixture
def partition(timeseries: Timeseries) -> Named:
    """The partition of a month, or the chunk with its middle: chunks begin on a Thursday, as 1970 did."""

    def named(months: int, table: str = "audit") -> str:
        middle = datetime.fromtimestamp(months_ago(months) / 1e6, UTC)
        if timeseries is Timeseries.NATIVE:
            return f"{table}_{middle:%Y_%m}"
        return f"{table}_{middle - timedelta(days=(middle.weekday() - 3) % 7):%Y_%m_%d}"

    return named


def told() -> Story:
    """Something in each of five months, the present one the last; an instance is suspected in each."""
    story = Story()
    subject = story.subjects.agent("refund", "i1", "registered")
    for months in range(4, -1, -1):
        story.tell(story.subjects.event("t"), OutsideEvent(data=months), at=months_ago(months))
        story.tell(subject, AgentRegistered(slots=1, handlers={}), at=months_ago(months) + 1)
        suspected = story.subjects.agent("refund", "i1", "suspected")
        story.tell(suspected, AgentSuspected(silent_s=1), at=months_ago(months) + 2)
    return story


async def partitions(tables: Tables, parent: str = "audit") -> list[str]:
    if await tables.rows("SELECT 1 FROM checkpoints WHERE timeseries = 'timescale'"):
        rows = await tables.rows(
            "SELECT hypertable_name || to_char(range_start, '_YYYY_MM_DD') FROM timescaledb_information.chunks "
            "JOIN checkpoints ON tables_in = hypertable_schema WHERE shown AND hypertable_name = %s ORDER BY 1",
            parent,
        )
        return [name for (name,) in rows]
    rows = await tables.rows(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN checkpoints p ON p.tables_in = n.nspname "
        "WHERE p.shown AND c.relkind = 'r' AND c.relname LIKE %s ORDER BY 1",
        f"{parent}\\_2%",
    )
    return [name for (name,) in rows]


async def test_months_that_are_over_are_dropped_whole(tables: Tables, partition: Named) -> None:
    await tables.apply(told().items)
    assert await partitions(tables) == [partition(months) for months in (4, 3, 2, 1, 0)]
    async with queries.writing(tables.url, tables.space) as connection:
        assert await retire(connection, "audit") == []  # nobody has said so
        await keep_months(connection, "audit", 2, by="ann")
        assert await retire(connection, "audit") == [partition(4), partition(3)]
        assert await retire(connection, "audit") == []
    assert await partitions(tables) == [partition(months) for months in (2, 1, 0)]
    assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(n,) for n in range(7, 16)]
    assert len(await partitions(tables, "agent_health")) == 5
    async with queries.reading(tables.url, tables.space) as connection:
        found = {one.projection: one for one in await queries.list_projections(connection, last_sequence=15)}
    assert found["audit"].keep_months == 2
    assert found["audit"].kept_from is not None
    assert found["audit"].kept_from + timedelta(days=14) == datetime.fromtimestamp(months_ago(2) / 1e6, UTC)
    assert found["agents"].keep_months is None


async def test_a_dropped_month_does_not_come_back_with_a_late_event_or_a_later_batch(
    tables: Tables, partition: Named
) -> None:
    story = told()
    await tables.apply(story.items)
    async with queries.writing(tables.url, tables.space) as connection:
        for name in ("audit", "agents"):
            await keep_months(connection, name, 1, by="ann")
            await retire(connection, name)
    before = await partitions(tables)
    story.tell(story.subjects.event("t"), OutsideEvent(data="late"), at=months_ago(4))
    story.tell(story.subjects.event("t"), OutsideEvent(data="now"), at=months_ago(0))
    story.register("refund", "i2")  # recorded in a month that is gone
    await tables.apply(story.items[-3:])
    assert await partitions(tables) == before == [partition(1), partition(0)]
    assert await tables.rows("SELECT data FROM audit WHERE sequence > 15") == [("now",)]
    assert await tables.row("SELECT sequence FROM checkpoints WHERE projection = 'audit'") == (18,)
    # The registry is not a history: it knows the instance; only the line about its health is left out.
    assert await tables.rows("SELECT instance FROM agents ORDER BY 1") == [("i1",), ("i2",)]
    assert await tables.rows("SELECT DISTINCT instance FROM agent_health") == [("i1",)]


@pytest.mark.parametrize("interrupted", [pytest.param("detached", marks=pytest.mark.native), "announced"])
async def test_what_an_interruption_left_is_dropped_the_next_time(
    tables: Tables, partition: Named, interrupted: str
) -> None:
    await tables.apply(told().items)
    async with queries.writing(tables.url, tables.space) as connection:
        await keep_months(connection, "audit", 2, by="ann")
        (schema,) = await tables.row("SELECT tables_in FROM checkpoints WHERE projection = 'audit'")
        if interrupted == "detached":
            name = f'"{schema}"'
            await connection.execute(f"ALTER TABLE {name}.audit DETACH PARTITION {name}.{partition(4)}".encode())
        else:
            await connection.execute(
                "UPDATE checkpoints SET kept_from = date_trunc('month', now(), 'UTC') - interval '2 months'"
            )
        assert sorted(await retire(connection, "audit")) == [partition(4), partition(3)]
    assert await partitions(tables) == [partition(months) for months in (2, 1, 0)]


async def test_a_reader_of_the_month_delays_its_end_and_nothing_else(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuebook.projections.retention.LOCK_WAIT", "50ms")
    story = told()
    await tables.apply(story.items)
    async with (
        queries.writing(tables.url, tables.space) as connection,
        queries.reading(tables.url, tables.space) as reader,
    ):
        await keep_months(connection, "audit", 2, by="ann")
        async with reader.transaction():
            await reader.execute("SELECT * FROM audit LIMIT 1")
            assert await retire(connection, "audit") == []
            story.tell(story.subjects.event("t"), OutsideEvent(data="now"), at=months_ago(0))
            await tables.apply(story.items[-1:])
        assert len(await retire(connection, "audit")) == 2


@pytest.mark.native
async def test_both_histories_have_a_brin_index_in_every_month(tables: Tables, partition: Named) -> None:
    await tables.apply(told().items)
    rows = await tables.rows(
        "SELECT tablename FROM pg_indexes WHERE schemaname LIKE %s AND indexdef LIKE '%%USING brin%%' "
        "AND tablename ~ '_2...' ORDER BY 1",
        f"cuebook_{tables.space}@%",
    )
    expected = sorted(partition(months, table) for months in range(5) for table in ("agent_health", "audit"))
    assert [name for (name,) in rows] == expected


def test_only_histories_are_partitioned() -> None:
    for projection in ALL:
        partitioned = re.findall(rb"CREATE TABLE (\w+) \([^;]*\) PARTITION BY RANGE \((\w+)\);", projection.tables)
        assert partitioned == [(one.table.encode(), one.time.encode()) for one in projection.histories]
