"""The agents and sagas of the tests, with a ledger of what the agents did."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

from pydantic import BaseModel

from cuebook.actors import Agent, Approval, Retry, Run, Task, TaskFailedError, handler, saga

__all__ = [
    "LEDGER",
    "Bank",
    "Bell",
    "Number",
    "approved",
    "awaited",
    "chain",
    "fan",
    "first_steps",
    "lines",
    "stubbornly",
]


class Number(BaseModel):
    n: int


LEDGER: Path | None = None
"""Where handlers write what they did; set by the program that serves them."""


def note(what: str, task: Task) -> None:
    """One effect, as an outside system would see it: on record before the handler goes on."""
    path = LEDGER or os.environ.get("CAST_LEDGER")
    if path:
        line = f"{what} {task.idempotency_key} {task.attempt} {task.instance}\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)


def lines(path: Path) -> list[list[str]]:
    """The ledger: what, idempotency key, attempt, instance."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class Bank(Agent):
    """Adds one, and can take it back."""

    name = "bank"
    concurrency = 50
    recycle_after = 0

    @handler(timeout_s=20, retry=Retry(attempts=3, backoff_s=0.01))
    async def add(self, number: Number, task: Task) -> Number:
        note("add", task)
        return Number(n=number.n + 1)

    @add.compensation
    async def take(self, number: Number, result: Number, task: Task) -> None:
        note("take", task)

    @handler(timeout_s=20, retry=Retry(attempts=1))
    async def refuse(self, number: Number, task: Task) -> Number:
        note("refuse", task)
        raise ValueError(f"no {number.n}")

    @handler(timeout_s=20)
    async def slowly(self, number: Number, task: Task) -> Number:
        note("slowly", task)
        await asyncio.sleep(number.n / 1000)
        note("slowly-done", task)
        return number


class Bell(Agent):
    """Blocks its whole process, as no agent should."""

    name = "bell"
    recycle_after = 0
    heartbeat_s = 0.1

    @handler(timeout_s=5)
    async def ring(self, number: Number, task: Task) -> Number:
        note("ring", task)
        time.sleep(number.n / 1000)
        return number


@saga(on="chain.asked", key="n")
async def chain(run: Run, number: Number) -> Number:
    """Four steps, one after the other, two at once, a pause; 13 aborts at the end."""
    first = await run.call(Bank.add, number)
    second = await run.call(Bank.add, first)
    await run.sleep(0.01)
    third, _ = await run.gather(run.call(Bank.add, second), run.call(Bank.add, second))
    if number.n == 13:
        raise run.abort("unlucky")
    return third


@saga()
async def fan(run: Run, number: Number) -> Number:
    """As many at once as asked for; one of them is never awaited."""
    steps = [run.call(Bank.add, Number(n=n)) for n in range(number.n)]
    await run.gather(*steps[:-1])
    return Number(n=len(steps))


@saga()
async def approved(run: Run, number: Number) -> Number:
    """Does something, asks, does more."""
    first = await run.call(Bank.add, number)
    if not await run.ask_human("go on?", Approval):
        raise run.abort("declined")
    return await run.call(Bank.add, first)


@saga()
async def awaited(run: Run, number: Number) -> Number:
    """Waits for its number to be paid."""
    paid = await run.wait_for("paid", Number, match={"n": number.n})
    return await run.call(Bank.add, paid)


@saga(on="first.asked")
async def first_steps(run: Run, number: Number) -> Number:
    """Goes on when a step fails."""
    try:
        await run.call(Bank.refuse, number)
    except TaskFailedError:
        return await run.call(Bank.add, number)
    return number


async def stubbornly(gate: asyncio.Event) -> None:
    """Wait, whoever wants it to end; a test that fails gets rid of it all the same."""
    deadline = asyncio.get_running_loop().time() + 30
    while not gate.is_set() and asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout_at(deadline):
                await gate.wait()
