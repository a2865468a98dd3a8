"""The load: starts the tasks of a scenario through a client, as a user would, and times each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.cast import Stagehand, three
from benchmarks.scenarios import Scenario
from cuebook.actors.client import Client, Outcome
from cuebook.events.errors import CuebookError

__all__ = ["Measured", "play"]

DEADLINE_S = 300.0
"""What has not ended so long after the round began has failed."""
_Start = Callable[[int], Awaitable[Outcome]]


@dataclass(slots=True, kw_only=True)
class Measured:
    """One round. `times_ms`: of those that completed, the overhead. `failures`: what went wrong, with how often."""

    seconds: float = 0.0
    times_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    most_in_flight: int = 0


async def play(client: Client, scenario: Scenario) -> Measured:
    """One round of a scenario."""
    measured = Measured()
    start = _start(client, scenario)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await (_open(start, scenario, measured) if scenario.starts_per_s else _closed(start, scenario, measured))
    except TimeoutError:
        missing = scenario.count - len(measured.times_ms) - sum(measured.failures.values())
        measured.failures[f"no outcome within {DEADLINE_S:g} s"] = missing
    measured.seconds = time.perf_counter() - began
    return measured


def _start(client: Client, scenario: Scenario) -> _Start:
    if scenario.saga:
        return lambda number: client.run_saga(three, {"number": number})
    if scenario.pause_s:
        pause = {"seconds": scenario.pause_s}
        return lambda _: client.run_task(Stagehand.name, pause, handler=scenario.handler)
    return lambda number: client.run_task(Stagehand.name, {"number": number}, handler=scenario.handler)


async def _closed(start: _Start, scenario: Scenario, measured: Measured) -> None:
    """As many loops as may be outstanding, which share one series of numbers."""
    numbers = iter(range(1, scenario.count + 1))
    measured.most_in_flight = scenario.outstanding

    async def loop(numbers: Iterator[int]) -> None:
        for number in numbers:
            await _time(start, number, time.perf_counter(), scenario, measured)

    async with asyncio.TaskGroup() as group:
        for _ in range(scenario.outstanding):
            group.create_task(loop(numbers))


async def _open(start: _Start, scenario: Scenario, measured: Measured) -> None:
    """Each at its time. A start that is late, because we or the machine were busy, is measured from when it was due."""
    in_flight = 0

    async def one(number: int, due: float) -> None:
        nonlocal in_flight
        in_flight += 1
        measured.most_in_flight = max(measured.most_in_flight, in_flight)
        await _time(start, number, due, scenario, measured)
        in_flight -= 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(1, scenario.count + 1):
            due = began + (number - 1) / scenario.starts_per_s
            early_s = due - time.perf_counter()
            if early_s > 0:
                await asyncio.sleep(early_s)
            group.create_task(one(number, due))


async def _time(start: _Start, number: int, since: float, scenario: Scenario, measured: Measured) -> None:
    try:
        outcome = await start(number)
    except CuebookError as error:
        failure = f"{type(error).__name__}: {error}"
    else:
        took_s = time.perf_counter() - since
        if outcome.status == "completed" and outcome.result in ({"number": number}, {"seconds": scenario.pause_s}):
            measured.times_ms.append((took_s - scenario.pause_s) * 1000)
            return
        failure = f"{outcome.status}: {outcome.error or outcome.result}"
    measured.failures[failure] = measured.failures.get(failure, 0) + 1
