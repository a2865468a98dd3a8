"""What is put on stage to be measured: an agent that does nothing or waits, and a saga of three steps."""

from __future__ import annotations

import asyncio
from typing import Final

from pydantic import BaseModel, NonNegativeFloat, PositiveInt

from cuebook.actors import Agent, Run, Task, handler, saga

__all__ = ["SLOTS", "Item", "Pause", "Stagehand", "Understudy", "three"]

SLOTS: Final = 20_000
"""Of the one instance: more than any scenario has in flight, so that what is measured is never the wait for a slot."""


class Item(BaseModel):
    number: PositiveInt


class Pause(BaseModel):
    seconds: NonNegativeFloat


class Stagehand(Agent):
    """Does nothing, or waits. Never renewed: a fresh instance in the middle would be measured with the rest."""

    name = "stagehand"
    concurrency = SLOTS
    recycle_after = 0

    @handler(timeout_s=60)
    async def noop(self, item: Item) -> Item:
        return item

    @handler(timeout_s=60)
    async def step(self, item: Item) -> Item:
        return item

    @step.compensation
    async def unstep(self, item: Item, done: Item) -> None:
        pass

    @handler(timeout_s=120)
    async def wait(self, pause: Pause) -> Pause:
        await asyncio.sleep(pause.seconds)
        return pause


class Understudy(Agent):
    """As an author gets it who says nothing about heartbeats and retries."""

    name = "understudy"
    concurrency = 50

    @handler(timeout_s=120)
    async def hold(self, item: Item, task: Task) -> Item:
        """The first who is asked never ends, the next one at once."""
        if task.attempt == 1:
            await asyncio.Event().wait()
        return item

    @handler(timeout_s=120)
    async def play(self, item: Item) -> Item:
        return item


@saga(name="three")
async def three(run: Run, item: Item) -> Item:
    first = await run.call(Stagehand.step, item)
    second = await run.call(Stagehand.step, first)
    return await run.call(Stagehand.step, second)
