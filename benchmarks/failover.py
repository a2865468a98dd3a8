"""How long until others have taken over: `just bench-failover`, or `python -m benchmarks.failover --help`.

Each round is a fresh space with real `cuebook serve` processes and their defaults: an orchestrator, its standby, and
two processes of one agent. One of them gets its signal at a random moment between two heartbeats. Times are those of
the log, from the signal on; server and processes share one clock.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cast import Understudy
from benchmarks.machine import machine_facts
from benchmarks.processes import Service, service
from cuebook.actors.client import Client
from cuebook.embedded.nats_server import nats_server
from cuebook.events import facts
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope

RESULTS: Final = Path(__file__).parent / "results"
TASKS: Final = 20
EVERY_S: Final = 0.02
"""Between two requests, where requests keep coming."""
PAUSE_S: Final = 3.0
DEADLINE_S: Final = 60.0
WIDTH: Final = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What runs: the first orchestrator decides."""

    client: Client
    orchestrators: list[Service]
    agents: list[Service]

    async def history(self, scope: str) -> list[Envelope]:
        """What the log has under `<space>.<scope>`."""
        found = await self.client.log.scope_history(f"{self.client.log.subjects.space}.{scope}")
        return [item for item in found if isinstance(item, Envelope)]

    async def lost(self) -> int:
        """How many instances were given up."""
        return len(await self.history("agent.*.*.lost"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One round. `seconds`: what is measured. `tasks`: how many it was about. `lost`: instances that were given up."""

    seconds: float
    tasks: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happens, and what is measured. `lost`: how many instances may be given up for it."""

    name: str
    title: str
    play: Callable[[Scene], Awaitable[Played]] = field(repr=False)
    aim_s: float
    lost: int


async def _kill_agent(scene: Scene) -> Played:
    """Until the last of its tasks has run elsewhere."""
    return await _kill_with_tasks(scene, scene.agents[:1])


async def _kill_machine(scene: Scene) -> Played:
    """The same, where the orchestrator that decides was on the same machine."""
    return await _kill_with_tasks(scene, [*scene.agents[:1], *scene.orchestrators[:1]])


async def _kill_with_tasks(scene: Scene, victims: list[Service]) -> Played:
    held = await _hold_tasks(scene)
    theirs = [run_id for run_id, pid in held.items() if pid == victims[0].pid]
    await asyncio.sleep(random.uniform(0, Understudy.heartbeat_s))
    at = time.time_ns() // 1000
    for victim in victims:
        victim.send(signal.SIGKILL)
    ended = []
    for run_id in theirs:
        await scene.client.wait(run_id, timeout_s=DEADLINE_S)
        ended += [item.recorded_at for item in await scene.history(f"run.{run_id}.task.0.completed")]
    return Played(seconds=(max(ended) - at) / 1e6, tasks=len(theirs), lost=await scene.lost())


async def _kill_orchestrator(scene: Scene) -> Played:
    """Until the standby has placed a task, while requests keep coming."""
    requested: list[str] = []

    async def keep_requesting() -> None:
        while True:
            requested.append(await scene.client.submit_task("understudy", {"number": 1}, handler="play"))
            await asyncio.sleep(EVERY_S)

    requesting = asyncio.ensure_future(keep_requesting())
    try:
        await asyncio.sleep(TASKS * EVERY_S)
        await asyncio.sleep(random.uniform(0, Understudy.heartbeat_s))
        at, known = time.time_ns() // 1000, len(requested)
        scene.orchestrators[0].send(signal.SIGKILL)
        first = await scene.client.submit_task("understudy", {"number": 1}, handler="play")
        await scene.client.wait(first, timeout_s=DEADLINE_S)
    finally:
        requesting.cancel()
        await asyncio.gather(requesting, return_exceptions=True)
    for run_id in requested:
        await scene.client.wait(run_id, timeout_s=DEADLINE_S)
    (placed,) = await scene.history(f"run.{first}.task.0.assigned.>")
    return Played(seconds=(placed.recorded_at - at) / 1e6, tasks=len(requested) - known, lost=await scene.lost())


async def _pause_agent(scene: Scene) -> Played:
    """It must not be given up: how long until a task that is requested meanwhile has been done by the other."""
    await _hold_tasks(scene)
    await asyncio.sleep(random.uniform(0, Understudy.heartbeat_s))
    scene.agents[0].send(signal.SIGSTOP)
    began = time.monotonic()
    try:
        await asyncio.sleep(PAUSE_S)
    finally:
        scene.agents[0].send(signal.SIGCONT)
    paused_s = time.monotonic() - began
    await asyncio.sleep(2 * Understudy.heartbeat_s)  # what is late is said by now
    return Played(seconds=paused_s, tasks=TASKS, lost=await scene.lost())


async def _hold_tasks(scene: Scene) -> dict[str, int]:
    """Tasks that do not end where they are, by run id, with the process that has them."""
    ids = [await scene.client.submit_task("understudy", {"number": 1}, handler="hold") for _ in range(TASKS)]
    pids = {
        item.address.instance: item.event.pid
        for item in await scene.history("agent.*.*.registered")
        if isinstance(item.event, facts.AgentRegistered)
    }
    held: dict[str, int] = {}
    while len(held) < len(ids):
        await asyncio.sleep(EVERY_S)
        for run_id in ids:
            for item in await scene.history(f"run.{run_id}.task.0.assigned.>"):
                held[run_id] = pids[item.address.instance]
    return held


INCIDENTS: Final = {
    incident.name: incident
    for incident in (
        Incident(name="agent", title="agent killed: its tasks have run elsewhere", play=_kill_agent, aim_s=8, lost=1),
        Incident(
            name="orchestrator",
            title="orchestrator killed: the standby places tasks",
            play=_kill_orchestrator,
            aim_s=5,
            lost=0,
        ),
        Incident(
            name="machine",
            title="both killed at once: its tasks have run elsewhere",
            play=_kill_machine,
            aim_s=8,
            lost=1,
        ),
        Incident(
            name="pause",
            title=f"agent stopped for {PAUSE_S:g} s: it is not given up",
            play=_pause_agent,
            aim_s=0,
            lost=0,
        ),
    )
}


async def _round(incident: Incident) -> Played:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cuebook-failover-")))
        server = await stack.enter_async_context(nats_server(folder / "nats"))
        started = [
            await stack.enter_async_context(service(words, server.url))
            for words in (["orchestrator"], ["orchestrator"], *[["agents", "benchmarks.cast:Understudy"]] * 2)
        ]
        connection = await stack.enter_async_context(await connect(server.url, name="failover"))
        client = await stack.enter_async_context(Client(connection, "cue", by="benchmark"))
        return await incident.play(Scene(client=client, orchestrators=started[:2], agents=started[2:]))


def main(
    incident: Annotated[str, typer.Option(help="What happens, with commas.")] = ",".join(INCIDENTS),
    rounds: Annotated[int, typer.Option(min=1, help="Of each.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for all numbers; benchmarks/results/failover-<time>.json.")
    ] = None,
) -> None:
    """Kill processes, and measure how long until others have taken over. Exits with 1 where an aim is missed."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    unknown = [name for name in incident.split(",") if name not in INCIDENTS]
    if unknown:
        raise typer.BadParameter(f"no incident {unknown[0]!r}; there are {', '.join(INCIDENTS)}")
    conditions = machine_facts() | {"rounds": rounds}
    for name, value in conditions.items():
        console.print(f"[dim]{name.replace('_', ' '):>16}[/]  {value}", highlight=False)
    played: dict[str, list[Played]] = {}
    for name in incident.split(","):
        one = INCIDENTS[name]
        console.print(f"[bold]{name}[/] {one.title}")
        for _ in range(rounds):
            played.setdefault(name, []).append(done := asyncio.run(_round(one)))
            console.print(f"[dim]  {done.seconds:.2f} s, {done.tasks} tasks, {done.lost} given up[/]", highlight=False)
    console.print(_table(played))
    path = json_file or RESULTS / f"failover-{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {name: [asdict(one) for one in rounds_] for name, rounds_ in played.items()}
    path.write_text(json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n", encoding="utf-8")
    console.print(f"[dim]all numbers: {path}[/]")
    if any(_missed(INCIDENTS[name], rounds_) for name, rounds_ in played.items()):
        raise typer.Exit(1)


def _missed(incident: Incident, rounds: list[Played]) -> bool:
    late = incident.aim_s > 0 and max(one.seconds for one in rounds) > incident.aim_s
    return late or any(one.lost != incident.lost for one in rounds)


def _table(played: dict[str, list[Played]]) -> Table:
    table = Table(title="Seconds from the signal on, with defaults", title_justify="left")
    table.add_column("incident", no_wrap=True)
    for heading in ("rounds", "median s", "worst s", "aim s", "given up", ""):
        table.add_column(heading, justify="right")
    for name, rounds in played.items():
        one, times = INCIDENTS[name], [each.seconds for each in rounds]
        given_up = sorted({each.lost for each in rounds})
        table.add_row(
            one.title,
            str(len(rounds)),
            f"{median(times):.2f}",
            f"{max(times):.2f}",
            f"{one.aim_s:g}" if one.aim_s else "",
            ", ".join(map(str, given_up)),
            "missed" if _missed(one, rounds) else "met",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
