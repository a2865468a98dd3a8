"""Which variants of an agent can take a task, and what is said when none can. Pure.

A task that no present variant takes waits where one that has left would take it: for as long as needed when it was
requested before that one left, else only for a moment, since the agent may just be restarting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cuebook.actors.orchestrator.state import TaskState
from cuebook.actors.orchestrator.variants import Team, Variant
from cuebook.actors.schemas import find_error

__all__ = ["ANYONE", "MAX_PRIORITY", "RETURN_GRACE_S", "Admission", "admit", "find_objection", "only"]

RETURN_GRACE_S = 30.0
"""How long a variant whose last instance has stopped may be away before new tasks for it are rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Who may take a task. `takers`: None when every variant present can, else those that can, perhaps nobody now.

    `until`: nobody can, and it may wait till then (microseconds since 1970). `reason`: it is refused.
    """

    takers: frozenset[Variant] | None = None
    until: int = 0
    reason: str = ""
    remedy: str = ""


ANYONE: Final = Admission()
MAX_PRIORITY: Final = 100
"""And the lowest is as far below 0."""
_WAITS: Final = Admission(takers=frozenset())


def find_objection(variant: Variant, task: TaskState) -> str:
    """Why instances of a variant cannot take a task, or an empty string."""
    found = variant.find(task.handler)
    if found is None:
        if task.handler:
            return f"agent {task.agent!r} has no handler {task.handler!r}"
        return f"agent {task.agent!r} has several handlers"
    name, spec = found
    if task.compensates is not None:
        return "" if spec.compensation else f"{task.agent}.{name} has no compensation"
    wrong = variant.find_input_error(name, task.input)
    return f"input of {task.agent}.{name}: {wrong}" if wrong else ""


def admit(task: TaskState, team: Team, now: int) -> Admission:
    """Decide about a task that waits. `now`: microseconds since 1970 by the server's clock."""
    objections = {variant: find_objection(variant, task) for variant in team.present}
    takers = [variant for variant, objection in objections.items() if not objection]
    if task.compensates is not None:
        takers = [variant for variant in takers if _knows_step(variant, task)] or takers
    if len(takers) == len(objections):
        return ANYONE
    if takers:
        return Admission(takers=frozenset(takers))
    left = [one for one in team.variants if one not in objections and not find_objection(one, task)]
    if any(task.requested_sequence < one.left_sequence for one in left):
        return _WAITS
    until = max((one.left_at for one in left), default=0) + int(RETURN_GRACE_S * 1_000_000)
    if left and now < until:
        return Admission(takers=frozenset(), until=until)
    return _refusal(task, team, objections, left)


def only(task: TaskState, team: Team) -> tuple[str, frozenset[Variant]]:
    """For people, who alone can take a task that not every variant can, and these variants."""
    able = [one for one in team.variants if not find_objection(one, task)]
    if not able:
        return f"no known version of {task.agent!r} takes it", frozenset()
    lacking = [one for one in team.present if one.find(task.handler) is None]
    if task.compensates is not None:
        what = f"can undo {task.handler!r}"
    elif len(lacking) + len(able) >= len(team.present):
        what = f"has handler {task.handler!r}" if task.handler else "has one handler only"
    else:
        what = f"takes this input of {task.handler!r}"
    return f"only {team.names(able)} {what}", frozenset(able)


def _knows_step(variant: Variant, task: TaskState) -> bool:
    """Whether what is to be undone looks as this variant's handler would have taken and given it."""
    found, step = variant.find(task.handler), task.input
    if found is None or not isinstance(step, dict):
        return False
    spec = found[1]
    return not (find_error(spec.input_schema, step.get("input")) or find_error(spec.output_schema, step.get("output")))


def _refusal(task: TaskState, team: Team, objections: dict[Variant, str], left: list[Variant]) -> Admission:
    said = set(objections.values())
    if len(objections) == 1:
        reason = said.pop()
    elif len(said) == 1:
        reason = f"{said.pop()} ({team.names(objections)})"
    else:
        reason = "; ".join(f"{team.name(variant)}: {text}" for variant, text in objections.items())
    if left:
        reason += f"; {team.names(left)} could take it, and no instance of that is left"
    if task.compensates is not None:
        return Admission(reason=reason, remedy="start a version that can undo it, then say 'cuebook run retry'")
    if any(variant.find(task.handler) is not None for variant in objections):
        return Admission(reason=reason, remedy="send input that fits the handler's schema")
    known = sorted({name for variant in objections for name in variant.handlers})
    return Admission(reason=reason, remedy=f"name one of: {', '.join(known)}")
