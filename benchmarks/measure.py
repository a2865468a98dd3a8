"""Measuring one scenario: warm up, then some rounds, each with what it cost and how far the projections fell behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.distribution import Distribution, middle
from benchmarks.processes import Worker, machine_cpu_s
from benchmarks.scenarios import WARM_UP, Scenario
from benchmarks.stage import Stage
from cuebook.events.errors import UnavailableError

__all__ = ["Lag", "Result", "Round", "measure"]

WARM_UP_SHARE: Final = 0.1
CATCH_UP_DEADLINE_S: Final = 300.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How the projections kept up: `events` were stored during the round, `behind` of them not applied at its end."""

    events: int
    behind: int
    applied_per_s: float
    caught_up_after_s: float
    parked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round. `overhead` is None when nothing completed. `cpu_us`: CPU microseconds for each task, by process.

    `others`: the share of the machine's CPU time that went to processes of others; more than a little spoils the round.
    """

    seconds: float
    completed: int
    failures: dict[str, int]
    most_in_flight: int
    overhead: Distribution | None
    cpu_us: dict[str, float]
    others: float
    lag: Lag | None

    @property
    def rate(self) -> float:
        """Completed in a second."""
        return self.completed / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All rounds of one scenario."""

    scenario: Scenario
    projections: bool
    rounds: list[Round]
    tracing: str = "off"

    @property
    def rate(self) -> float:
        return median(one.rate for one in self.rounds)

    @property
    def others(self) -> float:
        return max(one.others for one in self.rounds)

    @property
    def overhead(self) -> Distribution | None:
        return middle(known) if (known := [one.overhead for one in self.rounds if one.overhead]) else None

    @property
    def failures(self) -> dict[str, int]:
        """What went wrong in all rounds, with how often."""
        total: dict[str, int] = {}
        for one in self.rounds:
            for failure, count in one.failures.items():
                total[failure] = total.get(failure, 0) + count
        return total

    def cpu_us(self) -> dict[str, float]:
        """By process, the median of the rounds."""
        return {name: median(one.cpu_us[name] for one in self.rounds) for name in self.rounds[0].cpu_us}

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        rounds = [{"rate": one.rate, **asdict(one)} for one in self.rounds]
        return {
            "scenario": asdict(self.scenario),
            "projections": self.projections,
            "tracing": self.tracing,
            "rounds": rounds,
        }


async def measure(
    scenario: Scenario, stage: Stage, *, rounds: int, samples: Path | None, on_round: Callable[[Round], None]
) -> Result:
    """Warm up and measure. With `samples`, a folder, also write where each Python process spent its time."""
    await _play(stage, WARM_UP)
    await _play(stage, _short(scenario))
    if samples:
        for one in stage.workers:
            await one.order("sample")
    measured = []
    for _ in range(rounds):
        measured.append(await _round(scenario, stage))
        on_round(measured[-1])
    result = Result(scenario=scenario, projections=stage.projections is not None, rounds=measured)
    if samples:
        for one in stage.workers:
            name = f"{scenario.name}-projections-{'on' if stage.projections else 'off'}-{one.role}.txt"
            await one.order("write samples", path=str(samples / name), cpu_us=result.cpu_us()[one.role])
    return result


def _short(scenario: Scenario) -> Scenario:
    """A little of the scenario itself, without the long pause."""
    return replace(scenario.scaled(WARM_UP_SHARE), pause_s=min(scenario.pause_s, 0.5))


async def _play(stage: Stage, scenario: Scenario) -> dict[str, Any]:
    return await stage.client.order("play", scenario=asdict(scenario))


async def _round(scenario: Scenario, stage: Stage) -> Round:
    before = await _caught_up(stage.projections) if stage.projections else None
    cpu_before, (busy_before, all_before) = stage.cpu_s(), machine_cpu_s()
    played = await _play(stage, scenario)
    await stage.flush()
    cpu_after, (busy_after, all_after) = stage.cpu_s(), machine_cpu_s()
    cpu = {name: seconds - cpu_before[name] for name, seconds in cpu_after.items()}
    lag = await _lag(stage.projections, before, played["seconds"]) if stage.projections and before else None
    times_ms = played["times_ms"]
    return Round(
        seconds=played["seconds"],
        completed=len(times_ms),
        failures=played["failures"],
        most_in_flight=played["most_in_flight"],
        overhead=Distribution.of(times_ms) if times_ms else None,
        cpu_us={name: seconds / scenario.count * 1e6 for name, seconds in cpu.items()},
        others=max(0.0, busy_after - busy_before - sum(cpu.values())) / max(all_after - all_before, 1e-9),
        lag=lag,
    )


async def _lag(projections: Worker, before: dict[str, int], seconds: float) -> Lag:
    ended = time.monotonic()
    at_end = await projections.order("lag")
    after = await _caught_up(projections)
    return Lag(
        events=at_end["stored"] - before["stored"],
        behind=at_end["stored"] - at_end["applied"],
        applied_per_s=(at_end["applied"] - before["applied"]) / seconds,
        caught_up_after_s=time.monotonic() - ended,
        parked=after["parked"] - before["parked"],
    )


async def _caught_up(projections: Worker) -> dict[str, int]:
    """Wait until everything stored is applied. Raises UnavailableError when that takes too long."""
    deadline = time.monotonic() + CATCH_UP_DEADLINE_S
    while time.monotonic() < deadline:
        state = await projections.order("lag")
        if state["applied"] >= state["stored"]:
            return state
        await asyncio.sleep(POLL_S)
    raise UnavailableError(f"the projections have not caught up in {CATCH_UP_DEADLINE_S:g} s")
