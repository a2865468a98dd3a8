"""`cuebook agent`: who is there, by the log alone and with an orchestrator that counts."""

from __future__ import annotations

import asyncio

import pytest

from cuebook.actors.client import Client
from cuebook.actors.runtime import AgentHost
from cuebook.cli.agents.roster import schema_words
from cuebook.events.envelope import Envelope
from cuebook.events.facts import AgentLost, AgentRegistered, AgentStopped, HandlerSpec
from cuebook.events.log import EventLog
from tests.cli.conftest import Cli


async def test_agents_are_listed_with_what_they_do_now(cli: Cli, agents: AgentHost) -> None:
    listed = await cli.json("agent", "list")
    assert [(one["agent"], one["health"], one["slots"], one["in_flight"]) for one in listed] == [
        ("echo", "healthy", 4, 0), ("faulty", "healthy", 1, 0)
    ]  # fmt: skip
    assert listed[0]["labels"] == {"zone": "a"}
    assert "zone=a" in await cli.ok("agent", "list", "echo")
    assert await cli.json("agent", "list", "--health", "lost") == []
    assert "did you mean 'faulty'?" in await cli.fails(3, "agent", "list", "fautly")


async def test_an_agent_is_shown_with_its_handlers(cli: Cli, agents: AgentHost) -> None:
    shown = await cli.json("agent", "show", "echo")
    assert shown["description"] == "Says it again, one more."
    handler = shown["handlers"]["add"]
    assert (handler["timeout_s"], handler["compensation"]) == (20.0, True)
    assert handler["input_schema"]["required"] == ["n"]
    text = await cli.ok("agent", "show", "echo")
    assert "{n: integer}" in text
    assert "can be undone  yes" in text
    instance = shown["instances"][0]["instance"]
    assert (await cli.json("agent", "show", f"echo/{instance}"))["instances"] == shown["instances"]
    assert f"did you mean {instance!r}?" in await cli.fails(3, "agent", "show", f"echo/{instance}x")
    assert "cannot be part of a subject" in await cli.fails(2, "agent", "show", "Echo!")


async def test_draining_ends_an_instance_and_nothing_more(cli: Cli, agents: AgentHost) -> None:
    instance = agents.instances[0].id
    words = ["agent", "drain", f"echo/{instance}", "--reason", "new version", "--wait-s", "60"]
    assert await cli.json(*words) == [{"agent": "echo", "instance": instance, "status": "stopped"}]
    assert [one["agent"] for one in await cli.json("agent", "list")] == ["faulty"]
    everyone = await cli.json("agent", "list", "--all")
    assert [(one["agent"], one["health"]) for one in everyone] == [("echo", "stopped"), ("faulty", "healthy")]
    assert "nothing of echo runs" in await cli.fails(1, "agent", "drain", "echo")
    assert "no agent 'nobody'" in await cli.fails(3, "agent", "drain", "nobody")
    drained = next(event for event in await cli.json("events", "tail") if event.get("fact") == "drain_requested")
    assert drained["data"] == {"reason": "new version", "by": "ann"}


async def test_without_an_orchestrator_the_log_still_tells(cli: Cli, client: Client, log: EventLog) -> None:
    event = AgentRegistered(slots=2, handlers={"do": HandlerSpec(), "undo": HandlerSpec()})
    await log.append(log.subjects.agent("loner", "i1", "registered"), event)
    assert [(one["agent"], one["in_flight"]) for one in await cli.json("agent", "list")] == [("loner", None)]
    result = await cli.run("agent", "list")
    assert "?/2" in result.stdout
    assert "no orchestrator answers" in result.stderr
    assert "several handlers" in await cli.fails(2, "run", "submit", "--agent", "loner", "1")
    assert "still running after 0.05 s: i1" in await cli.fails(6, "agent", "drain", "loner", "--wait-s", "0.05")


async def test_waiting_for_a_drain_ends_when_the_instance_dies_on_the_way(cli: Cli, log: EventLog) -> None:
    def register(instance: str) -> str:
        return log.subjects.agent("loner", instance, "registered")

    for instance in ("i1", "i2"):
        await log.append(register(instance), AgentRegistered(slots=2, handlers={"do": HandlerSpec()}))
    waiting = asyncio.create_task(cli.json("agent", "drain", "loner", "--wait-s", "60"))
    asked = log.follow(filters=[log.subjects.all_agents])
    async for item in asked:
        if isinstance(item, Envelope) and item.address.fact == "drain_requested" and item.address.instance == "i2":
            break
    await log.append(log.subjects.agent("loner", "i1", "lost"), AgentLost(silent_s=6.0))
    await log.append(log.subjects.agent("loner", "i2", "stopped"), AgentStopped(reason="asked to"))
    assert [(one["instance"], one["status"]) for one in await waiting] == [("i1", "lost"), ("i2", "stopped")]
    await asked.aclose()


async def test_two_releases_are_shown_with_what_differs(cli: Cli, log: EventLog) -> None:
    number, text = {"type": "integer"}, {"type": "string"}
    old = {"do": HandlerSpec(input_schema=number), "same": HandlerSpec(), "gone": HandlerSpec()}
    new = {"do": HandlerSpec(input_schema=text, timeout_s=5), "same": HandlerSpec(), "come": HandlerSpec()}
    for instance, version, handlers in [("i1", "1", old), ("i2", "2", new), ("i3", "1", old)]:
        event = AgentRegistered(slots=2, handlers=handlers, version=version)
        await log.append(log.subjects.agent("pair", instance, "registered"), event)
    listed = await cli.json("agent", "list", "pair")
    assert [(one["version"], one["handlers"]) for one in listed] == [
        ("1", ["do", "gone", "same"]),
        ("2", ["come", "do", "same"]),
        ("1", ["do", "gone", "same"]),
    ]
    shown = (await cli.json("agent", "show", "pair"))["handlers"]
    assert {name: (one["versions"], one["everywhere"]) for name, one in shown.items()} == {
        "come": (["version 2"], False),
        "do": (["version 2"], False),
        "gone": (["version 1"], False),
        "same": (["version 1", "version 2"], True),
    }
    assert (shown["do"]["input_schema"], shown["do"]["timeout_s"]) == (text, 5)
    [other] = shown["do"]["others"]
    assert (other["versions"], other["differs"]) == (["version 1"], ["timeout_s", "input_schema"])
    text_ = (await cli.ok("agent", "show", "pair")).splitlines()
    assert [line.strip() for line in text_ if "version" in line and "INSTANCE" not in line] == [
        "only in        version 2",
        "as in          version 2",
        "handler do of version 1, what differs",
        "only in        version 1",
    ]
    for handler, data in (("do", "1"), ("do", '"a"'), ("come", "1"), ("gone", "1")):
        await cli.ok("run", "submit", "--agent", "pair", "--handler", handler, data)
    wrong = await cli.fails(2, "run", "submit", "--agent", "pair", "--handler", "do", "[]")
    assert 'version 1: [] is not of type "integer"; version 2: [] is not of type "string"' in wrong
    assert "did you mean 'come'?" in await cli.fails(3, "run", "submit", "--agent", "pair", "--handler", "comb", "1")
    await log.append(log.subjects.agent("pair", "i2", "stopped"), AgentStopped())
    assert list((await cli.json("agent", "show", "pair"))["handlers"]) == ["do", "gone", "same"]
    assert "no handler 'come'" in await cli.fails(3, "run", "submit", "--agent", "pair", "--handler", "come", "1")


@pytest.mark.usefixtures("client")
async def test_no_agents_at_all(cli: Cli) -> None:
    assert (await cli.run("agent", "list")).stdout == ""
    assert "there is no agent yet" in await cli.fails(3, "agent", "show", "echo")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer"}, "integer"),
        ({}, "any"),
        (True, "any"),
        (
            {"properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/B"}}, "required": ["a"]},
            "{a: string, b?: B}",
        ),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, "list of string or null"),
        ({"enum": ["x", 1]}, "'x' or 1"),
    ],
)
def test_schemas_in_short(schema: object, words: str) -> None:
    assert schema_words(schema) == words
