"""What people ask of the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cuebook.events.errors import ConfigurationError, NotFoundError, UnavailableError
from cuebook.events.facts import (
    AgentStopped,
    AgentSuspected,
    OutsideEvent,
    RunStarted,
    TaskCompleted,
    TaskRequested,
)
from cuebook.projections import queries
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.database import Transaction
from cuebook.projections.queries import reading
from cuebook.projections.runs import Runs
from tests.projections.story import START, Story
from tests.projections.tables import Tables


def moment(sequence: int) -> datetime:
    return datetime.fromtimestamp(START / 1_000_000, UTC) + timedelta(seconds=sequence)


@pytest.fixture
async def connection(tables: Tables) -> AsyncIterator[Transaction]:
    """Reads what the story left behind."""
    story = Story()
    story.register("refund", "i1")  # 1
    story.register("mail", "m1")  # 2
    asked = story.ask_for("saga-1")  # 3
    story.tell(
        story.subjects.run("saga-1", "started"),
        RunStarted(saga="support", version="3", input={"ticket": 17}, trigger=3),
        correlation_id=asked.correlation_id,
        source="orchestrator",
    )  # 4
    story.tell(
        story.subjects.task("saga-1", 0, "requested", "refund"),
        TaskRequested(handler="issue", input={"note": "100% broken_blender"}),
        correlation_id=asked.correlation_id,
        source="orchestrator",
    )  # 5
    story.assign("saga-1")  # 6
    story.request("solo")  # 7
    story.assign("solo")  # 8
    story.task("solo", 0, TaskCompleted(output={"refund": "re_1"}, by="refund/i1"))  # 9
    story.agent(AgentSuspected(silent_s=3), "mail", "m1")  # 10
    story.agent(AgentStopped(reason="deploy"), "mail", "m1")  # 11
    story.tell(story.subjects.event("ticket.opened"), OutsideEvent(data={"id": "t-17"}), source="desk")  # 12
    story.receive(story.subjects.event("broken"), b"\xff")  # 13
    await tables.apply(story.items)
    async with reading(tables.url, tables.space) as opened:
        yield opened


async def test_runs_are_listed_newest_first(connection: Transaction) -> None:
    assert [run.run_id for run in await queries.list_runs(connection)] == ["solo", "saga-1"]
    assert [run.run_id for run in await queries.list_runs(connection, limit=1, offset=1)] == ["saga-1"]
    assert [run.run_id for run in await queries.list_runs(connection, status="running")] == ["saga-1"]
    assert [run.run_id for run in await queries.list_runs(connection, saga="support")] == ["saga-1"]
    assert [run.run_id for run in await queries.list_runs(connection, since=moment(7))] == ["solo"]
    assert [run.run_id for run in await queries.list_runs(connection, open_only=True)] == ["saga-1"]


async def test_a_run_without_a_saga_shows_what_its_task_says(connection: Transaction) -> None:
    run = await queries.find_run(connection, "solo")
    assert (run.status, run.saga, run.agent, run.handler) == ("completed", None, "refund", "issue")
    assert (run.input, run.result) == ({"order": 8812}, {"refund": "re_1"})
    assert run.ended_at == moment(9)
    run = await queries.find_run(connection, "saga-1")
    assert (run.input, run.result, run.agent, run.tasks, run.version) == ({"ticket": 17}, None, None, 1, "3")


async def test_an_unknown_run_is_said_to_be_unknown(connection: Transaction) -> None:
    with pytest.raises(NotFoundError, match="no run 'nobody'"):
        await queries.find_run(connection, "nobody")


async def test_tasks_are_found_by_whatever_is_known(connection: Transaction) -> None:
    async def found(**filters: object) -> list[str]:
        return [task.run_id for task in await queries.list_tasks(connection, **filters)]  # type: ignore[arg-type]

    assert await found() == ["solo", "saga-1"]
    assert await found(run_id="solo") == ["solo"]
    assert await found(run_id="solo", n=1) == []
    assert await found(agent="refund", status="assigned") == ["saga-1"]
    assert await found(instance="i1", open_only=True) == ["saga-1"]
    assert await found(since=moment(6)) == ["solo"]
    (task,) = await queries.list_tasks(connection, run_id="solo")
    assert (task.output, task.attempt, task.placement) == ({"refund": "re_1"}, 1, {"free": 3})


async def test_agents_are_listed_with_what_they_have_to_do(connection: Transaction) -> None:
    rows = await queries.list_agents(connection)
    assert [(row.agent, row.instance, row.health, row.busy, row.slots) for row in rows] == [
        ("mail", "m1", "stopped", 0, 4), ("refund", "i1", "healthy", 1, 4),
    ]  # fmt: skip
    assert [row.agent for row in await queries.list_agents(connection, stopped=False)] == ["refund"]
    assert [row.agent for row in await queries.list_agents(connection, health="stopped", agent="mail")] == ["mail"]


async def test_the_history_of_health_has_its_times(connection: Transaction) -> None:
    rows = await queries.health_history(connection, agent="mail", instance="m1")
    assert [(row.health, row.previous, row.recorded_at) for row in rows] == [
        ("stopped", "suspect", moment(11)), ("suspect", "healthy", moment(10)), ("healthy", None, moment(2)),
    ]  # fmt: skip
    assert [row.health for row in await queries.health_history(connection, since=moment(2), until=moment(11))] == [
        "suspect", "healthy",
    ]  # fmt: skip


async def test_the_audit_log_is_searched_by_everything(connection: Transaction) -> None:
    async def found(**filters: object) -> list[int]:
        return [row.sequence for row in await queries.search_audit(connection, **filters)]  # type: ignore[arg-type]

    assert await found() == list(range(13, 0, -1))
    assert await found(oldest_first=True, limit=3, offset=1) == [2, 3, 4]
    assert await found(correlation_id="e3") == [5, 4, 3]
    assert await found(event_id="e5") == [5]
    assert await found(run_id="saga-1") == [6, 5, 4, 3]
    assert await found(run_id="saga-1", n=0, oldest_first=True) == [5, 6]
    assert await found(agent="mail", instance="m1") == [11, 10, 2]
    assert await found(event_type="task.assigned.v1") == [8, 6]
    assert await found(what="task.assigned") == await found(what="task.ass*") == [8, 6]
    assert await found(what="task.assigne") == await found(what="ask.assigned") == []
    assert await found(who="orchestrator") == [5, 4]
    assert await found(who="m1") == await found(who="mail") == [11, 10, 2]
    assert await found(kind="run") == [4, 3]
    assert await found(topic="ticket.opened") == [12]
    assert await found(source="orchestrator") == [5, 4]
    assert await found(subject="cue.run.*.task.*.assigned.>") == [8, 6]
    assert await found(subject="cue.event.ticket.opened") == [12]
    assert await found(subject="cue.event.>") == [13, 12]
    assert await found(since=moment(12), until=moment(13)) == [12]
    assert await found(after=11) == [13, 12]
    assert await found(contains={"input": {"order": 8812}}) == [7]
    assert await found(contains="t-17") == []
    assert await found(text="BLENDER") == [5]
    assert await found(text="100% broken_b") == [5]
    assert await found(text="100%_broken") == []
    assert await found(unreadable_only=True) == [13]
    (unreadable,) = await queries.search_audit(connection, unreadable_only=True)
    assert (unreadable.raw, unreadable.event_id) == (b"\xff", None)


async def test_projections_tell_how_far_they_are(connection: Transaction) -> None:
    rows = await queries.list_projections(connection, last_sequence=20)
    assert [(row.projection, row.version, row.sequence, row.lag, row.parked, row.shown) for row in rows] == [
        (kind.name, kind.version, 13, 7, 0, True) for kind in (Agents, Audit, Runs)
    ]
    assert await queries.list_parked(connection) == []


async def test_every_column_is_read_and_none_is_forgotten(tables: Tables, connection: Transaction) -> None:
    records: dict[str, Any] = {
        "runs": (await queries.list_runs(connection))[0],
        "tasks": (await queries.list_tasks(connection))[0],
        "agents": (await queries.list_agents(connection))[0],
        "agent_health": (await queries.health_history(connection))[0],
        "audit": (await queries.search_audit(connection))[0],
    }
    for table, record in records.items():
        columns = await tables.rows(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0", table
        )
        assert {name for (name,) in columns} <= {field.name for field in fields(record)}


async def test_a_reader_changes_nothing(connection: Transaction) -> None:
    with pytest.raises(Exception, match="read-only transaction"):
        await connection.execute("DELETE FROM parked_events")


async def test_what_cannot_be_read_is_said_plainly(database_url: str, space: str) -> None:
    with pytest.raises(ConfigurationError, match="holds no projections of space"):
        async with reading(database_url, space) as connection:
            await queries.list_runs(connection)
    with pytest.raises(UnavailableError, match="PostgreSQL is unavailable"):
        async with reading("postgresql://postgres@127.0.0.1:1/nothing", space):
            pass
    with pytest.raises(ConfigurationError, match="URL cannot be read"):
        async with reading("no url", space):
            pass
