"""`cuebook` commands as people start them: their lines as they come, and every process that they leave or do not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

__all__ = ["DEADLINE_S", "Command", "started"]

DEADLINE_S = 120.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_ROWS_AND_COLUMNS = (60, 110)


class Command:
    """A command under way. `lines` is what it has printed, without colours; `family` all that descends from it.

    `left_behind`: the files in its folder, which is its folder for temporary files too, once it has ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: int, cwd: Path) -> None:
        self.process = process
        self.lines: list[str] = []
        self.family: set[psutil.Process] = set()
        self.left_behind: list[Path] = []
        self._output, self._cwd = output, cwd
        self._read = 0
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def line(self, pattern: str) -> str:
        """The next line that matches, waited for. Raises AssertionError when none comes."""
        deadline = time.monotonic() + DEADLINE_S
        with self._arrived:
            while True:
                while self._read < len(self.lines):
                    self._read += 1
                    if re.search(pattern, self.lines[self._read - 1]):
                        return self.lines[self._read - 1]
                if not self._thread.is_alive() or not self._arrived.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line like {pattern!r} in:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """The exit status, waited for."""
        status = self.process.wait(DEADLINE_S)
        self._thread.join(DEADLINE_S)
        self.left_behind = list(self._cwd.iterdir())
        return status

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def still_running(self) -> list[psutil.Process]:
        """Those of the family that have not ended; a zombie has."""
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def running(self, argument: str) -> list[psutil.Process]:
        """Those that were started with this argument and have not ended."""
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
                if process.is_running() and argument in process.cmdline():
                    found.append(process)
        return found

    def exported(self) -> dict[str, str]:
        """The variables that it says to export."""
        lines = (re.fullmatch(r" *export (\w+)=(.*)", line) for line in self.lines)
        return {found[1]: found[2] for found in lines if found}

    def _follow(self) -> None:
        rest = b""
        with contextlib.suppress(OSError), open(self._output, "rb", buffering=0) as output:  # noqa: PTH123 - a descriptor
            while chunk := output.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                with self._arrived:
                    self.lines += [_ESCAPES.sub("", line.decode()) for line in lines]
                    self._look_around()
                    self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def _look_around(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= set(psutil.Process(self.process.pid).children(recursive=True))


@contextlib.contextmanager
def started(
    *arguments: str, cwd: Path, terminal: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Command]:
    """Start `cuebook` with these arguments, with no settings of whoever runs the tests; killed if it still runs."""
    foreign = ("CUEBOOK_", "COLUMNS", "LINES")  # the terminal's own size counts
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", *_ROWS_AND_COLUMNS, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "cuebook.cli.main", *arguments],
        cwd=cwd,
        env={**own, "TERM": "xterm", "TMPDIR": str(cwd), "PYTHONUNBUFFERED": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
    ) as process:
        os.close(writing)
        command = Command(process, reading, cwd)
        try:
            yield command
        finally:
            process.kill()
