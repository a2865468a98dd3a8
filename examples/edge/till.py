"""The agent of the shop: it counts what is on the shelves, two at a time, and has ten more tasks in advance."""

from __future__ import annotations

import asyncio
import zlib

from pydantic import BaseModel

from cuebook.actors import Agent, Task, handler

__all__ = ["Counted", "Shelf", "Till"]

COUNTING_S = 0.3


class Shelf(BaseModel):
    """Which shelf to count."""

    shelf: str


class Counted(BaseModel):
    """How many things are on it."""

    things: int


class Till(Agent):
    """Counts what is on the shelves of the shop."""

    name = "till"
    concurrency = 2
    ahead = 10
    offline_for_s = 1800

    @handler(timeout_s=30, pure=True)
    async def count(self, shelf: Shelf, task: Task) -> Counted:
        """Count one shelf."""
        await asyncio.sleep(COUNTING_S)
        task.logger.info("counted shelf %s", shelf.shelf)
        return Counted(things=zlib.crc32(shelf.shelf.encode()) % 100)
