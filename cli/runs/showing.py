"""Showing one run, as it is or was, and following one that goes on."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import Any

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.state import RunState, TaskState, fold_run
from cuebook.cli.directory import ask_or_none, nearest_run
from cuebook.cli.exits import OUTCOMES, Exit
from cuebook.cli.history.points import find_place
from cuebook.cli.history.timeline import run_line
from cuebook.cli.history.views import Item, event_view, run_view
from cuebook.cli.moments import span
from cuebook.cli.options import Output, Target
from cuebook.cli.output import Lines, compact, fields, gist, heading, line, note, section, show_one
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError
from cuebook.events.facts import TaskProgressed
from cuebook.events.log import EventLog

__all__ = ["find_run", "read_progress", "show_run", "tail_run"]

_WAITING = frozenset({"waiting", "backoff"})


async def show_run(target: Target, run_id: str, at: str, since: str, output: Output) -> None:
    """Print a run, as it was at `at`, and what changed since `since`. Raises NotFoundError, InputError."""
    from cuebook.cli.runs import diffs  # which folds runs as this module does

    async with session(target) as client:
        place = await find_place(client.log, at) if at else None
        changed = await diffs.run_difference(client.log, run_id, since, at) if since else None
        until = place.sequence if place is not None else None
        state, history = await find_run(client.log, run_id, until)
        waiting = {} if at else await why_waiting(client, state, output)
        progress = await read_progress(client.log, state, until)
    view = run_view(state, history, waiting, progress)
    view["at"] = place.view if place is not None else None
    if changed is not None:
        view |= {"since": changed.first.view, "changes": [change.view for change in changed.changes]}

    def render() -> None:
        _print_run(view, history if changed is None else changed.events, history[0].recorded_at)
        if changed is not None:
            heading(f"changed since {changed.first}")
            diffs.print_changes(changed.changes)

    show_one(output, view, render)


async def find_run(log: EventLog, run_id: str, until: int | None = None) -> tuple[RunState, list[Item]]:
    """A run folded up to a sequence, with its history. Raises NotFoundError."""
    history = await log.history(run_id, until=until)
    if not history:
        first = await log.first_sequence(log.subjects.everything_of(run_id))
        if first:
            raise NotFoundError(f"run {run_id} began at sequence {first}, after {until}", remedy="say a later --at")
        raise NotFoundError(
            f"there is no run {run_id!r} in space {log.subjects.space!r}", remedy=await nearest_run(log, run_id)
        )
    return fold_run(run_id, history), history


async def why_waiting(client: Client, state: RunState, output: Output) -> dict[str, str]:
    """Why tasks of a run wait, as the orchestrator says; empty when nothing waits."""
    waits = any(isinstance(item, TaskState) and item.status in _WAITING for item in state.items.values())
    if not waits and state.status not in ("requested", "running"):
        return {}
    answer = await ask_or_none(client, "waiting", {"run": state.run_id})
    if answer is None:
        if waits or state.status == "requested":
            note("no orchestrator answers, which is why nothing goes on", output)
        return {}
    reasons: dict[str, str] = answer.get("waiting", {})
    return reasons


async def read_progress(log: EventLog, state: RunState, until: int | None) -> dict[int, TaskProgressed]:
    """The last word of each open task of a run, by number."""
    if all(item.closed for item in state.items.values()):
        return {}
    found: dict[int, TaskProgressed] = {}
    for item in await log.scope_history(log.subjects.progress_of(state.run_id), after=state.opened_sequence):
        wanted = until is None or item.sequence <= until
        if wanted and isinstance(item, Envelope) and isinstance(item.event, TaskProgressed):
            found[item.address.n] = item.event
    return found


async def tail_run(target: Target, run_id: str, output: Output) -> Exit:
    """Print a run's events from its beginning until it has ended; returns the status of its outcome."""
    async with session(target, follows=True) as client:
        log = client.log
        _, history = await find_run(log, run_id)
        filters = [log.subjects.everything_of(run_id), log.subjects.progress_of(run_id)]
        state, began_at = RunState(run_id), history[0].recorded_at
        last = history[-1].sequence
        with Lines(output) as lines:
            async with aclosing(log.follow(after=history[0].sequence - 1, filters=filters)) as items:
                async for item in items:
                    if isinstance(item, Envelope) and item.address.kind != "progress":
                        state.apply(item)
                    lines.add(event_view(item), partial(run_line, item, began_at))
                    if item.sequence >= last and (outcome := outcome_of(state)):
                        break
        if outcome == "stuck":
            note(f"it waits for a person: cuebook run retry {run_id}{target.hint}", output)
        return OUTCOMES[outcome]


def outcome_of(state: RunState) -> str:
    """How a run ended, or `stuck`; empty while it goes on."""
    if state.standalone:
        task = state.items.get(0)
        return task.status if task is not None and task.closed else ""
    return state.status if state.closed or state.status == "stuck" else ""


def _print_run(view: dict[str, Any], history: list[Item], began_at: int) -> None:
    what = view["saga"] or ".".join(filter(None, [view["agent"], view["handler"]]))
    fields([
        ("run", view["run_id"]),
        ("of", what + (f" version {view['version']}" if view["version"] else "")),
        ("status", view["status"]),
        ("as of", f"sequence {view['at']['sequence']}, {view['at']['recorded_at']}" if view["at"] else None),
        ("opened", view["opened_at"]),
        ("ended", view["ended_at"]),
        ("took", span(view["duration_s"]) if view["duration_s"] is not None else None),
        ("retry of", view["retry_of"]),
        ("fork of", "{run_id} at {sequence}".format(**view["fork_of"]) if view["fork_of"] else None),
        ("input", view["input"]),
        ("result", view["result"]),
        ("error", f"{view['error']['type']}: {view['error']['message']}" if view["error"] else None),
        ("reason", view["reason"]),
        ("cancel", view["cancel_requested"]),
        ("waits", view["waiting"]),
    ])  # fmt: skip
    if view["stuck"]:
        _print_stuck(view)
    columns = ["N", "STATUS", "WHAT", "ATTEMPT", "INSTANCE", "DETAIL"]
    section("steps", columns, [_step_row(item) for item in view["items"]])
    since = f"since {view['since']['sequence']}, " if "since" in view else ""
    heading(f"history, {since}up to sequence {view['sequence']}")
    for item in history:
        line(run_line(item, began_at))


def _print_stuck(view: dict[str, Any]) -> None:
    heading("stuck")
    stuck = view["stuck"]
    fields([("step", stuck.get("step")), ("recorded", stuck.get("recorded")), ("asked", stuck.get("asked")),
            ("next", f"cuebook run retry {view['run_id']}, or cuebook run cancel {view['run_id']}")])  # fmt: skip


def _step_row(item: dict[str, Any]) -> list[str]:
    n, status = str(item["n"]), item["status"]
    if item["kind"] != "task":
        what = gist(item["question"] or "") or item["topic"] or (span(item["timeout_s"]) if item["timeout_s"] else "")
        due = f"until {item['due'][:19]}Z" if item["due"] else ""
        answer = compact(item["value"], 60) if item["value"] is not None else ""
        return [n, status, f"{item['kind']} {what}", "", _copied(item), answer or due]
    name = ".".join(filter(None, [item["agent"], item["handler"]]))
    if item["compensates"] is not None:
        name = f"undo {item['compensates']} by {name}"
    return [n, status, name, str(item["attempt"] or ""), item["instance"] or _copied(item), _task_detail(item)]


def _copied(item: dict[str, Any]) -> str:
    """Where a step was executed that this run shares with another; nothing ran here."""
    if not item["copied_from"]:
        return ""
    return f"copied from {item['copied_from']}" + (", answer changed" if item["changed"] else "")


def _task_detail(item: dict[str, Any]) -> str:
    if item["waiting"]:
        return str(item["waiting"])
    if item["status"] == "completed":
        return compact(item["output"], 60)
    if item["error"]:
        return f"{item['error']['type']}: {item['error']['message']}"
    if item["progress"]:
        progress = item["progress"]
        share = f"{progress['fraction']:.0%} " if "fraction" in progress else ""
        return share + str(progress.get("message", ""))
    return ""
