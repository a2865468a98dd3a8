"""Rebuilt = live, byte for byte, whatever the batches were, wherever it was stopped, and whatever was going on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog
from cuebook.projections.projection import Item
from cuebook.projections.rebuild import rebuild, rollback
from cuebook.projections.runner import ALL, Runner
from tests.projections.story import agent_stories, run_stories
from tests.projections.tables import Tables

on_servers = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
stories = run_stories(max_size=25) | agent_stories(max_size=15)
sizes = st.integers(1, 12)
_numbers = itertools.count()


class Killed(BaseException):
    """As if the process had ended here."""


@contextmanager
def killed_at(statement: int) -> Iterator[None]:
    """No statement from the given one on reaches PostgreSQL; open transactions end with their connections."""
    execute = psycopg.AsyncConnection.execute
    counter = itertools.count(1)

    async def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(counter) >= statement:
            await self.close()
            raise Killed
        return await execute(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.AsyncConnection, "execute", counted)
        yield


async def append(log: EventLog, items: list[Item]) -> None:
    for item in items:
        assert isinstance(item, Envelope)
        await log.append(f"{log.subjects.space}.{item.subject.partition('.')[2]}", item.event)


@on_servers
@given(items=stories, live_size=sizes, size=sizes, kills=st.lists(st.integers(40, 170), max_size=4), more=st.booleans())
async def test_law_wherever_it_is_killed_readers_see_the_live_rows_and_then_the_same_rebuilt(
    nats_url: str, tables: Tables, items: list[Item], live_size: int, size: int, kills: list[int], *, more: bool
) -> None:
    connection = await connect(nats_url, name="tests")
    here = Tables(tables.url, f"k{next(_numbers)}{tables.space}")
    async with EventLog(connection, here.space, source="tests") as log:
        await log.ensure()
        await append(log, items)
        await Runner(log, here.url, batch_size=live_size).run(until=len(items))
        live = await here.dump()
        for statement in kills:
            try:
                with killed_at(statement):
                    await rebuild(log, here.url, ALL, batch_size=size)
            except (Killed, BaseExceptionGroup):
                pass
            assert await here.dump() == live
        reports = await rebuild(log, here.url, ALL, batch_size=size)
        assert all(report.differences == 0 and report.switched for report in reports)
        assert await here.dump() == live
        if more:  # what is written after a switch, and after the way back, is what it would have been without
            await append(log, items[: len(items) // 2])
            await rollback(log, here.url, ALL[1], batch_size=size)
            await Runner(log, here.url, batch_size=size).run(until=(await log.verify()).last_sequence)
            switched = await here.dump()
            await here.drop()
            await Runner(log, here.url).run(until=(await log.verify()).last_sequence)
            assert await here.dump() == switched
        assert len(await here.rows("SELECT 1 FROM checkpoints WHERE state = 'building'")) == 0
        await here.drop()
    await connection.close()


@on_servers
@given(items=stories, statement=st.integers(10, 80), size=sizes)
async def test_law_a_rollback_that_is_killed_has_happened_or_not(
    nats_url: str, tables: Tables, items: list[Item], statement: int, size: int
) -> None:
    connection = await connect(nats_url, name="tests")
    here = Tables(tables.url, f"b{next(_numbers)}{tables.space}")
    runs = ALL[1]
    async with EventLog(connection, here.space, source="tests") as log:
        await log.ensure()
        await append(log, items[: len(items) // 2])
        until = len(items) // 2
        if until:
            await Runner(log, here.url).run(until=until)
        await rebuild(log, here.url, [runs])
        await append(log, items[until:])
        await Runner(log, here.url).run(until=len(items))
        live = await here.dump()
        try:
            with killed_at(statement):
                await rollback(log, here.url, runs, batch_size=size)
        except (Killed, BaseExceptionGroup):
            pass
        assert await here.dump() == live
        shown = await here.row("SELECT generation FROM checkpoints WHERE projection = 'runs' AND shown")
        back = await rollback(log, here.url, runs, batch_size=size)
        assert (back.before,) == shown
        assert await here.dump() == live
        await here.drop()
    await connection.close()
