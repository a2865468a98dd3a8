"""`cuebook run fork`: another run that shares a history, and how it is told apart from what was executed."""

from __future__ import annotations

import pytest

from cuebook.actors.client import Client
from cuebook.actors.forking import Past, plan_fork
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.cli.runs import forking
from cuebook.events.facts import TERMINAL_RUN_FACTS
from tests.cli.conftest import Cli, reaches, wait_for_a_person
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "ADMITTED_WITHIN_S", 60.0)


@pytest.fixture
async def declined(cli: Cli, client: Client, agents: object) -> None:
    """A run that asked and was told no; it went on and did nothing more."""
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    await cli.ok("escalation", "resolve", "o15/1", "--deny")
    await reaches(client, "o15", "completed")


async def ended(client: Client, run_id: str) -> None:
    await eventually(lambda: _ended(client, run_id))


async def _ended(client: Client, run_id: str) -> bool:
    return (await client.state(run_id)).status in TERMINAL_RUN_FACTS


@pytest.mark.usefixtures("declined")
async def test_a_fork_with_another_answer_is_shown_as_what_it_is(cli: Cli, client: Client) -> None:
    forked = await cli.json("run", "fork", "o15", "--with", '{"1": {"approved": true}}', "--id", "yes")
    origin = await cli.json("run", "show", "o15")
    answered = next(event for event in origin["history"] if event["fact"] == "answered")
    assert forked == {
        "run_id": "yes",
        "fork_of": {"run_id": "o15", "sequence": answered["sequence"]},
        "copied": [0, 1],
        "changed": [1],
    }
    await ended(client, "yes")
    shown = await cli.json("run", "show", "yes")
    assert (shown["status"], shown["result"], shown["fork_of"]) == ("completed", {"n": 1}, forked["fork_of"])
    assert [(item["copied_from"], item["changed"]) for item in shown["items"]] == [("o15/0", False), ("o15/1", True)]
    assert shown["items"][0]["attempts"] == []
    assert shown["history"][0]["causation_id"] == answered["id"]
    assert {event["correlation_id"] for event in shown["history"]} == {origin["correlation_id"]}
    text = await cli.ok("run", "show", "yes")
    assert f"fork of  o15 at {answered['sequence']}" in text
    assert "copied from o15/1, answer changed" in text
    assert f"fork of o15 at {answered['sequence']} by ann: 2 steps are shared, other answers to 1" in text
    assert origin["result"] == {"n": 0}
    assert [row["run_id"] for row in await cli.json("run", "list")] == ["yes", "o15"]


@pytest.mark.usefixtures("declined")
async def test_the_point_is_a_step_a_sequence_or_a_time(cli: Cli, client: Client) -> None:
    first = (await cli.json("run", "show", "o15"))["history"]
    completed = next(event for event in first if event["fact"] == "completed" and event["n"] == 0)
    for words in (["o15/0"], ["o15", "--at", str(completed["sequence"])]):
        forked = await cli.json("run", "fork", *words)
        assert (forked["fork_of"]["sequence"], forked["copied"]) == (completed["sequence"], [0])
        await reaches(client, forked["run_id"], items=2)
        await wait_for_a_person(client, f"{forked['run_id']}/1")
        asked = [one["id"] for one in await cli.json("escalation", "list")]
        assert asked == [f"{forked['run_id']}/1"]  # asked anew
        await cli.ok("escalation", "resolve", asked[0], "--approve")
        await ended(client, forked["run_id"])
    last = await cli.json("run", "fork", "o15", "--at", "0s")
    assert last["copied"] == [0, 1]
    await ended(client, last["run_id"])
    assert (await client.state(last["run_id"])).result == {"n": 0}


@pytest.mark.usefixtures("declined")
@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["nothing/1"], 3, "there is no run 'nothing'"),
        (["o15"], 2, "where is the fork to begin?"),
        (["o15/1", "--at", "3"], 2, "say one of them"),
        (["o15/7"], 3, "o15/7 was never asked for"),
        (["o15", "--at", "1"], 3, "to fork at step 1, write o15/1"),
        (["o15", "--with", "[1]"], 2, "by step number"),
        (["o15", "--with", '{"one": 1}'], 2, "by step number"),
        (["o15", "--with", '{"1": {"approved": "perhaps"}}'], 1, "does not fit"),
        (["o15", "--with", '{"0": {"n": "many"}}'], 2, "does not fit echo.add"),
        (["o15/1", "--id", "o15"], 7, "run o15 exists already"),
        (["single", "--at", "0s"], 1, "one task without a saga"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_forked(cli: Cli, words: list[str], status: int, complaint: str) -> None:
    await cli.ok("run", "submit", "--agent", "echo", '{"n": 1}', "--id", "single", "--wait")
    assert complaint in await cli.fails(status, "run", "fork", *words)


@pytest.mark.usefixtures("agents")
async def test_a_past_that_the_present_code_would_not_reach_is_refused(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "order", '{"n": 16}', "--id", "o16")
    await reaches(client, "o16", items=2)
    await cli.ok("escalation", "resolve", "o16/1", "--answer", "3")
    await reaches(client, "o16", "completed")
    # With another input this history would have been another one.
    past = Past("o16", await client.log.history("o16"))
    past.state.input = {"n": 17}
    plan = plan_fork(client.log.subjects, past, "bent", {})
    await client.log.append_all(plan.events, scope=client.log.subjects.everything_of("bent"), expected=0)
    await ended(client, "bent")
    shown = await cli.json("run", "show", "bent")
    assert shown["status"] == "rejected"
    assert "goes another way than o16 did at step 0" in shown["reason"]
    assert "cuebook saga check" in shown["history"][-1]["data"]["remedy"]


@pytest.mark.usefixtures("agents")
async def test_a_fork_of_what_was_undone_ends_as_that_did(cli: Cli, client: Client) -> None:
    await cli.run("run", "submit", "order", '{"n": 13}', "--id", "o13", "--wait")
    last = (await cli.json("run", "show", "o13"))["sequence"]
    forked = await cli.json("run", "fork", "o13", "--at", str(last))
    await ended(client, forked["run_id"])
    shown = await cli.json("run", "show", forked["run_id"])
    assert shown["status"] == "compensated"
    assert {event["fact"] for event in shown["history"]} == {
        "forked", "copied", "started", "compensating", "compensated",
    }  # fmt: skip


@pytest.mark.usefixtures("agents")
async def test_a_refused_fork_ends_with_a_status_and_the_reason(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "twice", '{"n": 1}', "--id", "w1", "--wait")
    said = await cli.fails(15, "run", "fork", "w1", "--at", "0s", "--with", '{"0": {"n": 7}}')
    assert "the saga's present code goes another way than w1 did at step 1" in said
    assert "fix: with another answer it goes on differently from there; fork at w1/0" in said
    forked = await cli.json("run", "fork", "w1/0", "--with", '{"0": {"n": 7}}')
    await ended(client, forked["run_id"])
    assert (await client.state(forked["run_id"])).result == {"n": 8}


async def test_a_fork_waits_for_an_orchestrator(
    cli: Cli, client: Client, orchestrator: OrchestratorService, agents: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "ADMITTED_WITHIN_S", 0.2)
    await cli.ok("run", "submit", "order", '{"n": 1}', "--id", "o1", "--wait")
    orchestrator.core.deactivate()
    result = await cli.run("run", "fork", "o1", "--at", "0s", "--id", "later")
    assert (result.exit_code, result.stdout) == (0, "later\n")
    assert "no orchestrator has taken it up yet" in result.stderr
    orchestrator.core.activate()
    await ended(client, "later")
    assert (await client.state("later")).result == {"n": 2}
