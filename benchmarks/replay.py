"""What can be done with a log of a given size afterwards: `just bench-replay`, on servers of its own.

The log is sealed, exported in both formats, verified against its checkpoints, and its last event is proved; each
figure with the CPU time of our process and the largest memory it had until then.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.history import fill
from benchmarks.machine import machine_facts
from cuebook.cli.audit.proving import Evidence, prove
from cuebook.cli.audit.verifying import verify_export
from cuebook.cli.events.exporting import Part, export, import_
from cuebook.cli.exits import Interruption
from cuebook.cli.options import Output, Target
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.sealer import Sealer

SPACE = "bench"
FORMATS = ("jsonl", "parquet")


class Figures:
    """What was measured, a row each."""

    def __init__(self, events: int) -> None:
        self._events = events
        self.table = Table(box=None, header_style="bold")
        for column in ("what", "seconds", "events/s", "CPU s of ours", "memory MiB", "file MB"):
            self.table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)

    @contextmanager
    def row(self, what: str, file: Path | None = None, *, of_all: bool = True) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        with redirect_stdout(io.StringIO()):
            yield
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        size = f"{file.stat().st_size / 1e6:,.0f}" if file is not None else ""
        rate = f"{self._events / seconds:,.0f}" if of_all else ""
        self.table.add_row(what, f"{seconds:.{1 if of_all else 3}f}", rate, f"{cpu:.1f}", str(memory), size)


async def seal(log: EventLog, key: PrivateKey, file: Path, events: int) -> None:
    sealer = Sealer(log, key, file)
    running = asyncio.create_task(sealer.run())
    while sealer.sealed < events // 1000 * 1000 and not running.done():  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.05)
    sealer.stop()
    await running


async def read(log: EventLog, events: int) -> None:
    async with aclosing(log.batches(until=events)) as batches:
        async for _ in batches:
            pass


async def fill_space(target: Target, file: str) -> None:
    await import_(target, file, Output.JSON, Interruption(), reroot=True, live_effects=False, replicas=1)


@asynccontextmanager
async def written(folder: Path, events: int, console: Console) -> AsyncIterator[tuple[str, EventLog, int]]:
    """A server with a log of so many events, and its process id."""
    async with nats_server(folder / "nats") as server:
        connection = await connect(server.url, name="bench replay")
        async with connection, EventLog(connection, SPACE, source="bench") as log:
            await log.ensure()
            began = time.perf_counter()
            before = resident_mib(server.pid)
            await fill(log, events)
            facts = await log.verify()
            console.print(
                f"log of {events:,} events written in {time.perf_counter() - began:.0f} s: "
                f"{facts.bytes / 1e6:,.0f} MB, {facts.bytes / events:,.0f} bytes an event; the server's memory grew "
                f"from {before:,} to {resident_mib(server.pid):,} MiB for {facts.subjects:,} subjects"
            )
            yield server.url, log, server.pid


def resident_mib(pid: int) -> int:
    """Memory of a process. Source: proc(5), statm."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() >> 20


async def measure(events: int, console: Console) -> Table:
    figures = Figures(events)
    with tempfile.TemporaryDirectory(prefix="cuebook-bench-") as name:
        folder = Path(name)
        key = PrivateKey.generate("example.com/bench")
        public, checkpoints = key.save(folder / "key"), folder / "checkpoints"
        files = {name: folder / f"all.{name}" for name in FORMATS}
        async with written(folder, events, console) as (url, log, _):
            target = Target(nats_url=url, space=SPACE)
            with figures.row("read, undecoded"):
                await read(log, events)
            with figures.row("one run, from the middle", of_all=False):
                assert await log.history(f"order-{events // 24}")
            with figures.row("sealed, a checkpoint every 1,000"):
                await seal(log, key, checkpoints, events)
            for name, file in files.items():
                with figures.row(f"exported to {name}", file):
                    await export(target, Part(), str(file), "", Output.JSON, view=True)
            with figures.row("the last event proved from the log", of_all=False):
                evidence = Evidence(export="", key="", checkpoints=[])
                await prove(target, str(events), str(folder / "proof"), evidence, Output.JSON)
            with figures.row("imported into another space"):
                await fill_space(Target(nats_url=url, space=f"{SPACE}-copy"), str(files["jsonl"]))
        for name, file in files.items():
            with figures.row(f"audit verify of {name}", file):
                verify_export(str(file), str(public), [checkpoints], Output.JSON)
    return figures.table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    console = Console(width=110)
    for name, value in machine_facts().items():
        console.print(f"[dim]{name:12} {value}[/]")
    console.print(asyncio.run(measure(options.events, console)))


if __name__ == "__main__":
    main()
