"""The handlers of an agent run again on recorded inputs, with their effects stubbed, and their answers compared.

The sample is drawn in one reading of the log: each task has a number that follows from the seed and its id alone, and
those with the smallest are taken. So the same seed gives the same tasks, and memory follows the sample, not the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from cuebook.actors.agent import Agent, Handler, Task
from cuebook.actors.attempt import PreparedHandler, error_of
from cuebook.actors.deadlines import Deadlines
from cuebook.actors.orchestrator.state import TaskState
from cuebook.cli.history.difference import Change, find_changes
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Error, TaskAssigned, TaskCompleted, TaskRequested
from cuebook.events.log import EventLog
from cuebook.events.subjects import task_id

__all__ = ["Answer", "Recorded", "draw_sample", "rehearsed", "started"]

SPARE = 100
"""Tasks drawn beyond twice the sample: some have not ended, or were answered by a person."""

Outcome = Literal["same", "changed", "raises", "answers", "failed"]
"""Answered then: the same or another answer, or it raises now. Failed then: it answers now, or it fails still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One task as it was: what it was asked, and what the last attempt gave, an output or an error."""

    run_id: str
    n: int
    handler: str
    input: Any
    timeout_s: float
    attempt: int
    correlation_id: str
    output: Any
    error: Error | None

    @property
    def id(self) -> str:
        """RUN/N."""
        return task_id(self.run_id, self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it now. `changes` lead from the recorded output to the new one, both by the output model."""

    recorded: Recorded
    outcome: Outcome
    output: Any
    error: Error | None
    changes: Sequence[Change]
    note: str = ""


async def draw_sample(
    log: EventLog, agent: str, size: int, *, seed: int, after: int, until: int, handlers: Iterable[str] = ()
) -> list[Recorded]:
    """At most `size` tasks of the agent that ended by an attempt of it, requested in (after, until], in a fixed order.

    `handlers`: only of these, if any are named.
    """
    wanted, most = frozenset(handlers), 2 * size + SPARE
    drawn: list[tuple[int, str, int]] = []  # a heap with the largest number on top
    async with aclosing(log.read(after=after, until=until, filters=[log.subjects.requests_to(agent)])) as items:
        async for item in items:
            if not isinstance(item, Envelope) or not isinstance(item.event, TaskRequested):
                continue
            if item.event.compensates is not None or (wanted and item.event.handler not in {"", *wanted}):
                continue
            run_id, n = item.address.run_id, item.address.n
            entry = (-_number(seed, task_id(run_id, n)), run_id, n)
            if len(drawn) < most:
                heapq.heappush(drawn, entry)
            elif entry > drawn[0]:
                heapq.heapreplace(drawn, entry)
    found: list[Recorded] = []
    for _, run_id, n in sorted(drawn, reverse=True):
        if len(found) == size:
            break
        task = await _task(log, run_id, n, until)
        if task is not None and (not wanted or task.handler in wanted):
            found.append(task)
    return found


def _number(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest())


async def _task(log: EventLog, run_id: str, n: int, until: int) -> Recorded | None:
    """A task that ended by an attempt; None for all others: open, undoing something, decided by a person."""
    state, by_attempt = TaskState(run_id, n), False
    for item in await log.scope_history(log.subjects.task_scope(run_id, n)):
        if not isinstance(item, Envelope) or item.sequence > until:
            continue
        if isinstance(item.event, TaskCompleted) and not state.closed:
            by_attempt = state.status == "assigned"
        state.apply(item)
    failed = state.status == "aborted" and state.attempt > 0 and state.error is not None
    if state.compensates is not None or not (failed or (state.status == "completed" and by_attempt)):
        return None
    return Recorded(
        run_id=run_id,
        n=n,
        handler=state.handler,
        input=state.input,
        timeout_s=state.timeout_s or 60.0,
        attempt=state.attempt,
        correlation_id=state.correlation_id,
        output=state.output,
        error=state.error if failed else None,
    )


@asynccontextmanager
async def started(agent: Agent, *, own: type[Agent]) -> AsyncIterator[None]:
    """The agent between its `start` and its `stop`. A fake starts only if it has a `start` other than that of `own`."""
    real = type(agent) is own
    if real or type(agent).start is not own.start:
        await agent.start()
    try:
        yield
    finally:
        if real or type(agent).stop is not own.stop:
            await agent.stop()


async def rehearsed(agent: Agent, tasks: Sequence[Recorded], *, ignored: Sequence[str] = ()) -> list[Answer]:
    """Run each task's handler once, as many at a time as the agent takes; answers in the order of the tasks.

    Changes in the fields `ignored`, such as `confidence` or `order.total`, do not count.
    """
    handlers = type(agent).handlers()
    deadlines = Deadlines()
    prepared = {name: PreparedHandler(handler, agent, deadlines) for name, handler in handlers.items()}
    slots = asyncio.Semaphore(agent.concurrency)

    async def one(task: Recorded) -> Answer:
        async with slots:
            return await _answer(agent, task, handlers, prepared, ignored)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(one(task)) for task in tasks]
    return [each.result() for each in running]


async def _answer(
    agent: Agent,
    task: Recorded,
    handlers: Mapping[str, Handler[Any, Any]],
    prepared: Mapping[str, PreparedHandler],
    ignored: Sequence[str],
) -> Answer:
    handler = handlers.get(task.handler)
    if handler is None:
        error = Error(type="NoHandler", message=f"agent {agent.name!r} no longer has handler {task.handler!r}")
        return _raised(task, error)
    event = TaskAssigned(handler=task.handler, attempt=task.attempt, timeout_s=task.timeout_s, input=task.input)
    try:
        output = await prepared[task.handler].call(event, partial(_context, agent), task)
    except Exception as error:  # noqa: BLE001 - whatever the author's code raises is an outcome
        return _raised(task, error_of(error))
    if task.error is not None:
        return Answer(recorded=task, outcome="answers", output=output, error=None, changes=())
    before, note = _normalised(handler, task.output)
    changes = [change for change in find_changes(before, output) if not _is_in(change.name, ignored)]
    return Answer(
        recorded=task, outcome="changed" if changes else "same", output=output, error=None, changes=changes, note=note
    )


def _is_in(name: str, fields: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _raised(task: Recorded, error: Error) -> Answer:
    outcome: Outcome = "failed" if task.error is not None else "raises"
    return Answer(recorded=task, outcome=outcome, output=None, error=error, changes=())


def _normalised(handler: Handler[Any, Any], output: Any) -> tuple[Any, str]:
    """A recorded output as the present model writes it, or as it is with a word about that."""
    try:
        return handler.output_type.plain(handler.output_type.read(output)), ""
    except ValidationError as error:
        return output, f"the recorded output no longer fits the model ({error.error_count()} errors)"


def _context(agent: Agent, task: Recorded) -> Task:
    return Task(
        run_id=task.run_id,
        step=task.n,
        attempt=task.attempt,
        deadline=datetime.now(UTC) + timedelta(seconds=task.timeout_s),
        correlation_id=task.correlation_id,
        agent=agent.name,
        instance="rehearsal",
        logger=logging.LoggerAdapter(logging.getLogger("cuebook.agent"), {"task": task.id}),
        report=lambda _message, _fraction: None,
    )
