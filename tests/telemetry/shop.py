"""An agent and a saga in which everything happens that a trace can show: a retry, a person, and the way back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from opentelemetry import trace
from pydantic import BaseModel

from cuebook.actors import Agent, Retry, Run, Task, handler, saga


class Parcel(BaseModel):
    n: int


class Shop(Agent):
    name = "shop"
    heartbeat_s = 0.5

    @handler(timeout_s=20)
    async def reserve(self, parcel: Parcel) -> Parcel:
        with trace.get_tracer("shop").start_as_current_span("ask the shelf"):
            return parcel

    @reserve.compensation
    async def release(self, parcel: Parcel, reserved: Parcel) -> None: ...

    @handler(timeout_s=20, retry=Retry(attempts=2, backoff_s=0.01))
    def charge(self, parcel: Parcel, task: Task) -> Parcel:
        with trace.get_tracer("shop").start_as_current_span("ask the bank"):
            if task.attempt == 1:
                raise ConnectionError(f"secret {parcel.n}")
        return parcel

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def ship(self, parcel: Parcel) -> Parcel:
        raise ValueError(f"secret {parcel.n}")

    @handler(timeout_s=60)
    async def wait(self, parcel: Parcel, task: Task) -> Parcel:
        if task.attempt == 1:
            with trace.get_tracer("shop").start_as_current_span("look out"):
                pass
            await asyncio.Event().wait()
        return parcel

    @handler(timeout_s=60)
    async def late(self, parcel: Parcel, task: Task) -> Parcel:
        Path("begun").touch()
        while task.attempt == 1 and not Path("gate").exists():  # noqa: ASYNC110 - opened by another process
            await asyncio.sleep(0.01)
        return Parcel(n=task.attempt)


@saga(on="order.placed", key="n")
async def order(run: Run, parcel: Parcel) -> Parcel:
    await run.call(Shop.reserve, parcel)
    await run.call(Shop.charge, parcel)
    return await run.call(Shop.ship, parcel)
