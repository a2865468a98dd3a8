"""Forking a run: another that shares its history up to a point, perhaps with other answers, and goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from cuebook.actors.client import Client
from cuebook.actors.forking import Fork, Past
from cuebook.actors.orchestrator.state import TaskState
from cuebook.cli.directory import fold_agents
from cuebook.cli.exits import Exit, InputError, print_error
from cuebook.cli.moments import parse_point
from cuebook.cli.options import Output, Target
from cuebook.cli.output import line, note, show_one
from cuebook.cli.runs.showing import find_run
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError
from cuebook.events.facts import RunRejected
from cuebook.events.subjects import parse_task_id

__all__ = ["Wish", "fork_run", "parse_answers"]

ADMITTED_WITHIN_S = 5.0
"""So long the orchestrator has to say whether it goes on with the fork."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be forked, as RUN or RUN/N, and how; what is empty is not said."""

    name: str
    at: str
    answers: Mapping[int, Any]
    new_id: str


def parse_answers(data: Any) -> dict[int, Any]:
    """`{"3": {...}}` by number of the step. Raises InputError."""
    if not isinstance(data, dict) or not all(key.isascii() and key.isdigit() for key in data):
        raise InputError("--with is no object of answers by step number", remedy="""write it as '{"3": {"n": 1}}'""")
    return {int(key): value for key, value in data.items()}


async def fork_run(target: Target, wish: Wish, output: Output, *, by: str) -> Exit:
    """Fork and print the new run's id; returns the status of a refusal by the orchestrator.

    Raises NotFoundError, InputError, CommandRejectedError.
    """
    run_id, n = parse_task_id(wish.name)
    at_step = "/" in wish.name
    if at_step and wish.at:
        raise InputError("RUN/N and --at say both where to fork", remedy="say one of them")
    if not (at_step or wish.at or wish.answers):
        raise InputError("where is the fork to begin?", remedy="say RUN/N, --at, or --with other answers")
    async with session(target, by=by) as client:
        _, history = await find_run(client.log, run_id)
        past = Past(run_id, history)
        at = await _at_point(client, past, wish.at) if wish.at else None
        if at_step:
            at = _at_step(past, n, wish.answers)
        await _check_tasks(client, past, wish.answers)
        fork = await client.fork(run_id, at=at, answers=wish.answers, new_id=wish.new_id)
        refusal = await _admission(client, fork.run_id, output)
    if isinstance(refusal, RunRejected):
        print_error(refusal.reason, refusal.remedy, as_json=output.for_programs)
        return Exit.RUN_REJECTED
    show_one(output, _view(fork), lambda: line(fork.run_id))
    shared = f"{len(fork.copied)} steps are shared with {run_id}" + (
        f", with another answer to {', '.join(map(str, fork.changed))}" if fork.changed else ""
    )
    note(f"{shared}; follow it with: cuebook run tail {fork.run_id}{target.hint}", output)
    return Exit.OK


def _view(fork: Fork) -> dict[str, Any]:
    return {
        "run_id": fork.run_id,
        "fork_of": {"run_id": fork.fork_of, "sequence": fork.at},
        "copied": fork.copied,
        "changed": fork.changed,
    }


async def _at_point(client: Client, past: Past, text: str) -> int:
    """The sequence that --at means. One before the run began may be meant as the number of a step."""
    point = parse_point(text)
    at = point.sequence if point.sequence is not None else await client.log.sequence_at(point.moment)
    if at < past.state.opened_sequence:
        hint = f"to fork at step {at}, write {past.state.run_id}/{at}" if at in past.state.items else "say a later --at"
        raise NotFoundError(
            f"run {past.state.run_id} began at sequence {past.state.opened_sequence}, after {at}", remedy=hint
        )
    return at


def _at_step(past: Past, n: int, answers: Mapping[int, Any]) -> int | None:
    """The sequence at which a step had its answer; None, the end, for an open one that is to get another."""
    name = f"{past.state.run_id}/{n}"
    if n not in past.state.items:
        raise NotFoundError(f"{name} was never asked for", remedy=f"see 'cuebook run show {past.state.run_id}'")
    if n not in past.ends and n not in answers:
        raise InputError(f"{name} has not ended, so there is no answer to go on from", remedy="give one by --with")
    return past.ends.get(n)


async def _check_tasks(client: Client, past: Past, answers: Mapping[int, Any]) -> None:
    """Raise InputError for a changed output that does not fit its handler, as far as the registry can tell."""
    tasks = [item for n in answers if isinstance(item := past.state.items.get(n), TaskState)]
    teams = (await fold_agents(client.log)).registry.teams if tasks else {}
    for task in tasks:
        team = teams.get(task.agent)
        wrong = team.find_output_error(task.handler, answers[task.n]) if team is not None else ""
        if wrong:
            raise InputError(
                f"the answer to {task.run_id}/{task.n} does not fit {task.agent}.{task.handler}: {wrong}",
                remedy=f"see 'cuebook agent show {task.agent}'",
            )


async def _admission(client: Client, run_id: str, output: Output) -> RunRejected | None:
    """What the orchestrator says about the fork: a refusal, or None when it goes on or nobody is there yet."""
    log = client.log
    after = await log.first_sequence(log.subjects.run(run_id, "forked"))
    try:
        async with (
            asyncio.timeout(ADMITTED_WITHIN_S),
            aclosing(log.follow(after=after, filters=[log.subjects.run_scope(run_id)])) as items,
        ):
            async for item in items:
                if isinstance(item, Envelope):
                    return item.event if isinstance(item.event, RunRejected) else None
    except TimeoutError:
        note("no orchestrator has taken it up yet; it begins once one does", output)
    return None
