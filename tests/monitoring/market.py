"""The stall with all its processes, each with metrics, and people who keep it busy."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client as Nats

from cuebook.actors.client import Client
from cuebook.cli.directory import ask_or_none
from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.process import free_port
from cuebook.events.connection import connect
from cuebook.ledger.notes import PrivateKey
from tests.actors.site import publish
from tests.monitoring import stall
from tests.telemetry.processes import Processes
from tests.waiting import eventually

__all__ = ["Market", "fetched", "market"]

START_S = 60.0
PAUSE_S = 0.05


class Market:
    """`ports` by the name of the process; `device` publishes at the edge."""

    def __init__(self, processes: Processes, client: Client, device: Nats, ports: dict[str, int]) -> None:
        self.processes, self.client, self.device, self.ports = processes, client, device, ports

    async def metrics(self, name: str) -> str:
        """What a process exports now."""
        return await asyncio.to_thread(fetched, f"http://127.0.0.1:{self.ports[name]}/metrics")

    async def trade(self, orders: int = 0) -> None:
        """Order one thing after the other, so many; or without end, and then a person decides now and then."""
        for n in itertools.islice(itertools.count(1), orders or None):
            await self.client.submit_run("buy", {"n": n}, run_id=f"buy-{n}")
            if n % 10 == 0:
                await self.client.submit_run("vain", {"n": n})
                if not orders:
                    await self.decide(keep=2)
            await self.client.submit_task("stall", {"n": n}, handler="reserve", priority=n % 3)
            await self.client.submit_task("kiosk", {"n": n})
            await publish(self.device, self.client.log.subjects.space, n)
            await asyncio.sleep(PAUSE_S)

    async def asked(self) -> list[dict[str, Any]]:
        """What waits for a person, the latest last."""
        answer = await eventually(lambda: ask_or_none(self.client, "escalations"), within_s=START_S)
        assert answer is not None
        found: list[dict[str, Any]] = answer["escalations"]
        return found

    async def decide(self, *, keep: int) -> None:
        """A person answers all questions, and gives up all tasks that have failed, but the latest few."""
        for one in (await self.asked())[:-keep]:
            run_id, _, step = one["id"].partition("/")
            if one["kind"] == "task":
                await self.client.resolve(run_id, int(step), action="abort")
            else:
                await self.client.resolve(run_id, int(step), value={"approved": True})


def fetched(url: str) -> str:
    """The body of an answer."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        body: bytes = answer.read()
    return body.decode()


@asynccontextmanager
async def market(
    nats_url: str, database_url: str, space: str, folder: Path, monitor_url: str = ""
) -> AsyncIterator[Market]:
    """Everything runs and is ready: orchestrator and standby, projections, sealer, agents, an edge."""
    async with nats_server(folder / "place") as place, await nats.connect(place.url) as device:
        env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_DATABASE_URL": database_url}
        env |= {"CUEBOOK_NATS_MONITOR_URL": monitor_url} if monitor_url else {}
        shutil.copy(stall.__file__, folder / "stall.py")
        key = folder / "seal.key"
        PrivateKey.generate("stall.test").save(key)
        commands = {
            "orchestrator": ("orchestrator", "stall:buy", "stall:vain"),
            "standby": ("orchestrator", "stall:buy", "stall:vain"),
            "projections": ("projections",),
            "sealer": ("sealer", "--key", str(key), "--every-s", "1"),
            "agents": ("agents", "stall:Stall"),
            "edge": ("edge", "shop-7", "stall:Kiosk", "--edge-url", place.url),
        }
        ports = {name: free_port() for name in commands}
        async with Processes(folder, env) as processes:
            for n, (name, words) in enumerate(commands.items(), 1):
                await processes.serve(*words, CUEBOOK_METRICS=f"127.0.0.1:{ports[name]}")
                if name == "orchestrator":  # the one that leads
                    await eventually(lambda n=n: processes.errors().count(" ready ") >= n, within_s=START_S)  # type: ignore[misc]
            await eventually(lambda: processes.errors().count(" ready ") >= len(commands), within_s=START_S)
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                yield Market(processes, client, device, ports)
