"""`cuebook run`: from submitting to the outcome, against a real space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.events.facts import RunStuck
from cuebook.projections.runner import Runner
from tests.cli.conftest import Cli, Start, reaches, wait_for_a_person
from tests.waiting import eventually


@pytest.mark.usefixtures("agents")
async def test_a_run_is_submitted_awaited_shown_and_listed(cli: Cli) -> None:
    assert json.loads(await cli.ok("run", "submit", "order", '{"n": 1}', "--id", "o1", "--wait")) == {"n": 2}
    shown = await cli.json("run", "show", "o1")
    assert (shown["status"], shown["saga"], shown["result"], shown["tasks_completed"]) == (
        "completed",
        "order",
        {"n": 2},
        1,
    )
    assert shown["items"][0]["attempts"][0]["outcome"] == "completed"
    assert shown["history"][0]["fact"] == "requested"
    assert shown["opened_at"].endswith("Z")
    text = await cli.ok("run", "show", "o1")
    assert "status  completed" in text
    assert "echo.add" in text
    assert "\x1b" not in text
    listed = await cli.json("run", "list")
    assert [(run["run_id"], run["status"], run["agent"]) for run in listed] == [("o1", "completed", None)]
    assert listed[0] == {name: shown[name] for name in listed[0]}


@pytest.mark.usefixtures("agents")
@pytest.mark.parametrize(
    ("words", "status", "outcome"),
    [
        (["order", '{"n": 13}'], 13, "compensated"),
        (["doomed", '{"n": 1}'], 10, "failed"),
        (["order", "--no-check", '{"n": "many"}'], 15, "rejected"),
        (["--agent", "echo", '{"n": 1}'], 0, "completed"),
        (["--agent", "echo", "--no-check", '{"n": "many"}'], 15, "rejected"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else None,
)
async def test_the_exit_status_of_waiting_is_the_outcome(cli: Cli, words: list[str], status: int, outcome: str) -> None:
    result = await cli.run("run", "submit", *words, "--wait", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (status, outcome)


@pytest.mark.usefixtures("agents")
async def test_runs_that_a_person_ends_have_statuses_of_their_own(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "order", '{"n": 17}', "--id", "sleeper")
    await cli.ok("run", "submit", "--agent", "faulty", '{"n": 1}', "--id", "hopeless")
    await reaches(client, "hopeless", "escalated")
    await reaches(client, "sleeper", items=2)
    await cli.ok("escalation", "resolve", "hopeless", "--abort")
    await cli.ok("run", "cancel", "sleeper", "--reason", "too long")
    assert (await cli.run("run", "tail", "sleeper")).exit_code == 13  # its one step is undone
    assert (await cli.run("run", "tail", "hopeless")).exit_code == 14
    await cli.ok("run", "submit", "--agent", "patient", '{"n": 1}', "--id", "waits", "--no-check")
    await cli.ok("run", "cancel", "waits/0")
    assert (await cli.run("run", "tail", "waits")).exit_code == 12
    assert {run["run_id"]: run["status"] for run in await cli.json("run", "list")} == {
        "sleeper": "compensated", "hopeless": "failed", "waits": "cancelled"
    }  # fmt: skip


@pytest.mark.usefixtures("orchestrator")
async def test_waiting_has_a_limit_and_the_run_goes_on(cli: Cli) -> None:
    words = ["run", "submit", "--agent", "nobody", "1", "--no-check", "--id", "later", "--wait-s", "0.1"]
    assert "cuebook run tail later" in await cli.fails(11, *words)

    async def explained() -> Any:
        shown = await cli.json("run", "show", "later")
        assert shown["status"] == "requested"
        return shown["items"][0]["waiting"]  # said by the orchestrator, once it has read the request

    assert await eventually(explained) == "no instance of agent 'nobody' is running"


async def test_the_same_id_twice_is_a_conflict(cli: Cli, client: Client) -> None:
    first = ["run", "submit", "--agent", "echo", "1", "--no-check", "--id", "twice"]
    await cli.ok(*first)
    assert "run twice exists already" in await cli.fails(7, *first)
    assert json.loads(await cli.fails(7, *first, "-o", "json"))["fix"]


@pytest.mark.usefixtures("agents")
async def test_a_wrong_name_or_input_is_told_before_anything_is_sent(cli: Cli) -> None:
    assert "did you mean 'order'?" in await cli.fails(3, "run", "submit", "oder", "{}")
    assert "did you mean 'echo'?" in await cli.fails(3, "run", "submit", "--agent", "ecco", "{}")
    assert "did you mean 'add'?" in await cli.fails(3, "run", "submit", "--agent", "echo", "--handler", "ad", "{}")
    assert '"n" is a required property' in await cli.fails(2, "run", "submit", "--agent", "echo", "{}")
    assert "does not fit saga 'order': n: Field required" in await cli.fails(2, "run", "submit", "order", "{}")
    assert await cli.json("run", "list") == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["order"], "write 'cuebook run submit SAGA INPUT'"),
        (["order", "{", "--no-check"], "INPUT is not JSON"),
        (["order", '{"n": 1, "n": 2}', "--no-check"], "the key 'n' is there twice"),
        (["order", "NaN", "--no-check"], "NaN is not a JSON number"),
        (["order", "@nowhere.json", "--no-check"], "cannot read 'nowhere.json'"),
        (["order", "[" * 30 + "]" * 30, "--no-check"], "nested deeper"),
        (["order", json.dumps("x" * 300_000), "--no-check"], "more than 262144 bytes"),
        (["order", str(2**70), "--no-check"], "64 bits"),
        (["or.der", "1", "--no-check"], "'or.der' cannot be part of a subject"),
        (["order", "1", "--no-check", "--id", "a b"], "'a b' cannot be part of a subject"),
        (["order", "1", "--no-check", "--id", "a.>"], "'a.>' cannot be part of a subject"),
        (["order", "1", "--priority", "3"], "use them with --agent"),
        (["--agent", "echo", "1", "--label", "zone", "--no-check"], "label 'zone' is not KEY=VALUE"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.usefixtures("client")
async def test_what_cannot_be_meant_is_a_mistake_of_usage(cli: Cli, words: list[str], complaint: str) -> None:
    assert complaint in await cli.fails(2, "run", "submit", *words)


@pytest.mark.usefixtures("agents")
async def test_input_comes_from_a_file_or_from_stdin(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text('{"n": 5}')
    assert json.loads(await cli.ok("run", "submit", "--agent", "echo", f"@{path}", "--wait")) == {"n": 6}
    assert json.loads(await cli.ok("run", "submit", "--agent", "echo", "-", "--wait", stdin='{"n": 6}')) == {"n": 7}


async def test_a_run_that_is_not_there(cli: Cli, client: Client) -> None:
    for words in (["show"], ["tail"], ["cancel"], ["retry"]):
        assert "there is no run" in await cli.fails(3, "run", *words, "nothing")


async def test_a_run_is_shown_as_it_was(cli: Cli, agents: object) -> None:
    await cli.ok("run", "submit", "order", '{"n": 1}', "--id", "o1", "--wait")
    history = (await cli.json("run", "show", "o1"))["history"]
    started = next(event for event in history if event["fact"] == "started")
    then = await cli.json("run", "show", "o1", "--at", str(started["sequence"]))
    assert (then["status"], then["items"], then["sequence"]) == ("running", [], started["sequence"])
    by_time = await cli.json("run", "show", "o1", "--at", history[-1]["recorded_at"])
    assert by_time["sequence"] == history[-1]["sequence"]
    assert "began at sequence" in await cli.fails(3, "run", "show", "o1", "--at", "1")
    assert "nothing was recorded yet" in await cli.fails(3, "run", "show", "o1", "--at", "2020-01-01")
    assert "no moment" in await cli.fails(2, "run", "show", "o1", "--at", "yesterday")


@pytest.mark.usefixtures("agents")
async def test_following_a_run_ends_when_it_ends(cli: Cli, start: Start) -> None:
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    async with start("run", "tail", "o15") as tail:
        await tail.prints("asks: really?")
        await cli.ok("escalation", "resolve", "o15/1", "--approve", "--note", "fine")
        assert await tail.ends() == 0
    assert "answered by ann" in tail.output
    assert tail.output.splitlines()[-1].endswith('completed: {"n": 1}')
    again = await cli.json("run", "tail", "o15")
    assert [event["fact"] for event in again if event["kind"] == "run"] == ["requested", "started", "completed"]


@pytest.mark.usefixtures("agents")
async def test_a_stuck_run_ends_the_following_and_goes_on_when_told(cli: Cli, client: Client) -> None:
    log = client.log
    await cli.ok("run", "submit", "order", '{"n": 17}', "--id", "o17")
    await reaches(client, "o17", "running")
    await reaches(client, "o17", items=2)
    state = await client.state("o17")
    scope = log.subjects.run_scope("o17")
    stuck = RunStuck(reason="by hand", step=0, recorded={"a": 1}, asked={"a": 2})
    await log.append(log.subjects.run("o17", "stuck"), stuck, scope=scope, expected=state.last_sequence)
    assert (await cli.run("run", "tail", "o17")).exit_code == 16
    assert "recorded" in await cli.ok("run", "show", "o17")
    await wait_for_a_person(client, "o17")
    assert (await cli.json("escalation", "list", "--kind", "stuck"))[0]["id"] == "o17"
    assert (await cli.ok("run", "retry", "o17")).strip() == "o17"
    await reaches(client, "o17", "running")


@pytest.mark.usefixtures("agents")
async def test_an_ended_run_is_repeated_under_a_new_id(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "order", '{"n": 1}', "--id", "o1", "--wait")
    again = await cli.json("run", "retry", "o1")
    assert again["retry_of"] == "o1"
    assert (await client.wait(again["run_id"], timeout_s=30)).status == "completed"
    assert "is over: completed" in await cli.fails(1, "run", "cancel", "o1")


@pytest.mark.usefixtures("agents")
async def test_the_list_is_the_same_from_the_tables_and_from_the_log(
    cli: Cli, client: Client, database_url: str
) -> None:
    for n in (1, 13, 15):
        await cli.ok("run", "submit", "order", f'{{"n": {n}}}', "--id", f"o{n}")
    await cli.ok("run", "submit", "--agent", "faulty", '{"n": 1}', "--id", "f1")
    await cli.ok("run", "submit", "doomed", '{"n": 1}', "--id", "d1")
    await cli.run("run", "submit", "--agent", "echo", '"x"', "--no-check", "--id", "r1", "--wait")
    await cli.ok("run", "submit", "--agent", "nobody", "1", "--no-check", "--id", "c1")
    await cli.ok("run", "cancel", "c1", "--reason", "never mind")
    await reaches(client, "o1", "completed")
    await reaches(client, "c1", "cancelled")
    await reaches(client, "f1", "escalated")
    await reaches(client, "o13", "compensated")
    await reaches(client, "o15", items=2)
    await reaches(client, "d1", "failed")
    env = {"CUEBOOK_DATABASE_URL": database_url}
    assert "start 'cuebook serve projections'" in await cli.fails(1, "run", "list", env=env)
    await Runner(client.log, database_url).run(until=(await client.log.verify()).last_sequence)
    for words in ([], ["--limit", "2"], ["--status", "compensated"], ["--saga", "order"], ["--since", "1h"]):
        from_log = await cli.json("run", "list", *words)
        assert await cli.json("run", "list", *words, env=env) == from_log
        assert await cli.json("run", "list", *words, "--from-log", env=env) == from_log
        assert len(from_log) > 0
    assert await cli.json("run", "list", "--since", "2100-01-01") == []
    lines = (await cli.ok("run", "list", "-o", "jsonl")).splitlines()
    assert [json.loads(one)["run_id"] for one in lines] == ["c1", "r1", "d1", "f1", "o15", "o13", "o1"]
    assert (await cli.ok("run", "list")).splitlines()[1].split()[:2] == ["c1", "cancelled"]


async def test_an_empty_space_lists_nothing_and_says_so(cli: Cli, client: Client) -> None:
    result = await cli.run("run", "list")
    assert (result.stdout, result.stderr) == ("", "no runs\n")


async def test_a_space_that_is_not_there(cli: Cli) -> None:
    assert "start the orchestrator once" in await cli.fails(3, "run", "list")
    assert "cannot be part of a subject" in await cli.fails(2, "run", "list", "--space", "a.b")


@pytest.mark.usefixtures("agents")
async def test_of_a_run_that_is_not_there_the_nearest_is_named(cli: Cli) -> None:
    await cli.ok("events", "publish", "order.placed", '{"n": 7}')
    await cli.ok("run", "submit", "--agent", "echo", '{"n": 7}', "--id", "another", "--wait")
    near = "fix: did you mean 'order-7'?"
    for words in ("run show", "run cancel", "run retry", "run tail", "run diff --from 1", "task show", "trace"):
        said = await cli.fails(3, *words.split(), "7")
        assert said.splitlines()[:1] == ["error: there is no run '7' in space " + repr(cli.env["CUEBOOK_SPACE"])]
        assert near in said, words
    assert near in await cli.fails(3, "run", "show", "ordre-7")
    assert "fix: see 'cuebook run list'" in await cli.fails(3, "run", "show", "zebra")
