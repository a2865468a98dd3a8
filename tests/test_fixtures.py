"""The servers that all tests share are real and reachable, and each test has its own corner of them."""

from __future__ import annotations

import nats
import psycopg


async def test_the_shared_nats_server_has_jetstream(nats_url: str, space: str) -> None:
    client = await nats.connect(nats_url)
    await client.jetstream(timeout=30).add_stream(name=space.upper(), subjects=[f"{space}.>"])
    assert (await client.jetstream(timeout=30).publish(f"{space}.event", b"")).seq == 1
    await client.close()


async def test_each_test_has_an_empty_database(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        tables = await connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'")
        assert tables.rowcount == 0
