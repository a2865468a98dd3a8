"""What histories are made of where TimescaleDB is not; and what is added up from them, whatever they are made of."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import AgentLost, Error, OutsideEvent, TaskCompleted, TaskFailed, TaskReverted
from cuebook.events.log import EventLog
from cuebook.projections.audit import Audit
from cuebook.projections.database import connect, schema_name
from cuebook.projections.rebuild import rebuild
from cuebook.projections.runner import Runner
from cuebook.projections.timeseries import Timeseries
from tests.projections.story import START, Story
from tests.projections.tables import Tables

HOUR = 3_600_000_000
WHY = "TimescaleDB is not installed on the server"


@pytest.mark.native
async def test_without_the_extension_histories_are_native_partitions_and_that_is_said(
    log: EventLog, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await log.append(log.subjects.event("t"), OutsideEvent(data=1))
    for _ in range(2):  # also where they stood there already
        caplog.clear()
        await Runner(log, tables.url).run(until=1)
        said = [vars(one) for one in caplog.records if one.message == "histories"]
        assert [(one["projection"], one["timeseries"], one["why"]) for one in said] == [
            ("audit", "native", WHY), ("agents", "native", WHY),
        ]  # fmt: skip
    assert await tables.rows("SELECT projection, timeseries, timeseries_why FROM checkpoints ORDER BY 1") == [
        ("agents", "native", WHY), ("audit", "native", WHY), ("runs", None, None),
    ]  # fmt: skip


@pytest.mark.native
async def test_hypertables_that_cannot_be_had_are_refused_and_nothing_is_made(log: EventLog, tables: Tables) -> None:
    forced = Tables(tables.url, tables.space, timeseries=Timeseries.TIMESCALE)
    with pytest.raises(ConfigurationError, match=f"^hypertables are wanted, but {WHY}$") as refusal:
        await forced.prepare()
    assert "install TimescaleDB 2.18 or later" in refusal.value.remedy
    assert await tables.rows("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'cuebook%'") == []
    await log.append(log.subjects.event("t"), OutsideEvent(data=1))
    await Runner(log, tables.url).run(until=1)
    with pytest.raises(ConfigurationError, match=WHY):
        await rebuild(log, tables.url, [Audit()], timeseries=Timeseries.TIMESCALE)
    assert await tables.rows("SELECT generation FROM checkpoints WHERE projection = 'audit'") == [(1,)]


async def test_another_kind_than_is_there_is_not_forced_on_tables_that_are_read(
    log: EventLog, tables: Tables, timeseries: Timeseries, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append(log.subjects.event("t"), OutsideEvent(data=1))
    await Runner(log, tables.url).run(until=1)
    other = Timeseries.NATIVE if timeseries is Timeseries.TIMESCALE else Timeseries.TIMESCALE
    await Runner(log, tables.url, timeseries=other).run(until=1)
    assert await tables.rows("SELECT timeseries FROM checkpoints WHERE projection = 'audit'") == [(timeseries.value,)]
    (said, _) = [vars(one) for one in caplog.records if one.levelno == logging.WARNING]
    assert (said["timeseries"], said["wanted"]) == (timeseries.value, other.value)
    assert "'cuebook projection rebuild' makes them anew" in said["message"]


async def test_what_agents_did_is_added_up_by_hour(tables: Tables) -> None:
    story, begin = Story(), START - START % HOUR
    task = story.subjects.task
    for n, (fact, event) in enumerate([
        ("completed", TaskCompleted(attempt=1, duration_s=0.1, by="refund/i1")),
        ("completed", TaskCompleted(attempt=1, duration_s=0.2, by="refund/i2")),
        ("completed", TaskCompleted(output=1, by="ann")),  # by hand
        ("failed", TaskFailed(error=Error(type="E", message="no"), duration_s=2.5, by="mail/i1")),
        ("failed", TaskFailed(error=Error(type="TimeoutError", message="late"), by="orchestrator")),
        ("reverted", TaskReverted(by="mail/i1")),
        ("reverted", TaskReverted(by="mail/i1", error=Error(type="E", message="no"))),
    ]):  # fmt: skip
        story.tell(task("r1", n, fact), event, at=begin + n)
    lost = story.subjects.agent("mail", "i1", "lost")
    story.tell(lost, AgentLost(silent_s=9), at=begin + HOUR)
    story.tell(story.subjects.event("t"), OutsideEvent(data={"duration_s": 1, "by": "a/b"}), at=begin)
    story.receive(task("r1", 9, "completed"), b"\x94\x01\xff\0", at=begin)
    await tables.apply(story.items)
    await tables.add_up()
    first = datetime.fromtimestamp(begin / 1e6, UTC)
    rows = await tables.rows("SELECT * FROM agent_actions ORDER BY hour, agent, action")
    assert [row for row in rows if row[0] == first] == [
        (first, "mail", "task", "failed", 1, 1, 1, Decimal("2.5"), Decimal("2.5")),
        (first, "mail", "task", "reverted", 2, 1, 0, None, None),
        (first, "refund", "task", "completed", 2, 0, 2, Decimal("0.3"), Decimal("0.2")),
        (first, None, "task", "completed", 1, 0, 0, None, None),
        (first, None, "task", "failed", 1, 1, 0, None, None),
    ]
    assert [row[1:6] for row in rows if row[0] > first] == [("mail", "agent", "lost", 1, 1)]


async def test_strange_durations_do_not_spoil_the_view(tables: Tables) -> None:
    story = Story()
    for n, seconds in enumerate([1e308, 1e308, 5e-324, -1.0]):
        story.tell(story.subjects.task("r1", n, "completed"), TaskCompleted(duration_s=seconds, by="refund/i1"))
    await tables.apply(story.items)
    await tables.add_up()
    assert await tables.row("SELECT agent, actions, timed, longest_s FROM agent_actions") == (
        "refund", 4, 4, Decimal("1e308"),
    )  # fmt: skip


@pytest.mark.native
async def test_tables_of_a_release_without_the_view_get_it_and_nothing_is_read_again(tables: Tables) -> None:
    story = Story()
    story.register()
    await tables.apply(story.items)
    live = await tables.dump()
    schema = schema_name(tables.space)
    async with await connect(tables.url, [schema]) as connection:
        await connection.execute("DROP VIEW agent_actions")
        await connection.execute(f'DROP VIEW "{schema}@audit_v1_g1".agent_actions'.encode())
        await connection.execute("UPDATE checkpoints SET timeseries_why = 'as ever before'")
    await tables.prepare()
    assert await tables.dump() == live
    assert await tables.rows("SELECT generation, shown FROM checkpoints WHERE projection = 'audit'") == [(1, True)]
