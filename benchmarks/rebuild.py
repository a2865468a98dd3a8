"""Rebuilding all projections from a log of a given size, on servers of its own: `python -m benchmarks.rebuild`.

Three figures: decoding alone, decoding and folding with nobody to write to, and the whole rebuild into PostgreSQL; then
once more with tables to compare with. One process reads, as in the product; the servers are the embedded ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import cpu_s, machine_cpu_s
from cuebook.actors.collector import settle_collector
from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.embedded.postgres import Postgres, postgres
from cuebook.events.connection import connect
from cuebook.events.envelope import Position
from cuebook.events.facts import (
    AgentRegistered,
    HandlerSpec,
    RunCompleted,
    RunRequested,
    RunStarted,
    TaskAssigned,
    TaskCompleted,
    TaskRequested,
)
from cuebook.events.log import EventLog
from cuebook.projections.projection import Batch
from cuebook.projections.reader import LogReader
from cuebook.projections.rebuild import REBUILD_BATCH, rebuild
from cuebook.projections.runner import ALL

SPACE: Final = "bench"
STEPS: Final = 3
AGENTS: Final = 20
AT_ONCE: Final = 100
"""Runs whose events lie between each other in the log."""
_OUTSTANDING: Final = 4_000


async def fill(log: EventLog, events: int) -> int:
    """Append so many events: runs of a saga with three steps, a hundred at a time, and their agents. Gives the last."""
    last, under_way = 0, 0
    room = asyncio.Event()

    def done(sequence: int, error: Exception | None) -> None:
        nonlocal last, under_way
        if error is not None:
            raise error
        last, under_way = max(last, sequence), under_way - 1
        if under_way < _OUTSTANDING:
            room.set()

    count = 0
    for subject, event in _history(log):
        if count == events:
            break
        count, under_way = count + 1, under_way + 1
        log.post(subject, event, done=done, correlation_id=f"c{count // 1000}")
        if under_way >= _OUTSTANDING:
            room.clear()
            await room.wait()
    await log.appender.flushed()
    return last


def _history(log: EventLog) -> Iterator[tuple[str, Any]]:
    subjects = log.subjects
    for number in range(AGENTS):
        registered = AgentRegistered(slots=16, handlers={"issue": HandlerSpec(timeout_s=30)}, version="1", host="h")
        yield subjects.agent("refund", f"i{number}", "registered"), registered
    block = 0
    while True:
        ids = [f"order-{block * AT_ONCE + number}" for number in range(AT_ONCE)]
        given = {
            "order_id": f"order-{block}",
            "text": "my blender arrived broken",
            "amount_cents": 8_990,
            "currency": "EUR",
        }
        for run_id in ids:
            yield subjects.run(run_id, "requested", "support"), RunRequested(input=given)
            yield subjects.run(run_id, "started"), RunStarted(saga="support", version="1", input=given)
        for n in range(STEPS):
            for run_id in ids:
                yield subjects.task(run_id, n, "requested", "refund"), TaskRequested(handler="issue", input=given)
            for number, run_id in enumerate(ids):
                instance = f"i{number % AGENTS}"
                assigned = TaskAssigned(handler="issue", attempt=1, timeout_s=30, reason={"free": 3, "of": 5})
                yield subjects.task(run_id, n, "assigned", "refund", instance), assigned
                output = {"refund_id": f"re_{block}_{n}", "status": "succeeded"}
                completed = TaskCompleted(output=output, attempt=1, duration_s=0.2, by=f"refund/{instance}")
                yield subjects.task(run_id, n, "completed"), completed
        for run_id in ids:
            yield subjects.run(run_id, "completed"), RunCompleted(result={"ok": True})
        block += 1


class _Nowhere:
    """In place of a transaction: takes everything and holds nothing."""

    def cursor(self) -> _Nowhere:
        return self

    async def execute(self, *_: Any) -> _Nowhere:
        return self

    async def fetchall(self) -> list[Any]:
        return []

    async def fetchone(self) -> None:
        return None

    @asynccontextmanager
    async def copy(self, _: bytes) -> AsyncIterator[_Nowhere]:
        yield self

    async def write(self, _: bytes) -> None:
        pass


async def read_through(log: EventLog, last: int, *, fold: bool) -> float:
    """Decode the whole log, and fold it if wanted; gives seconds."""
    began = time.perf_counter()
    async with LogReader(log, after=Position(), batch_size=REBUILD_BATCH) as reader:
        batch: Batch = []
        while not batch or batch[-1].sequence < last:
            batch = await reader.next_batch()
            if fold:
                for projection in ALL:
                    await projection.apply(batch, _Nowhere())  # type: ignore[arg-type]
    return time.perf_counter() - began


async def run(events: int, profile: str, nats_url: str, database: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cuebook-rebuild-")))
        nats: NatsServer = await stack.enter_async_context(nats_server(directory / "nats"))
        server: Postgres = await stack.enter_async_context(postgres(directory / "postgres"))
        connection = await stack.enter_async_context(await connect(nats_url or nats.url, name="bench rebuild"))
        log = await stack.enter_async_context(EventLog(connection, SPACE, source="bench"))
        await log.ensure()
        began = time.perf_counter()
        last = await fill(log, events)
        _say("log written", last, time.perf_counter() - began)
        settle_collector()
        _say("decoded", last, await read_through(log, last, fold=False))
        _say("decoded and folded", last, await read_through(log, last, fold=True))
        url = database or server.url
        for what in ("rebuilt", "rebuilt and compared"):
            before, busy = _cpu(nats, server), machine_cpu_s()
            profiler = cProfile.Profile() if profile and what == "rebuilt" else None
            if profiler:
                profiler.enable()
            began = time.perf_counter()
            stages: dict[str, float] = {}
            memory: list[int] = []

            def tell(
                progress: Any, stages: dict[str, float] = stages, memory: list[int] = memory, began: float = began
            ) -> None:
                stages.setdefault(
                    f"{progress.stage} {progress.projection}" if progress.stage != "reading" else "reading",
                    time.perf_counter() - began,
                )
                memory.append(_rss_mib())

            reports = await rebuild(log, url, ALL, on_progress=tell)
            seconds = time.perf_counter() - began
            if profiler:
                profiler.disable()
                profiler.dump_stats(profile)
            _say(what, last, seconds)
            after, total = _cpu(nats, server), machine_cpu_s()
            print(
                "  CPU s:",
                {name: round(after[name] - before[name], 1) for name in after},
                "of the machine",
                round(total[0] - busy[0], 1),
                "of",
                round(total[1] - busy[1], 1),
            )
            print("  stages began at s:", {name: round(at, 1) for name, at in stages.items()})
            tenth = max(len(memory) // 10, 1)
            print("  resident MiB, over the time:", memory[::tenth])
            print(
                "  rows:",
                {table.table: table.rows for one in reports for table in one.tables},
                "differences:",
                sum(one.differences for one in reports),
                "parked:",
                sum(one.parked for one in reports),
            )


def _cpu(nats: NatsServer, server: Postgres) -> dict[str, float]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {"python": own.ru_utime + own.ru_stime, "postgresql": cpu_s(server.pid), "nats-server": cpu_s(nats.pid)}


def _rss_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024 // 1024


def _say(what: str, events: int, seconds: float) -> None:
    print(f"{what}: {events} events in {seconds:.1f} s, {events / seconds:,.0f}/s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--profile", default="", metavar="FILE", help="where cProfile writes about the first rebuild")
    parser.add_argument("--nats-url", default="", help="a server to use in place of the embedded one")
    parser.add_argument("--database-url", default="", help="a PostgreSQL to use in place of the embedded one")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.events, options.profile, options.nats_url, options.database_url))


if __name__ == "__main__":
    main()
