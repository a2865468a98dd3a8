"""One process of a benchmark: `python -m benchmarks.worker ROLE`. It takes a JSON order a line and answers each.

The roles are what `cuebook serve` runs, and a client. The end of the orders is the end of the process, so none outlives
the program that gives them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cast import Stagehand, three
from benchmarks.load import play
from benchmarks.metrics import metrics_address
from benchmarks.sampler import Sampler
from benchmarks.scenarios import Scenario
from cuebook.actors.client import Client
from cuebook.actors.collector import settle_collector, tend_collector
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.cli.serving.metrics import (
    handling_of,
    measured,
    tallies_of,
    watch_agents,
    watch_orchestrator,
    watch_projections,
)
from cuebook.cli.tracing import traced
from cuebook.events.connection import Connection, connect
from cuebook.events.log import EventLog
from cuebook.projections.runner import Runner, give_way

if TYPE_CHECKING:  # loaded only where it is measured
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["ROLES"]

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def _orchestrator(connection: Connection, options: argparse.Namespace) -> AsyncIterator[Answer]:
    tallies = tallies_of(options.metrics)
    service = OrchestratorService(connection, options.space, [three], tracing=options.tracing, tallies=tallies)
    watch_orchestrator(options.metrics, service, tallies)
    async with asyncio.TaskGroup() as group:
        group.create_task(service.run())
        await service.deciding.wait()
        tending = group.create_task(tend_collector())
        yield _nothing
        tending.cancel()
        service.stop()


@asynccontextmanager
async def _agents(connection: Connection, options: argparse.Namespace) -> AsyncIterator[Answer]:
    handling = handling_of(options.metrics)
    host = AgentHost(connection, options.space, [Stagehand], tracing=options.tracing, handling=handling)
    watch_agents(options.metrics, host, handling)
    async with asyncio.TaskGroup() as group:
        group.create_task(host.run())
        await host.ready.wait()
        tending = group.create_task(tend_collector())
        yield _nothing
        tending.cancel()
        host.stop()


@asynccontextmanager
async def _client(connection: Connection, options: argparse.Namespace) -> AsyncIterator[Answer]:
    async with Client(connection, options.space, by="benchmark") as client:

        async def play_round(order: dict[str, Any]) -> dict[str, Any]:
            settle_collector()  # what is measured is not the collector of the process that measures
            return asdict(await play(client, Scenario(**order["scenario"])))

        yield play_round


@asynccontextmanager
async def _projections(connection: Connection, options: argparse.Namespace) -> AsyncIterator[Answer]:
    async with EventLog(connection, options.space, source="projections") as log:
        runner = Runner(log, options.database, tracing=options.tracing)
        watch_projections(options.metrics, runner, log, options.database)
        give_way()

        async def lag(_: dict[str, Any]) -> dict[str, Any]:
            status = runner.status()
            return {
                "applied": min(position.sequence for position in status.positions.values()),
                "stored": (await log.verify()).last_sequence,
                "parked": sum(status.parked.values()),
            }

        async with asyncio.TaskGroup() as group:
            group.create_task(runner.run())
            tending = group.create_task(tend_collector())
            yield lag
            tending.cancel()
            runner.drain()


ROLES = {"orchestrator": _orchestrator, "agents": _agents, "client": _client, "projections": _projections}


async def _nothing(_: dict[str, Any]) -> dict[str, Any]:
    return {}


async def _serve(options: argparse.Namespace) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    connection = await connect(options.url, name=f"benchmark {options.role}")
    sampler = Sampler()
    try:
        async with ROLES[options.role](connection, options) as answer:
            _say({})
            while line := await orders.readline():
                order = json.loads(line)
                match order["do"]:
                    case "sample":
                        sampler = Sampler()
                        sampler.start()
                        _say({})
                    case "write samples":
                        sampler.stop()
                        sampler.write(Path(order["path"]), cpu_us=order["cpu_us"])
                        _say({})
                    case "flush":
                        await _flush(options.tracing)
                        _say({})
                    case _:
                        _say(await answer(order))
    finally:
        await connection.close()


async def _flush(tracing: Tracing | None) -> None:
    if tracing is not None:
        while not await asyncio.to_thread(tracing.provider.force_flush, 1_000):
            pass


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--url", required=True)
    parser.add_argument("--space", required=True)
    parser.add_argument("--database", default="")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = parser.parse_args()
    with asyncio.Runner() as runner:
        service = f"benchmark-{options.role}"
        with (
            traced(service) as options.tracing,
            measured(metrics_address(options.role), service, options.space, runner.get_loop()) as options.metrics,
        ):
            runner.run(_serve(options))


if __name__ == "__main__":
    _main()
