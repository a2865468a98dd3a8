"""However the program ends, its servers end with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.errors import ConfigurationError
from tests.waiting import eventually

PROGRAM = Path(__file__).with_name("server_program.py")


@contextlib.contextmanager
def program(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """The program, started in a process group of its own as a shell would, and all processes of its servers."""
    with subprocess.Popen(
        [sys.executable, PROGRAM, data_dir], stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            pids = json.loads(process.stdout.readline())
            servers = [psutil.Process(pid) for pid in pids.values()]
            yield process, [*servers, *(child for server in servers for child in server.children(recursive=True))]
        finally:
            process.kill()


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that has ended and that nobody has waited for does not."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


async def test_ctrl_c_reaches_the_program_first_and_then_ends_the_servers(tmp_path: Path) -> None:
    with program(tmp_path) as (process, servers):
        assert len(servers) > 2  # PostgreSQL has processes of its own
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert output == "drained\n"
    assert running(servers) == []
    assert "Server Exiting" in (tmp_path / "nats-server.log").read_text()
    assert "database system is shut down" in (tmp_path / "postgres.log").read_text()


async def test_a_killed_program_leaves_nothing_running(tmp_path: Path) -> None:
    with program(tmp_path) as (process, servers):
        process.kill()
    await eventually(lambda: not running(servers))


async def test_a_program_started_after_a_kill_waits_for_the_servers_of_the_killed_one(tmp_path: Path) -> None:
    with program(tmp_path) as (process, _):
        process.kill()
    async with nats_server(tmp_path), postgres(tmp_path, durable=False):
        pass


async def test_a_directory_in_use_by_another_program_is_refused(tmp_path: Path) -> None:
    with program(tmp_path) as (process, _):
        for server in (nats_server(tmp_path), postgres(tmp_path)):
            with pytest.raises(ConfigurationError, match=f"in use by the servers of process {process.pid}"):
                async with server:
                    pass
