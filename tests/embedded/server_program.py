"""The program that the tests of `embedded` interrupt and kill: it runs both servers until it is stopped.

Prints one JSON line with the process ids once both answer, and "drained" if the servers still answer after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import nats
import psycopg

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres


async def main(data_dir: Path) -> None:
    async with nats_server(data_dir) as server, postgres(data_dir, durable=False) as database:
        print(json.dumps({"nats": server.pid, "postgres": database.pid}), flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            client = await nats.connect(server.url)
            await client.close()
            async with await psycopg.AsyncConnection.connect(database.url) as connection:
                await connection.execute("SELECT 1")
            print("drained", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
