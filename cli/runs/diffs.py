"""What changed between two places in the log: of one run, of all runs, of agents. Both states are folded from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cuebook.actors.orchestrator.state import fold_run
from cuebook.cli.directory import require_agent
from cuebook.cli.exits import InputError
from cuebook.cli.history.difference import Change, find_changes
from cuebook.cli.history.past import Past
from cuebook.cli.history.points import Place, find_place, last_place
from cuebook.cli.history.runfold import RunFold, fold_runs
from cuebook.cli.history.timeline import run_line
from cuebook.cli.history.views import Item, handlers_view, instance_view, run_view
from cuebook.cli.options import Output, Target
from cuebook.cli.output import compact, heading, line, note, show_list, show_one, table
from cuebook.cli.runs.showing import find_run, read_progress
from cuebook.cli.session import session
from cuebook.events.errors import NotFoundError
from cuebook.events.log import EventLog

__all__ = [
    "Difference",
    "agent_difference",
    "diff_agents",
    "diff_run",
    "diff_runs",
    "print_changes",
    "run_difference",
    "run_fields",
]

_COLUMNS = ["WHAT", "WAS", "IS"]
_RUN_COLUMNS = ["RUN", "WAS", "IS", "OF", "CHANGED"]
_NOT_STATE = frozenset({"history", "sequence", "at"})
_WIDEST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What changed after `first` up to `last`; of a run also the events between, in order."""

    first: Place
    last: Place
    changes: list[Change]
    events: list[Item]

    @property
    def view(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {
            "from": self.first.view,
            "to": self.last.view,
            "changes": [change.view for change in self.changes],
        }


def run_fields(view: dict[str, Any]) -> dict[str, Any]:
    """A run as `run show` has it, but without its history, and its tasks and steps by number."""
    if not view:
        return {}
    items = {str(item["n"]): {name: item[name] for name in item if name != "attempts"} for item in view["items"]}
    return {**{name: value for name, value in view.items() if name not in _NOT_STATE}, "items": items}


async def run_difference(log: EventLog, run_id: str, first: str, last: str) -> Difference:
    """What changed of a run. Before its beginning it had no fields. Raises NotFoundError, InputError."""
    begin, end = await _places(log, first, last)
    _, history = await find_run(log, run_id, end.sequence)
    before = [item for item in history if item.sequence <= begin.sequence]
    states = [await _run_at(log, run_id, part, place) for part, place in ((before, begin), (history, end))]
    return Difference(
        first=begin, last=end, changes=find_changes(*states), events=[one for one in history if one not in before]
    )


async def _run_at(log: EventLog, run_id: str, history: list[Item], place: Place) -> dict[str, Any]:
    if not history:
        return {}
    state = fold_run(run_id, history)
    return run_fields(run_view(state, history, {}, await read_progress(log, state, place.sequence)))


async def diff_run(target: Target, run_id: str, first: str, last: str, output: Output) -> None:
    """Print what changed of a run. Raises as `run_difference`."""
    async with session(target) as client:
        found = await run_difference(client.log, run_id, first, last)
        opened = (await find_run(client.log, run_id, found.last.sequence))[1][0]
    view = {"run_id": run_id, **found.view, "events": len(found.events)}
    show_one(output, view, partial(_print_run, run_id, found, opened.recorded_at))


def _print_run(run_id: str, found: Difference, began_at: int) -> None:
    line(f"run {run_id} from {found.first} to {found.last}")
    line("")
    print_changes(found.changes)
    heading(f"events between: {len(found.events)}")
    for item in found.events:
        line(run_line(item, began_at))


async def diff_runs(target: Target, first: str, last: str, limit: int, output: Output) -> None:
    """Print the runs that opened, went on or ended, the newest first. Raises NotFoundError, InputError."""
    async with session(target) as client:
        begin, end = await _places(client.log, first, last)
        before = await fold_runs(client.log, RunFold(0), until=begin.sequence, silent=output.for_programs)
        was = {row["run_id"]: row for row in before.summaries()}
        after = RunFold(limit, lambda row: row != was.get(row["run_id"]))
        after.take_over(before)
        await fold_runs(client.log, after, after=begin.sequence, until=end.sequence, silent=output.for_programs)
    rows = [_run_row(row, was.get(row["run_id"])) for row in after.newest()]
    note(f"from {begin} to {end}", output)
    show_list(output, rows, lambda: table(_RUN_COLUMNS, _run_cells(rows), empty="no run changed"))
    if len(rows) == limit:
        note(f"these are the newest {limit}; --limit says how many", output)


def _run_row(row: dict[str, Any], was: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "run_id": row["run_id"],
        "saga": row["saga"],
        "agent": row["agent"],
        "before": was["status"] if was is not None else None,
        "after": row["status"],
        "changes": [change.view for change in find_changes(was or {}, row)],
    }


def _run_cells(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["run_id"],
            row["before"] or "",
            row["after"],
            row["saga"] or row["agent"] or "",
            ", ".join(one["path"][1:] for one in row["changes"]) if row["before"] else "opened",
        ]
        for row in rows
    ]


async def agent_difference(log: EventLog, name: str, first: str, last: str, output: Output) -> Difference:
    """What changed of all agents, of one, or of AGENT/INSTANCE. Raises NotFoundError, InputError."""
    begin, end = await _places(log, first, last)
    past = Past(log)
    states = []
    for place in (begin, end):
        await past.advance(place.sequence, silent=output.for_programs)
        states.append(_agents_at(past, name))
    agent, _, instance = name.partition("/")
    if agent:
        require_agent(past.directory, agent)
    if instance and not any(name in state["instances"] for state in states):
        raise NotFoundError(f"agent {agent!r} had no instance {instance!r}", remedy="see 'cuebook agent list --all'")
    return Difference(first=begin, last=end, changes=find_changes(*states), events=[])


def _agents_at(past: Past, name: str) -> dict[str, Any]:
    agent, _, instance = name.partition("/")
    in_flight = past.in_flight()
    return {
        "agents": {
            one: {
                "description": past.directory.descriptions.get(one, ""),
                "handlers": handlers_view(team),
            }
            for one, team in sorted(past.directory.registry.teams.items())
            if one == agent or not agent
        },
        "instances": {
            f"{one.agent}/{one.instance}": instance_view(one, in_flight)
            for one in past.instances
            if (not agent or one.agent == agent) and (not instance or one.instance == instance)
        },
    }


async def diff_agents(target: Target, name: str, first: str, last: str, output: Output) -> None:
    """Print what changed of agents and their instances. Raises as `agent_difference`."""
    async with session(target) as client:
        found = await agent_difference(client.log, name, first, last, output)
    show_one(output, {"agent": name or None, **found.view}, partial(_print_agents, found))


def _print_agents(found: Difference) -> None:
    line(f"from {found.first} to {found.last}")
    line("")
    print_changes(found.changes)


def print_changes(changes: Iterable[Change]) -> None:
    """Print each field with what it was and what it is."""
    rows = [[change.name, _words(change.before), _words(change.value)] for change in changes]
    if rows:
        table(_COLUMNS, rows, empty="")
    else:
        line("nothing changed")


def _words(value: Any) -> str:
    """A value in a table: of a task, a step, an agent or an instance only what it is."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, str):
        return compact(value, _WIDEST)[1:-1] if len(value) > _WIDEST else value
    if isinstance(value, dict) and {"kind", "status"} <= value.keys():
        name = ".".join(filter(None, [value.get("agent"), value.get("handler")])) or value.get("question") or ""
        return compact(f"{value['kind']} {name} {value['status']}".replace("  ", " "), _WIDEST)[1:-1]
    if isinstance(value, dict) and {"instance", "health"} <= value.keys():
        return f"{value['health']}, {value['in_flight']}/{value['slots']} busy"
    if isinstance(value, dict) and "handlers" in value:
        return f"handlers {', '.join(value['handlers'])}"
    return compact(value, _WIDEST)


async def _places(log: EventLog, first: str, last: str) -> tuple[Place, Place]:
    begin = await find_place(log, first, early=True)
    end = await find_place(log, last) if last else await last_place(log)
    if end.sequence < begin.sequence:
        raise InputError(f"{end} is before {begin}", remedy="exchange the two")
    return begin, end
