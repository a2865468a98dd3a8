"""Old history in segments: what it takes to write, verify and search them. Part of `just bench-replay`.

A log of finished runs is sealed and archived to a directory and to the object store, verified, and one run is looked
for, with nothing in memory or cache: in the segments, and in ten times as many.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine_facts
from benchmarks.replay import SPACE, Figures, resident_mib, seal, written
from cuebook.events.log import EventLog
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.seals import Seals
from cuebook.ledger.segments.archive import Archive
from cuebook.ledger.segments.blocks import MAX_EVENTS
from cuebook.ledger.segments.bucket import BucketStore
from cuebook.ledger.segments.check import check_segments
from cuebook.ledger.segments.past import SegmentPast, SegmentReader
from cuebook.ledger.segments.shelf import read_shelf
from cuebook.ledger.segments.store import DirectoryStore, SegmentStore
from cuebook.ledger.source import Source

__all__ = ["main", "measure"]

COLLECTED_WITHIN_S = 240
"""Go collects at least every two minutes, and gives back to the system what it has not needed for a while."""


async def archive(log: EventLog, store: SegmentStore, key: PrivateKey, events: int, each: int) -> int:
    source = Source(log, await log.verify())
    seals = Seals(log.connection, SPACE, key.public)
    done = await Archive(source, SPACE, seals, store, key=key).write(1, events, max_events=each)
    return done.bytes


async def verify(store: SegmentStore, key: PrivateKey) -> None:
    shelf = await read_shelf(store, SPACE)
    report = await check_segments(shelf, shelf.segments, key=key.public)
    assert report.sound
    assert report.signed == len(shelf.segments)


async def find(store: SegmentStore, run_id: str) -> tuple[int, int]:
    """How many segments there are, and how many bytes were read until the run was found, manifests included."""
    shelf = await read_shelf(store, SPACE)
    reader = SegmentReader(store, None)
    first, last = shelf.segments[0].first, shelf.segments[-1].last
    past = SegmentPast(reader, shelf.segments, generation=1, name=store.place, first=first, last=last)
    assert await past.matches(f"{SPACE}.run.{run_id}.>")
    return len(shelf.segments), reader.bytes_read + sum(len(one.text) for one in shelf.segments)


async def measure(events: int, console: Console) -> Table:
    figures = Figures(events)
    run_id = f"order-{events // 24}"
    with tempfile.TemporaryDirectory(prefix="cuebook-bench-") as name:
        folder, key = Path(name), PrivateKey.generate("example.com/bench")
        async with written(folder, events, console) as (_, log, pid):
            await seal(log, key, folder / "checkpoints", events)
            stores = {
                "a directory": DirectoryStore(folder / "segments"),
                "the object store": BucketStore(log.connection, f"{SPACE}_segments"),
            }
            for where, store in stores.items():
                with figures.row(f"archived to {where}"):
                    size = await archive(log, store, key, events, MAX_EVENTS)
                console.print(f"segments in {where}: {size / 1e6:,.1f} MB, {size / events:.1f} bytes an event")
                with figures.row(f"verified in {where}"):
                    await verify(store, key)
                with figures.row(f"one run found in {where}", of_all=False):
                    count, read = await find(store, run_id)
                console.print(f"one run among {count} segments in {where}: {read / 1e3:,.0f} kB read")
            small = DirectoryStore(folder / "small")
            await archive(log, small, key, events, MAX_EVENTS // 10)
            with figures.row("one run found in ten times as many segments", of_all=False):
                count, read = await find(small, run_id)
            console.print(f"one run among {count} segments in a directory: {read / 1e3:,.0f} kB read")
            before = resident_mib(pid)
            await log.connection.jetstream().delete_stream(SPACE.upper())
            await asyncio.sleep(COLLECTED_WITHIN_S)
            console.print(
                f"nats-server's memory {COLLECTED_WITHIN_S} s after the stream was removed: "
                f"{resident_mib(pid):,} of {before:,} MiB"
            )
    return figures.table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segments", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    console = Console(width=110)
    for name, value in machine_facts().items():
        console.print(f"[dim]{name:12} {value}[/]")
    console.print(asyncio.run(measure(options.events, console)))


if __name__ == "__main__":
    main()
