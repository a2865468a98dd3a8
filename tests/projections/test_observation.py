"""What is told about the projections to whoever watches."""

from __future__ import annotations

import asyncio

from cuebook.events.log import EventLog
from cuebook.projections.observation import Observation
from cuebook.projections.runner import Runner
from cuebook.telemetry import metric_names as names
from tests.projections.tables import Tables
from tests.projections.test_runner import running
from tests.waiting import eventually


async def test_a_database_that_hangs_is_not_up_for_whoever_watches(log: EventLog, tables: Tables) -> None:
    """The runner still waits for it; whoever asks beside it has no answer within a second."""
    await log.ensure()
    runner = Runner(log, tables.url)
    hung = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    async with running(runner):
        await eventually(runner.ready.is_set, within_s=60)
        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            silent = Observation(runner, f"postgresql://postgres@127.0.0.1:{port}/none", log.subjects.space)
            assert {one.metric: one.value for one in await silent.samples()}[names.DATABASE_UP] == 0
            hung.set()
        seen = Observation(runner, tables.url, log.subjects.space)

        async def is_up() -> bool:
            return {one.metric: one.value for one in await seen.samples()}[names.DATABASE_UP] == 1

        await eventually(is_up)  # on a busy machine it may not answer within a second at first
