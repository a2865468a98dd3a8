"""Questions the deciding orchestrator answers from memory: what waits and why, who has free slots."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.overview import instance_facts
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState

__all__ = ["answer_query", "open_escalations", "pack_answer"]

_MOST_RUNS = 200
_NOUNS = ["agents", "escalations", "orchestrators", "overview", "runs", "sagas", "status", "waiting"]


def answer_query(core: Orchestrator, noun: str, payload: bytes) -> dict[str, Any]:
    """Answer agents, escalations, runs, sagas, status or waiting; anything else names what there is.

    The service itself answers overview, and every orchestrator, standing by or not, answers orchestrators.

    waiting is about one run, `{"run": id}`. sagas may name one to hear more of, and an input to check for it:
    `{"saga": name, "input": data}`.
    """
    try:
        question = json.loads(payload) if payload else {}
    except ValueError:
        return {"error": "the question is not JSON"}
    if not isinstance(question, dict):
        question = {}
    match noun:
        case "agents":
            return {"agents": [instance_facts(one) for one in core.world.registry.instances.values()]}
        case "waiting":
            return {"waiting": _waiting(core, str(question.get("run", "")))}
        case "escalations":
            return {"escalations": open_escalations(core.world.runs.values())}
        case "runs":
            return {"runs": _newest_runs(core)}
        case "sagas":
            return _sagas(core, question)
        case "status":
            return _status(core)
    return {"error": f"no question {noun!r}", "known": _NOUNS}


def _sagas(core: Orchestrator, question: dict[str, Any]) -> dict[str, Any]:
    """All that are served and, if it is one of them, more about the one that the question names."""
    answer: dict[str, Any] = {"sagas": core.conductor.served()}
    if (one := core.conductor.describe(question)) is not None:
        answer["saga"] = one
    return answer


def pack_answer(answer: dict[str, Any], most: int) -> bytes:
    """As JSON of at most `most` bytes: of a list that is too long the beginning, and under `more` how many are left."""
    packed = json.dumps(answer).encode()
    while len(packed) > most:
        name, longest = max(answer.items(), key=lambda item: len(item[1]) if isinstance(item[1], list) else -1)
        if not isinstance(longest, list) or not longest:
            return json.dumps({"error": "the answer is too large"}).encode()
        kept = longest[: len(longest) // 2]
        answer = {**answer, name: kept, "more": answer.get("more", 0) + len(longest) - len(kept)}
        packed = json.dumps(answer).encode()
    return packed


def _waiting(core: Orchestrator, run_id: str) -> dict[str, str]:
    """Why each task of a run waits, by its number, and under `run` why the whole does."""
    run = core.world.runs.get(run_id)
    if run is None:
        return {}
    reasons = {
        str(n): core.dispatcher.why_waiting(item)
        for n, item in run.items.items()
        if isinstance(item, TaskState) and not item.closed
    }
    reasons["run"] = core.conductor.why_not(run)
    return {n: reason for n, reason in reasons.items() if reason}


def open_escalations(runs: Iterable[RunState]) -> list[dict[str, Any]]:
    """What waits for a person in open runs: escalated tasks, open questions, and runs that are stuck."""
    found = []
    for run in runs:
        for n, item in run.items.items():
            if isinstance(item, TaskState) and item.status == "escalated":
                message = item.error.message if item.error is not None else ""
                found.append({"id": f"{run.run_id}/{n}", "kind": "task", "saga": run.saga, "agent": item.agent,
                              "handler": item.handler, "input": item.input, "error": message,
                              "requested_at": item.requested_at, "since": item.escalated_at})  # fmt: skip
            elif isinstance(item, StepState) and item.type == "ask" and item.status == "open":
                found.append({"id": f"{run.run_id}/{n}", "kind": "question", "saga": run.saga,
                              "question": item.question, "schema": item.schema, "context": item.context,
                              "requested_at": item.opened_at, "since": item.opened_at, "due": item.due})  # fmt: skip
        if run.status == "stuck" and run.stuck is not None:
            found.append({"id": run.run_id, "kind": "stuck", "saga": run.saga, "error": run.stuck.reason,
                          "recorded": run.stuck.recorded, "asked": run.stuck.asked,
                          "requested_at": run.started_at, "since": run.stuck_at})  # fmt: skip
    return found


def _newest_runs(core: Orchestrator) -> list[dict[str, Any]]:
    """Of the open runs the newest few: enough to choose from, small enough for one message."""
    found = []
    for run in islice(reversed(core.world.runs.values()), _MOST_RUNS):
        first = run.items.get(0)
        agent = first.agent if isinstance(first, TaskState) and run.standalone else ""
        found.append({"run_id": run.run_id, "saga": run.saga, "agent": agent, "status": run.outcome()})
    return found


def _status(core: Orchestrator) -> dict[str, Any]:
    return {
        "sequence": core.world.position.sequence,
        "open_runs": len(core.world.runs),
        "waiting": core.dispatcher.depths(),
        "timers": len(core.timers),
        "triggers": len(core.world.triggers),
    }
