"""Names and numbers that mean something else to PostgreSQL, or nothing."""

from __future__ import annotations

import pytest

from cuebook.events.facts import Error, Event, OutsideEvent, TaskAssigned, TaskFailed, TaskRetried
from cuebook.projections import queries
from cuebook.projections.retention import keep_months
from tests.projections.story import Story
from tests.projections.tables import Tables


async def test_null_is_a_name_like_any_other(tables: Tables) -> None:
    story = Story()
    story.request("null")
    story.assign("null", instance="null")
    story.complete("null")
    story.register("null", "null")
    story.register("null", "null", slots=7)
    await tables.apply(*[[item] for item in story.items])
    assert await tables.rows("SELECT run_id, status FROM runs") == [("null", "completed")]
    assert await tables.rows("SELECT run_id, status, instance FROM tasks") == [("null", "completed", "null")]
    assert await tables.rows("SELECT agent, instance, slots FROM agents") == [("null", "null", 7)]


@pytest.mark.parametrize("for_ever_s", [1e12, 1e300, 1e308])
async def test_what_is_never_over_is_the_same_however_the_log_is_cut(tables: Tables, for_ever_s: float) -> None:
    story = Story()
    story.request("r")
    for attempt, seconds in ((1, 60.0), (2, for_ever_s)):
        assigned: Event = TaskAssigned(handler="issue", attempt=attempt, timeout_s=seconds)
        story.tell(story.subjects.task("r", 0, "assigned", "refund", "i1"), assigned)
        story.task("r", 0, TaskFailed(error=Error(type="E", message="m"), attempt=attempt))
        story.task("r", 0, TaskRetried(delay_s=seconds, reason="again"))
    await tables.apply(story.items)
    whole = await tables.dump()
    await tables.drop()
    await tables.apply(*[[item] for item in story.items])
    assert await tables.dump() == whole
    assert await tables.rows("SELECT 1 FROM parked_events") == []


async def test_what_postgresql_cannot_hold_finds_what_is_stored_in_its_place(tables: Tables) -> None:
    story = Story()
    story.tell(story.subjects.event("t"), OutsideEvent(data={"said": "a\0b"}))
    story.tell(story.subjects.event("t"), OutsideEvent(data={"said": "nothing"}))
    await tables.apply(story.items)
    async with queries.reading(tables.url, tables.space) as connection:
        for found in (
            await queries.search_audit(connection, contains={"said": "a\0b"}),
            await queries.search_audit(connection, text="A\0B"),
        ):
            assert [one.sequence for one in found] == [1]
        assert await queries.search_audit(connection, contains={"said": "\ud800"}, text="\udcff") == []
        assert await queries.search_audit(connection, who="\udcff\0") == []
        assert len(await queries.search_audit(connection, limit=2**64)) == 2
    async with queries.writing(tables.url, tables.space) as connection:
        await keep_months(connection, "audit", 3, by="ann\udcff")
    assert await tables.rows("SELECT set_by FROM retention") == [("ann\ufffd",)]
