"""`cuebook space`: what a log takes, rolling it, and every other command across a roll."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.actors.runtime import AgentHost
from tests.cli.conftest import Cli, Start, reaches
from tests.waiting import eventually

QUESTIONS = (
    ("run", "show", "o1"),
    ("run", "show", "o13"),
    ("run", "show", "o13", "--at", "{middle}"),
    ("task", "show", "o13/0"),
    ("events", "show", "{middle}"),
    ("events", "tail", "--run", "o1"),
    ("replay", "show", "--to", "{last}"),
    ("saga", "check", "tests.cli.desk:order", "--run", "o13"),
)
"""What must be answered after a roll as before it, since it is about what was over."""


async def test_every_command_answers_after_a_roll_as_before_it(
    cli: Cli, client: Client, agents: AgentHost, tmp_path: Path
) -> None:
    for n, run_id in ((1, "o1"), (13, "o13")):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", run_id, "--wait")
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    last = (await client.log.verify()).last_sequence
    known = {"middle": str(last // 2), "last": str(last)}
    questions = [[word.format(**known) for word in words] for words in QUESTIONS]
    before = [await cli.json(*words) for words in questions]
    exported = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    await cli.ok("events", "export", str(exported[0]), "--to", str(last))

    plan = await cli.json("space", "roll", "--dry-run")
    stream = client.log.subjects.stream
    assert (plan["stream"], plan["into"], plan["runs"], plan["generation"]) == (stream, f"{stream}@2", 1, 2)
    assert "open runs" in await cli.ok("space", "roll", "--dry-run")
    rolled = await cli.json("space", "roll")
    assert (rolled["into"], rolled["generation"]) == (f"{stream}@2", 2)
    assert rolled["subjects_after"] < rolled["subjects_before"]
    assert 0 < rolled["pause_ms"] < 30_000
    said = await cli.run("space", "roll")
    assert "the pause is over" in said.stderr
    assert f"in stream {stream}@3" in said.stdout

    assert [await cli.json(*words) for words in questions] == before
    await cli.ok("events", "export", str(exported[1]), "--to", str(last))
    assert exported[0].read_bytes() == exported[1].read_bytes()
    await cli.ok("audit", "verify", str(exported[1]))
    assert "exists already" in await cli.fails(7, "run", "submit", "order", '{"n": 1}', "--id", "o1")
    assert {row["run_id"] for row in await cli.json("run", "list")} >= {"o1", "o13", "o15"}
    waiting = await cli.json("escalation", "list")
    await cli.ok("escalation", "resolve", waiting[0]["id"], "--approve")
    await eventually(lambda: _ended(client, "o15"))

    shown = await cli.json("space", "show")
    assert [one["stream"] for one in shown["generations"]] == [stream, f"{stream}@2", f"{stream}@3"]
    ranges = [(one["first"], one["last"]) for one in shown["generations"]]
    assert [first for first, _ in ranges] == [1, *(last + 1 for _, last in ranges[:-1])]
    assert f"{stream}@2" in await cli.ok("space", "show")
    spaces = {row["space"]: row["stream"] for row in await cli.json("space", "list")}
    assert spaces[client.log.subjects.space] == f"{stream}@3"


async def _ended(client: Client, run_id: str) -> bool:
    return (await client.state(run_id)).status == "completed"


async def test_who_follows_sees_what_comes_after_a_roll(cli: Cli, client: Client, start: Start) -> None:
    await client.log.ensure()
    await cli.ok("events", "publish", "noise", '{"n": 1}')
    async with start("events", "tail", "--follow", "--topic", "noise", "-o", "jsonl") as program:
        await program.prints('"n": 1')
        await cli.ok("space", "roll")
        await cli.ok("events", "publish", "noise", '{"n": 2}')
        await program.prints('"n": 2')


async def test_who_is_told_to_end_in_the_pause_leaves_no_space_that_stands_still(
    cli: Cli, client: Client, start: Start
) -> None:
    await client.log.ensure()
    for _ in range(2):
        async with start("space", "roll") as program:
            await eventually(lambda: re.search("the pause begins|is sealed", program.errors), within_s=60)
            program.send(signal.SIGTERM)  # the first one may have come to all but the sealing
            assert await program.ends(within_s=60) in (0, 9)
        assert not (await client.log.verify()).rolling
    await cli.ok("events", "publish", "noise", "1")


@pytest.mark.parametrize(
    ("words", "status", "wanted"),
    [
        (["--abort"], 1, "there is nothing to undo"),
        (["--abort", "--dry-run"], 2, "exclude each other"),
    ],
)
async def test_what_cannot_be_done_is_said(
    cli: Cli, client: Client, words: list[str], status: int, wanted: str
) -> None:
    await client.log.ensure()
    assert wanted in await cli.fails(status, "space", "roll", *words)


async def test_a_space_that_nobody_has_made_is_not_rolled(cli: Cli) -> None:
    result: Any = await cli.run("space", "roll")
    assert result.exit_code
    assert "there is no stream" in result.stderr
