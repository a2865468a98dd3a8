"""What becomes of a task that was handled: its answer is offered to the log until the log has decided.

Each answer expects the assignment that it answers to be the last word about the task. Refused, it is offered again
where the task has not moved on; else it comes too late, and its effect is undone where nobody will use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from cuebook.actors.agent import Task
from cuebook.actors.attempt import InvalidOutputError, PreparedHandler, error_of, raise_from_a_person
from cuebook.actors.shelf import Shelf
from cuebook.actors.work import Work
from cuebook.events.codec import encode
from cuebook.events.envelope import Envelope
from cuebook.events.errors import (
    ConcurrencyConflictError,
    CuebookError,
    PoisonMessageError,
    StreamMissingError,
    UnavailableError,
)
from cuebook.events.facts import (
    AnswerDropped,
    Error,
    Event,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskEscalated,
    TaskFailed,
    TaskRejected,
    TaskRetried,
    TaskReverted,
)
from cuebook.events.log import EventLog, Unreadable

if TYPE_CHECKING:
    from cuebook.actors.handling import OfAgent

__all__ = ["OFFER_AGAIN_S", "Answering"]

OFFER_AGAIN_S = 1.0
_ENDED_WITHOUT_RESULT = (TaskCancelled, TaskAborted)
_MOVES = (
    TaskAssigned,
    TaskCompleted,
    TaskFailed,
    TaskRetried,
    TaskEscalated,
    TaskAborted,
    TaskCancelled,
    TaskRejected,
)
"""Facts by which an assigned task moves on. After any other an answer still counts."""

logger = logging.getLogger(__name__)


class Answering:
    """The answers of one instance. `finish` is called with each work that the log has decided about."""

    def __init__(
        self,
        log: EventLog,
        agent: str,
        instance: str,
        handlers: Mapping[str, PreparedHandler],
        *,
        context: Callable[[Work], Task],
        finish: Callable[[Work], None],
        agent_logger: logging.LoggerAdapter[logging.Logger],
        shelf: Shelf | None,
        measured: OfAgent | None,
    ) -> None:
        """`context`: what a handler gets that undoes a late effect. With a `shelf` answers are stored there first."""
        self._log, self._agent, self._instance, self._handlers = log, agent, instance, handlers
        self._context, self._finish, self._agent_logger = context, finish, agent_logger
        self._shelf, self._measured = shelf, measured
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what goes on until `close`."""
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("what goes on with an answer broke off", exc_info=error, extra={"instance": self._instance})

    def close(self) -> None:
        """Offer nothing any more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def failure(self, work: Work, error: BaseException) -> TaskFailed:
        """What is recorded of an error; the author's own is logged too."""
        if not isinstance(error, CuebookError):
            self._agent_logger.warning("handler raised", exc_info=error, extra={"run_id": work.envelope.address.run_id})
        duration_s = round(time.monotonic() - work.began, 6)
        return TaskFailed(error=error_of(error), attempt=work.event.attempt, duration_s=duration_s, by=self._instance)

    async def shelve(self, shelf: Shelf, work: Work, fact: str, answer: Event) -> tuple[str, Event]:
        """Store an answer before it is offered. What no event can hold becomes a failure."""
        work.answer_id = self._log.ids()
        envelope = work.envelope
        while True:
            try:
                body = encode(
                    answer,
                    event_id=work.answer_id,
                    source=self._log.source,
                    correlation_id=envelope.correlation_id,
                    causation_id=envelope.id,
                    traceparent=envelope.traceparent,
                )
            except PoisonMessageError as error:
                fact, answer = "failed", self.failure(work, InvalidOutputError(_told(error)))
            else:
                await shelf.answer(work.assigned, fact, body)
                return fact, answer

    def offer(self, work: Work, fact: str, answer: Event, expected: int) -> None:
        """Append the outcome; what becomes of it is settled in `_offered`."""
        envelope, subjects = work.envelope, self._log.subjects
        run_id, n = envelope.address.run_id, envelope.address.n

        def done(_: int, error: CuebookError | None) -> None:
            if error is None:
                if work.attempt is not None:
                    work.attempt.accepted(work.answer_id)
                self._finish(work)
            else:
                self.start(self._offered(work, fact, answer, expected, error))

        try:
            work.answer_id = self._log.post(
                subjects.task(run_id, n, fact),
                answer,
                scope=subjects.task_scope(run_id, n),
                expected=expected,
                correlation_id=envelope.correlation_id,
                causation_id=envelope.id,
                traceparent=envelope.traceparent,
                event_id=work.answer_id,
                done=done,
            )
        except PoisonMessageError as error:
            failure = self.failure(work, InvalidOutputError(_told(error)))
            self.offer(work, "failed", failure, expected)

    async def _offered(self, work: Work, fact: str, answer: Event, expected: int, error: CuebookError) -> None:
        """The answer was not taken: offer it again where the task is still ours, drop it where it has moved on."""
        since: list[Envelope | Unreadable] = []
        if isinstance(error, ConcurrencyConflictError):
            since = await self._facts_since(work, expected)
        elif not await self._is_gone(work, expected):
            await asyncio.sleep(OFFER_AGAIN_S)
            self.offer(work, fact, answer, expected)
            return
        if work.answer_id and any(isinstance(item, Envelope) and item.id == work.answer_id for item in since):
            if work.attempt is not None:
                work.attempt.accepted(work.answer_id)
            self._finish(work)  # it was taken, and nobody told us
            return
        if since and not any(isinstance(item.event, _MOVES) for item in since if isinstance(item, Envelope)):
            self.offer(work, fact, answer, since[-1].sequence)
            return
        address = work.envelope.address
        if self._measured is not None:
            self._measured.late += 1
        logger.info(
            "answer not needed any more: the task has moved on",
            extra={"instance": self._instance, "run_id": address.run_id, "n": address.n},
        )
        ended = [item for item in since if isinstance(item, Envelope) and isinstance(item.event, _ENDED_WITHOUT_RESULT)]
        if ended and isinstance(answer, TaskCompleted) and work.event.compensates is None:
            await self._revert(work, answer)
        if self._shelf is not None:
            dropped = AnswerDropped(run_id=address.run_id, n=address.n, attempt=work.event.attempt, fact=fact)
            await self._record(self._log.subjects.agent(self._agent, self._instance, "dropped"), dropped, work)
        self._finish(work)

    async def _facts_since(self, work: Work, sequence: int) -> list[Envelope | Unreadable]:
        """What was stored about the task after a sequence; there is something, or our answer would have been taken.

        Nothing where that was over when the log was rolled, and what was rolled cannot be read from here.
        """
        scope = self._scope_of(work)
        while True:
            try:
                if since := await self._log.scope_history(scope, after=sequence):
                    return since
            except (UnavailableError, StreamMissingError) as error:
                logger.info("cannot look at the task's history: %s", error, extra={"instance": self._instance})
            except CuebookError as error:
                with contextlib.suppress(CuebookError):
                    return await self._log.current_history(scope, after=sequence)
                logger.info("cannot look at the task's history: %s", error, extra={"instance": self._instance})
            await asyncio.sleep(OFFER_AGAIN_S)

    async def _is_gone(self, work: Work, sequence: int) -> bool:
        """Whether the task was over when the log was rolled, and what was rolled cannot be read from here.

        Then an answer is offered in vain: whether the log has it already is to be seen only there.
        """
        scope = self._scope_of(work)
        try:
            await self._log.scope_history(scope, after=sequence)
        except (UnavailableError, StreamMissingError):
            return False
        except CuebookError as error:
            with contextlib.suppress(CuebookError):
                if not await self._log.current_history(scope):
                    logger.warning(
                        "whether an answer was taken cannot be read any more: %s", error, extra={"scope": scope}
                    )
                    return True
        return False

    def _scope_of(self, work: Work) -> str:
        return self._log.subjects.task_scope(work.envelope.address.run_id, work.envelope.address.n)

    async def _revert(self, work: Work, answer: TaskCompleted) -> None:
        """Our effect came too late and nobody will use it: undo it, as far as the handler can, and say so."""
        handler, event = self._handlers.get(work.event.handler), work.event
        error: Error | None = None
        if handler is None:  # an answer that was kept at the edge, of a version of the agent that still had it
            error = Error(type="NoCompensationError", message=f"the agent has no handler {event.handler!r} any more")
        elif not handler.can_undo:
            error = Error(type="NoCompensationError", message="the handler has no compensation")
        else:
            try:
                await handler.undo(event.input, answer.output, event.timeout_s, lambda: self._context(work))
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as raised:  # noqa: BLE001 - whatever the author's code raises
                raise_from_a_person(raised)
                error = self.failure(work, raised).error
        if error is not None:
            logger.warning("a late effect was not undone: %s", error.message, extra={"instance": self._instance})
        address = work.envelope.address
        reverted = TaskReverted(output=answer.output, attempt=work.event.attempt, by=self._instance, error=error)
        await self._record(self._log.subjects.task(address.run_id, address.n, "reverted"), reverted, work)

    async def _record(self, subject: str, event: Event, work: Work) -> None:
        """Append what became of a late answer, however long that takes."""
        envelope = work.envelope
        while True:
            try:
                await self._log.append(
                    subject,
                    event,
                    correlation_id=envelope.correlation_id,
                    causation_id=envelope.id,
                    traceparent=envelope.traceparent,
                )
            except UnavailableError:
                await asyncio.sleep(OFFER_AGAIN_S)
            except CuebookError:
                logger.exception("what became of a late answer cannot be recorded", extra={"instance": self._instance})
                return
            else:
                return


def _told(error: CuebookError) -> str:
    """What no event can hold, and what to do about it: nobody but the author of the handler can."""
    return f"{error}; {error.remedy}" if error.remedy else str(error)
