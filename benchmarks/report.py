"""Showing and keeping what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cast import SLOTS
from benchmarks.measure import Result, Round
from benchmarks.scenarios import Scenario

__all__ = ["show", "show_conditions", "show_cpu", "show_round", "write_json"]

Conditions = dict[str, str | int | float]


def show_conditions(console: Console, conditions: Conditions) -> None:
    """What is measured on, and how."""
    for name, value in conditions.items():
        console.print(f"[dim]{name.replace('_', ' '):>16}[/]  {value}", highlight=False)
    console.print(
        f"[dim]{'processes':>16}[/]  one each for client, orchestrator, agents (one instance with {SLOTS:,} slots, "
        "never renewed), nats-server, projections and PostgreSQL",
        highlight=False,
    )


def show_round(console: Console, scenario: Scenario, done: Round) -> None:
    """One line while it runs."""
    pace = _pace(scenario, done.rate, [done])
    p99 = f"p99 {done.overhead.p99:.1f} ms" if done.overhead else "nothing completed"
    failed = f", {sum(done.failures.values())} failed" if done.failures else ""
    console.print(f"[dim]  {scenario.name}: {pace}, {p99}{failed}, others' CPU {done.others:.0%}[/]")


def show(console: Console, results: Sequence[Result]) -> None:
    """The tables: medians of the rounds, and the worst maximum."""
    table = Table(
        title="Overhead: from submit until the client has the result, less the waiting",
        title_justify="left",
    )
    table.add_column("scenario")
    table.add_column("projections")
    table.add_column("traced")
    for heading in ("rate", "p50 ms", "p95 ms", "p99 ms", "max ms", "failed", "others' CPU"):
        table.add_column(heading, justify="right")
    for result in results:
        overhead = result.overhead
        times = (overhead.p50, overhead.p95, overhead.p99, overhead.max) if overhead else ()
        table.add_row(
            result.scenario.name,
            "on" if result.projections else "off",
            result.tracing,
            _pace(result.scenario, result.rate, result.rounds),
            *([f"{time:.2f}" for time in times] or ["-"] * 4),
            str(sum(result.failures.values())),
            f"{result.others:.0%}",
        )
    console.print(table)
    for result in results:
        for failure, count in result.failures.items():
            console.print(f"[red]{result.scenario.name}: {count} x {failure}[/]")
    _show_lag(console, [result for result in results if result.projections])


def _show_lag(console: Console, results: Sequence[Result]) -> None:
    if not results:
        return
    table = Table(title="Projections: every event, in three sets of tables", title_justify="left")
    table.add_column("scenario")
    for heading in ("events/s applied under load", "events behind at its end", "s until caught up", "parked"):
        table.add_column(heading, justify="right")
    for result in results:
        lags = [one.lag for one in result.rounds if one.lag]
        worst = max(lags, key=lambda lag: lag.caught_up_after_s)
        table.add_row(
            result.scenario.name,
            f"{min(lag.applied_per_s for lag in lags):,.0f}",
            f"{max(lag.behind for lag in lags):,} of {worst.events:,}",
            f"{worst.caught_up_after_s:.2f}",
            str(sum(lag.parked for lag in lags)),
        )
    console.print(table)


def show_cpu(console: Console, results: Sequence[Result]) -> None:
    """CPU microseconds for each task, by process."""
    table = Table(title="CPU microseconds for each task (S4: for each run of three)", title_justify="left")
    table.add_column("scenario")
    table.add_column("projections")
    table.add_column("traced")
    names = max((list(result.cpu_us()) for result in results), key=len)
    for name in (*names, "all"):
        table.add_column(name, justify="right")
    for result in results:
        cpu = result.cpu_us()
        cells = [f"{cpu[name]:.1f}" if name in cpu else "" for name in names]
        with_projections = "on" if result.projections else "off"
        table.add_row(result.scenario.name, with_projections, result.tracing, *cells, f"{sum(cpu.values()):.1f}")
    console.print(table)


def write_json(path: Path, conditions: Conditions, results: Sequence[Result]) -> None:
    """Everything, by round. Raises OSError."""
    content: dict[str, Any] = {"conditions": conditions, "results": [result.as_data() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _pace(scenario: Scenario, rate: float, rounds: Sequence[Round]) -> str:
    if scenario.starts_per_s:
        return f"{max(one.most_in_flight for one in rounds):,} in flight"
    return f"{rate:,.0f} {'runs' if scenario.saga else 'tasks'}/s"
