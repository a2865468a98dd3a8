"""The processes of a benchmark: starting them, giving them orders, and what CPU time they have used."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from cuebook.events.errors import UnavailableError

__all__ = ["Service", "Worker", "cpu_s", "machine_cpu_s", "service", "worker"]

ANSWER_BYTES: Final = 64 * 1024 * 1024
END_DEADLINE_S: Final = 20.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_ROOT: Final = Path(__file__).resolve().parent.parent


class Worker:
    """One running `benchmarks.worker`; see `worker`."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self.role, self._process = role, process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def order(self, what: str, **details: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises UnavailableError when the process has ended instead."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **details}).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """The next answer; the first one says that the process is ready."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise UnavailableError(f"the {self.role} process has ended with {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def end(self) -> None:
        """No more orders; wait until the process has ended, and kill it when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_DEADLINE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def worker(
    role: str, url: str, space: str, database: str = "", *, env: Mapping[str, str]
) -> AsyncIterator[Worker]:
    """Start a process in a role and wait until it is ready; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.worker", role, "--url", url, "--space", space, "--database", database),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_BYTES,
        cwd=_ROOT,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}, **env},
    )
    started = Worker(role, process)
    try:
        await started.answer()
        yield started
    finally:
        await started.end()


class Service:
    """One running `cuebook serve`; see `service`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)


@asynccontextmanager
async def service(words: Sequence[str], url: str) -> AsyncIterator[Service]:
    """Start `cuebook serve WORDS` with all defaults and wait until it says that it is ready; killed with the block.

    Raises UnavailableError when it has ended instead.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from cuebook.cli.main import main; main()", "serve", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=_ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("CUEBOOK_", "OTEL_"))},
            "CUEBOOK_NATS_URL": url,
            "CUEBOOK_LOG_FORMAT": "json",
        },
    )
    assert process.stderr is not None
    said, rest = b"", asyncio.ensure_future(asyncio.sleep(0))
    try:
        while b'"ready"' not in (line := await process.stderr.readline()):
            said += line
            if not line:
                raise UnavailableError(f"cuebook serve {words[0]} has ended: {said.decode(errors='replace')}")
        rest = asyncio.ensure_future(process.stderr.read())  # or it would block when the pipe is full
        yield Service(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await rest


def machine_cpu_s() -> tuple[float, float]:
    """CPU seconds since boot: those that somebody used, and those that were to be had. Source: proc(5), stat."""
    counted = [int(ticks) for ticks in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    idle, iowait = counted[3:5]
    return (sum(counted) - idle - iowait) / _TICKS_PER_S, sum(counted) / _TICKS_PER_S


def cpu_s(pid: int) -> float:
    """CPU seconds used so far by a process, its threads and its children (user and system). Source: proc(5), stat."""
    total = 0.0
    pids = [pid]
    while pids:
        one = pids.pop()
        try:
            # The name in parentheses may hold blanks, and parentheses.
            fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                pids += [int(child) for child in children.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended; its parent counts what it used
        own, reaped = fields[11:13], fields[13:15]
        total += sum(map(int, (*own, *reaped))) / _TICKS_PER_S
    return total
