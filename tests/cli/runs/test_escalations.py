"""`cuebook escalation` and `cuebook task`: a person sees what waits, decides once, and cannot decide nonsense."""

from __future__ import annotations

import asyncio
import os

import pytest

from cuebook.actors.client import Client
from cuebook.events.facts import TaskEscalated, TaskRequested
from cuebook.events.log import EventLog
from tests.cli.conftest import Cli, command, reaches
from tests.waiting import eventually


@pytest.mark.usefixtures("agents")
async def test_an_escalated_task_gets_its_result_from_a_person(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "order", '{"n": 14}', "--id", "o14")
    await reaches(client, "o14", items=2)
    (waiting,) = await eventually_listed(cli, 1)
    assert (waiting["id"], waiting["kind"], waiting["agent"], waiting["error"]) == ("o14/1", "task", "faulty", "no 14")
    assert "no 14" in await cli.ok("escalation", "list")
    history = (await cli.json("run", "show", "o14"))["history"]
    (escalated,) = [one for one in history if one["subject"].endswith(".escalated")]
    assert waiting["since"] == escalated["recorded_at"]
    task = await cli.json("task", "show", "o14/1")
    assert [one["outcome"] for one in task["attempts"]] == ["failed", "failed"]
    assert "ValueError: no 14" in await cli.ok("task", "show", "o14/1")
    assert '"n" is a required property' in await cli.fails(2, "escalation", "resolve", "o14/1", "--result", "{}")
    assert "not a question" in await cli.fails(2, "escalation", "resolve", "o14/1", "--approve")
    await cli.ok("escalation", "resolve", "o14/1", "--result", '{"n": 1}', "--note", "by phone", "--by", "bea")
    assert (await client.wait("o14", timeout_s=30)).status == "completed"
    assert (await cli.json("task", "show", "o14/1"))["output"] == {"n": 1}
    assert "bea" in await cli.ok("task", "show", "o14/1")
    assert "nothing there waits for a person" in await cli.fails(7, "escalation", "resolve", "o14/1", "--retry")


async def eventually_listed(cli: Cli, count: int) -> list[dict[str, object]]:
    async def listed() -> list[dict[str, object]] | None:
        found = await cli.json("escalation", "list")
        return list(found) if len(found) == count else None

    return await eventually(listed, within_s=60) or []


@pytest.mark.usefixtures("agents")
async def test_a_task_is_tried_again_or_given_up(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "--agent", "faulty", '{"n": 1}', "--id", "f1")
    await reaches(client, "f1", "escalated")
    await cli.ok("escalation", "resolve", "f1", "--retry")
    await reaches(client, "f1", "escalated", attempt=4)
    await cli.ok("escalation", "resolve", "f1/0", "--abort", "--note", "hopeless")
    assert (await client.wait("f1", timeout_s=30)).status == "aborted"


@pytest.mark.usefixtures("agents")
async def test_a_question_takes_only_what_fits(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "yes")
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "no")
    await cli.ok("run", "submit", "order", '{"n": 16}', "--id", "number")
    for run_id in ("yes", "no", "number"):
        await reaches(client, run_id, items=2)
    assert {one["kind"] for one in await eventually_listed(cli, 3)} == {"question"}
    assert await cli.json("escalation", "list", "--kind", "task") == []
    listed = await cli.ok("escalation", "list")
    assert "how many? …" in listed
    assert "three" not in listed
    assert "No more than three." in [one.strip() for one in (await cli.ok("task", "show", "number/1")).splitlines()]
    assert "not a task" in await cli.fails(2, "escalation", "resolve", "yes/1", "--retry")
    assert "wants no approval" in await cli.fails(2, "escalation", "resolve", "number/1", "--approve")
    assert "does not fit" in await cli.fails(2, "escalation", "resolve", "number/1", "--answer", '"many"')
    await cli.ok("escalation", "resolve", "yes/1", "--approve")
    await cli.ok("escalation", "resolve", "no/1", "--deny", "--note", "too dear")
    await cli.ok("escalation", "resolve", "number/1", "--answer", "3")
    assert [(await client.wait(one, timeout_s=30)).result for one in ("yes", "no", "number")] == [
        {"n": 1}, {"n": 0}, {"n": 3}
    ]  # fmt: skip
    assert (await cli.json("task", "show", "no/1"))["value"] == {"approved": False, "note": "too dear"}


async def test_of_two_people_one_decides(cli: Cli, log: EventLog) -> None:
    subjects = log.subjects
    await log.append(subjects.task("r1", 0, "requested", "echo"), TaskRequested(input=1))
    await log.append(subjects.task("r1", 0, "escalated"), TaskEscalated(reason="by hand"))
    results = await asyncio.gather(*(resolve_in_a_process(cli, "--abort") for _ in range(3)))
    assert sorted(results) in ([0, 3, 3], [0, 3, 7], [0, 7, 7])


async def resolve_in_a_process(cli: Cli, *words: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *command(["escalation", "resolve", "r1", *words]),
        env={**os.environ, **cli.env},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()


async def test_without_an_orchestrator_the_list_comes_from_the_log(cli: Cli, log: EventLog) -> None:
    subjects = log.subjects
    await log.append(subjects.task("r1", 0, "requested", "echo"), TaskRequested(input=1))
    await log.append(subjects.task("r1", 0, "escalated"), TaskEscalated(reason="by hand"))
    assert [(one["id"], one["kind"]) for one in await cli.json("escalation", "list")] == [("r1/0", "task")]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["r1/0"], "no decision is said"),
        (["r1/0", "--retry", "--abort"], "--retry and --abort cannot be meant together"),
        (["r1/x", "--retry"], "names no task"),
        (["a.b/0", "--retry"], "cannot be part of a subject"),
        (["r1/0", "--result", "{"], "--result is not JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("client")
async def test_what_cannot_be_meant(cli: Cli, words: list[str], complaint: str) -> None:
    assert complaint in await cli.fails(2, "escalation", "resolve", *words)


@pytest.mark.usefixtures("client")
async def test_the_second_of_two_decisions_is_a_conflict_and_a_step_that_is_not_there_is_not_found(
    cli: Cli, log: EventLog
) -> None:
    subjects = log.subjects
    await log.append(subjects.task("r1", 0, "requested", "echo"), TaskRequested(input=1))
    await log.append(subjects.task("r1", 0, "escalated"), TaskEscalated(reason="by hand"))
    await cli.run("escalation", "resolve", "r1/0", "--abort")
    assert "nothing there waits for a person" in await cli.fails(7, "escalation", "resolve", "r1/0", "--retry")
    assert "has no task or step 4" in await cli.fails(3, "escalation", "resolve", "r1/4", "--retry")


async def test_nothing_waits(cli: Cli, log: EventLog) -> None:
    assert "nothing waits for a person" in (await cli.run("escalation", "list")).stderr
    assert "there is no run" in await cli.fails(3, "escalation", "resolve", "r1/0", "--retry")
    await log.append(log.subjects.task("r1", 0, "requested", "echo"), TaskRequested(input=1))
    assert "has no task or step 4" in await cli.fails(3, "task", "show", "r1/4")
    shown = await cli.run("task", "show", "r1")
    assert "no orchestrator answers" in shown.stderr
