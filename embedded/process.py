"""A server process that is alone on its directory and does not outlive the program that started it.

However the program ends, the server ends with it:

- it leaves the context manager: stop signal, then SIGKILL after `STOP_DEADLINE_S`;
- Ctrl-C: the server is in a session of its own, so the terminal interrupts only the program, which drains first;
- SIGKILL: Linux then sends the server its stop signal (PR_SET_PDEATHSIG). Other systems leave it running.

The death signal belongs to the *thread* that started the server (prctl(2)): the event loop's thread must live as long
as the server should.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cuebook.events.errors import ConfigurationError, UnavailableError

__all__ = [
    "LOOPBACK",
    "START_DEADLINE_S",
    "STOP_DEADLINE_S",
    "Account",
    "ServerProcess",
    "dies_with_this_thread",
    "exclusive",
    "free_port",
    "how_it_ended",
]

LOOPBACK: Final = "127.0.0.1"
START_DEADLINE_S: Final = 60.0  # recovery after an unclean stop included
STOP_DEADLINE_S: Final = 15.0
LOCK_DEADLINE_S: Final = 15.0  # how long a start waits for the servers of a killed program to finish
POLL_S: Final = 0.02
LOG_TAIL_LINES: Final = 5

# Below 32768, where Linux takes the ports of outgoing connections from: a stopped server finds its port free again.
_PORTS: Final = range(20_000, 32_000)
_PORT_ATTEMPTS: Final = 200
_PR_SET_PDEATHSIG: Final = 1  # Source: linux/prctl.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The system account a server runs as when the program itself is root."""

    uid: int
    gid: int


class ServerProcess:
    """One server at a time: started, awaited until it answers, stopped. May be started again."""

    def __init__(self, name: str, *, log: Path, stop_signal: signal.Signals) -> None:
        """`name` is for messages; `log` takes what the server prints, appended."""
        self.name = name
        self.log = log
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Started, and not known to have ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The server's process id. Raises UnavailableError when it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise UnavailableError(f"{self.name} is not running")
        return self._process.pid

    async def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        lock: int,
        inherit: Sequence[int] = (),
        account: Account | None = None,
    ) -> None:
        """Start the server. It inherits `lock`, so the directory stays locked until its last process is gone."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                env=env,
                cwd="/",  # the server may not be allowed into ours
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock, *inherit),
                start_new_session=True,
                preexec_fn=dies_with_this_thread(self._stop_signal),  # after the change of account, which resets it
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )

    async def until(self, answers: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until the server answers: True; or has ended before that: False.

        Raises UnavailableError when neither has happened after `START_DEADLINE_S`.
        """
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                while self.running:
                    if await answers():
                        return True
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise UnavailableError(
                f"{self.name} did not answer within {START_DEADLINE_S:g} s", remedy=f"see {self.log}"
            ) from error
        return False

    async def ended(self) -> int:
        """Wait until the server, which was started, has ended, however that came; return its status."""
        if self._process is None:
            raise UnavailableError(f"{self.name} is not running")
        return await self._process.wait()

    def failure(self) -> ConfigurationError:
        """The error for a server that ended by itself, with the last lines it printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        code = self._process.returncode if self._process else None
        how = "before it ran" if code is None else how_it_ended(code)
        return ConfigurationError(
            f"{self.name} ended {how}:\n" + "\n".join(lines), remedy=f"the whole story is in {self.log}"
        )

    async def stop(self) -> None:
        """Ask the server to stop; kill it if it has not after `STOP_DEADLINE_S`, or if we are cancelled meanwhile."""
        self._signal(self._stop_signal)
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._gone()
        except TimeoutError:
            await self.kill()
        except asyncio.CancelledError:
            await self.kill()
            raise

    async def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would."""
        self._signal(signal.SIGKILL)
        await self._gone()

    async def _gone(self) -> None:
        if self._process:
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                self._process.send_signal(number)


@contextlib.asynccontextmanager
async def exclusive(lock: Path) -> AsyncIterator[int]:
    """Hold a directory for one server, and give the descriptor that the server must inherit.

    Leaving closes only our copy: the lock lasts until the last process that inherited it ends. So a start waits for
    what an earlier, killed server left behind. Raises ConfigurationError when another program is using the directory.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {lock.parent} cannot be used: {error.strerror}", remedy="choose another or change its owner"
        ) from error
    try:
        await _lock(descriptor, lock)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def how_it_ended(status: int) -> str:
    """The status of a process in words, such as `with status 1` or `by SIGKILL`."""
    return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, and that outgoing connections do not take."""
    for _ in range(_PORT_ATTEMPTS):
        port = secrets.choice(_PORTS)
        if _is_free(port):
            return port
    raise UnavailableError(f"no free port found between {_PORTS.start} and {_PORTS.stop}")


def dies_with_this_thread(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """For `preexec_fn`: the child gets `stop_signal` when the thread that starts it ends, however that happens.

    What it returns runs between fork and exec: no imports, no allocation beyond the call, since it may hold locks.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()

    def before_exec() -> None:
        if _LIBC.prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)  # the program ended between fork and prctl: nobody would ever stop this server

    return before_exec


async def _lock(descriptor: int, lock: Path) -> None:
    deadline = asyncio.get_running_loop().time() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = int(os.pread(descriptor, 32, 0) or 0)
            in_use_elsewhere = holder != os.getpid() and _is_alive(holder)
            if in_use_elsewhere or asyncio.get_running_loop().time() > deadline:
                raise ConfigurationError(
                    f"the directory {lock.parent} is in use by the servers of process {holder}",
                    remedy="stop that program, or choose another directory",
                ) from error
            await asyncio.sleep(POLL_S)
        else:
            return


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
