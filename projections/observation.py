"""How the projections are, for metrics: what they lack, and what they had to leave out."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import psycopg

from cuebook.events.errors import CuebookError
from cuebook.projections.database import connect, schema_name
from cuebook.projections.runner import Runner
from cuebook.projections.statements import load_statements
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import Sample

__all__ = ["Observation"]

ASK_EVERY_S: Final = 10.0
ASK_WITHIN_S: Final = 1.0

_SQL = load_statements("observation.sql")


class Observation:
    """Of one runner. What is parked stands in the database, which is asked every ten seconds at most.

    That it answers is seen by that, not only by the runner: to this a database that hangs looks like one that is slow.
    """

    def __init__(self, runner: Runner, database_url: str, space: str) -> None:
        self._runner, self._url, self._space = runner, database_url, space
        self._parked: dict[str, int] = {}
        self._asked_at = 0.0
        self._answers = True

    async def samples(self) -> list[Sample]:
        """How it is now; nothing about the tables before they are there."""
        runner = self._runner
        if not runner.ready.is_set():
            return [Sample(names.DATABASE_UP, (), 0)]
        await self._ask()
        found = [Sample(names.DATABASE_UP, (), int(runner.status().database_available and self._answers))]
        for projection, lag in runner.lags().items():
            behind_s = max(0.0, time.time() - lag.since / 1e6) if lag.events and lag.since else 0.0
            found += [
                Sample(names.PROJECTION_LAG, (projection,), lag.events),
                Sample(names.PROJECTION_LAG_S, (projection,), behind_s),
                Sample(names.PROJECTION_POSITION, (projection,), lag.position),
            ]
        return found + [Sample(names.PARKED, (projection,), count) for projection, count in self._parked.items()]

    async def _ask(self) -> None:
        now = time.monotonic()
        if self._asked_at and now - self._asked_at < ASK_EVERY_S:
            return
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                async with await connect(self._url, [schema_name(self._space)]) as connection:
                    cursor = await connection.execute(_SQL["parked"])
                    self._parked = dict(await cursor.fetchall())
        except (psycopg.Error, CuebookError, TimeoutError):
            self._answers = False  # what was known stays
            return
        self._answers, self._asked_at = True, now
