"""One instance of an agent: it registers, receives what is assigned to it, and answers once.

An answer names the sequence of the very assignment it acts on. If the task has moved on meanwhile, the server refuses
it: a zombie cannot do harm. Results that cannot be delivered are offered again until the log has decided.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cuebook.actors.agent import Agent, PermanentError, Task
from cuebook.actors.answering import OFFER_AGAIN_S, Answering
from cuebook.actors.attempt import (
    NotFinishedError,
    PreparedHandler,
    raise_from_a_person,
)
from cuebook.actors.deadlines import Deadlines
from cuebook.actors.orchestrator.state import TaskState, fold_run
from cuebook.actors.progress import Progress
from cuebook.actors.receipt import Receipt
from cuebook.actors.shelf import KeptTask, Shelf
from cuebook.actors.work import Work
from cuebook.events.connection import ended, json_object
from cuebook.events.envelope import Envelope, to_datetime
from cuebook.events.errors import ConfigurationError, CuebookError, UnavailableError
from cuebook.events.facts import (
    AgentDraining,
    AgentRegistered,
    AgentStopped,
    Event,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskRetried,
)
from cuebook.events.feed import delivery_numbers
from cuebook.events.log import EventLog
from cuebook.events.release import release

if TYPE_CHECKING:
    from cuebook.actors.handling import Handling
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["Instance"]

DRAIN_SIGNAL_S = 2.0
"""How long a draining instance waits to hear that the orchestrator knows."""
LINGER_S = 0.25
_LONGEST_S = 1e9
SLOW_START_S = 10.0
"""After so long, and again after twice as long, the log says that an agent's `start` has not returned."""
LET_GO_S = 1.0
SAY_S = 5.0
"""How long an instance tries to say that it drains or stops; when the log is away, its silence says the same."""
BLOCKED_S = 1.0
STUCK_AFTER_S = 5.0
"""A handler that is so much over its time, while nothing else moves, will not let go by itself."""
_WRONG = {"retried": "handed_back", "cancelled": "cancelled"}
"""How a span calls what an attempt ended with that was neither a result nor an error."""
logger = logging.getLogger(__name__)


class Instance:
    """One instance of an agent class: `start`, then tasks come in, then `drain`."""

    def __init__(
        self,
        log: EventLog,
        agent_class: type[Agent],
        on_spent: Callable[[Instance], None],
        *,
        tracing: Tracing | None = None,
        shelf: Shelf | None = None,
        handling: Handling | None = None,
    ) -> None:
        """Take the settings. With a `shelf`, which must be open, it goes on where the process before it has ended."""
        self._tracing, self.shelf = tracing, shelf
        if tracing is not None:  # the import too is only for those who want traces
            from cuebook.telemetry.attempt import begin_attempt

            self._begin_tracing = begin_attempt
        self._measured = handling.of(agent_class.name) if handling is not None else None
        self.id = (shelf.instance if shelf is not None else "") or f"i{os.urandom(5).hex()}"
        self.agent_class, self.agent = agent_class, agent_class()
        self.slots = agent_class.concurrency + agent_class.ahead
        self._room: AbstractAsyncContextManager[object] = (
            asyncio.Semaphore(agent_class.concurrency) if agent_class.ahead else nullcontext()
        )
        self.handled = 0
        self.pending = 0
        """Assignments that are on their way to it, as the server last said."""
        self.draining = False
        self.outlived = False
        """The log has it as stopped: what its shelf says is of a time before that."""
        self._log, self._on_spent = log, on_spent
        self._work: dict[tuple[str, int], Work] = {}
        self._handling: set[Work] = set()
        """Those whose handler runs, also after the task has moved on to others."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._drain_known = asyncio.Event()
        self._receipt = Receipt()
        self._registering = False
        self._last_receipt = 0.0
        self._moved_at = 0.0
        self._taken = 0
        self._leave_by = math.inf
        self._left = asyncio.Event()
        self._logger = logging.LoggerAdapter(
            logging.getLogger(f"cuebook.agent.{agent_class.name}"), {"agent": agent_class.name, "instance": self.id}
        )

    @property
    def is_spent(self) -> bool:
        """It has taken as many tasks as its class wants of one instance."""
        return self.shelf is None and self._taken >= self.agent_class.recycle_after > 0

    @property
    def in_flight(self) -> int:
        """Tasks it was given and whose answers are not stored yet."""
        return len(self._work)

    @property
    def stuck(self) -> list[str]:
        """The handlers that hang, as RUN/N HANDLER: they are well over their time, and will not be cancelled.

        Empty while others have room to work and do: none has ended or said progress for a while, and those that hang
        are all there are, or as many as there are slots. A task whose answer waits for NATS does not hang.
        """
        now = time.monotonic()
        handling = [work for work in self._handling if work.task is not None and not work.task.done()]
        over = [work for work in handling if now > work.began + work.event.timeout_s + STUCK_AFTER_S]
        alone = len(over) == len(handling) or len(over) >= self.agent_class.concurrency
        if not over or not alone or now < self._moved_at + STUCK_AFTER_S:
            return []
        return [f"{one.envelope.address.run_id}/{one.envelope.address.n} {one.event.handler}" for one in over]

    async def start(self, stopping: asyncio.Event) -> bool:
        """Start the agent, then register it; False when `stopping` came first. Raises whatever its `start` raises."""
        cls, subjects = self.agent_class, self._log.subjects
        handlers = cls.handlers()
        deadlines = Deadlines()
        self._handlers = {name: PreparedHandler(one, self.agent, deadlines) for name, one in handlers.items()}
        self._answering = Answering(
            self._log,
            cls.name,
            self.id,
            self._handlers,
            context=lambda work: self._context(work, reverting=True),
            finish=self._finish,
            agent_logger=self._logger,
            shelf=self.shelf,
            measured=self._measured,
        )
        self._progress = Progress(self._log, is_ours=self._is_ours, on_progress=self._move, agent_logger=self._logger)
        self._loop, connection = asyncio.get_running_loop(), self._log.connection
        if not await self._start_agent(stopping):
            return False
        self._delivery = await connection.listen(subjects.delivery(cls.name, self.id), self._on_assigned)
        self._control = await connection.listen(subjects.control(cls.name, self.id), self._on_control)
        self._registered = registered = AgentRegistered(
            slots=self.slots,
            handlers={name: handler.spec() for name, handler in handlers.items()},
            version=cls.version,
            labels=dict(cls.labels),
            recycle_after=cls.recycle_after if self.shelf is None else 0,
            heartbeat_s=cls.heartbeat_s,
            description=inspect.cleandoc(cls.__doc__ or ""),  # not that of the base class
            host=os.uname().nodename,
            pid=os.getpid(),
            offline_for_s=cls.offline_for_s,
        )
        try:
            if self.shelf is not None and self.shelf.instance:
                self._resume(self.shelf, registered)
            else:
                if self.shelf is not None and not await _unless(stopping, self.shelf.claim(self.id)):
                    await self._close()
                    return False
                await self._append("registered", registered, expected=0)
        except BaseException:
            await self._close()
            raise
        self._heart = self._loop.create_task(self._beat())
        logger.info("registered", extra={"agent": cls.name, "instance": self.id, "slots": self.slots})
        return True

    async def _start_agent(self, stopping: asyncio.Event) -> bool:
        """Let the agent make itself ready, however long it takes, unless we are to stop meanwhile."""
        if stopping.is_set():
            return False
        starting, told = asyncio.ensure_future(self.agent.start()), asyncio.ensure_future(stopping.wait())
        began, say_after_s = time.monotonic(), SLOW_START_S
        try:
            while not starting.done() and not told.done():
                await asyncio.wait([starting, told], timeout=say_after_s, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done() and not told.done():
                    facts = {"agent": self.agent_class.name, "for_s": round(time.monotonic() - began, 1)}
                    logger.warning("the agent's start() has not returned yet", extra=facts)
                    say_after_s *= 2
            if starting.done():
                starting.result()
                return True
        finally:
            told.cancel()
            starting.cancel()
        logger.warning("stopping before the agent has started", extra={"agent": self.agent_class.name})
        await asyncio.wait([starting], timeout=LET_GO_S)
        if starting.done() and not starting.cancelled() and starting.exception() is not None:
            self._logger.error("the agent's start raised while it was cancelled", exc_info=starting.exception())
        return False

    def _resume(self, shelf: Shelf, registered: AgentRegistered) -> None:
        """Go on with what the process before us had, at once, and say so when the log can be reached."""
        self._receipt.resume(shelf.received, (task.sequence for task in shelf.tasks))
        self._answering.start(self._register(registered))
        for kept in shelf.tasks:
            envelope = self._log.decode(kept.subject, kept.body, kept.sequence, kept.recorded_at, None)
            assert isinstance(envelope, Envelope), "it was an assignment when it was kept"
            assert isinstance(envelope.event, TaskAssigned), "as above"
            work = Work(envelope, envelope.event)
            self._work[envelope.address.run_id, envelope.address.n] = work
            self._idle.clear()
            if kept.fact:
                address = envelope.address
                under = self._log.subjects.task(address.run_id, address.n, kept.fact)
                answer = self._log.decode(under, kept.answer, 0, kept.recorded_at, None)
                assert isinstance(answer, Envelope), "we have encoded it"
                work.answer_id = answer.id
                self._answering.offer(work, kept.fact, answer.event, work.assigned)
            else:
                work.task = self._loop.create_task(self._handle(work))
        logger.info("goes on with %d tasks that it had", len(shelf.tasks), extra={"instance": self.id})

    async def _register(self, registered: AgentRegistered) -> None:
        """Say that we go on. That is in vain where the log has us as stopped: nobody comes back under the same name."""
        if self._registering:
            return
        self._registering, said = True, False
        while self._registering:
            try:
                if not said:
                    await self._append("registered", registered)
                    said = True
                if await self._has_stopped() and not self.draining:
                    self.outlived = True
                    self._on_spent(self)
            except CuebookError as error:  # also a stream that is missing, until it is restored
                level = logging.DEBUG if isinstance(error, UnavailableError) else logging.WARNING
                logger.log(level, "cannot register again yet: %s", error, extra={"instance": self.id})
                await asyncio.sleep(OFFER_AGAIN_S)
            else:
                self._registering = False

    async def _has_stopped(self) -> bool:
        scope = self._log.subjects.agent_scope(self.agent_class.name, self.id)
        try:
            life = await self._log.scope_history(scope)
        except ConfigurationError:  # the older generations of the log cannot be read from here
            life = await self._log.current_history(scope)
        return any(isinstance(item, Envelope) and isinstance(item.event, AgentStopped) for item in life)

    async def drain(self, reason: str, *, within_s: float = 30.0) -> None:
        """Take nothing new, finish what is in flight or hand it back after `within_s`, and leave.

        May be called again meanwhile: the earliest deadline counts, and each call returns when the instance is gone.
        """
        self._leave_by = min(self._leave_by, time.monotonic() + within_s)
        if self.draining:
            await self._left.wait()
            return
        self.draining = True
        try:
            await self._leave(reason, within_s)
        finally:
            self._left.set()

    async def abandon(self) -> None:
        """Leave without a word, because the log cannot be reached any more."""
        self.draining = True
        for work in list(self._work.values()):
            if work.task is not None:
                work.task.cancel()
        self._heart.cancel()
        await self._close()
        self._left.set()

    async def leave_outlived(self) -> None:
        """Leave, since the log has it as stopped; it says so again, because that may be long ago and forgotten."""
        await self.abandon()
        await self._say("stopped", AgentStopped(reason="its edge was put back", handled=self.handled))

    async def leave_work(self, *, within_s: float) -> None:
        """End while the log is away: what runs may finish, and all else stays on the shelf for the next process."""
        self.draining = True
        for work in list(self._work.values()):
            if work not in self._handling and not work.answered:
                work.put_down()
        by = time.monotonic() + within_s
        while (tasks := self._ending()) and (left := by - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        await self.abandon()

    def _ending(self) -> list[asyncio.Task[None]]:
        """Whose handler runs, or has ended with an answer that is being stored."""
        works = self._handling.union(one for one in self._work.values() if one.answered)
        return [one.task for one in works if one.task is not None and not one.task.done()]

    async def _leave(self, reason: str, within_s: float) -> None:
        await self._say("draining", AgentDraining(reason=reason))
        await _wait(self._drain_known, min(DRAIN_SIGNAL_S, within_s))
        self._last_receipt = time.monotonic()  # what was assigned just before that is still on its way
        await self._until_idle()
        if self._work:
            logger.warning("handing back %d tasks", len(self._work), extra={"instance": self.id})
            for work in list(self._work.values()):
                work.handing_back = True
                work.cancel()
            if not await _wait(self._idle, OFFER_AGAIN_S):
                logger.warning("%d tasks do not let go", len(self._work), extra={"instance": self.id})
        self._heart.cancel()
        if self.shelf is None or not self._work:  # else the next process goes on under our name
            stopped = await self._say("stopped", AgentStopped(reason=reason, handled=self.handled))
            if stopped and self.shelf is not None:  # else something may still be on its way to us
                await self.shelf.forget()
        await self._close()

    async def _close(self) -> None:
        self._answering.close()
        if self.shelf is not None:
            await self.shelf.close()
        await self._delivery.close()
        await self._control.close()
        try:
            await self.agent.stop()
        except Exception:  # its work is done; whoever waits for it to leave need not know
            self._logger.exception("the agent's stop raised")

    async def _until_idle(self) -> None:
        """Until nothing is in flight and nothing has come for a moment; an assignment may still be on its way."""
        while (left := self._leave_by - time.monotonic()) > 0:
            await _wait(self._idle, min(left, LINGER_S))
            if not self._work:
                quiet_s = time.monotonic() - self._last_receipt
                if quiet_s >= LINGER_S:
                    return
                await asyncio.sleep(min(LINGER_S - quiet_s, left))

    async def _append(self, fact: str, event: Event, *, expected: int | None = None) -> int:
        subjects = self._log.subjects
        scope = subjects.agent_scope(self.agent_class.name, self.id) if expected is not None else ""
        subject = subjects.agent(self.agent_class.name, self.id, fact)
        return await self._log.append(subject, event, scope=scope, expected=expected)

    async def _say(self, fact: str, event: Event) -> bool:
        """Append a fact of our own life; when the log is away it will find out by our silence. Whether it is stored."""
        try:
            async with asyncio.timeout(SAY_S):
                await self._append(fact, event)
        except (UnavailableError, TimeoutError) as error:
            said = str(error) or f"no answer within {SAY_S:g} s"
            logger.warning("could not say %s: %s", fact, said, extra={"instance": self.id})
            return False
        return True

    async def _beat(self) -> None:
        subject = self._log.subjects.heartbeat(self.agent_class.name, self.id)
        while True:
            beat = {
                "received": self._receipt.safely_until,
                "in_flight": len(self._work),
                "handled": self.handled,
                "release": release(),
                "time": time.time_ns() // 1000,  # how far its clock is off can be seen from outside
            }
            self._log.connection.post(subject, json.dumps(beat).encode())
            due = time.monotonic() + self.agent_class.heartbeat_s
            await asyncio.sleep(self.agent_class.heartbeat_s)
            if (late_s := time.monotonic() - due) > BLOCKED_S:
                logger.warning(
                    "the process stood still for %.1f s; does an async handler block?",
                    late_s,
                    extra={"instance": self.id},
                )

    # --- receiving ---

    def _on_control(self, _subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        match json_object(payload):
            case {"drain": _}:
                self._drain_known.set()
                if not self.draining:
                    self._on_spent(self)
            case {"register": _}:  # it was lost for so long that nobody knows it any more
                if not self.draining:
                    self._answering.start(self._register(self._registered))
            case {"anew": _}:
                self._receipt.begin_anew()
                if reply:
                    self._log.connection.post(reply.decode(), b"{}")
            case {"cancel": [str(run_id), int(n), int(assigned)], **more}:
                work = self._work.get((run_id, n))
                if work is not None and work.assigned == assigned and work.task is not None:
                    work.cancel_reason = str(more.get("reason") or "cancelled")
                    work.cancel()
            case _:  # anybody may be allowed to publish there
                logger.warning("not a control message: %r", payload[:100], extra={"instance": self.id})

    def _on_assigned(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        sequence, delivered, recorded_ns, self.pending = delivery_numbers(reply)
        if not self._receipt.is_new(sequence, delivered):
            if self._measured is not None:
                self._measured.redelivered += 1
            return
        envelope = self._log.decode(subject.decode("utf-8", "replace"), payload, sequence, recorded_ns // 1000, headers)
        if not isinstance(envelope, Envelope) or not isinstance(envelope.event, TaskAssigned):
            logger.error("not an assignment: %s", envelope, extra={"instance": self.id})
            return
        work = Work(envelope, envelope.event)
        self._work[envelope.address.run_id, envelope.address.n] = work
        self._idle.clear()
        self._taken += 1
        self._last_receipt = work.began
        if self.shelf is None:
            work.task = self._loop.create_task(self._handle(work))
        else:
            kept = KeptTask(subject=envelope.subject, body=payload, sequence=sequence, recorded_at=recorded_ns // 1000)
            self._receipt.being_stored.add(sequence)
            work.task = self._loop.create_task(self._keep_and_handle(self.shelf, work, kept))
        if self.is_spent and self._taken == self.agent_class.recycle_after and not self.draining:
            self._on_spent(self)

    # --- handling ---

    async def _keep_and_handle(self, shelf: Shelf, work: Work, kept: KeptTask) -> None:
        await shelf.keep(kept)
        self._receipt.being_stored.discard(kept.sequence)
        shelf.note(self._receipt.safely_until)
        await self._handle(work)

    async def _handle(self, work: Work) -> None:
        event = work.event
        fact: str
        answer: Event
        self._begin_attempt(work)
        try:
            work.running = True
            if work.unwanted:
                raise asyncio.CancelledError  # noqa: TRY301 - as it would come later
            handler = self._handlers.get(event.handler)
            if handler is None:
                named = f"{self.agent_class.name} {self.agent_class.version}"
                raise PermanentError(f"{named} has no handler {event.handler!r}")  # noqa: TRY301 - as the author's
            async with self._room:
                work.began = time.monotonic()
                self._handling.add(work)
                if event.compensates is not None and event.input is None:
                    event = replace(event, input=await self._done_before(work, event.compensates))
                output = await handler.call(event, self._context, work)
        except asyncio.CancelledError:
            outcome = self._cancelled(work)
            if outcome is None:
                self._finish(work, settled=False)
                raise
            fact, answer = outcome
        except GeneratorExit:
            raise  # not the author's: the loop is being ended
        except BaseException as error:  # noqa: BLE001 - whatever the author's code raises is the outcome
            raise_from_a_person(error)
            fact, answer = "failed", self._answering.failure(work, error)
        else:
            duration_s = round(time.monotonic() - work.began, 6)
            fact, answer = (
                "completed",
                TaskCompleted(output=output, attempt=event.attempt, duration_s=duration_s, by=self.id),
            )
        finally:
            self._handling.discard(work)
            self._moved_at = time.monotonic()
        if self._measured is not None:
            self._measured.ended(fact, self._moved_at - work.began)
        self._end_attempt(work, fact, answer)
        if self.shelf is not None:
            work.running, work.answered = False, True  # from here on only the log decides
            fact, answer = await self._answering.shelve(self.shelf, work, fact, answer)
        self._answering.offer(work, fact, answer, work.assigned)

    def _cancelled(self, work: Work) -> tuple[str, Event] | None:
        """What is answered for a handler that was cancelled; None where the process ends or the work is put down."""
        if work.handing_back:
            return "retried", TaskRetried(reason=f"handed back by {self.id}")
        if work.cancel_reason is not None:
            return "cancelled", TaskCancelled(reason=work.cancel_reason)
        if work.task is not None and work.task.cancelling():
            return None
        # not us: something that the handler awaited was cancelled
        return "failed", self._answering.failure(work, NotFinishedError("the handler ended as if cancelled"))

    def _begin_attempt(self, work: Work) -> None:
        if self._tracing is not None:
            work.attempt, work.traceparent = self._begin_tracing(
                self._tracing, work.envelope, work.event, self._log.subjects.space
            )

    def _end_attempt(self, work: Work, fact: str, answer: Event) -> None:
        if work.attempt is not None:
            work.attempt.leave()
            wrong = answer.error.type if isinstance(answer, TaskFailed) else _WRONG.get(fact, "")
            work.attempt.answered(fact, wrong)

    async def _done_before(self, work: Work, n: int) -> dict[str, Any]:
        """Input and output of the step to undo, together too large for one event; read from where they are recorded."""
        run_id = work.envelope.address.run_id
        scope = self._log.subjects.task_scope(run_id, n)
        by = time.monotonic() + work.event.timeout_s
        while time.monotonic() < by:
            try:
                step = fold_run(run_id, await self._log.scope_history(scope)).items.get(n)
            except UnavailableError:
                if self.shelf is not None:  # the time that a link is cut does not count
                    by = time.monotonic() + work.event.timeout_s
            else:
                if isinstance(step, TaskState) and step.status == "completed":
                    return {"input": step.input, "output": step.output}
            await asyncio.sleep(OFFER_AGAIN_S)  # from a replica that is behind
        raise UnavailableError(f"the log does not show step {n} of {run_id} as completed")

    def _context(self, work: Work, *, reverting: bool = False) -> Task:
        address, envelope = work.envelope.address, work.envelope
        return Task(
            run_id=address.run_id,
            step=address.n,
            attempt=work.event.attempt,
            deadline=to_datetime(envelope.recorded_at + int(min(work.event.timeout_s, _LONGEST_S) * 1_000_000)),
            correlation_id=envelope.correlation_id,
            agent=self.agent_class.name,
            instance=self.id,
            logger=self._logger,
            traceparent=work.traceparent,
            reverting=reverting,
            report=lambda message, fraction: self._progress.report(work, message, fraction),
        )

    def _is_ours(self, work: Work) -> bool:
        """Whether this is still what we have of its task."""
        address = work.envelope.address
        return self._work.get((address.run_id, address.n)) is work

    def _move(self) -> None:
        self._moved_at = time.monotonic()

    def _finish(self, work: Work, *, settled: bool = True) -> None:
        address = work.envelope.address
        if self.shelf is not None and settled:
            self.shelf.settle(work.assigned, self._receipt.safely_until)
        if self._is_ours(work):
            del self._work[address.run_id, address.n]
        self.handled += 1
        if not self._work:
            self._idle.set()


async def _unless(stopping: asyncio.Event, what: Coroutine[Any, Any, None]) -> bool:
    """Do it, however long it takes; False when `stopping` came first."""
    doing, told = asyncio.ensure_future(what), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([doing, told], return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        return doing.done()
    finally:
        await ended(doing, told)


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
