"""The registry and the history of health."""

from __future__ import annotations

import pytest

from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentStopped,
    AgentSuspected,
    DrainRequested,
    Event,
)
from tests.projections.story import Story
from tests.projections.tables import Tables

SUSPECTED, LOST, RECOVERED = AgentSuspected(silent_s=3.2), AgentLost(silent_s=9), AgentRecovered()
DRAINING, STOPPED = AgentDraining(reason="deploy"), AgentStopped(reason="deploy", handled=12)


async def test_a_registration_says_what_the_instance_can_do(tables: Tables) -> None:
    story = Story()
    story.register("refund", "i1", slots=16)
    await tables.apply(story.items)
    assert await tables.row(
        "SELECT agent, instance, version, slots, handlers->'issue'->>'timeout_s', health, host, "
        "registered_at = changed_at, wants_drain, first_sequence FROM agents"
    ) == ("refund", "i1", "1.2", 16, "30.0", "healthy", "h", True, False, 1)


async def test_each_instance_has_the_version_and_the_handlers_that_it_registered(tables: Tables) -> None:
    story = Story()
    story.register(instance="i1", version="1")
    story.register(instance="i2", version="2", handler="pay")
    story.register(instance="i3", version="1")
    await tables.apply(story.items)
    assert await tables.rows("SELECT instance, version, jsonb_object_keys(handlers) FROM agents ORDER BY instance") == [
        ("i1", "1", "issue"),
        ("i2", "2", "pay"),
        ("i3", "1", "issue"),
    ]


@pytest.mark.parametrize(
    ("facts", "history"),
    [
        ([], ["healthy"]),
        ([SUSPECTED], ["healthy", "suspect"]),
        ([SUSPECTED, SUSPECTED, RECOVERED], ["healthy", "suspect", "healthy"]),
        ([SUSPECTED, LOST, RECOVERED], ["healthy", "suspect", "lost", "healthy"]),
        ([LOST, SUSPECTED], ["healthy", "lost"]),
        ([DrainRequested(by="eva"), DRAINING, STOPPED], ["healthy", "draining", "stopped"]),
        ([DRAINING, SUSPECTED, RECOVERED], ["healthy", "draining", "suspect", "draining"]),
        ([STOPPED, RECOVERED, SUSPECTED, LOST, DRAINING], ["healthy", "stopped"]),
    ],
)
async def test_every_change_of_health_is_remembered(tables: Tables, facts: list[Event], history: list[str]) -> None:
    story = Story()
    story.register()
    for fact in facts:
        story.agent(fact)
    await tables.apply(story.items)
    rows = await tables.rows("SELECT health, previous FROM agent_health ORDER BY sequence")
    assert rows == list(zip(history, [None, *history], strict=False))
    assert await tables.row("SELECT health FROM agents") == (history[-1],)


async def test_the_history_says_when_and_why(tables: Tables) -> None:
    story = Story()
    story.register()
    story.agent(SUSPECTED)
    story.agent(STOPPED)
    await tables.apply([story.items[0]], [story.items[1]], [story.items[2]])
    assert await tables.rows("SELECT health, reason, source, sequence FROM agent_health ORDER BY sequence") == [
        ("healthy", "registered", "tests", 1),
        ("suspect", "silent for 3.2 s", "tests", 2),
        ("stopped", "deploy", "tests", 3),
    ]
    assert await tables.row("SELECT handled, reason FROM agents") == (12, "deploy")


async def test_what_is_said_about_an_unknown_instance_means_nothing(tables: Tables) -> None:
    story = Story()
    story.agent(LOST)
    await tables.apply(story.items)
    assert await tables.rows("SELECT 1 FROM agents UNION ALL SELECT 1 FROM agent_health") == []
