"""Histories in native partitions and in hypertables: `python -m benchmarks.timeseries --programs DIR`.

The same log is built into tables of both kinds on one PostgreSQL with TimescaleDB, whose programs are in DIR. Then
everything of the hypertables is compressed, as the database does with chunks a week after their end, and both are
asked the same.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.history import fill
from benchmarks.machine import machine_facts
from benchmarks.processes import cpu_s
from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from cuebook.projections import queries
from cuebook.projections.database import Transaction
from cuebook.projections.rebuild import rebuild
from cuebook.projections.runner import ALL
from cuebook.projections.timeseries import Timeseries

SPACE: Final = "bench"
ROUNDS: Final = 7
SETTINGS: Final = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
KINDS: Final = (Timeseries.NATIVE, Timeseries.TIMESCALE)


class Figures:
    """A row for each thing measured, a column for each kind."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, str]] = {}

    def note(self, what: str, kind: str, value: str) -> None:
        self.rows.setdefault(what, {})[kind] = value

    def table(self) -> Table:
        table = Table(box=None, header_style="bold")
        columns = ["native", "timescale", "compressed"]
        for name in ["", *columns]:
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for what, found in self.rows.items():
            table.add_row(what, *(found.get(name, "") for name in columns))
        return table


async def run(events: int, programs: Path) -> Figures:
    figures = Figures()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cuebook-timeseries-")))
        nats = await stack.enter_async_context(nats_server(directory / "nats"))
        server = await stack.enter_async_context(postgres(directory, programs=programs, settings=SETTINGS))
        connection = await stack.enter_async_context(await connect(nats.url, name="bench timeseries"))
        log = await stack.enter_async_context(EventLog(connection, SPACE, source="bench"))
        await log.ensure()
        last = await fill(log, events)
        urls = {}
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as admin:
            for kind in KINDS:
                await admin.execute(f"CREATE DATABASE {kind.value}".encode())
                urls[kind] = server.url.rpartition("/")[0] + f"/{kind.value}"
        for what in ("rebuild all", "rebuild all and compare"):
            for kind in KINDS:
                began, before = time.perf_counter(), cpu_s(server.pid)
                reports = await rebuild(log, urls[kind], ALL, timeseries=kind)
                figures.note(f"{what}, events/s", kind, f"{last / (time.perf_counter() - began):,.0f}")
                used = (cpu_s(server.pid) - before) * 1e6 / last
                figures.note(f"{what}, µs of PostgreSQL's CPU an event", kind, f"{used:,.1f}")
                assert all(one.differences == 0 for one in reports)
        for kind in KINDS:
            async with queries.writing(urls[kind], SPACE) as database:
                await sizes(figures, database, kind, kind)
                await ask(figures, database, kind)
                if kind is Timeseries.TIMESCALE:
                    began = time.perf_counter()
                    await compress(database)
                    figures.note("compress, rows/s", "compressed", f"{last / (time.perf_counter() - began):,.0f}")
                    await sizes(figures, database, kind, "compressed")
                    await ask(figures, database, "compressed")
    return figures


async def compress(connection: Transaction) -> None:
    schema = await one(connection, "SELECT tables_in FROM checkpoints WHERE projection = 'audit' AND shown")
    await connection.execute(
        "SELECT public.compress_chunk(public.show_chunks(format('%%I.audit', %s::text)::regclass))", [schema]
    )
    await connection.execute(
        b"CALL public.refresh_continuous_aggregate('\"" + schema.encode() + b"\".agent_actions', NULL, NULL)"
    )
    await connection.execute(b'VACUUM ANALYZE "' + schema.encode() + b'".audit')


async def sizes(figures: Figures, connection: Transaction, kind: Timeseries, column: str) -> None:
    schema = await one(connection, "SELECT tables_in FROM checkpoints WHERE projection = 'audit' AND shown")
    (audit,) = await queries.list_tables(connection, schema, timeseries=kind)
    figures.note("audit with its indexes, MiB", column, f"{audit.bytes / 2**20:,.1f}")


async def ask(figures: Figures, connection: Transaction, column: str) -> None:
    """The median time of the same questions."""
    found = await queries.search_audit(connection, limit=1, offset=5_000)
    run_id, correlation_id = found[0].run_id, found[0].correlation_id
    questions: dict[str, Any] = {
        "newest 50 messages, ms": lambda: queries.search_audit(connection),
        "one run by its id, ms": lambda: queries.search_audit(connection, run_id=run_id),
        "50 of a conversation, ms": lambda: queries.search_audit(connection, correlation_id=correlation_id),
        "what its data contains, ms": lambda: queries.search_audit(connection, contains={"nothing": "there"}),
        "all of agent_actions, ms": lambda: connection.execute("SELECT * FROM agent_actions"),
    }
    for what, question in questions.items():
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await question()
            taken.append(time.perf_counter() - began)
        figures.note(what, column, f"{statistics.median(taken) * 1000:,.1f}")


async def one(connection: Transaction, query: str) -> str:
    cursor = await connection.execute(query.encode())
    found = await cursor.fetchone()
    assert found is not None
    return str(found[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="how many the log holds")
    parser.add_argument("--programs", type=Path, required=True, metavar="DIR", help="of a PostgreSQL with TimescaleDB")
    options = parser.parse_args(arguments)
    figures = asyncio.run(run(options.events, options.programs))
    console = Console(width=120)
    console.print(figures.table())
    console.print(", ".join(f"{name} {value}" for name, value in machine_facts().items()))


if __name__ == "__main__":
    main()
