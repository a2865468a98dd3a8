"""The tables of one space, written without a log."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import psycopg
from psycopg import sql

from cuebook.projections.database import Outage, connect, schema_name
from cuebook.projections.migrations import prepare_database
from cuebook.projections.projection import Item, Projection
from cuebook.projections.runner import ALL
from cuebook.projections.timeseries import Timeseries
from cuebook.projections.writer import Writer
from tests.waiting import eventually

__all__ = ["Tables", "cut"]


def cut(items: Sequence[Item], at: Iterable[int]) -> list[Sequence[Item]]:
    """The items in batches: a new one begins at each of the places."""
    places = [0, *sorted({place % len(items) for place in at} - {0}), len(items)]
    return [items[start:end] for start, end in itertools.pairwise(places)]


class Tables:
    """What the projections of a space make of items."""

    def __init__(
        self,
        database_url: str,
        space: str,
        projections: Sequence[Projection] = ALL,
        *,
        timeseries: Timeseries = Timeseries.AUTO,
    ) -> None:
        self.url, self.space, self.projections, self.timeseries = database_url, space, projections, timeseries

    async def prepare(self) -> None:
        """Make the tables."""
        async with await connect(self.url, [schema_name(self.space)]) as connection:
            await prepare_database(connection, self.space, self.projections, timeseries=self.timeseries)

    async def apply(self, *batches: Sequence[Item]) -> list[Writer]:
        """Make the tables if need be and write the batches; each of `writers` is new, as after a restart."""
        await self.prepare()
        async with AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(self.writer(projection)) for projection in self.projections]
            for batch in batches:
                for writer in writers:
                    await writer.apply(batch)
        return writers

    def writer(self, projection: Projection) -> Writer:
        return Writer(projection, self.url, self.space, Outage())

    async def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query on the views."""
        async with await connect(self.url, [schema_name(self.space)]) as connection:
            cursor = await connection.execute(query.encode(), values or None)
            return await cursor.fetchall()

    async def row(self, query: str, *values: Any) -> tuple[Any, ...]:
        """The one row of a query."""
        (found,) = await self.rows(query, *values)
        return found

    async def released(self, projection: str = "", generation: int = 0) -> None:
        """Wait until nobody writes this generation, or any: PostgreSQL ends a session a while after its client left."""

        async def let_go() -> bool:
            query = "SELECT 1 FROM checkpoints WHERE is_claimed(projection, generation)"
            if not projection:
                return not await self.rows(query)
            return not await self.rows(f"{query} AND projection = %s AND generation = %s", projection, generation)

        await eventually(let_go)

    async def dump(self) -> dict[str, str]:
        """Everything that readers see and a rebuild must give again, byte for byte."""
        await self.add_up()
        names = ["agent_actions", "agents", "agent_health", "audit", "runs", "tasks"]
        queries: dict[str, sql.Composable] = {
            name: sql.SQL("SELECT * FROM {} ORDER BY 1, 2, 3, 4").format(sql.Identifier(name)) for name in names
        }
        queries["checkpoints"] = sql.SQL(
            "SELECT projection, version, sequence, event_id FROM checkpoints WHERE shown ORDER BY 1"
        )
        queries["parked_events"] = sql.SQL(
            "SELECT projection, p.sequence, recorded_at, p.event_id, subject, reason FROM parked_events AS p "
            "JOIN checkpoints USING (projection, generation) WHERE shown ORDER BY 1, 2"
        )
        async with await connect(self.url, [schema_name(self.space)]) as connection:
            return {name: await _copied(connection, query) for name, query in queries.items()}

    async def add_up(self) -> None:
        """What hypertables do every half an hour: a continuous aggregate lacks rows from long ago that just came."""
        async with await connect(self.url, [schema_name(self.space)]) as connection:
            cursor = await connection.execute(
                "SELECT tables_in FROM checkpoints WHERE projection = 'audit' AND timeseries = 'timescale' AND shown"
            )
            for (schema,) in await cursor.fetchall():
                view = sql.Literal(sql.Identifier(schema, "agent_actions").as_string())
                statement = sql.SQL("CALL public.refresh_continuous_aggregate({}::regclass, NULL, NULL)").format(view)
                await connection.execute(statement)

    async def drop(self) -> None:
        """Forget everything, as if PostgreSQL had been lost."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            cursor = await connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cuebook%'")
            for (name,) in await cursor.fetchall():
                if name.partition("@")[0] == schema_name(self.space):
                    await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


async def _copied(connection: psycopg.AsyncConnection[Any], query: sql.Composable) -> str:
    statement = sql.SQL("COPY ({}) TO STDOUT").format(query)
    async with connection.cursor().copy(statement) as source:
        return "".join([bytes(block).decode() async for block in source])
