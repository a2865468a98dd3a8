"""Child processes are kept running, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from cuebook.cli.serving import children
from cuebook.cli.serving.children import Program, running
from cuebook.events.errors import ConfigurationError
from tests.waiting import eventually

WAITS = "import signal; print('up', flush=True); [signal.pause() for _ in range(9)]"
WAITS_WITH_A_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAITS!r}]); {WAITS}"
REFUSES = "lambda *_: print('no', flush=True)"
IS_DEAF = f"import signal; signal.signal(signal.SIGTERM, {REFUSES}); {WAITS_WITH_A_CHILD}"
SAYS_GOODBYE = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye'))); {WAITS}"


class Output:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def say(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def count(self, line: str) -> int:
        return sum(said == line for _, said in self.lines)


def python(code: str, name: str = "one") -> Program:
    return Program(name=name, argv=[sys.executable, "-c", code], env=os.environ)


async def test_a_child_that_dies_is_started_again() -> None:
    output = Output()
    async with running([python(WAITS)], output.say) as (child,):
        await eventually(lambda: output.count("up") == 1)
        psutil.Process(child.pid).kill()
        await eventually(lambda: output.count("up") == 2)
        assert child.starts == 2
    assert child.pid == 0
    assert ("one", "ended by SIGKILL; starts again in 0.25 s") in output.lines


async def test_children_are_asked_to_end_and_heard_out() -> None:
    output = Output()
    async with running([python(SAYS_GOODBYE, "a"), python(SAYS_GOODBYE, "b")], output.say):
        await eventually(lambda: output.count("up") == 2)
    assert sorted(line for line in output.lines if line[1] == "bye") == [("a", "bye"), ("b", "bye")]


async def test_a_deaf_child_is_killed_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DRAIN_DEADLINE_S", 0.2)
    output = Output()
    async with running([python(IS_DEAF)], output.say) as (child,):
        await eventually(lambda: output.count("up") == 2)
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children()]
    await eventually(lambda: not any(process.is_running() for process in family if process.pid))


async def test_a_second_interruption_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DRAIN_DEADLINE_S", 3600.0)
    output, entered = Output(), asyncio.Event()

    async def block() -> None:
        async with running([python(IS_DEAF)], output.say):
            await eventually(lambda: output.count("up") == 2)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await entered.wait()
    task.cancel()
    await eventually(lambda: output.count("no") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)


async def test_a_child_that_never_stays_up_ends_the_block_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.01)
    output = Output()
    with pytest.raises(ConfigurationError, match=r"one does not stay up: 5 times.*\n  no such thing"):
        async with running([python(WAITS, "other"), python("raise SystemExit('no such thing')")], output.say):
            await asyncio.Event().wait()
    assert output.count("no such thing") == 5


async def test_a_program_that_does_not_exist_is_said(tmp_path: Path) -> None:
    missing = Program(name="one", argv=[str(tmp_path / "missing")], env={})
    with pytest.raises(ConfigurationError, match="one cannot be started"):
        async with running([missing], Output().say):
            await asyncio.Event().wait()


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with running([python(WAITS)], Output().say):
            raise LookupError("mine")


async def test_without_programs_there_is_nothing_to_do() -> None:
    async with running([], Output().say) as none:
        assert none == []


async def test_the_end_of_a_line_and_of_the_output_are_passed_on_as_text() -> None:
    output = Output()
    code = "import sys; sys.stdout.buffer.write(b'a\\xff\\r\\nb'); sys.stdout.flush(); import signal; signal.pause()"
    async with running([python(code)], output.say):
        await eventually(lambda: output.lines)
    assert output.lines == [("one", "a\N{REPLACEMENT CHARACTER}"), ("one", "b")]
