"""Outside events said again in their own space: the copies come to stand in the same log, and are not sent on."""

from __future__ import annotations

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from tests.cli.conftest import Cli


async def test_gone_on_with_it_says_nothing_twice(
    cli: Cli, client: Client, orchestrator: OrchestratorService, space: str
) -> None:
    last = 0
    for n in (1, 2, 3):
        last = int(await cli.ok("events", "publish", "note", f'{{"n": {n}}}'))
    words = ("replay", "send", "--filter", "event.note", "--into", space, "--live-effects")
    assert (await cli.json(*words, "--to", str(last - 1)))["sent"] == 2  # and interrupted there
    assert (await cli.json(*words))["sent"] == 1
    assert (await cli.json(*words))["sent"] == 0
    notes = await cli.json("events", "tail", "--topic", "note", "--from", "1")
    assert [one["data"]["n"] for one in notes] == [1, 2, 3, 1, 2, 3]


async def test_what_comes_before_what_was_sent_is_not_left_out_in_silence(
    cli: Cli, client: Client, orchestrator: OrchestratorService, space: str
) -> None:
    said = [int(await cli.ok("events", "publish", "note", f'{{"n": {n}}}')) for n in (1, 2, 3)]
    words = ("replay", "send", "--filter", "event.note", "--into", space, "--live-effects")
    assert (await cli.json(*words, "--from", str(said[1])))["sent"] == 2
    refused = await cli.fails(1, *words, "--to", str(said[0]))
    assert f"has it from sequence {said[1]} on; nothing can be put before that" in refused
    assert "fix: " in refused
    assert (await cli.json(*words, "--from", str(said[1])))["sent"] == 0
