"""The past: runs, agents and the registry at a sequence or a time, and what changed between two."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.state import fold_run
from cuebook.actors.runtime import AgentHost
from cuebook.cli.history.difference import Change, apply_changes
from cuebook.cli.history.past import Past
from cuebook.cli.history.runfold import RunFold
from cuebook.cli.history.views import instance_view, run_view
from cuebook.cli.runs.diffs import run_fields
from cuebook.events.facts import MessageRejected, TaskCompleted, TaskRequested
from cuebook.events.log import EventLog
from tests.cli.conftest import Cli, reaches

Items = list[Any]


@pytest.fixture
async def events(cli: Cli, client: Client, agents: AgentHost) -> Items:
    """The log of runs that ended in three ways, and of one that goes on."""
    for n, run_id in ((1, "o1"), (13, "o13")):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", run_id, "--wait")
    await cli.run("run", "submit", "--agent", "echo", '{"n": 4}', "--id", "t4", "--wait")
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    return [item async for item in client.log.read()]


def patch(changes: list[dict[str, Any]]) -> list[Change]:
    """Changes as a program reads them."""
    return [
        Change(
            op=one["op"],
            path=tuple(part.replace("~1", "/").replace("~0", "~") for part in one["path"].split("/")[1:]),
            before=one.get("before"),
            value=one.get("value"),
        )
        for one in changes
    ]


async def test_a_run_at_each_sequence_is_the_fold_of_what_came_until_there(cli: Cli, events: Items) -> None:
    own = [item for item in events if item.address.run_id == "o13" and item.address.kind != "progress"]
    for n, item in enumerate(own, start=1):
        then = await cli.json("run", "show", "o13", "--at", str(item.sequence))
        folded = run_view(fold_run("o13", own[:n]), own[:n], {}, {})
        assert {**run_fields(then), "items": _quiet(then)} == {**run_fields(folded), "items": _quiet(folded)}
        assert then["at"]["sequence"] == item.sequence
        assert then["sequence"] == item.sequence


def _quiet(view: dict[str, Any]) -> dict[str, Any]:
    """Tasks without their progress, which is said elsewhere."""
    return {n: {**item, "progress": None} for n, item in run_fields(view)["items"].items()}


async def test_all_runs_and_all_agents_at_a_sequence_are_the_fold_of_what_came_until_there(
    cli: Cli, client: Client, events: Items
) -> None:
    for end in range(1, len(events) + 1, 3):
        runs, past = RunFold(50), Past(client.log)
        for item in events[:end]:
            runs.apply(item)
            past.apply(item)
        assert await cli.json("run", "list", "--at", str(end)) == runs.newest()
        listed = await cli.json("agent", "list", "--all", "--at", str(end))
        assert listed == [instance_view(one, past.in_flight()) for one in past.instances]
    assigned = next(item for item in events if item.address.fact == "assigned")
    busy = {
        one["instance"]: one["in_flight"] for one in await cli.json("agent", "list", "--at", str(assigned.sequence))
    }
    assert busy[assigned.address.instance] == 1
    assert sum(busy.values()) == 1


async def test_a_time_means_the_last_event_recorded_at_or_before_it(cli: Cli, events: Items) -> None:
    for item in events[:: len(events) // 3]:
        moment = datetime.fromtimestamp(0, timezone(timedelta(hours=5, minutes=30)))
        moment += timedelta(microseconds=item.recorded_at)
        last = max(one.sequence for one in events if one.recorded_at <= item.recorded_at)
        first = max([one.sequence for one in events if one.recorded_at < item.recorded_at], default=0)
        for text in (moment.isoformat(), moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")):  # noqa: UP017
            assert json.loads(await cli.ok("replay", "--state", "--to", text, "-o", "json"))["sequence"] == last
        if first:
            before = (moment - timedelta(microseconds=1)).isoformat()
            assert json.loads(await cli.ok("replay", "--state", "--to", before, "-o", "json"))["sequence"] == first


async def test_the_past_is_never_read_from_the_tables(cli: Cli, events: Items) -> None:
    nowhere = {"CUEBOOK_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    await cli.fails(5, "run", "list", env=nowhere)
    rows = await cli.json("run", "list", "--at", str(events[-1].sequence), env=nowhere)
    assert [row["run_id"] for row in rows] == ["o15", "t4", "o13", "o1"]


async def test_the_changes_of_a_run_make_the_later_state_of_the_earlier(cli: Cli, events: Items) -> None:
    own = [item.sequence for item in events if item.address.run_id == "o13"]
    for first, last in ((own[0] - 1, own[-1]), (own[0], own[3]), (own[2], own[-2]), (own[-1], own[-1])):
        difference = await cli.json("run", "diff", "o13", "--from", str(first), "--to", str(last))
        before = run_fields(await cli.json("run", "show", "o13", "--at", str(first))) if first >= own[0] else {}
        after = run_fields(await cli.json("run", "show", "o13", "--at", str(last)))
        assert apply_changes(before, patch(difference["changes"])) == after
        assert (difference["from"]["sequence"], difference["to"]["sequence"]) == (first, last)
        assert difference["events"] == len([one for one in own if first < one <= last and not _progress(events, one)])
    since = await cli.json("run", "show", "o13", "--since", str(own[2]), "--at", str(own[-2]))
    assert (
        since["changes"]
        == (await cli.json("run", "diff", "o13", "--from", str(own[2]), "--to", str(own[-2])))["changes"]
    )
    assert since["since"]["sequence"] == own[2]


def _progress(events: Items, sequence: int) -> bool:
    return bool(events[sequence - 1].address.kind == "progress")


async def test_people_see_each_field_with_what_it_was(cli: Cli, events: Items) -> None:
    own = [item for item in events if item.address.run_id == "o13"]
    requested = next(item for item in own if item.address.fact == "started")
    text = await cli.ok("run", "diff", "o13", "--from", str(requested.sequence))
    lines = [line.split() for line in text.splitlines()]
    assert ["status", "running", "compensated"] in lines
    assert ["items.0", "task", "echo.add", "completed"] in lines
    assert "compensated: RunAbortedError: unlucky" in text
    assert "nothing changed" in await cli.ok("run", "diff", "o1", "--from", str(events[-1].sequence))
    text = await cli.ok("run", "show", "o13", "--since", "1h", "--at", str(own[-1].sequence))
    assert "changed since the beginning" in text
    assert ["status", "compensated"] in [line.split() for line in text.splitlines()]


async def test_which_runs_changed_between_two_places(cli: Cli, events: Items) -> None:
    ends = {item.address.run_id: item.sequence for item in events if item.address.run_id}
    rows = await cli.json("run", "diff", "--from", str(ends["o1"]), "--to", str(ends["t4"]))
    assert [(row["run_id"], row["before"], row["after"]) for row in rows] == [
        ("t4", None, "completed"), ("o13", None, "compensated")
    ]  # fmt: skip
    opened = next(item.sequence for item in events if item.address.run_id == "o13")
    (row,) = await cli.json("run", "diff", "--from", str(opened), "--to", str(ends["o13"]))
    assert (row["before"], row["after"]) == ("requested", "compensated")
    listed = {place: await cli.json("run", "list", "--at", str(place)) for place in (opened, ends["o13"])}
    before, after = ({one["run_id"]: one for one in rows}["o13"] for rows in listed.values())
    assert apply_changes(before, patch(row["changes"])) == after
    assert "o13" in await cli.ok("run", "diff", "--from", str(opened))
    assert await cli.json("run", "diff", "--from", str(ends["t4"]), "--to", str(ends["t4"])) == []


async def test_what_changed_of_agents(cli: Cli, events: Items) -> None:
    registered = [item for item in events if item.address.fact == "registered"]
    assigned = next(item for item in events if item.address.fact == "assigned")
    before, then = str(assigned.sequence - 1), str(assigned.sequence)
    found = await cli.json("agent", "diff", "echo", "--from", "1", "--to", then)
    assert {change["path"].split("/")[1] for change in found["changes"]} <= {"agents", "instances"}
    name = f"echo/{next(item.address.instance for item in registered if item.address.agent == 'echo')}"
    found = await cli.json("agent", "diff", name, "--from", before, "--to", then)
    assert [(change["path"], change["before"], change["value"]) for change in found["changes"]] == [
        (f"/instances/{name.replace('/', '~1')}/in_flight", 0, 1)
    ]
    shown = await cli.json(
        "agent", "show", "echo", "--at", str(assigned.sequence), "--since", str(assigned.sequence - 1)
    )
    assert shown["changes"] == found["changes"]
    assert shown["instances"][0]["in_flight"] == 1
    assert "in_flight" in await cli.ok(
        "agent", "diff", "--from", str(assigned.sequence - 1), "--to", str(assigned.sequence)
    )
    assert "no agent 'faultx'" in await cli.fails(3, "agent", "diff", "faultx", "--from", "1")
    assert await cli.json("agent", "list", "--since", then) == []
    assert len(await cli.json("agent", "list", "--since", "1h")) == 2


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["run", "show", "o1", "--at", "999999"], 2, "sequence 999999 is in the future"),
        (["run", "show", "o1", "--at", "2999-01-01"], 2, "2999-01-01 is in the future"),
        (["run", "list", "--at", "2999-01-01"], 2, "is in the future"),
        (["agent", "list", "--at", "999999"], 2, "is in the future"),
        (["agent", "show", "echo", "--at", "0"], 3, "nothing was recorded yet at 0"),
        (["run", "show", "o1", "--at", "2020-01-01"], 3, "nothing was recorded yet at 2020-01-01"),
        (["run", "diff", "o1", "--from", "3", "--to", "2"], 2, "is before"),
        (["run", "diff", "o1"], 2, "--from is missing"),
        (["agent", "diff"], 2, "--from is missing"),
        (["replay", "--from", "999999"], 2, "is in the future"),
        (["replay", "--to", "2999-01-01"], 2, "is in the future"),
        (["replay", "--since", "0s"], 2, "nothing was recorded since 0s"),
        (["task", "show", "o1/0", "--at", "999999"], 2, "is in the future"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_a_place_that_is_not_there(
    cli: Cli, client: Client, words: list[str], status: int, complaint: str
) -> None:
    await client.submit_run("order", {"n": 1}, run_id="o1")
    await client.submit_run("order", {"n": 1}, run_id="o2")
    await client.submit_run("order", {"n": 1}, run_id="o3")
    assert complaint in await cli.fails(status, *words)


async def test_an_empty_space_has_no_past(cli: Cli, client: Client) -> None:
    assert "nothing was ever recorded" in await cli.fails(3, "run", "list", "--at", "1")


async def test_a_request_under_the_id_of_an_ended_run_is_no_new_run(cli: Cli, log: EventLog) -> None:
    """Once it is refused: until then nobody knows."""
    requested, completed = log.subjects.task("r", 0, "requested", "echo"), log.subjects.task("r", 0, "completed")
    await log.append(requested, TaskRequested(input={"n": 1}))
    await log.append(completed, TaskCompleted(output=1))
    ended = await cli.json("run", "list")
    sequence = await log.append(requested, TaskRequested(input={"n": 2}))
    assert len(await cli.json("run", "list")) == 2
    await log.append(log.subjects.rejected(sequence), MessageRejected(subject=requested, reason="requested before"))
    assert await cli.json("run", "list") == ended
