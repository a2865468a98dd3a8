"""What holds for any history: no event is too strange, the cuts do not matter, a rebuild is the live table again."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.actors.orchestrator.registry import Registry
from cuebook.actors.orchestrator.state import fold_run
from cuebook.events.envelope import Envelope
from cuebook.projections.projection import Item
from cuebook.projections.rows import TRUE, Row
from cuebook.projections.runs import fold_batch as fold
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


@given(items=run_stories())
def test_the_tables_say_what_the_orchestrator_thinks(items: list[Item]) -> None:
    runs: dict[str, Row] = {}
    tasks: dict[tuple[str, int], Row] = {}
    fold([item for item in items if isinstance(item, Envelope)], runs, tasks)
    for run_id in {item.address.run_id for item in items if isinstance(item, Envelope)}:
        state = fold_run(run_id, items)
        row = runs.get(run_id)
        told = {n: row["status"] for (of_run, n), row in tasks.items() if of_run == run_id}
        assert told == {n: item.status for n, item in state.items.items()}
        if row is None or row["standalone"] == TRUE:
            assert state.standalone
        else:
            assert row["status"] == (state.status if state.status != "new" else "requested")


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
