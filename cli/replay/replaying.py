"""Reading a part of the log again: as events, as states, or against the present code of a saga."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RunState
from cuebook.cli.directory import fold_agents
from cuebook.cli.exits import InputError
from cuebook.cli.history.filters import subject_filters
from cuebook.cli.history.points import find_range
from cuebook.cli.history.runfold import RunFold, fold_runs
from cuebook.cli.history.timeline import event_line, run_line
from cuebook.cli.history.views import Item, event_view, instance_view, run_status
from cuebook.cli.loading import load_sagas
from cuebook.cli.moments import clock, iso
from cuebook.cli.options import Output, Target
from cuebook.cli.output import Lines, fields, note, section, show_one
from cuebook.cli.runs.listing import COLUMNS, run_cells
from cuebook.cli.runs.showing import find_run
from cuebook.cli.sagas.checking import Check
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog

__all__ = ["Span", "check", "fold", "show"]

MOST_OPEN = 1_000
"""Open runs listed of a whole space; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which part of the log; what is empty is not said."""

    run: str
    filters: Sequence[str]
    first: str
    last: str
    since: str


async def show(target: Target, span: Span, output: Output) -> None:
    """Print the events of the part, in order. Raises InputError, NotFoundError."""
    async with session(target) as client:
        log = client.log
        after, until = await _range(log, span)
        if span.run and span.filters:
            raise InputError("RUN and --filter say both what to read", remedy="say one of them")
        began_at = 0
        if span.run:
            _, history = await find_run(log, span.run)
            began_at, after = history[0].recorded_at, max(after, history[0].sequence - 1)
        filters = subject_filters(log.subjects, span.filters, [], [span.run] if span.run else [])
        count = 0
        with Lines(output) as lines:
            async with aclosing(log.read(after=after, until=until, filters=filters)) as items:
                async for item in items:
                    words = partial(run_line, item, began_at) if span.run else partial(event_line, item)
                    lines.add(event_view(item), words)
                    count += 1
        note(f"{count} events", output)


async def fold(target: Target, span: Span, output: Output) -> None:
    """Print a run after each event of the part, or the whole space at its end. Raises InputError, NotFoundError."""
    if span.filters:
        raise InputError("--state folds whole runs, so --filter has no meaning with it", remedy="name a RUN instead")
    if not span.run and (span.first or span.since):
        raise InputError("the state of a space is folded from its beginning", remedy="say --to for the moment you want")
    async with session(target) as client:
        after, until = await _range(client.log, span)
        if span.run:
            await _fold_run(client.log, span.run, after, until, output)
        else:
            await _fold_space(client.log, until, output)


async def _fold_run(log: EventLog, run_id: str, after: int, until: int | None, output: Output) -> None:
    _, history = await find_run(log, run_id, until)
    state = RunState(run_id)
    with Lines(output) as lines:
        for item in history:
            if isinstance(item, Envelope):
                state.apply(item)
            if item.sequence > after:
                lines.add(_state_view(item, state), partial(_state_line, item, state, history[0].recorded_at))


def _state_view(item: Item, state: RunState) -> dict[str, Any]:
    return {
        "sequence": item.sequence,
        "recorded_at": iso(item.recorded_at),
        "run_id": state.run_id,
        "event": item.event_type if isinstance(item, Envelope) else None,
        "n": item.address.n if isinstance(item, Envelope) and item.address.n >= 0 else None,
        "status": run_status(state),
        "items": {str(n): one.status for n, one in sorted(state.items.items())},
    }


def _state_line(item: Item, state: RunState, began_at: int) -> str:
    parts = " ".join(f"{n}:{one.status}" for n, one in sorted(state.items.items()))
    return f"{run_line(item, began_at)}\n{'':>26}= {run_status(state)}{f', {parts}' if parts else ''}"


async def _fold_space(log: EventLog, until: int | None, output: Output) -> None:
    last = (await log.verify()).last_sequence
    until = last if until is None else min(until, last)
    runs = await fold_runs(log, RunFold(0), until=until, silent=output.for_programs)
    going_on = RunFold(MOST_OPEN)
    going_on.take_over(runs)
    directory = await fold_agents(log, until=until)
    counts = Counter(runs.ended)
    counts.update(run_status(run) for run in runs.open.values())
    at = await log.at(until) if until else None
    view = {
        "sequence": until,
        "recorded_at": iso(at.recorded_at) if at is not None else None,
        "runs": dict(sorted(counts.items())),
        "open_runs": going_on.newest(),
        "agents": [
            instance_view(one)
            for _, one in sorted(directory.registry.instances.items())
            if one.health not in ("stopped", "unregistered")
        ],
    }
    show_one(output, view, partial(_print_space, view, clock(at.recorded_at) if at is not None else ""))


def _print_space(view: dict[str, Any], moment: str) -> None:
    fields([("sequence", view["sequence"]), ("recorded", moment and f"{moment} UTC"), ("runs", view["runs"] or "none")])
    section("open runs", COLUMNS, run_cells(view["open_runs"]))
    agents = [
        [one["agent"], one["instance"], one["health"], str(one["slots"]), one["version"]] for one in view["agents"]
    ]
    section("agents", ["AGENT", "INSTANCE", "HEALTH", "SLOTS", "VERSION"], agents)


async def check(target: Target, span: Span, specs: Sequence[str], output: Output) -> None:
    """Drive sagas by what was recorded of their runs. Raises DriftError when one goes another way."""
    if span.filters:
        raise InputError("--check reads whole runs, so --filter has no meaning with it", remedy="name a RUN instead")
    sagas = Repertoire(load_sagas(specs))
    async with session(target) as client:
        log = client.log
        after, until = await _range(log, span)
        last = (await log.verify()).last_sequence
        with Lines(output) as lines:
            held = Check(sagas, lines)
            if span.run:
                held.look((await find_run(log, span.run, until))[0])
            else:
                await held.read(log, after, last if until is None else min(until, last), silent=output.for_programs)
        held.tell(output)


async def _range(log: EventLog, span: Span) -> tuple[int, int | None]:
    if span.first and span.since:
        raise InputError("--from and --since say both where to begin", remedy="say one of them")
    return await find_range(log, span.first or span.since, span.last)
