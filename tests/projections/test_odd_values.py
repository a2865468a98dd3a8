"""Names and numbers that mean something else to PostgreSQL, or nothing."""

from __future__ import annotations

import pytest

from cuebook.events.facts import Error, Event, TaskAssigned, TaskFailed, TaskRetried
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
