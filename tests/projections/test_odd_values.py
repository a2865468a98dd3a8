"""Names and numbers that mean something else to PostgreSQL, or nothing."""

from __future__ import annotations

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
