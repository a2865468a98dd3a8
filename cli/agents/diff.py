"""What an agent's present handlers make of recorded inputs: a summary for each, and every answer that differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cuebook.actors.agent import Agent
from cuebook.cli.agents.rehearsal import Answer, Recorded, draw_sample, rehearsed, started
from cuebook.cli.exits import DriftError, InputError
from cuebook.cli.history.sides import change_cells, sides
from cuebook.cli.history.views import error_view
from cuebook.cli.loading import load_agents, load_fake
from cuebook.cli.moments import parse_since
from cuebook.cli.options import Output, Target
from cuebook.cli.output import compact, line, note, show_one, table
from cuebook.cli.session import session
from cuebook.events.errors import NotFoundError

__all__ = ["Wish", "diff_agent"]

_OUTCOMES = ("same", "changed", "raises", "answers", "failed")
_DIFFERENT = frozenset({"changed", "raises", "answers"})
_WORDS = {"changed": "another answer", "raises": "raises now", "answers": "failed then, answers now"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be run again; what is empty is not said."""

    agent: str
    handlers: Sequence[str]
    sample: int
    seed: int
    since: str
    ignored: Sequence[str]
    fake: str
    live: bool


async def diff_agent(target: Target, wish: Wish, output: Output) -> None:
    """Run the sample again and print what differs. Raises DriftError, InputError, NotFoundError, ConfigurationError."""
    (cls,) = load_agents([wish.agent])
    agent = await _make(cls, wish)
    tasks = await _sample(target, cls, wish)
    note(f"running {len(tasks)} tasks of {cls.name} again", output)
    async with started(agent, own=cls):
        answers = await rehearsed(agent, tasks, ignored=wish.ignored)
    different = [answer for answer in answers if answer.outcome in _DIFFERENT]
    handlers = _summaries(answers)
    view = {
        "agent": cls.name,
        "version": cls.version,
        "tasks": len(tasks),
        "seed": wish.seed,
        "handlers": handlers,
        "different": [_view(answer) for answer in different],
    }
    show_one(output, view, lambda: _print(handlers, different))
    if different:
        raise DriftError(
            f"{len(different)} of {len(answers)} answers of {cls.name} are not those recorded",
            remedy="if they are better, serve it; the runs that are over keep what they have",
        )


async def _make(cls: type[Agent], wish: Wish) -> Agent:
    """The agent to call; refused where that would do something outside that nobody has asked for."""
    known = cls.handlers()
    if unknown := [name for name in wish.handlers if name not in known]:
        raise InputError(
            f"agent {cls.name!r} has no handler {unknown[0]!r}", remedy=f"it has {', '.join(sorted(known))}"
        )
    if wish.fake and wish.live:
        raise InputError("--fake and --live-effects exclude each other", remedy="say one of them")
    if wish.fake:
        return await load_fake(wish.fake, cls)
    chosen = wish.handlers or sorted(known)
    effects = [name for name in chosen if not known[name].pure]
    if effects and not wish.live:
        pure = [name for name in sorted(known) if known[name].pure]
        others = f", run only {' and '.join(f'--handler {name}' for name in pure)}" if pure else ""
        raise InputError(
            f"{cls.name}.{effects[0]} would do again what it does outside",
            remedy=f"give --fake MODULE:NAME{others}, mark it @handler(pure=True) if it changes nothing, "
            "or spell out --live-effects",
        )
    return cls()


async def _sample(target: Target, cls: type[Agent], wish: Wish) -> list[Recorded]:
    async with session(target) as client:
        log = client.log
        last = (await log.verify()).last_sequence
        after = await log.sequence_at(parse_since(wish.since)) if wish.since else 0
        tasks = await draw_sample(
            log, cls.name, wish.sample, seed=wish.seed, after=after, until=last, handlers=wish.handlers
        )
    if not tasks:
        since = f" since {wish.since}" if wish.since else ""
        raise NotFoundError(
            f"agent {cls.name!r} has answered no task{since} in space {target.space!r}",
            remedy="see 'cuebook agent list --all' for the agents there were",
        )
    return tasks


def _summaries(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """By handler how often each outcome came, and which fields changed how often."""
    found: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for answer in answers:
        outcomes, fields = found.setdefault(answer.recorded.handler, (Counter(), Counter()))
        outcomes[answer.outcome] += 1
        fields.update({change.name or "(all of it)" for change in answer.changes})
    return [
        {"handler": name, **{outcome: outcomes[outcome] for outcome in _OUTCOMES}, "fields": dict(fields.most_common())}
        for name, (outcomes, fields) in sorted(found.items())
    ]


def _view(answer: Answer) -> dict[str, Any]:
    recorded = answer.recorded
    return {
        "id": recorded.id,
        "handler": recorded.handler,
        "outcome": answer.outcome,
        "input": recorded.input,
        "recorded": {"output": recorded.output, "error": error_view(recorded.error)},
        "now": {"output": answer.output, "error": error_view(answer.error)},
        "changes": [change.view for change in answer.changes],
        "note": answer.note or None,
    }


def _print(handlers: Sequence[dict[str, Any]], different: Sequence[Answer]) -> None:
    for answer in different:
        recorded = answer.recorded
        remark = f" ({answer.note})" if answer.note else ""
        line(f"{recorded.id} {recorded.handler}: {_WORDS[answer.outcome]}{remark}, input {compact(recorded.input)}")
        for row in sides("recorded", "now", change_cells(answer.changes) or [_whole(answer)]):
            line(row)
        line("")
    columns = ["HANDLER", "SAME", "CHANGED", "RAISES NOW", "ANSWERS NOW", "FAILED AS BEFORE", "CHANGED FIELDS"]
    rows = [
        [
            one["handler"],
            *(str(one[outcome]) for outcome in _OUTCOMES),
            ", ".join(f"{name} {count}" for name, count in one["fields"].items()),
        ]
        for one in handlers
    ]
    table(columns, rows, empty="")


def _whole(answer: Answer) -> tuple[str, str, str]:
    """Both sides where one of them is an error."""
    then, now = answer.recorded, answer
    return (
        "",
        f"{then.error.type}: {then.error.message}"[:60] if then.error else compact(then.output, 60),
        f"{now.error.type}: {now.error.message}"[:60] if now.error else compact(now.output, 60),
    )
