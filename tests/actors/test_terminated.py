"""SIGTERM to any part at any moment of its work: it ends in good order, and every run and table is as if it had not."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.events.connection import connect
from cuebook.projections.runner import Runner
from tests.actors.processes import Cast, Service
from tests.actors.test_restarts import UNLUCKY, check_all
from tests.projections.tables import Tables
from tests.waiting import eventually

TURNS = 3
RUNS_A_TURN = 12
TERMINATED = (0, -15)
"""In good order; or before Python had got so far as to listen for signals."""


@pytest.mark.parametrize("seed", [4])
async def test_whoever_is_told_to_stop_while_all_are_busy_nothing_is_lost_or_done_twice(
    nats_url: str, database_url: str, space: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    connection = await connect(nats_url, name="tests")
    runs: dict[str, int] = {}
    async with Cast(nats_url, space, tmp_path) as cast, Client(connection, space) as client:
        await client.log.ensure()
        start: dict[str, Callable[[], Awaitable[Service]]] = {
            "orchestrator": lambda: cast.orchestrator("chain"),
            "agents": lambda: cast.agents("Quick"),
            "projections": lambda: cast.projections(database_url),
        }
        parts = {name: await begin() for name, begin in start.items()}
        for one in parts.values():
            await one.says("ready")
        for turn in range(TURNS):
            for _ in range(RUNS_A_TURN):
                n = UNLUCKY if len(runs) % 4 == 0 else 100 + len(runs)
                runs[await client.submit_run("chain", {"n": n}, run_id=f"chain-{len(runs)}")] = n
            mark = (await client.log.verify()).last_sequence + chance.randrange(1, 60)

            async def stored(mark: int = mark) -> bool:
                return (await client.log.verify()).last_sequence >= mark

            await eventually(stored, within_s=30)
            name = list(start)[turn % len(start)]
            assert await parts[name].stop() in TERMINATED, parts[name].errors
            parts[name] = await start[name]()
        await check_all(client, runs, cast.ledger)
        for one in parts.values():
            await one.says("ready")
            assert await one.stop() == 0, one.errors
        last = (await client.log.verify()).last_sequence
        await Runner(client.log, database_url).run(until=last)
        tables = Tables(database_url, space)
        rows = await tables.rows("SELECT run_id, status FROM runs")
        counted = await tables.row("SELECT count(*), max(sequence) FROM audit")
    assert dict(rows) == {id_: "compensated" if n == UNLUCKY else "completed" for id_, n in runs.items()}
    assert counted == (last, last)
    await connection.close()
