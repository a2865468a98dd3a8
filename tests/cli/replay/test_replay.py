"""`cuebook replay`: the log again, folded at any sequence, and a saga's present code held against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from tests.cli.conftest import Cli


@pytest.fixture
async def ended(cli: Cli, agents: object) -> None:
    """Three runs that have ended in three ways."""
    for n, run_id in ((1, "o1"), (13, "o13")):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", run_id, "--wait")
    await cli.run("run", "submit", "doomed", '{"n": 1}', "--id", "d1", "--wait")


@pytest.mark.usefixtures("ended")
async def test_a_run_a_subject_or_a_range_is_read_again_in_order(cli: Cli) -> None:
    everything = await cli.json("replay")
    assert [event["sequence"] for event in everything] == list(range(1, len(everything) + 1))
    run = await cli.json("replay", "o13")
    assert {event["run_id"] for event in run} == {"o13"}
    assert [event["fact"] for event in run if event["kind"] == "run"][-1] == "compensated"
    first, last = run[2]["sequence"], run[5]["sequence"]
    part = await cli.json("replay", "o13", "--from", str(first), "--to", str(last))
    assert part == [event for event in run if first <= event["sequence"] <= last]
    assert await cli.json("replay", "--to", run[0]["recorded_at"]) == everything[: run[0]["sequence"]]
    failed = await cli.json("replay", "--filter", "run.*.failed", "--since", "1h")
    assert [event["run_id"] for event in failed] == ["d1"]
    assert "compensated: RunAbortedError: unlucky" in await cli.ok("replay", "o13")


@pytest.mark.usefixtures("ended")
async def test_the_state_of_a_run_after_each_event(cli: Cli) -> None:
    states = await cli.json("replay", "o13", "--state")
    statuses = [state["status"] for state in states]
    assert statuses == sorted(statuses, key=["requested", "running", "compensating", "compensated"].index)
    assert states[-1]["items"] == {"0": "completed", "1": "completed"}
    half = await cli.json("replay", "o13", "--state", "--to", str(states[3]["sequence"]))
    assert half == states[:4]
    assert "= compensated, 0:completed 1:completed" in await cli.ok("replay", "o13", "--state")


@pytest.mark.usefixtures("ended")
async def test_the_state_of_the_whole_space_at_any_sequence(cli: Cli) -> None:
    now = await cli.json("replay", "--state")
    assert now["runs"] == {"compensated": 1, "completed": 1, "failed": 1}
    assert [one["agent"] for one in now["agents"]] == ["echo", "faulty"]
    middle = (await cli.json("replay", "o13"))[4]["sequence"]
    then = await cli.json("replay", "--state", "--to", str(middle))
    assert (then["sequence"], then["runs"]) == (middle, {"completed": 1, "running": 1})
    assert [run["run_id"] for run in then["open_runs"]] == ["o13"]
    assert "o13" in await cli.ok("replay", "--state", "--to", str(middle))
    assert "nothing was recorded yet" in await cli.fails(3, "replay", "--state", "--to", "0")


@pytest.mark.usefixtures("ended")
async def test_the_present_code_is_held_against_what_was_recorded(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    source = (workplace / "mydesk.py").read_text()
    (workplace / "same.py").write_text(source)
    (workplace / "other_step.py").write_text(source.replace("run.call(Echo.add, given)", "run.sleep(1)"))
    (workplace / "other_result.py").write_text(source.replace("return first", "return Out(n=7)"))
    (workplace / "other_input.py").write_text(source.replace("n: int\n", "n: int\n    text: str\n", 1))
    (workplace / "one_more.py").write_text(
        source.replace("match given.n:", "await run.call(Echo.add, given)\n    match given.n:")
    )
    (workplace / "braver.py").write_text(source.replace('raise run.abort("unlucky")', "pass"))
    words = ["replay", "--check"]
    assert await cli.json(*words, "same:order", "--check", "same:doomed") == []
    for module, drifting in {
        "other_step": ["o1", "o13"], "other_result": ["o1"], "other_input": ["o1", "o13"], "one_more": ["o1", "o13"],
        "braver": ["o13"],
    }.items():  # fmt: skip
        result = await cli.run(*words, f"{module}:order", "-o", "json")
        assert result.exit_code == 8, module
        assert [drift["run_id"] for drift in json.loads(result.stdout)] == drifting, module
    assert "1 of 1 runs would go another way" in await cli.fails(8, "replay", "o13", "--check", "braver:order")
    assert await cli.json("replay", "o1", "--check", "braver:order") == []
    assert "would ask now" in (await cli.run(*words, "other_step:order")).stdout


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["nothing"], 3, "there is no run 'nothing'"),
        (["--state", "--from", "3"], 2, "folded from its beginning"),
        (["--state", "--filter", "run.>"], 2, "--filter has no meaning"),
        (["r1", "--filter", "run.>"], 2, "say one of them"),
        (["--from", "5", "--to", "3"], 2, "before it begins"),
        (["--from", "5", "--since", "1h"], 2, "say one of them"),
        (["--check", "nowhere:order"], 1, "there is no module 'nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_read(cli: Cli, client: Client, words: list[str], status: int, complaint: str) -> None:
    assert complaint in await cli.fails(status, "replay", *words)
