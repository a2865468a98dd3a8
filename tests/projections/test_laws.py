"""What holds for any history: no event is too strange, the cuts do not matter, a rebuild is the live table again."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.actors.orchestrator.registry import Registry
from cuebook.actors.orchestrator.state import RunState, TaskState
from cuebook.events.envelope import Envelope
from cuebook.projections.projection import Item
from tests.projections.story import agent_stories, run_stories
from tests.projections.tables import Tables, cut

on_postgres = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
stories = run_stories() | agent_stories()
cuts = st.lists(st.integers(1, 1_000), max_size=6)
_numbers = itertools.count()


def fresh(tables: Tables) -> Tables:
    """The tables of another space in the same database: each example begins with none."""
    return Tables(tables.url, f"x{next(_numbers)}")


@on_postgres
@given(items=stories, at=cuts)
async def test_the_same_rows_wherever_the_batches_are_cut(tables: Tables, items: list[Item], at: list[int]) -> None:
    whole, parts = fresh(tables), fresh(tables)
    await whole.apply(items)
    await parts.apply(*cut(items, at))
    assert await parts.dump() == await whole.dump()


@on_postgres
@given(items=stories, at=cuts)
async def test_a_restart_anywhere_changes_nothing(tables: Tables, items: list[Item], at: list[int]) -> None:
    whole, restarted = fresh(tables), fresh(tables)
    await whole.apply(items)
    for batch in cut(items, at):
        await restarted.apply(batch)
        await restarted.apply(batch)  # read again after the restart: it lies before the checkpoint
    assert await restarted.dump() == await whole.dump()


@on_postgres
@given(items=stories)
async def test_every_event_can_be_applied_and_is_in_the_audit_once(tables: Tables, items: list[Item]) -> None:
    space = fresh(tables)
    await space.apply(items)
    assert await space.rows("SELECT * FROM parked_events") == []
    assert await space.rows("SELECT sequence FROM audit ORDER BY 1") == [(item.sequence,) for item in items]


@on_postgres
@given(items=stories, at=cuts)
async def test_a_rebuild_is_the_live_table_again(tables: Tables, items: list[Item], at: list[int]) -> None:
    space = fresh(tables)
    await space.apply(*cut(items, at))
    live = await space.dump()
    await space.drop()
    await space.apply(items)
    assert await space.dump() == live


@on_postgres
@given(items=run_stories())
async def test_the_tables_say_what_the_orchestrator_thinks(tables: Tables, items: list[Item]) -> None:
    """For every task and run that began with a request; what else there may be has no row and no meaning."""
    space = fresh(tables)
    await space.apply(items)
    runs: dict[str, RunState] = {}
    begun: set[tuple[str, int]] = set()
    opened: set[str] = set()
    for item in items:
        assert isinstance(item, Envelope)
        run_id, n, fact = item.address.run_id, item.address.n, item.address.fact
        if item.address.kind == "run" and (run_id in opened or fact in ("requested", "started")):
            opened.add(run_id)
            runs.setdefault(run_id, RunState(run_id)).apply(item)
        elif item.address.kind == "task" and ((run_id, n) in begun or fact == "requested"):
            begun.add((run_id, n))
            runs.setdefault(run_id, RunState(run_id)).apply(item)
    for run_id, n, *row in await space.rows("SELECT run_id, n, status, attempt, handler FROM tasks"):
        if (run_id, n) not in begun:
            assert row[0] == "rejected"
            continue
        task = runs[run_id].items[n]
        assert isinstance(task, TaskState)
        assert row == [task.status, max(-(2**63), min(task.attempt, 2**63 - 1)), task.handler.replace("\0", "\u2400")]
    for run_id, status in await space.rows("SELECT run_id, status FROM runs WHERE NOT standalone"):
        assert status == (runs[run_id].status if run_id in opened else "rejected")


@on_postgres
@given(items=agent_stories())
async def test_the_registry_says_what_the_orchestrator_thinks(tables: Tables, items: list[Item]) -> None:
    """For every instance that registered; what is said about others means nothing."""
    space = fresh(tables)
    await space.apply(items)
    registry, registered = Registry(), set[str]()
    for item in items:
        assert isinstance(item, Envelope)
        if item.address.instance in registered or item.address.fact == "registered":
            registered.add(item.address.instance)
            registry.apply(item)
    for instance, health in await space.rows("SELECT instance, health FROM agents"):
        assert health == registry.instance("refund", instance).health
    changes = await space.rows("SELECT instance, previous, health FROM agent_health ORDER BY sequence")
    for instance in registered:
        history = [(previous, health) for name, previous, health in changes if name == instance]
        assert history[0] == (None, "healthy")
        assert all(before[1] == after[0] != after[1] for before, after in itertools.pairwise(history))
        assert history[-1][1] == registry.instance("refund", instance).health
