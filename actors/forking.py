"""A run that shares another's history up to a point and goes on from there: what has to be written for it. Pure.

Shared is what had *ended* by then: tasks with their result, answers to questions and waits, sleeps. It is written into
the new run as facts of their own kind (`copied`), never as requests, so that nothing can be placed or performed twice;
and it is undone by nobody but the run it was executed in, since its effect is that run's. What was still open is asked
for anew by the saga's code, as is everything after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.schemas import find_error
from cuebook.events.envelope import Envelope
from cuebook.events.errors import CommandRejectedError, NotFoundError
from cuebook.events.facts import Event, Origin, RunForked, StepCopied, TaskCopied
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Subjects, task_id

__all__ = ["Fork", "Past", "plan_fork"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What opens the new run: its events with their subjects, the first one first, and what they are caused by.

    `copied` and `changed` are numbers of steps: those it shares, and those among them with another answer.
    """

    run_id: str
    fork_of: str
    at: int
    copied: list[int]
    changed: list[int]
    events: list[tuple[str, Event]]
    correlation_id: str
    causation_id: str


class Past:
    """A run as it was at a sequence, and where each of its steps had ended."""

    def __init__(self, run_id: str, history: Iterable[Envelope | Unreadable], at: int | None = None) -> None:
        """`history` may go on beyond `at`; without it the past is the whole history."""
        self.state = RunState(run_id)
        self.sequence = 0
        self.event_id = ""
        self.ends: dict[int, int] = {}
        """By number of the step, the sequence of the fact that ended it."""
        for item in history:
            if isinstance(item, Envelope) and (at is None or item.sequence <= at):
                self._fold(item)

    def _fold(self, item: Envelope) -> None:
        self.sequence, self.event_id = item.sequence, item.id
        part = self.state.apply(item)
        if part is not None and part.closed:
            self.ends.setdefault(part.n, item.sequence)

    @property
    def undone(self) -> bool:
        """Whether everything that was to be undone has been."""
        tasks = [item for item in self.state.items.values() if isinstance(item, TaskState)]
        done = {item.compensates for item in tasks if item.status == "completed"}
        return done.issuperset(self.state.undo or ())


def plan_fork(subjects: Subjects, past: Past, run_id: str, answers: Mapping[int, Any], *, by: str = "") -> Fork:
    """The events of a run `run_id` that shares this past, with other answers to some of its steps, by number.

    Raises CommandRejectedError for a past that cannot be shared or an answer that does not fit, NotFoundError for an
    answer to a step that had not been asked for.
    """
    state = past.state
    if state.standalone:
        raise CommandRejectedError(
            f"{state.run_id} is one task without a saga, so nothing goes on from any point of it",
            remedy=f"do it again with 'cuebook run retry {state.run_id}', or submit one with another input",
        )
    if not state.started_sequence:
        raise CommandRejectedError(
            f"run {state.run_id} had not started by {past.sequence}, so there is nothing to share",
            remedy=f"fork at a later point, or start anew with 'cuebook run retry {state.run_id}'",
        )
    for n, value in answers.items():
        _check_answer(past, n, value)
    copied: list[int] = []
    copies: list[tuple[str, Event]] = []
    for n, item in sorted(state.items.items()):
        if item.closed or n in answers:
            if isinstance(item, TaskState) and item.compensates is not None and not past.undone:
                continue  # half undone: what is left to undo is the origin's
            copied.append(n)
            copies.append(_copy(subjects, past, run_id, item, answers))
    forked = RunForked(
        saga=state.saga,
        fork_of=state.run_id,
        at=past.sequence,
        copied=len(copies),
        started_at=state.began_at,
        started_sequence=state.listens_after,
        input=state.input,
        changed=sorted(n for n, item in state.items.items() if n in answers and _value(item) != answers[n]),
        cancelled=state.cancel_reason,
        by=by,
    )
    return Fork(
        run_id=run_id,
        fork_of=state.run_id,
        at=past.sequence,
        copied=copied,
        changed=forked.changed,
        events=[(subjects.run(run_id, "forked"), forked), *copies],
        correlation_id=state.correlation_id,
        causation_id=past.event_id,
    )


def _check_answer(past: Past, n: int, value: Any) -> None:
    item = past.state.items.get(n)
    name = task_id(past.state.run_id, n)
    if item is None:
        raise NotFoundError(
            f"{name} had not been asked for by sequence {past.sequence}", remedy="fork later, or answer another step"
        )
    if isinstance(item, TaskState) and item.compensates is not None:
        raise CommandRejectedError(f"{name} undid step {item.compensates}; it has no answer to change")
    if isinstance(item, StepState):
        if item.type == "sleep":
            raise CommandRejectedError(f"{name} is a sleep; it has no answer to change")
        if item.type == "ask" and (wrong := find_error(item.schema or {}, value)):
            raise CommandRejectedError(f"the answer to {name} does not fit: {wrong}", remedy="see 'cuebook task show'")


def _value(item: TaskState | StepState) -> Any:
    """The recorded answer; something that equals nothing where there is none."""
    if isinstance(item, TaskState):
        return item.output if item.status == "completed" else _value
    return item.value if item.status in ("matched", "answered") else _value


def _copy(
    subjects: Subjects, past: Past, run_id: str, item: TaskState | StepState, answers: Mapping[int, Any]
) -> tuple[str, Event]:
    changed = item.n in answers and _value(item) != answers[item.n]
    origin = item.origin or Origin(
        run_id=item.run_id,
        n=item.n,
        sequence=past.ends.get(item.n, item.last_sequence),
        recorded_at=item.ended_at or past.state.moment,
    )
    if isinstance(item, TaskState):
        task = TaskCopied(
            origin=origin,
            status=cast(Any, "completed" if changed else item.status),
            handler=item.handler,
            input=item.input,
            output=answers[item.n] if changed else item.output,
            error=None if changed else item.error,
            attempt=item.attempt,
            compensates=item.compensates,
            changed=changed or item.changed,
        )
        return subjects.task(run_id, item.n, "copied", item.agent), task
    step = StepCopied(
        origin=origin,
        kind=cast(Any, item.type),
        status=cast(Any, ("answered" if item.type == "ask" else "matched") if changed else item.status),
        timeout_s=item.timeout_s,
        topic=item.topic,
        match=item.match or {},
        question=item.question,
        schema=item.schema or {},
        context=item.context,
        value=answers[item.n] if changed else item.value,
        by=item.by,
        taken=item.taken,
        changed=changed or item.changed,
    )
    return subjects.step(run_id, item.n, "copied"), step
