"""Which agents and sagas there are, so that a wrong name is told from a right one before anything is sent."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.registry import InstanceState, Registry
from cuebook.actors.saga import derive_run_id
from cuebook.cli.exits import InputError
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError, UnavailableError
from cuebook.events.facts import AgentRegistered
from cuebook.events.log import EventLog, Unreadable
from cuebook.events.subjects import check_token

__all__ = [
    "Directory",
    "ask_or_none",
    "check_saga",
    "check_task",
    "fold_agents",
    "nearest",
    "nearest_run",
    "require_agent",
    "require_instances",
]


RECENT = 2_000
"""Messages at the end of the log in which the name of a run is looked for that is not there as it was typed."""


class Directory:
    """The registry as the log tells it, and what each agent says about itself."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.descriptions: dict[str, str] = {}

    def describe(self, item: Envelope | Unreadable) -> None:
        """Take over what an agent says about itself, if this message says it."""
        if isinstance(item, Envelope) and isinstance(item.event, AgentRegistered) and item.event.description:
            self.descriptions[item.address.agent] = item.event.description

    @property
    def agents(self) -> list[str]:
        """All that ever registered, by name."""
        return sorted(self.registry.teams)


async def fold_agents(log: EventLog, *, until: int | None = None) -> Directory:
    """Fold the lives of all agent instances, up to a sequence."""
    directory = Directory()
    async with aclosing(log.read(filters=[log.subjects.all_agents], until=until)) as items:
        async for item in items:
            if isinstance(item, Envelope):
                directory.registry.apply(item)
                directory.describe(item)
    return directory


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """What to say about a name that is not there."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known {what}s: {', '.join(known)}" if known else f"there is no {what} yet"


async def nearest_run(log: EventLog, run_id: str) -> str:
    """What to say about a run that is not there. People name the ticket where the run has its saga's name in front."""
    sagas = set()
    async with aclosing(log.read(filters=[log.subjects.all_sagas])) as items:
        async for item in items:
            sagas.add(item.address.agent if isinstance(item, Envelope) else "")
    for saga in sorted(sagas - {""}):
        named = derive_run_id(saga, "key", {"key": run_id})
        if await log.first_sequence(log.subjects.everything_of(named)):
            return f"did you mean {named!r}?"
    recent = set()
    last = (await log.verify()).last_sequence
    async with aclosing(log.read(filters=[log.subjects.all_runs], after=max(0, last - RECENT))) as items:
        async for item in items:
            recent.add(item.address.run_id if isinstance(item, Envelope) else "")
    near = difflib.get_close_matches(run_id, sorted(recent - {""}), 1, 0.7)
    return f"did you mean {near[0]!r}?" if near else "see 'cuebook run list'"


def require_agent(directory: Directory, agent: str) -> None:
    """Raise NotFoundError for an agent that has never registered, InvalidTokenError for what cannot be its name."""
    check_token(agent, "agent")
    if agent not in directory.registry.teams:
        raise NotFoundError(f"no agent {agent!r} has ever registered", remedy=nearest(agent, directory.agents, "agent"))


def require_instances(directory: Directory, name: str) -> list[InstanceState]:
    """The instances meant by AGENT or AGENT/INSTANCE, at least one. Raises as `require_agent`."""
    agent, _, instance = name.partition("/")
    require_agent(directory, agent)
    known = directory.registry.by_agent.get(agent, {})
    if not instance:
        return sorted(known.values(), key=lambda one: one.registered_sequence)
    check_token(instance, "instance")
    if instance not in known:
        alive = [one.instance for one in known.values() if one.health != "stopped"]
        raise NotFoundError(
            f"agent {agent!r} has no instance {instance!r}", remedy=nearest(instance, alive, "instance")
        )
    return [known[instance]]


async def check_task(log: EventLog, agent: str, handler: str, data: Any) -> None:
    """Raise NotFoundError or InputError for a task that would be rejected, as far as the registry can tell."""
    directory = await fold_agents(log)
    require_agent(directory, agent)
    team = directory.registry.teams[agent]
    found = [(variant, one[0]) for variant in team.present if (one := variant.find(handler)) is not None]
    if not found:
        names = sorted({name for variant in team.present for name in variant.handlers})
        if not handler:
            raise InputError(
                f"agent {agent!r} has several handlers", remedy=f"say --handler with one of {', '.join(names)}"
            )
        raise NotFoundError(f"agent {agent!r} has no handler {handler!r}", remedy=nearest(handler, names, "handler"))
    wrong = {team.name(variant): variant.find_input_error(name, data) for variant, name in found}
    if all(wrong.values()):
        said = set(wrong.values())
        text = said.pop() if len(said) == 1 else "; ".join(f"{name}: {error}" for name, error in wrong.items())
        raise InputError(f"the input does not fit agent {agent!r}: {text}", remedy=f"see 'cuebook agent show {agent}'")


async def check_saga(client: Client, saga: str, data: Any) -> str:
    """Its key, maybe empty. Raises NotFoundError for a saga that is not served, InputError for what cannot begin a run.

    Raises UnavailableError when no orchestrator is there to tell.
    """
    check_token(saga, "saga")
    answer = await client.ask("sagas", {"saga": saga, "input": data})
    found: dict[str, Any] | None = answer.get("saga")
    if found is None:
        served = {one["saga"] for one in answer.get("sagas", [])}
        if saga in served:
            return ""  # a release that tells no more than the names
        raise NotFoundError(f"the orchestrator serves no saga {saga!r}", remedy=nearest(saga, served, "saga"))
    if wrong := found.get("input_error"):
        fields = ", ".join(found["input_schema"].get("properties", ()))
        raise InputError(
            f"the input does not fit saga {saga!r}: {wrong}",
            remedy=f"its fields are {fields}" if fields else "see the saga's code for what it takes",
        )
    key: str = found["key"]
    return key


async def ask_or_none(client: Client, noun: str, question: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the deciding orchestrator answers, or None when there is none."""
    with contextlib.suppress(UnavailableError):
        return await client.ask(noun, question)
    return None
