"""Whoever reads the output may stop reading, as `| head` does: a command ends then, and makes no noise about it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.actors.runtime import AgentHost
from cuebook.cli.exits import reported_errors
from tests.cli.conftest import Cli, command

READER_GONE = 1
WITHIN_S = 60
COMMANDS = [
    ["--help"],
    ["run", "list", "-o", "json"],
    ["run", "tail", "r0"],
    ["events", "publish", "x", "{}"],
    ["agent", "list"],
    ["events", "tail", "--follow"],
    ["replay", "r0", "--state"],
]


async def piped(
    words: Sequence[str], env: Mapping[str, str], cwd: Path, *, errors_too: bool = False
) -> tuple[int, str]:
    """Run a command into a pipe that nobody reads any more; its status and what it says on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *command(words),
        cwd=cwd,
        env={**os.environ, **env},
        stdout=writer,
        stderr=writer if errors_too else asyncio.subprocess.PIPE,
    )
    os.close(writer)
    try:
        async with asyncio.timeout(WITHIN_S):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, (errors or b"").decode()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
async def test_a_command_whose_reader_is_gone_ends_in_silence(
    cli: Cli, client: Client, agents: AgentHost, tmp_path: Path, words: list[str]
) -> None:
    await client.run_task("echo", {"n": 1}, run_id="r0", timeout_s=60)
    status, errors = await piped(words, cli.env, tmp_path)
    assert (status, errors) == (READER_GONE, "")


@pytest.mark.parametrize("errors_too", [False, True])
async def test_what_dev_started_ends_with_it_when_its_reader_is_gone(tmp_path: Path, errors_too: bool) -> None:
    words = ["dev", "--data-dir", str(tmp_path / "data"), "--nats-port", "0", "--postgres-port", "0"]
    status, errors = await piped(words, {}, tmp_path, errors_too=errors_too)
    assert "Traceback" not in errors
    assert status == READER_GONE


async def _fail(error: BaseException) -> None:
    raise error


async def _together(*errors: BaseException) -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(_fail(errors[0]))
        async with asyncio.TaskGroup() as inner:
            for error in errors:
                inner.create_task(_fail(error))


def test_a_reader_that_is_gone_is_found_in_a_group_of_errors() -> None:
    with pytest.raises(BrokenPipeError) as caught, reported_errors():
        asyncio.run(_together(BrokenPipeError(), BrokenPipeError()))
    assert caught.value.errno == errno.EPIPE
    with pytest.raises(BaseExceptionGroup), reported_errors():
        asyncio.run(_together(BrokenPipeError(), ValueError("something else")))
