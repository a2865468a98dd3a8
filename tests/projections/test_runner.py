"""From the log into the tables, while servers and processes come and go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.connection import connect
from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, HistoryRegressedError
from cuebook.events.facts import OutsideEvent, TaskAssigned, TaskCompleted, TaskRequested
from cuebook.events.log import EventLog
from cuebook.projections import checkpoint
from cuebook.projections.audit import Audit
from cuebook.projections.reader import LogReader
from cuebook.projections.runner import ALL, Runner
from cuebook.projections.runs import Runs
from tests.projections.story import Story
from tests.projections.tables import Tables
from tests.waiting import eventually


async def append_tasks(log: EventLog, count: int, *, prefix: str = "r") -> int:
    """Three events for each task, without waiting in between. Returns the last sequence."""
    sequences: list[int] = []

    def done(sequence: int, error: Exception | None) -> None:
        assert error is None
        sequences.append(sequence)

    for number in range(count):
        run_id = f"{prefix}{number}"
        requested = TaskRequested(handler="issue", input={"n": number})
        log.post(log.subjects.task(run_id, 0, "requested", "refund"), requested, done=done)
        assigned = TaskAssigned(handler="issue", attempt=1, timeout_s=9)
        log.post(log.subjects.task(run_id, 0, "assigned", "refund", "i1"), assigned, done=done)
        log.post(log.subjects.task(run_id, 0, "completed"), TaskCompleted(output=number), done=done)
    await log.appender.flushed()
    return max(sequences)


@asynccontextmanager
async def running(runner: Runner) -> AsyncIterator[asyncio.Task[None]]:
    """The runner as a task, drained at the end."""
    task = asyncio.create_task(runner.run())
    try:
        yield task
    finally:
        runner.drain()
        await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()):
        raise error


async def test_what_is_in_the_log_is_soon_in_the_tables(log: EventLog, tables: Tables) -> None:
    runner = Runner(log, tables.url)
    await append_tasks(log, 5)
    async with running(runner):
        await asyncio.wait_for(runner.ready.wait(), 60)
        await eventually(lambda: {position.sequence for position in runner.status().positions.values()} == {15})
        last = await log.append(log.subjects.event("later"), OutsideEvent(data=1))
        await eventually(lambda: {position.sequence for position in runner.status().positions.values()} == {last})
    assert await tables.row("SELECT count(*), sum(last_sequence) FROM runs WHERE status = 'completed'") == (5, 45)
    assert runner.status().backlog == 0


async def test_small_batches_and_restarts_give_what_one_run_gives(log: EventLog, tables: Tables) -> None:
    last = await append_tasks(log, 100)
    await log.connection.publish(log.subjects.event("broken"), b"\xff")
    await log.append(log.subjects.event("nul"), OutsideEvent(data="\0"))
    last += 2
    for until in (1, 50, 137, last):
        await Runner(log, tables.url, batch_size=7).run(until=until)
        assert await tables.rows("SELECT DISTINCT sequence FROM checkpoints") == [(until,)]
    live = await tables.dump()
    await tables.drop()
    await Runner(log, tables.url).run(until=last)
    assert await tables.dump() == live
    assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(n,) for n in range(1, last + 1)]
    assert await tables.rows("SELECT sequence FROM audit WHERE raw IS NOT NULL ORDER BY 1") == [(last - 1,), (last,)]


async def test_a_projection_that_lags_catches_up_and_no_other_applies_anything_twice(
    log: EventLog, tables: Tables
) -> None:
    await append_tasks(log, 5)
    await Runner(log, tables.url, projections=[Audit()]).run(until=9)
    await Runner(log, tables.url, projections=[Runs()]).run(until=3)
    await Runner(log, tables.url, projections=ALL).run(until=15)
    assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(n,) for n in range(1, 16)]
    assert await tables.row("SELECT count(*) FROM runs WHERE status = 'completed'") == (5,)


async def test_a_gap_in_the_log_is_a_loss(log: EventLog) -> None:
    story = Story(log.subjects.space)
    for number in range(3):
        story.request(f"r{number}")
    reader = LogReader(log, after=Position())
    reader._check_gaps(story.items)
    with pytest.raises(HistoryRegressedError, match="holds nothing from 2 to 2"):
        reader._check_gaps([story.items[0], story.items[2]])
    with pytest.raises(HistoryRegressedError, match="holds nothing from 1 to 1"):
        reader._check_gaps(story.items[1:])


async def test_of_two_runners_one_stops_and_the_other_goes_on(
    log: EventLog, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CLAIM_WAIT", "1ms")
    runners = [Runner(log, tables.url), Runner(log, tables.url)]
    tasks = [asyncio.create_task(runner.run()) for runner in runners]
    (stopped,), (going,) = await asyncio.wait(tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(ConfigurationError, match="another process writes projection audit"):
        await stopped
    runner = runners[tasks.index(going)]
    last = await append_tasks(log, 2)
    await eventually(lambda: {position.sequence for position in runner.status().positions.values()} == {last})
    runner.drain()
    await going


async def test_a_drain_ends_it_while_postgresql_is_away(log: EventLog) -> None:
    runner = Runner(log, "postgresql://postgres@127.0.0.1:1/nothing")
    async with running(runner):
        await eventually(lambda: not runner.status().database_available)
        assert not runner.ready.is_set()


async def test_a_stop_that_was_asked_for_before_the_start_counts(log: EventLog, tables: Tables) -> None:
    stop = asyncio.Event()
    stop.set()
    await Runner(log, tables.url, stop=stop).run()


async def test_postgresql_may_die_in_the_middle(log: EventLog, space: str, tmp_path: Path) -> None:
    last = await append_tasks(log, 400)
    async with postgres(tmp_path, durable=False) as server:
        tables, runner = Tables(server.url, space), Runner(log, server.url, batch_size=10)
        async with running(runner):
            await eventually(lambda: runner.status().positions["audit"].sequence > 100)
            await server.kill()
            await eventually(lambda: not runner.status().database_available)
            await server.restart()
            done = {last}
            await eventually(
                lambda: {position.sequence for position in runner.status().positions.values()} == done, within_s=60
            )
            assert runner.status().database_available
        assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(n,) for n in range(1, last + 1)]
        live = await tables.dump()
        await tables.drop()
        await Runner(log, server.url).run(until=last)
        assert await tables.dump() == live


async def test_nats_may_restart_in_the_middle(space: str, database_url: str, tmp_path: Path) -> None:
    async with nats_server(tmp_path, sync_always=True) as server:
        connection = await connect(server.url, name="tests")
        async with EventLog(connection, space, source="tests") as log:
            await log.ensure()
            await append_tasks(log, 50)
            tables, runner = Tables(database_url, space), Runner(log, database_url)
            async with running(runner):
                await eventually(lambda: runner.status().positions["audit"].sequence == 150)
                await server.kill()
                await server.restart()
                last = await append_tasks(log, 10, prefix="after")
                await eventually(lambda: runner.status().positions["audit"].sequence == last, within_s=60)
        await connection.close()
        assert await tables.rows("SELECT sequence FROM audit ORDER BY 1") == [(n,) for n in range(1, 181)]


async def test_another_log_under_the_same_name_stops_the_projections(
    space: str, database_url: str, tmp_path: Path
) -> None:
    for directory in ("first", "second"):  # the second is as a restored one: shorter, then longer with other events
        async with nats_server(tmp_path / directory) as server:
            connection = await connect(server.url, name="tests")
            async with EventLog(connection, space, source="tests") as log:
                await log.ensure()
                runner = Runner(log, database_url)
                if directory == "first":
                    await runner.run(until=await append_tasks(log, 3))
                else:
                    with pytest.raises(HistoryRegressedError):
                        await runner.run()
                    await append_tasks(log, 10)
                    with pytest.raises(HistoryRegressedError):
                        await runner.run()
            await connection.close()
    tables = Tables(database_url, space)
    assert await tables.rows("SELECT DISTINCT sequence FROM checkpoints") == [(9,)]


def test_a_process_that_only_projects_gives_way_to_the_others() -> None:
    code = "import os; from cuebook.projections.runner import give_way; give_way(); give_way(); print(os.nice(0))"
    before = os.nice(0)
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(printed) == max(before, 10)
