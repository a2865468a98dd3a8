"""Programs as child processes, kept running for as long as an `async with` block lasts.

A child that ends by itself is started again, after pauses that grow; one that never stays up ends the block. However
we end, the children end with us: leaving the block asks them to drain and then kills what is left; Ctrl-C in a terminal
reaches only us, since each child is in a session of its own; and if we are killed, Linux kills them too, which is safe:
whatever they were at is on the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cuebook.embedded.process import dies_with_this_thread, how_it_ended
from cuebook.events.errors import ConfigurationError

__all__ = ["QUICK_ENDS", "Child", "Program", "Restarts", "Say", "never", "running"]

Say = Callable[[str, str], None]
"""Called with the name of a program and one line that it printed, or that is about it."""

DRAIN_DEADLINE_S: Final = 40.0
"""How long children may take to finish what they have; agents give themselves 30 s."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
STAYED_UP_S: Final = 10.0
"""A child that ran for this long is up; the pauses before its next starts begin small again."""
QUICK_ENDS: Final = 5
"""Ends in a row, each before the child was up, after which nobody believes that the next start will be better."""
_LAST_WORDS: Final = 8
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run. `name` is for messages; `env` is all the environment that the program gets."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]


class Restarts:
    """The pauses before the next starts of one program. `give_up`: whether one that never stays up is given up."""

    def __init__(self, *, give_up: bool = True) -> None:
        """Begin with the shortest."""
        self._next_s, self._quick_ends, self._give_up = FIRST_PAUSE_S, 0, give_up

    def pause_s(self, ran_s: float) -> float | None:
        """How long to wait after an end that came `ran_s` after the start; None: the program never stays up."""
        if ran_s >= STAYED_UP_S:
            self._next_s, self._quick_ends = FIRST_PAUSE_S, 0
        self._quick_ends += 1
        if self._quick_ends >= QUICK_ENDS and self._give_up:
            return None
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_PAUSE_S)
        return pause_s


class Child:
    """One program, kept running."""

    def __init__(self, program: Program, say: Say) -> None:
        """Take the program; `running` is the way to start one."""
        self.name = program.name
        self.starts = 0
        self._program, self._say = program, say
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process id, or 0 while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def keep(self) -> None:
        """Run the program until `stop`. Raises ConfigurationError when it cannot be started or never stays up."""
        clock = asyncio.get_running_loop().time
        restarts = Restarts()
        while not self._stopping.is_set():
            began = clock()
            status = await self._run()
            if self._stopping.is_set():
                return
            pause_s = restarts.pause_s(clock() - began)
            if pause_s is None:
                last_words = "".join(f"\n  {line}" for line in self._last_words)
                raise ConfigurationError(
                    f"{self.name} does not stay up: {QUICK_ENDS} times it ended soon after its start{last_words}"
                )
            self._say(self.name, f"ended {how_it_ended(status)}; starts again in {pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal, and start no more."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                if number is signal.SIGKILL:
                    os.killpg(self._process.pid, number)  # with whatever it has started itself
                else:
                    self._process.send_signal(number)

    async def _run(self) -> int:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._program.argv,
                env=self._program.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_this_thread(signal.SIGKILL),
            )
        except OSError as error:
            raise ConfigurationError(f"{self.name} cannot be started: {error}") from error
        self.starts += 1
        if self._stopping.is_set():
            self._process.terminate()  # nobody could tell it before
        assert self._process.stdout is not None
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._pass_on(self._process.stdout))
            status = await self._process.wait()
            await asyncio.wait([reading], timeout=1)  # a process that it left behind may hold the pipe open
            reading.cancel()
        return status

    async def _pass_on(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._pass_line(line)
        if rest:
            self._pass_line(rest)

    def _pass_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._last_words.append(text)
        self._say(self.name, text)


async def never() -> None:
    """Wait for what does not come."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running(
    programs: Sequence[Program], say: Say, *, lost: Callable[[], Awaitable[None]] = never
) -> AsyncIterator[list[Child]]:
    """Run programs; leaving stops them all at once and waits until they are gone.

    `lost`: returns when the children cannot finish what they have, since something that they need is gone; asked only
    when they are to end, it cuts their drain short.

    Raises ConfigurationError, out of the block, for a program that cannot be started or never stays up.
    """
    if not programs:
        yield []
        return
    children = [Child(program, say) for program in programs]
    keepers = [asyncio.create_task(child.keep(), name=child.name) for child in children]
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_raise_first(keepers))
            yield children
            watcher.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # what went wrong first; the rest followed from it
    finally:
        await _stop(children, keepers, say, lost)


async def _raise_first(keepers: Sequence[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_EXCEPTION)
    for keeper in done:
        keeper.result()


async def _stop(
    children: Sequence[Child],
    keepers: Sequence[asyncio.Task[None]],
    say: Say,
    lost: Callable[[], Awaitable[None]],
) -> None:
    """Let the children drain; kill what is left after the deadline, when draining is in vain or we are told again."""
    for child in children:
        child.stop(signal.SIGTERM)
    drained, in_vain = asyncio.ensure_future(asyncio.wait(keepers)), asyncio.ensure_future(lost())
    try:
        await asyncio.wait([drained, in_vain], timeout=DRAIN_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        in_vain.cancel()  # it is done after this only if it was before
        for child in children:
            if child.pid and in_vain.done():
                say(child.name, "killed before it was done: what it needs is gone")
            child.stop(signal.SIGKILL)
        await asyncio.gather(*keepers, return_exceptions=True)
