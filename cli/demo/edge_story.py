"""`just edge`: a hub, a leaf node, and a link between them that is cut while the shop works.

Two real nats-servers, an orchestrator and `cuebook serve edge` as processes; what they say is shown as it comes. With
`--step` it waits for Enter before it cuts and before it mends the link, to look around from other terminals.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import typer

from cuebook.actors.client import Client
from cuebook.cli.serving.children import Program, running
from cuebook.embedded.nats_edge import NatsEdge, nats_edge
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope

__all__ = ["main"]

SHELVES = 10
READINGS = 5
POLL_S = 0.05
DEADLINE_S = 60.0
_BEGAN = time.monotonic()


def say(who: str, text: str) -> None:
    """One line, with the seconds since the start."""
    typer.echo(f"{time.monotonic() - _BEGAN:5.1f} s  {who:12}  {text}")
    sys.stdout.flush()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the programs say. Raises TimeoutError."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - lines of other programs
            await asyncio.sleep(POLL_S)


async def step(what: str, *, wait: bool) -> None:
    """Wait for Enter, if somebody wants to look around."""
    if wait:
        await asyncio.to_thread(input, f"         Enter {what} ")


async def play(servers: NatsEdge, *, wait: bool) -> None:
    """The story."""
    heard: list[str] = []

    def listen(who: str, text: str) -> None:
        heard.append(text)
        say(who, text.partition(" INFO ")[2] or text.partition(" WARNING ")[2] or text)

    cuebook = [sys.executable, "-m", "cuebook.cli.main", "serve"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUEBOOK_")}
    shop = {"CUEBOOK_NATS_URL": servers.uplink_url, "CUEBOOK_EDGE_URL": servers.keeper_url}
    hub = {"CUEBOOK_NATS_URL": servers.hub.url}
    monitors = {"CUEBOOK_NATS_MONITOR_URL": f"{servers.leaf.monitor_url},{servers.hub.monitor_url}"}
    programs = [
        Program(name="orchestrator", argv=[*cuebook, "orchestrator"], env={**env, **hub, **monitors}),
        Program(
            name="shop-7",
            argv=[*cuebook, "edge", "shop-7", "cuebook.examples.edge.till:Till"],
            env={**env, **shop, **monitors},
        ),
    ]
    say("you", f"for another terminal: export CUEBOOK_NATS_URL={servers.hub.url}")
    say("you", f"to be a sensor:       nats --server {servers.url} pub cue.event.door.opened '{{}}'")
    connection = await connect(servers.hub.url, name="edge example")
    sensor = await connect(servers.url, name="sensor")
    async with running(programs, listen), Client(connection, "cue", by="example") as client:
        await until(lambda: any("ready edge=shop-7" in line for line in heard))
        names = [f"shelf-{n}" for n in range(SHELVES)]
        for name in names:
            await client.submit_task("till", {"shelf": name}, run_id=name, labels={"edge": "shop-7"})
        await until(lambda: any("counted shelf" in line for line in heard))
        await step("cuts the link", wait=wait)
        say("you", "CUT the link")
        servers.link.cut()
        for n in range(READINGS):
            await sensor.request("cue.event.fridge.read", b'{"celsius": %d}' % n)
        say("sensor", f"{READINGS} readings published, acknowledged by the shop's own server")
        await until(lambda: sum("counted shelf" in line for line in heard) == SHELVES)
        await until(lambda: any("link to the log is cut" in line for line in heard))
        say("you", f"{await outcomes(client, names)} of {SHELVES} answers are on the log; the rest is in the shop")
        await step("mends the link", wait=wait)
        say("you", "MEND the link")
        servers.link.mend()
        for name in names:
            await client.wait(name, timeout_s=DEADLINE_S)
        await readings(client)
        say("you", f"{await outcomes(client, names)} of {SHELVES} answers are on the log, each once")
        say("you", f"{READINGS} readings are on the log, in their order")
    await sensor.close()
    await connection.close()


async def outcomes(client: Client, names: list[str]) -> int:
    """How many runs have their answer on the log. Raises AssertionError for one that has two."""
    log = [item async for item in client.log.read() if isinstance(item, Envelope)]
    found = Counter(item.address.run_id for item in log if item.address.fact == "completed")
    assert all(found[name] <= 1 for name in names), f"an answer came twice: {found}"
    return len(found)


async def readings(client: Client) -> None:
    """Wait until the log has the readings. Raises AssertionError for another order."""
    subject, found = client.log.subjects.event("fridge.read"), list[object]()
    async with asyncio.timeout(DEADLINE_S):
        async for item in client.log.follow(filters=[subject]):
            assert isinstance(item, Envelope), "a sensor's JSON can be read"
            found.append(item.data)
            if len(found) == READINGS:
                break
    assert found == [{"celsius": n} for n in range(READINGS)], found


async def main() -> None:
    """Start everything, play, stop everything."""
    with tempfile.TemporaryDirectory(prefix="cuebook-edge-") as folder:
        async with nats_edge(Path(folder)) as servers:
            await play(servers, wait="--step" in sys.argv)


if __name__ == "__main__":
    asyncio.run(main())
