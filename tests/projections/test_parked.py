"""What becomes of an event that could not be applied, once a person has decided."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.events.connection import connect as connect_nats
from cuebook.events.envelope import Envelope
from cuebook.events.errors import CommandRejectedError, ConfigurationError, HistoryRegressedError, NotFoundError
from cuebook.events.facts import AgentDraining, AgentRegistered
from cuebook.events.log import EventLog
from cuebook.projections import queries
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.database import Transaction
from cuebook.projections.parked import retry_parked, skip_parked
from cuebook.projections.projection import Batch, Projection
from cuebook.projections.rebuild import rebuild
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.projections.story import run_stories
from tests.projections.tables import Tables
from tests.projections.test_rebuild import RunsLater
from tests.projections.test_runner import append_tasks, running
from tests.waiting import eventually


def refusing(projection: type[Projection], *sequences: int) -> Projection:
    """A projection that cannot stand some events."""

    class Refusing(projection):  # type: ignore[misc, valid-type]
        async def apply(self, batch: Batch, tx: Transaction) -> None:
            await super().apply(batch, tx)
            for item in batch:
                if item.sequence in sequences:
                    raise RuntimeError(f"no {item.sequence}")

    made: Projection = Refusing()
    return made


async def parked(tables: Tables) -> list[tuple[str, int, str, bool]]:
    return await tables.rows(
        "SELECT projection, p.sequence, reason, skipped_at IS NOT NULL FROM parked_events AS p "
        "JOIN checkpoints USING (projection, generation) WHERE shown ORDER BY 1, 2"
    )


async def test_what_is_retried_is_as_if_it_had_never_been_parked(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 4)
    await Runner(log, tables.url, projections=ALL).run(until=last)
    right = await tables.dump()
    await tables.drop()
    await Runner(log, tables.url, projections=[Audit(), refusing(Runs, 1, 5), Agents()]).run(until=last)
    assert [row[:2] for row in await parked(tables)] == [("runs", 1), ("runs", 5)]
    assert await tables.dump() != right
    # The request was parked, so nothing that came later counted; now all of it does.
    assert await retry_parked(log, tables.url, Runs(), 1) == 3
    assert await tables.row("SELECT status FROM runs WHERE run_id = 'r0'") == ("completed",)
    assert await retry_parked(log, tables.url, Runs(), 5) == 3
    assert await tables.dump() == right
    with pytest.raises(NotFoundError, match="no event 5 is parked in runs"):
        await retry_parked(log, tables.url, Runs(), 5)


async def test_an_instance_and_a_row_of_the_audit_come_back_too(log: EventLog, tables: Tables) -> None:
    subject = log.subjects.agent("refund", "i1", "registered")
    for slots in (1, 2):
        await log.append(subject, AgentRegistered(slots=slots, handlers={}))
    last = await log.append(log.subjects.agent("refund", "i1", "draining"), AgentDraining(reason="tired"))
    await Runner(log, tables.url).run(until=last)
    right = await tables.dump()
    await tables.drop()
    await Runner(log, tables.url, projections=[refusing(Audit, 2), Runs(), refusing(Agents, 1)]).run(until=last)
    assert await retry_parked(log, tables.url, Agents(), 1) == 3
    assert await retry_parked(log, tables.url, Audit(), 2) == 1
    assert await tables.dump() == right


async def test_what_still_cannot_be_applied_stays_parked_with_the_new_reason(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 2)
    await Runner(log, tables.url, projections=[Audit(), refusing(Runs, 2), Agents()]).run(until=last)
    before = await tables.dump()
    tables_before = {name: text for name, text in before.items() if name != "parked_events"}
    async with queries.writing(tables.url, tables.space) as connection:
        await connection.execute(f"ALTER TABLE {await _table(tables)} ADD CHECK (false) NOT VALID".encode())
    with pytest.raises(
        CommandRejectedError, match="event 2 still cannot be applied to runs: CheckViolation"
    ) as refusal:
        await retry_parked(log, tables.url, Runs(), 2)
    assert "projection skip runs 2" in refusal.value.remedy
    ((_, sequence, reason, skipped),) = await parked(tables)
    assert (sequence, skipped) == (2, False)
    assert reason.startswith("CheckViolation")
    after = await tables.dump()
    assert {name: text for name, text in after.items() if name != "parked_events"} == tables_before


async def _table(tables: Tables) -> str:
    (schema,) = await tables.row("SELECT tables_in FROM checkpoints WHERE projection = 'runs' AND shown")
    return f'"{schema}".tasks'


async def test_a_retry_needs_no_pause_of_the_service(log: EventLog, tables: Tables) -> None:
    await append_tasks(log, 3)
    runner = Runner(log, tables.url, projections=[Audit(), refusing(Runs, 4), Agents()])
    async with running(runner):
        await eventually(lambda: runner.status().positions["runs"].sequence == 9)
        assert await retry_parked(log, tables.url, Runs(), 4) == 3
        last = await append_tasks(log, 1, prefix="later")
        await eventually(lambda: runner.status().positions["runs"].sequence == last)
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (4,)


async def test_who_left_it_out_is_kept_and_a_rebuild_that_parks_it_again_leaves_it_out(
    log: EventLog, tables: Tables
) -> None:
    last = await append_tasks(log, 2)
    projections = [Audit(), refusing(Runs, 2, 5), Agents()]
    await Runner(log, tables.url, projections=projections).run(until=last)
    async with queries.writing(tables.url, tables.space) as connection:
        await skip_parked(connection, "runs", 2, by="ann")
        with pytest.raises(NotFoundError, match="no event 3 is parked"):
            await skip_parked(connection, "runs", 3, by="ann")
    for generation in (1, 2):
        async with queries.reading(tables.url, tables.space) as connection:
            undecided = await queries.list_parked(connection, projection="runs")
            everything = await queries.list_parked(connection, skipped=True)
        assert [one.sequence for one in undecided] == [5]
        assert [(one.sequence, one.skipped_by, one.generation) for one in everything] == [
            (2, "ann", generation), (5, None, generation),
        ]  # fmt: skip
        assert isinstance(everything[0].skipped_at, datetime)
        if generation == 1:
            (report,) = await rebuild(log, tables.url, projections[1:2])
            assert (report.parked, report.differences) == (2, 0)
    await rebuild(log, tables.url, [Runs()])
    assert await parked(tables) == []


async def test_another_version_or_another_log_is_not_retried_into(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 2)
    await Runner(log, tables.url, projections=[refusing(Runs, 2)]).run(until=last)
    versions = f"people read version {Runs.version} of runs, this release has version {RunsLater.version}"
    with pytest.raises(ConfigurationError, match=versions):
        await retry_parked(log, tables.url, RunsLater(), 2)
    await tables.rows("UPDATE parked_events SET event_id = 'another' RETURNING 1")
    with pytest.raises(HistoryRegressedError):
        await retry_parked(log, tables.url, Runs(), 2)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), cut=st.integers(1, 9))
async def test_law_parked_and_retried_in_any_order_is_never_parked(
    nats_url: str, tables: Tables, data: st.DataObject, cut: int
) -> None:
    items = data.draw(run_stories(max_size=12))
    space = f"p{data.draw(st.integers(0, 2**60)):x}"
    connection = await connect_nats(nats_url, name="tests")
    here = Tables(tables.url, space)
    async with EventLog(connection, space, source="tests") as log:
        await log.ensure()
        for item in items:
            assert isinstance(item, Envelope)
            await log.append(f"{space}.{item.subject.partition('.')[2]}", item.event)
        wrong = data.draw(st.sets(st.integers(1, len(items)), min_size=1, max_size=4))
        await Runner(log, here.url).run(until=len(items))
        right = await here.dump()
        await here.drop()
        unwell = [Audit(), refusing(Runs, *wrong), Agents()]
        await Runner(log, here.url, projections=unwell, batch_size=cut).run(until=len(items))
        for sequence in data.draw(st.permutations(sorted(wrong))):
            await retry_parked(log, here.url, Runs(), sequence)
        assert await here.dump() == right
        await here.drop()
    await connection.close()
