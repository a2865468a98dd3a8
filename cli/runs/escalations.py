"""What waits for a person, and deciding about it. What the log would refuse is refused here, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.queries import open_escalations
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.schemas import find_error
from cuebook.cli.directory import ask_or_none, fold_agents
from cuebook.cli.exits import DecidedError, InputError
from cuebook.cli.history.runfold import RunFold, fold_runs
from cuebook.cli.moments import iso
from cuebook.cli.options import Output, Target
from cuebook.cli.output import compact, gist, line, show_list, show_one, table
from cuebook.cli.runs.showing import find_run
from cuebook.cli.session import session
from cuebook.events.errors import NotFoundError
from cuebook.events.subjects import parse_task_id

__all__ = ["Decision", "list_escalations", "resolve"]

_ABOUT_TASKS = frozenset({"result", "retry", "abort"})
_ABOUT_QUESTIONS = frozenset({"answer", "approve", "deny"})
_FIELDS = ("id", "kind", "run_id", "n", "saga", "agent", "handler", "input", "error", "question", "schema", "context",
           "recorded", "asked", "requested_at", "since", "due")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A person's word: result, retry, abort, answer, approve or deny."""

    kind: str
    value: Any
    note: str


async def list_escalations(target: Target, kind: str, output: Output) -> None:
    """Print what waits, longest first; by the orchestrator's word, or folded from the log where there is none."""
    async with session(target) as client:
        answer = await ask_or_none(client, "escalations")
        if answer is not None:
            found = answer["escalations"]
        else:
            found = open_escalations(
                (await fold_runs(client.log, RunFold(0), silent=output.for_programs)).open.values()
            )
    rows = [_view(one) for one in found if not kind or one["kind"] == kind]
    rows.sort(key=lambda row: str(row["since"]))
    show_list(output, rows, lambda: _print(rows))


def _view(one: dict[str, Any]) -> dict[str, Any]:
    run_id, slash, n = one["id"].partition("/")
    view = {**one, "run_id": run_id, "n": int(n) if slash else None, "requested_at": iso(one["requested_at"])}
    view |= {"since": iso(one["since"]), "due": iso(one.get("due", 0))}
    return {name: view.get(name) for name in _FIELDS}


def _print(rows: list[dict[str, Any]]) -> None:
    table(
        ["ID", "KIND", "OF", "SINCE (UTC)", "UNTIL (UTC)", "WHAT"],
        [
            [
                row["id"],
                row["kind"],
                ".".join(filter(None, [row["agent"], row["handler"]])) or row["saga"] or "",
                str(row["since"])[:19].replace("T", " "),
                (row["due"] or "")[:19].replace("T", " "),
                " ".join([gist(str(row["question"] or row["error"])), *_shown(row["context"])]),
            ]
            for row in rows
        ],
        empty="nothing waits for a person",
    )


def _shown(context: Any) -> list[str]:
    return [compact(context, 60)] if context else []


async def resolve(target: Target, name: str, decision: Decision, output: Output, *, by: str) -> None:
    """Decide. Raises NotFoundError, InputError, CommandRejectedError when somebody else was faster."""
    run_id, n = parse_task_id(name)
    async with session(target, by=by) as client:
        state, _ = await find_run(client.log, run_id)
        if state.status == "stuck" and "/" not in name:
            await _resolve_stuck(client, state, decision)
        else:
            await _resolve_item(client, state, n, decision)
    done = {"id": name, "decision": decision.kind}
    show_one(
        output, done, lambda: line(f"{name}: {decision.kind}; follow it with: cuebook run tail {run_id}{target.hint}")
    )


async def _resolve_stuck(client: Client, state: RunState, decision: Decision) -> None:
    if decision.kind == "retry":
        await client.retry(state.run_id, note=decision.note)
    elif decision.kind == "abort":
        await client.cancel(state.run_id, reason=decision.note)
    else:
        raise InputError(f"run {state.run_id} is stuck, not asking", remedy="say --retry or --abort")


async def _resolve_item(client: Client, state: RunState, n: int, decision: Decision) -> None:
    item = state.items.get(n)
    match item:
        case StepState(type="ask", status="open"):
            await client.resolve(state.run_id, n, value=_answer(item, decision), note=decision.note)
        case TaskState(status="escalated"):
            await _check_task(client, item, decision)
            action = "supply" if decision.kind == "result" else decision.kind
            await client.resolve(state.run_id, n, action=action, value=decision.value, note=decision.note)
        case None:
            raise NotFoundError(f"{state.run_id} has no task or step {n}", remedy="see 'cuebook escalation list'")
        case _:
            raise DecidedError(
                f"{state.run_id}/{n} is {item.status}; nothing there waits for a person (any more)",
                remedy=f"see 'cuebook run show {state.run_id}' for what was decided",
            )


def _answer(step: StepState, decision: Decision) -> Any:
    """The answer to a question, checked against its schema."""
    name, schema = f"{step.run_id}/{step.n}", step.schema or {}
    if decision.kind not in _ABOUT_QUESTIONS:
        raise InputError(f"{name} is a question, not a task", remedy="say --answer, --approve or --deny")
    if decision.kind == "answer":
        value = decision.value
    elif "approved" in schema.get("properties", {}):
        value = {"approved": decision.kind == "approve", "note": decision.note}
    else:
        raise InputError(f"{name} wants no approval", remedy=f"say --answer with what fits {compact(schema, 300)}")
    wrong = find_error(schema, value)
    if wrong:
        raise InputError(f"the answer does not fit: {wrong}", remedy=f"it must fit {compact(schema, 300)}")
    return value


async def _check_task(client: Client, task: TaskState, decision: Decision) -> None:
    name = f"{task.run_id}/{task.n}"
    if decision.kind not in _ABOUT_TASKS:
        raise InputError(f"{name} is an escalated task, not a question", remedy="say --result, --retry or --abort")
    if decision.kind != "result" or task.compensates is not None:
        return
    team = (await fold_agents(client.log)).registry.teams.get(task.agent)
    wrong = team.find_output_error(task.handler, decision.value) if team is not None else ""
    if wrong:
        raise InputError(
            f"the result does not fit {task.agent}.{task.handler}: {wrong}",
            remedy=f"see 'cuebook agent show {task.agent}'",
        )
