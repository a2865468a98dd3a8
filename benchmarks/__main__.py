"""The command: `just bench`, or `python -m benchmarks --help`."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.machine import machine_facts
from benchmarks.measure import Result, measure
from benchmarks.metrics import metrics_environment, scraped
from benchmarks.report import show, show_conditions, show_cpu, show_round, write_json
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.stage import servers, stage
from benchmarks.tracing import OFF, environment_of, sink
from cuebook.events.errors import CuebookError

ON = "on"
RESULTS = Path(__file__).parent / "results"
WIDTH = 110
"""Where the output is no terminal."""


class Projections(StrEnum):
    off = "off"
    on = "on"
    both = "both"


def main(
    scenario: Annotated[str, typer.Option(help="Which to run, with commas.")] = ",".join(SCENARIOS),
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each scenario, after warming up.")] = 3,
    projections: Annotated[Projections, typer.Option(help="With or without PostgreSQL.")] = Projections.both,
    scale: Annotated[float, typer.Option(min=0.001, help="0.1: a tenth of the tasks, for a quick look.")] = 1.0,
    sync_always: Annotated[bool, typer.Option(help="Each acknowledged event is on disk, as in production.")] = False,
    profile: Annotated[bool, typer.Option(help="Show the CPU time of each process for one task.")] = False,
    profile_python: Annotated[
        Path | None, typer.Option(help="Folder for where each Python process spends its time, as text.")
    ] = None,
    tracing: Annotated[str, typer.Option(help="Share of runs that are traced, with commas: off,1%,100%.")] = OFF,
    metrics: Annotated[str, typer.Option(help="Metrics served and scraped every second, with commas: off,on.")] = OFF,
    json: Annotated[Path | None, typer.Option(help="File for all numbers; benchmarks/results/<time>.json.")] = None,
) -> None:
    """Measure throughput, concurrency, latency and sagas on this machine, over the whole path from client to client."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    chosen = [_scenario(name).scaled(scale) for name in scenario.split(",")]
    path = json or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}.json"
    conditions = machine_facts() | {
        "sync": "always: acknowledged is on disk" if sync_always else "every 2 minutes: survives a kill of the server",
        "rounds": rounds,
        "scale": scale,
    }
    show_conditions(console, conditions)
    samples = profile_python.resolve() if profile_python else None
    shares = [share.strip() for share in tracing.split(",")]
    try:
        [environment_of(share, "") for share in shares]
    except ValueError as error:
        raise typer.BadParameter(f"{tracing!r} is no list such as off,1%,100%") from error
    scrapings = [word.strip() for word in metrics.split(",")]
    if not set(scrapings) <= {OFF, ON}:
        raise typer.BadParameter(f"{metrics!r} is no list such as off,on")
    variants = list(itertools.product(shares, scrapings))
    results: list[Result] = []
    for with_projections in {"off": [False], "on": [True], "both": [False, True]}[projections]:
        try:
            results += asyncio.run(_measure(console, chosen, rounds, with_projections, sync_always, samples, variants))
        except CuebookError as error:
            raise SystemExit(f"{error}\n{error.remedy}") from error
    show(console, results)
    if profile:
        show_cpu(console, results)
    write_json(path, conditions, results)
    console.print(f"[dim]all numbers: {path}[/]")


def _scenario(name: str) -> Scenario:
    found = SCENARIOS.get(name.strip().upper())
    if found is None:
        raise typer.BadParameter(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return found


async def _measure(
    console: Console,
    scenarios: list[Scenario],
    rounds: int,
    projections: bool,
    sync_always: bool,
    samples: Path | None,
    variants: list[tuple[str, str]],
) -> list[Result]:
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="cuebook-bench-") as directory,
        sink([share for share, _ in variants]) as endpoint,
    ):
        async with servers(Path(directory), projections=projections, sync_always=sync_always) as running:
            for one, (share, scraping) in itertools.product(scenarios, variants):
                traced = (f", {share} traced" if share != OFF else "") + (", metrics" if scraping == ON else "")
                env = environment_of(share, endpoint) | (metrics_environment() if scraping == ON else {})
                console.print(f"[bold]{one.name}[/] {one.title}, projections {'on' if projections else 'off'}{traced}")
                async with stage(running, env) as ready:
                    line = partial(show_round, console, one)
                    with scraped(env):
                        result = await measure(one, ready, rounds=rounds, samples=samples, on_round=line)
                    results.append(replace(result, tracing=share + (", metrics" if scraping == ON else "")))
    return results


if __name__ == "__main__":
    typer.run(main)
