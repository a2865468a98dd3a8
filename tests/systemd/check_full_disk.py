"""PostgreSQL's disk is full, for real: its tables lie on a small filesystem in memory. Needs root, to mount it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.connection import connect
from cuebook.events.log import EventLog
from cuebook.projections.runner import Runner
from tests.projections.tables import Tables
from tests.projections.test_runner import append_tasks, running
from tests.waiting import eventually


@contextlib.contextmanager
def small_filesystem(owner: int) -> Iterator[Path]:
    """Not in pytest's own folder, which only the user who runs it may enter."""
    folder = Path(tempfile.mkdtemp(prefix="cuebook-small-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=32m,uid={owner},mode=700", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


async def test_projections_wait_for_room_and_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nats_server(tmp_path / "nats") as server, postgres(tmp_path / "postgres", durable=False) as database:
        owner = next((tmp_path / "postgres").rglob("PG_VERSION")).stat().st_uid
        with small_filesystem(owner) as small:
            place = small / "tables"
            place.mkdir(mode=0o700)
            subprocess.run(["chown", str(owner), place], check=True)
            async with await psycopg.AsyncConnection.connect(database.url, autocommit=True) as connection:
                await connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
                await connection.execute("CREATE DATABASE squeezed TABLESPACE small")
            url = database.url.rpartition("/")[0] + "/squeezed"
            nats = await connect(server.url, name="tests")
            async with EventLog(nats, "cue", source="tests") as log:
                await log.ensure()
                await append_tasks(log, 10)
                runner = Runner(log, url)
                async with running(runner):
                    await eventually(lambda: runner.status().positions["audit"].sequence == 30, within_s=30)
                    ballast = fill(small)
                    last = await append_tasks(log, 1000, prefix="squeezed")
                    await eventually(lambda: not runner.status().database_available, within_s=30)
                    assert "PostgreSQL's disk is full; the projections wait" in caplog.text
                    await asyncio.to_thread(ballast.unlink)
                    await eventually(
                        lambda: {one.sequence for one in runner.status().positions.values()} == {last}, within_s=60
                    )
                    assert runner.status().database_available
                tables = Tables(url, "cue")
                assert await tables.row("SELECT count(*), max(sequence) FROM audit") == (last, last)
                live = await tables.dump()
                await tables.drop()
                await Runner(log, url).run(until=last)
                assert await tables.dump() == live
            await nats.close()
