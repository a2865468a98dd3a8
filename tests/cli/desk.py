"""What a user of the command line has written: served in this process by fixtures, and as processes from a copy."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from cuebook.actors import Agent, Approval, Retry, Run, Task, handler, hours, saga


class In(BaseModel):
    n: int


class Out(BaseModel):
    n: int


class Echo(Agent):
    """Says it again, one more."""

    name = "echo"
    concurrency = 4
    labels: ClassVar = {"zone": "a"}

    @handler(timeout_s=20)
    async def add(self, given: In, task: Task) -> Out:
        """Adds one."""
        await task.progress("adding", 0.5)
        return Out(n=given.n + 1)

    @add.compensation
    async def subtract(self, given: In, result: Out, task: Task) -> None: ...


class Faulty(Agent):
    name = "faulty"

    @handler(timeout_s=20, retry=Retry(attempts=2, backoff_s=0.01))
    async def fail(self, given: In) -> Out:
        raise ValueError(f"no {given.n}")


class Patient(Agent):
    """Works until the file named by `DESK_GATE` exists, on the loop or in a thread."""

    name = "patient"
    heartbeat_s = 0.5
    concurrency = 2

    @handler(timeout_s=60)
    async def wait(self, given: In) -> Out:
        while not Path(os.environ["DESK_GATE"]).exists():  # noqa: ASYNC110 - the gate is opened by another process
            await asyncio.sleep(0.01)
        return Out(n=given.n)

    @handler(timeout_s=60)
    def block(self, given: In) -> Out:
        while not Path(os.environ["DESK_GATE"]).exists():
            time.sleep(0.01)
        return Out(n=given.n)


class Nameless(Agent):
    @handler()
    async def add(self, given: In) -> Out:
        return Out(n=given.n)


class Unfit(Agent):
    name = "unfit"

    async def start(self) -> None:
        raise ConnectionError("the shop is closed")

    @handler()
    async def add(self, given: In) -> Out:
        return Out(n=given.n)


@saga(on="order.placed", key="n")
async def order(run: Run, given: In) -> Out:
    """What happens depends on the number, so that every way a run can end has one."""
    first = await run.call(Echo.add, given)
    match given.n:
        case 13:
            raise run.abort("unlucky")
        case 14:
            await run.call(Faulty.fail, given)
        case 15:
            approval = await run.ask_human("really?", Approval, context={"n": 15}, timeout=hours(1))
            return Out(n=int(bool(approval)))
        case 16:
            return Out(n=await run.ask_human("how many?\nNo more than three.", int))
        case 17:
            await run.sleep(3600)
    return first


@saga()
async def doomed(run: Run, given: In) -> Out:
    raise run.abort("nothing was done")


@saga()
async def twice(run: Run, given: In) -> Out:
    """The second step needs what the first has given."""
    return await run.call(Echo.add, In(n=(await run.call(Echo.add, given)).n))


async def undecorated(run: Run, given: In) -> Out:
    return Out(n=given.n)
