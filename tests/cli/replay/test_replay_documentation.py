"""docs/replay.md: every command in it does what it says, on a log in which that night is just now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.cli.moments import iso
from tests.cli.conftest import Cli
from tests.documents import blocks
from tests.waiting import eventually

TIME = re.compile(r"2026-11-22T02:1(\d)Z")


def commands() -> list[list[str]]:
    """The words of each command, without `cuebook` and without comments."""
    lines = [line for code in blocks("docs/replay.md", "sh") for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines]


async def has_failed(client: Client, run_id: str) -> bool:
    return any(item.subject.endswith(".escalated") for item in await client.log.history(run_id))


async def test_every_command_works(
    cli: Cli, client: Client, agents: object, space: str, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await cli.ok("events", "publish", "ticket.opened", '{"n": 1}')
    await cli.ok("run", "submit", "order", '{"n": 14}', "--id", "t-17")
    await cli.ok("run", "submit", "order", '{"n": 1}', "--id", "t-18", "--wait")
    await eventually(lambda: has_failed(client, "t-17"))
    staging = Client(client.log.connection, f"{space}-staging")
    await staging.log.ensure()
    whole = [item async for item in client.log.read(filters=[client.log.subjects.everything_of("t-17")])]
    moments = {"0": whole[0].recorded_at, "4": whole[-1].recorded_at}
    found = commands()
    assert {"show", "diff", "debug", "list", "send"} <= {words[1] for words in found}
    for words in found:
        words = [TIME.sub(lambda match: str(iso(moments[match[1]])), word) for word in words]
        words = [re.sub(r"^nats://127.0.0.1:4222/(\w+)", rf"{nats_url}/{space}-\1", word) for word in words]
        words = [f"{space}-incident" if word == "incident" else word for word in words]
        if words[:2] == ["run", "debug"]:
            assert "needs a terminal" in await cli.fails(2, *words)
        else:
            assert await cli.ok(*words), words
    assert (tmp_path / "t-17.jsonl").stat().st_size > 0
