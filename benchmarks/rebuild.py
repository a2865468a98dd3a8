"""Rebuilding all projections from a log of a given size, on servers of its own: `python -m benchmarks.rebuild`.

Decoding alone, decoding and folding with nobody to write to, the whole rebuild into PostgreSQL, and a second one that
has tables to compare with. One process reads, as in the product. On a machine that is not idle, look at the CPU time:
two cores give two million microseconds a second.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.history import fill
from benchmarks.processes import cpu_s, machine_cpu_s
from cuebook.actors.collector import settle_collector
from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.embedded.postgres import Postgres, postgres
from cuebook.events.connection import connect
from cuebook.events.envelope import Position
from cuebook.events.log import EventLog
from cuebook.projections.projection import Batch
from cuebook.projections.reader import LogReader
from cuebook.projections.rebuild import REBUILD_BATCH, Progress, rebuild
from cuebook.projections.runner import ALL

SPACE: Final = "bench"


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


async def read_through(log: EventLog, last: int, *, fold: bool) -> None:
    """Decode the whole log, and fold it if wanted."""
    async with LogReader(log, after=Position(), batch_size=REBUILD_BATCH) as reader:
        batch: Batch = []
        while not batch or batch[-1].sequence < last:
            batch = await reader.next_batch()
            if fold:
                for projection in ALL:
                    await projection.apply(batch, _Nowhere())  # type: ignore[arg-type]


class Figures:
    """What was measured, a row each: rate, CPU time for one event by process, and memory of ours."""

    def __init__(self, events: int, nats: NatsServer, server: Postgres) -> None:
        self._events, self._pids = events, {"postgresql": server.pid, "nats-server": nats.pid}
        self.memory: list[int] = []
        self.table = Table(box=None, header_style="bold")
        columns = ("what", "s", "events/s", "python µs", "postgresql µs", "nats-server µs", "others' CPU", "MiB")
        for column in columns:
            self.table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)

    @contextmanager
    def row(self, what: str) -> Iterator[None]:
        self.memory = [_resident_mib()]
        began, before, busy = time.perf_counter(), self._cpu_s(), machine_cpu_s()
        yield
        seconds, after, total = time.perf_counter() - began, self._cpu_s(), machine_cpu_s()
        used = {name: after[name] - before[name] for name in after}
        others = max(total[0] - busy[0] - sum(used.values()), 0) / (total[1] - busy[1])
        self.memory.append(_resident_mib())
        each = [f"{used[name] * 1e6 / self._events:.1f}" for name in ("python", "postgresql", "nats-server")]
        memory = f"{min(self.memory)} to {max(self.memory)}"
        self.table.add_row(what, f"{seconds:.1f}", f"{self._events / seconds:,.0f}", *each, f"{others:.0%}", memory)

    def _cpu_s(self) -> dict[str, float]:
        return {"python": time.process_time(), **{name: cpu_s(pid) for name, pid in self._pids.items()}}


def _resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024 // 1024


async def run(events: int, profile: str) -> Figures:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cuebook-rebuild-")))
        nats = await stack.enter_async_context(nats_server(directory / "nats"))
        server = await stack.enter_async_context(postgres(directory / "postgres"))
        connection = await stack.enter_async_context(await connect(nats.url, name="bench rebuild"))
        log = await stack.enter_async_context(EventLog(connection, SPACE, source="bench"))
        await log.ensure()
        figures = Figures(events, nats, server)
        with figures.row("write the log"):
            last = await fill(log, events)
        settle_collector()
        with figures.row("decode"):
            await read_through(log, last, fold=False)
        with figures.row("decode and fold"):
            await read_through(log, last, fold=True)

        def remember(_: Progress) -> None:
            figures.memory.append(_resident_mib())

        with figures.row("rebuild all"), profiled(profile):
            await rebuild(log, server.url, ALL, on_progress=remember)
        with figures.row("rebuild all and compare"):
            reports = await rebuild(log, server.url, ALL, on_progress=remember)
        assert all(report.compared_at == last and report.differences == 0 for report in reports)
    return figures


@contextmanager
def profiled(file: str) -> Iterator[None]:
    if not file:
        yield
        return
    with cProfile.Profile() as profile:
        yield
    profile.dump_stats(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="how many the log holds")
    parser.add_argument("--profile", default="", metavar="FILE", help="where cProfile writes about the first rebuild")
    options = parser.parse_args(arguments)
    figures = asyncio.run(run(options.events, options.profile))
    Console(width=120).print(figures.table)


if __name__ == "__main__":
    main()
