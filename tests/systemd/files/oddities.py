"""Agents that hang, cling, idle and last, for what systemd does about each."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cuebook.actors import Agent, Task, handler


class Blocker(Agent):
    name = "blocker"

    @handler(timeout_s=600)
    async def block(self, text: str, task: Task) -> str:
        if task.attempt == 1:
            time.sleep(600)  # blocks the event loop, which no handler may
        return f"{text} at attempt {task.attempt}"


class Crew(Blocker):
    """The same, in several processes."""

    name = "crew"


class Clinger(Agent):
    name = "clinger"

    @handler(timeout_s=1)
    async def cling(self, text: str, task: Task) -> str:
        while task.attempt == 1:  # will not be told to end
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                continue
        return f"{text} at attempt {task.attempt}"


class Idler(Agent):
    name = "idler"

    @handler()
    async def idle(self, text: str) -> str:
        return text


class Laster(Agent):
    name = "laster"
    concurrency = 4

    @handler(timeout_s=60)
    async def last(self, seconds: float, task: Task) -> int:
        await asyncio.sleep(seconds)
        return task.attempt


class Porter(Agent):
    """Waits with all that it has until the gate is there."""

    name = "porter"
    concurrency = 4

    @handler(timeout_s=600)
    async def carry(self, text: str, task: Task) -> str:
        while not Path("/run/gate").exists():  # noqa: ASYNC110 - a file calls nobody
            await asyncio.sleep(0.1)
        return f"{text} at attempt {task.attempt}"
