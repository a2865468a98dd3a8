"""Open the tickets given as JSON lines on stdin, or wait for their ends: `open PREFIX`, `wait PREFIX`."""

from __future__ import annotations

import asyncio
import json
import sys

from cuebook.actors.client import Client, Outcome
from cuebook.events.connection import connect
from cuebook.events.errors import NotFoundError, UnavailableError


async def end_of(client: Client, run_id: str) -> Outcome:
    async with asyncio.timeout(60):
        while True:
            try:
                return await client.wait(run_id)
            except (NotFoundError, UnavailableError):  # not started yet, or a server that is on its way back
                await asyncio.sleep(0.05)


async def main(verb: str, prefix: str) -> None:
    connection = await connect("nats://127.0.0.1:4222", name="tickets")
    tickets = [json.loads(line) for line in sys.stdin]
    async with Client(connection, "cue", by="tests") as client:
        if verb == "open":
            for ticket in tickets:
                await client.publish("ticket.opened", ticket | {"id": prefix + ticket["id"]})
        else:
            for ticket in tickets:
                ended = await end_of(client, f"support-{prefix}{ticket['id']}")
                print(json.dumps([ticket["id"], ended.status, (ended.result or {}).get("resolution")]))
    await connection.close()


asyncio.run(main(*sys.argv[1:]))
