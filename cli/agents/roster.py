"""Listing, showing and draining agents, from their lives on the log and from what the orchestrator knows of now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.cli.directory import Directory, ask_or_none, fold_agents, require_agent, require_instances
from cuebook.cli.history.past import Past
from cuebook.cli.history.points import after_point, find_place
from cuebook.cli.history.views import handlers_view, instance_view
from cuebook.cli.moments import span
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, heading, line, note, section, show_list, show_one, table
from cuebook.cli.runs.diffs import Difference, agent_difference, print_changes
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import CommandRejectedError
from cuebook.events.facts import AgentLost, AgentRecovered, AgentStopped

__all__ = ["Waiting", "Wanted", "When", "drain", "list_agents", "show_agent"]

_GONE = frozenset({"stopped", "unregistered"})
_COLUMNS = ["AGENT", "INSTANCE", "HEALTH", "BUSY", "VERSION", "LABELS", "PROCESS", "SINCE (UTC)", "WHY"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which instances; what is empty means any. `stopped`: also those that have."""

    agent: str
    health: str
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """`at`: as it was then. `since`: what something happened to after that. What is empty is not said."""

    at: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Whether and how long to wait for the end."""

    wait: bool
    at_most_s: float | None


async def list_agents(target: Target, wanted: Wanted, when: When, output: Output) -> None:
    """Print instances by agent and age. Raises NotFoundError for an agent that nobody knows, InputError."""
    async with session(target) as client:
        directory, in_flight = await _look(client, when.at, output)
        since = await after_point(client.log, when.since) if when.since else 0
        if wanted.agent:
            require_agent(directory, wanted.agent)
    rows = [
        instance_view(one, in_flight)
        for one in sorted(directory.registry.instances.values(), key=lambda one: (one.agent, one.registered_sequence))
        if (not wanted.agent or one.agent == wanted.agent)
        and (one.health == wanted.health if wanted.health else one.health != "unregistered")
        and (wanted.stopped or one.health != "stopped")
        and one.last_sequence > since
    ]
    empty = "no agents" if wanted.stopped else "no agents run; --all shows those that have stopped"
    show_list(output, rows, lambda: table(_COLUMNS, _cells(rows), empty=empty))


async def show_agent(target: Target, name: str, when: When, output: Output) -> None:
    """Print an agent, or one instance of it. Raises NotFoundError, InputError."""
    async with session(target) as client:
        since = await agent_difference(client.log, name, when.since, when.at, output) if when.since else None
        directory, in_flight = await _look(client, when.at, output)
        instances = require_instances(directory, name)
    agent = name.partition("/")[0]
    alive = [one for one in instances if one.health not in _GONE] if "/" not in name else instances
    view = {
        "agent": agent,
        "description": directory.descriptions.get(agent, ""),
        "handlers": handlers_view(directory.registry.teams[agent]),
        "instances": [instance_view(one, in_flight) for one in alive],
    }
    if since is not None:
        view |= {"since": since.first.view, "changes": [change.view for change in since.changes]}
    show_one(output, view, lambda: _print_agent(view, since))


async def drain(target: Target, name: str, reason: str, waiting: Waiting, output: Output, *, by: str) -> None:
    """Ask instances to drain. Raises NotFoundError, CommandRejectedError when they are gone, TimeoutError."""
    async with session(target, by=by, follows=waiting.wait) as client:
        directory = await fold_agents(client.log)
        chosen = [one for one in require_instances(directory, name) if one.health not in _GONE]
        if not chosen:
            raise CommandRejectedError(f"nothing of {name} runs", remedy="see 'cuebook agent list --all'")
        after = 0
        for one in chosen:
            after = await client.drain(one.agent, one.instance, reason=reason)
        became = await _until_gone(client, chosen, after, waiting.at_most_s) if waiting.wait else {}
        rows = [
            {"agent": one.agent, "instance": one.instance, "status": became.get(one.instance, "asked to drain")}
            for one in chosen
        ]
        show_list(output, rows, lambda: _print_drained(rows))


async def _until_gone(
    client: Client, chosen: list[InstanceState], after: int, at_most_s: float | None
) -> dict[str, str]:
    """Wait until each instance has stopped, or has died on the way; says which, by instance. Raises TimeoutError."""
    names, became = {one.instance for one in chosen}, dict[str, str]()
    first = min(one.last_sequence for one in chosen)
    try:
        async with (
            asyncio.timeout(at_most_s),
            aclosing(client.log.follow(after=first, filters=[client.log.subjects.all_agents])) as items,
        ):
            async for item in items:
                if isinstance(item, Envelope) and item.address.instance in names:
                    match item.event:
                        case AgentStopped():
                            became[item.address.instance] = "stopped"
                        case AgentLost():
                            became.setdefault(item.address.instance, "lost")
                        case AgentRecovered():
                            became.pop(item.address.instance, None)
                if len(became) == len(names) and item.sequence >= after:
                    break
    except TimeoutError as error:
        left = ", ".join(sorted(names - became.keys()))
        raise TimeoutError(f"still running after {at_most_s:g} s: {left}") from error
    return became


async def _look(client: Client, at: str, output: Output) -> tuple[Directory, dict[str, int] | None]:
    """The agents and their tasks in flight: as the orchestrator counts now, or as they were at a place in the log."""
    if not at:
        return await fold_agents(client.log), await _in_flight(client, output)
    place = await find_place(client.log, at)
    past = Past(client.log)
    await past.advance(place.sequence, silent=output.for_programs)
    note(f"as of sequence {place}", output)
    return past.directory, past.in_flight()


async def _in_flight(client: Client, output: Output) -> dict[str, int] | None:
    """Tasks in flight by instance, which only a running orchestrator counts."""
    answer = await ask_or_none(client, "agents")
    if answer is None:
        note("no orchestrator answers: health is as of its last word, and tasks in flight are not known", output)
        return None
    return {one["instance"]: one["in_flight"] for one in answer.get("agents", [])}


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["agent"],
            row["instance"],
            row["health"],
            f"{'?' if row['in_flight'] is None else row['in_flight']}/{row['slots']}",
            row["version"],
            ",".join(f"{key}={value}" for key, value in sorted(row["labels"].items())),
            f"{row['host']}:{row['pid']}",
            str(row["changed_at"])[:19].replace("T", " "),
            row["reason"] or "",
        ]
        for row in rows
    ]


def _print_agent(view: dict[str, Any], since: Difference | None) -> None:
    fields([("agent", view["agent"]), ("about", view["description"])])
    for name, handler in view["handlers"].items():
        heading(f"handler {name}")
        where = "as in" if handler["others"] else "only in"
        in_versions = [] if handler["everywhere"] else [(where, " and ".join(handler["versions"]))]
        fields([*in_versions, *_handler_fields(handler, _ALL)])
        for other in handler["others"]:
            heading(f"handler {name} of {' and '.join(other['versions'])}, what differs")
            fields(_handler_fields(other, other["differs"]))
    section("instances", _COLUMNS, _cells(view["instances"]))
    if since is not None:
        heading(f"changed since {since.first}")
        print_changes(since.changes)


_ALL = ("description", "timeout_s", "retry", "compensation", "input_schema", "output_schema")


def _handler_fields(handler: dict[str, Any], which: Sequence[str]) -> list[tuple[str, str]]:
    retry = handler["retry"]
    told = {
        "description": ("about", handler["description"]),
        "timeout_s": ("timeout", span(handler["timeout_s"])),
        "retry": ("attempts", f"{retry['attempts']}, first pause {span(retry['backoff_s'])}"),
        "compensation": ("can be undone", "yes" if handler["compensation"] else "no"),
        "input_schema": ("input", schema_words(handler["input_schema"])),
        "output_schema": ("output", schema_words(handler["output_schema"])),
    }
    return [told[field] for field in which]


def schema_words(schema: Any) -> str:
    """A JSON Schema in short: the fields of an object with their types, `?` on those that may be left out."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(schema.get("properties"), dict):
        required = schema.get("required", [])
        parts = [f"{name}{'' if name in required else '?'}: {_type(one)}" for name, one in schema["properties"].items()]
        return "{" + ", ".join(parts) + "}"
    return _type(schema)


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            return " or ".join(_type(one) for one in schema[several])
    if isinstance(schema.get("enum"), list):
        return " or ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items'))}"
    return str(schema.get("type", "any"))


def _print_drained(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        line(f"{row['agent']}/{row['instance']} {row['status']}")
