"""An agent and a saga that do a little of everything: a retry, a person, a question, and the way back."""

from __future__ import annotations

from pydantic import BaseModel

from cuebook.actors import Agent, Approval, Retry, Run, Task, handler, saga


class Parcel(BaseModel):
    n: int


class Stall(Agent):
    name = "stall"
    concurrency = 8
    recycle_after = 0
    heartbeat_s = 0.5

    @handler(timeout_s=20)
    async def reserve(self, parcel: Parcel) -> Parcel:
        return parcel

    @reserve.compensation
    async def release(self, parcel: Parcel, reserved: Parcel) -> None: ...

    @handler(timeout_s=20, retry=Retry(attempts=2, backoff_s=0.01))
    async def charge(self, parcel: Parcel, task: Task) -> Parcel:
        if parcel.n % 2 and task.attempt == 1:
            raise ConnectionError(f"bank {parcel.n}")
        return parcel

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def ship(self, parcel: Parcel) -> Parcel:
        if parcel.n % 5 == 0:
            raise ValueError(f"no carrier for {parcel.n}")
        return parcel


class Kiosk(Agent):
    """At the edge."""

    name = "kiosk"
    heartbeat_s = 0.5

    @handler(timeout_s=20)
    async def sell(self, parcel: Parcel) -> Parcel:
        return parcel


@saga(on="stall.ordered", key="n")
async def buy(run: Run, parcel: Parcel) -> Parcel:
    """Every fifth cannot be shipped: a person is asked, and gives it up. Every seventh is asked about first."""
    await run.call(Stall.reserve, parcel)
    await run.call(Stall.charge, parcel)
    if parcel.n % 7 == 0:
        await run.ask_human("ship it?", Approval)
    return await run.call(Stall.ship, parcel)


@saga()
async def vain(run: Run, parcel: Parcel) -> Parcel:
    """Fails with nothing to undo."""
    raise ValueError(f"nothing for {parcel.n}")
