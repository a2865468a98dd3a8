"""`cuebook run submit SAGA` without an id of its own: what names the run, and what is said before it is stored."""

from __future__ import annotations

import json

import pytest

from cuebook.actors.client import Client
from cuebook.events.facts import MessageRejected
from tests.cli.conftest import Cli, reaches
from tests.waiting import eventually

ORDER = ("run", "submit", "order", '{"n": 1}')


async def refusals(client: Client) -> list[str]:
    found = [item async for item in client.log.read(filters=[client.log.subjects.all_rejected])]
    return [item.event.reason for item in found if isinstance(getattr(item, "event", None), MessageRejected)]  # type: ignore[union-attr]


@pytest.mark.usefixtures("agents")
async def test_a_saga_with_a_key_names_its_run_and_runs_once(cli: Cli, client: Client) -> None:
    assert (await cli.json(*ORDER))["run_id"] == "order-1"
    said = await cli.fails(7, *ORDER)
    for part in ("run order-1 exists already", "cuebook run show order-1", "--id"):
        assert part in said
    assert await cli.ok(*ORDER, "--id", "order-again") == "order-again\n"
    await reaches(client, "order-1", "completed")
    assert "order-1" in await cli.fails(7, *ORDER, "--wait")
    await cli.ok("events", "publish", "order.placed", '{"n": 1}')
    assert await eventually(lambda: refusals(client)) == ["run order-1 was started already"]
    assert {one["run_id"] for one in await cli.json("run", "list")} == {"order-1", "order-again"}


@pytest.mark.usefixtures("agents")
async def test_what_an_event_has_started_is_not_submitted_again(cli: Cli, client: Client) -> None:
    await cli.ok("events", "publish", "order.placed", '{"n": 1}')
    await reaches(client, "order-1", "completed")
    assert "run order-1 exists already" in await cli.fails(7, *ORDER)
    assert await refusals(client) == []


@pytest.mark.usefixtures("agents")
async def test_a_saga_without_a_key_gives_each_run_a_fresh_id(cli: Cli) -> None:
    ids = {(await cli.json("run", "submit", "twice", '{"n": 1}'))["run_id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(one.startswith("twice-") for one in ids)


@pytest.mark.usefixtures("orchestrator")
async def test_an_input_that_cannot_begin_a_run_is_told_before_it_is_stored(cli: Cli, client: Client) -> None:
    said = json.loads(await cli.fails(2, "run", "submit", "order", '{"n": "many"}', "-o", "json"))
    assert "the input does not fit saga 'order': n: " in said["error"]
    assert "its fields are n" in said["fix"]
    assert "--no-check" in said["fix"]
    await cli.fails(2, "run", "submit", "order", '"text"', "--id", "o1")
    assert [item async for item in client.log.read(filters=[client.log.subjects.everything_of("o1")])] == []
    assert await cli.json("run", "list") == []
    assert (await cli.run("run", "submit", "order", '{"n": "many"}', "--no-check", "--wait")).exit_code == 15


@pytest.mark.usefixtures("orchestrator")
async def test_what_the_saga_would_read_is_not_refused(cli: Cli) -> None:
    """Its type reads more than its JSON Schema says."""
    assert await cli.ok("run", "submit", "order", '{"n": "17"}') == "order-17\n"


@pytest.mark.usefixtures("client")
async def test_when_nobody_tells_the_key_an_id_has_to_be_chosen(cli: Cli) -> None:
    said = await cli.fails(5, *ORDER)
    for part in ("no orchestrator answers", "--id", "--no-check"):
        assert part in said
    assert await cli.json("run", "list") == []
    result = await cli.run(*ORDER, "--id", "o1")
    assert (result.exit_code, result.stdout) == (0, "o1\n")
    assert "the run begins once one does" in result.stderr
    fresh = {await cli.ok(*ORDER, "--no-check") for _ in range(2)}
    assert len(fresh) == 2
    assert len(await cli.json("run", "list")) == 3
