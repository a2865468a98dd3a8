"""The shop's PostgreSQL: one connection an agent, opened when first needed and again after it broke."""

import asyncio
from types import TracebackType
from typing import Any, LiteralString, Self

from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

__all__ = ["Database"]


class Database:
    """Runs single statements, each its own transaction; calls from many tasks queue on the one connection.

    A broken connection raises psycopg.OperationalError out of the statement that met it, for the caller's retry; the
    next statement connects anew.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AsyncConnection[DictRow] | None = None
        self._connecting = asyncio.Lock()

    async def fetch(self, statement: LiteralString, **values: Any) -> list[DictRow]:
        """Run one statement with named values; return its rows, in the statement's order, possibly none."""
        connection = await self._connected()
        cursor = await connection.execute(statement, values or None)
        return await cursor.fetchall() if cursor.description else []

    async def run_script(self, script: bytes) -> None:
        """Run all statements of a script in one transaction, one script at a time however many ask."""
        connection = await self._connected()
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(hashtext('cuebook support desk'))")
            await connection.execute(script)

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _connected(self) -> AsyncConnection[DictRow]:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await AsyncConnection.connect(self._url, autocommit=True, row_factory=dict_row)
            return self._connection
