"""Agents as processes: an instance registers, receives what is assigned to it, and answers once.

An answer names the sequence of the very assignment it acts on. If the task has moved on meanwhile, the server refuses it: a
zombie cannot do harm. Results that cannot be delivered are offered again until the log has decided.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from cuebook.actors.agent import Agent, Handler, PermanentError, Task
from cuebook.events.connection import Connection
from cuebook.events.envelope import Envelope, to_datetime
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, PoisonMessageError, UnavailableError
from cuebook.events.facts import (
    AgentDraining,
    AgentRegistered,
    AgentStopped,
    Error,
    Event,
    TaskAborted,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskRequested,
    TaskRetried,
    TaskReverted,
)
from cuebook.events.feed import delivery_numbers
from cuebook.events.log import EventLog

__all__ = ["AgentHost", "Instance"]

DRAIN_SIGNAL_S = 2.0
"""How long a draining instance waits to hear that the orchestrator knows."""
LINGER_S = 0.25
PROGRESS_EVERY_S = 1.0
OFFER_AGAIN_S = 1.0
_ENDED_WITHOUT_RESULT = (TaskCancelled, TaskAborted)
_STRAYS = (TaskRequested, TaskCancelRequested)
"""Facts about a task that decide nothing, so an answer after them still counts."""

logger = logging.getLogger(__name__)


class _Work:
    """One assignment being handled."""

    __slots__ = (
        "assigned",
        "began",
        "cancel_reason",
        "envelope",
        "event",
        "handing_back",
        "progress",
        "reported_at",
        "task",
    )

    def __init__(self, envelope: Envelope, event: TaskAssigned) -> None:
        self.envelope, self.event = envelope, event
        self.assigned = envelope.sequence
        self.began = time.monotonic()
        self.cancel_reason: str | None = None
        self.handing_back = False
        self.task: asyncio.Task[None] | None = None
        self.progress: TaskProgressed | None = None
        self.reported_at = 0.0


class _Entry:
    """One handler, prepared for calling."""

    __slots__ = ("dump", "function", "is_async", "undo", "undo_is_async", "validate", "validate_output", "wants_task")

    def __init__(self, handler: Handler[Any, Any], agent: Agent) -> None:
        self.function = handler.function.__get__(agent)
        self.is_async = inspect.iscoroutinefunction(handler.function)
        self.wants_task = handler.wants_task
        self.undo = handler.undo.__get__(agent) if handler.undo is not None else None
        self.undo_is_async = inspect.iscoroutinefunction(handler.undo)
        self.validate = handler.input_type.validate_python
        self.validate_output = handler.output_type.validate_python
        self.dump = handler.output_type.dump_python


class Instance:
    """One instance of an agent class: `start`, then tasks come in, then `drain`."""

    def __init__(self, log: EventLog, agent_class: type[Agent], on_spent: Callable[[Instance], None]) -> None:
        self.id = f"i{os.urandom(5).hex()}"
        self.agent_class, self.agent = agent_class, agent_class()
        self.handled = 0
        self.draining = False
        self._log, self._on_spent = log, on_spent
        self._work: dict[tuple[str, int], _Work] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._drain_known = asyncio.Event()
        self._received = 0
        self._expected = 1
        self._gapped = False
        self._seen: set[int] = set()
        self._last_receipt = 0.0
        self._taken = 0
        self._offers: set[asyncio.Task[None]] = set()
        self._logger = logging.LoggerAdapter(
            logging.getLogger(f"cuebook.agent.{agent_class.name}"), {"agent": agent_class.name, "instance": self.id}
        )

    @property
    def in_flight(self) -> int:
        return len(self._work)

    async def start(self) -> None:
        """Start the agent, then register it. Raises whatever its `start` raises."""
        cls, subjects = self.agent_class, self._log.subjects
        handlers = cls.handlers()
        await self.agent.start()
        self._entries = {name: _Entry(handler, self.agent) for name, handler in handlers.items()}
        connection = self._log.connection
        self._delivery = await connection.listen(subjects.delivery(cls.name, self.id), self._on_assigned)
        self._control = await connection.listen(subjects.control(cls.name, self.id), self._on_control)
        registered = AgentRegistered(
            slots=cls.concurrency,
            handlers={name: handler.spec() for name, handler in handlers.items()},
            version=cls.version,
            labels=dict(cls.labels),
            recycle_after=cls.recycle_after,
            heartbeat_s=cls.heartbeat_s,
            description=inspect.getdoc(cls) or "",
            host=os.uname().nodename,
            pid=os.getpid(),
        )
        self._last_own = await self._append("registered", registered, expected=0)
        self._heart = asyncio.get_running_loop().create_task(self._beat())
        logger.info("registered", extra={"agent": cls.name, "instance": self.id, "slots": cls.concurrency})

    async def drain(self, reason: str, *, within_s: float = 30.0) -> None:
        """Take nothing new, finish what is in flight or hand it back after `within_s`, and leave."""
        if self.draining:
            return
        self.draining = True
        await self._say("draining", AgentDraining(reason=reason))
        deadline = time.monotonic() + within_s
        await _wait(self._drain_known, min(DRAIN_SIGNAL_S, within_s))
        await self._until_idle(deadline)
        if self._work:
            logger.warning("handing back %d tasks", len(self._work), extra={"instance": self.id})
            for work in list(self._work.values()):
                work.handing_back = True
                if work.task is not None:
                    work.task.cancel()
            await _wait(self._idle, OFFER_AGAIN_S)
        await self._log.appender.flushed()
        self._heart.cancel()
        await self._delivery.close()
        await self._control.close()
        await self._say("stopped", AgentStopped(reason=reason, handled=self.handled))
        await self.agent.stop()

    async def _until_idle(self, deadline: float) -> None:
        """Until nothing is in flight and nothing has come for a moment; an assignment may still be on its way."""
        while (left := deadline - time.monotonic()) > 0:
            await _wait(self._idle, left)
            quiet_s = time.monotonic() - self._last_receipt
            if not self._work and quiet_s >= LINGER_S:
                return
            await asyncio.sleep(min(LINGER_S, left))

    async def _append(self, fact: str, event: Event, *, expected: int | None = None) -> int:
        subjects = self._log.subjects
        scope = subjects.agent_scope(self.agent_class.name, self.id) if expected is not None else ""
        subject = subjects.agent(self.agent_class.name, self.id, fact)
        return await self._log.append(subject, event, scope=scope, expected=expected)

    async def _say(self, fact: str, event: Event) -> None:
        """Append a fact of our own life; when the log is away it will find out by our silence."""
        try:
            await self._append(fact, event)
        except UnavailableError as error:
            logger.warning("could not say %s: %s", fact, error, extra={"instance": self.id})

    async def _beat(self) -> None:
        subject = self._log.subjects.heartbeat(self.agent_class.name, self.id)
        while True:
            beat = {"received": self._received, "in_flight": len(self._work), "handled": self.handled}
            self._log.connection.post(subject, json.dumps(beat).encode())
            await asyncio.sleep(self.agent_class.heartbeat_s)

    # --- receiving ---

    def _on_control(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        message = json.loads(payload)
        if "drain" in message:
            self._drain_known.set()
            if not self.draining:
                self._on_spent(self)
        elif "cancel" in message:
            run_id, n, assigned = message["cancel"]
            work = self._work.get((run_id, n))
            if work is not None and work.assigned == assigned and work.task is not None:
                work.cancel_reason = "cancelled"
                work.task.cancel()

    def _on_assigned(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        sequence, delivered, recorded_ns, _ = delivery_numbers(reply)
        if not self._is_new(sequence, delivered):
            return
        envelope = self._log.decode(subject.decode(), payload, sequence, recorded_ns // 1000, headers)
        if not isinstance(envelope, Envelope) or not isinstance(envelope.event, TaskAssigned):
            logger.error("not an assignment: %s", envelope, extra={"instance": self.id})
            return
        work = _Work(envelope, envelope.event)
        self._work[envelope.address.run_id, envelope.address.n] = work
        self._idle.clear()
        self._taken += 1
        self._last_receipt = work.began
        work.task = asyncio.get_running_loop().create_task(self._handle(work))
        if self._taken == self.agent_class.recycle_after and not self.draining:
            self._on_spent(self)

    def _is_new(self, sequence: int, delivered: int) -> bool:
        """Keep count of what has come without a gap; see Inboxes for what happens with a gap."""
        if delivered > self._expected:
            self._gapped = True
        elif delivered < self._expected:  # delivery began anew, not after what we have without a gap
            self._gapped = False
        self._expected = delivered + 1
        if sequence <= self._received:
            return False
        if self._gapped:
            if sequence in self._seen:
                return False
            self._seen.add(sequence)
            return True
        self._received = sequence
        if sequence in self._seen:
            self._seen.discard(sequence)
            return False
        return True

    # --- handling ---

    async def _handle(self, work: _Work) -> None:
        event = work.event
        fact: str
        answer: Event
        try:
            output = await self._call(work)
        except asyncio.CancelledError:
            if work.handing_back:
                fact, answer = "retried", TaskRetried(reason=f"handed back by {self.id}")
            elif work.cancel_reason is not None:
                fact, answer = "cancelled", TaskCancelled(reason=work.cancel_reason)
            else:
                self._finish(work)
                raise
        except Exception as error:  # noqa: BLE001 - whatever the author's code raises is the outcome of the attempt
            fact, answer = "failed", self._failure(work, error)
        else:
            duration_s = round(time.monotonic() - work.began, 6)
            fact, answer = (
                "completed",
                TaskCompleted(output=output, attempt=event.attempt, duration_s=duration_s, by=self.id),
            )
        self._offer(work, fact, answer, work.assigned)

    async def _call(self, work: _Work) -> Any:
        event = work.event
        entry = self._entries.get(event.handler)
        if entry is None:
            raise PermanentError(f"{self.agent_class.name} {self.agent_class.version} has no handler {event.handler!r}")
        if event.compensates is not None:
            return await self._call_undo(work, entry)
        try:
            value = entry.validate(event.input)
        except ValidationError as error:
            raise _InvalidInputError(str(error)) from error
        arguments = (value, self._context(work)) if entry.wants_task else (value,)
        result = await self._within_deadline(work, entry.function, entry.is_async, arguments)
        try:
            return entry.dump(entry.validate_output(result), mode="json")
        except ValidationError as error:
            raise _InvalidOutputError(str(error)) from error

    async def _call_undo(self, work: _Work, entry: _Entry) -> None:
        if entry.undo is None:
            raise PermanentError(f"handler {work.event.handler!r} has no compensation")
        try:
            done = entry.validate(work.event.input["input"]), entry.validate_output(work.event.input["output"])
        except (ValidationError, TypeError, KeyError) as error:
            raise _InvalidInputError(str(error)) from error
        await self._within_deadline(work, entry.undo, entry.undo_is_async, (*done, self._context(work)))

    async def _within_deadline(
        self, work: _Work, function: Callable[..., Any], is_async: bool, arguments: tuple[Any, ...]
    ) -> Any:
        timeout_s = work.event.timeout_s
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                if is_async:
                    return await function(*arguments)
                return await asyncio.to_thread(function, *arguments)
        except TimeoutError as error:
            if deadline.expired():
                raise _TaskTimeoutError(f"no result within {timeout_s:g} s") from error
            raise

    def _context(self, work: _Work) -> Task:
        address, envelope = work.envelope.address, work.envelope
        return Task(
            run_id=address.run_id,
            step=address.n,
            attempt=work.event.attempt,
            deadline=to_datetime(envelope.recorded_at + int(work.event.timeout_s * 1_000_000)),
            correlation_id=envelope.correlation_id,
            agent=self.agent_class.name,
            instance=self.id,
            logger=self._logger,
            traceparent=envelope.traceparent,
            report=lambda message, fraction: self._report(work, message, fraction),
        )

    def _failure(self, work: _Work, error: Exception) -> TaskFailed:
        classes = [cls.__name__.strip("_") for cls in type(error).__mro__ if issubclass(cls, Exception)]
        permanent = isinstance(error, PermanentError | _InvalidInputError | _InvalidOutputError)
        if not isinstance(error, CuebookError):
            self._logger.warning("handler raised", exc_info=error, extra={"run_id": work.envelope.address.run_id})
        return TaskFailed(
            error=Error(type=classes[0], message=str(error)[:2000], classes=classes, retryable=not permanent),
            attempt=work.event.attempt,
            duration_s=round(time.monotonic() - work.began, 6),
            by=self.id,
        )

    # --- answering ---

    def _offer(self, work: _Work, fact: str, answer: Event, expected: int) -> None:
        """Append the outcome; what becomes of it is settled in `_offered`."""
        envelope, subjects = work.envelope, self._log.subjects
        run_id, n = envelope.address.run_id, envelope.address.n

        def done(sequence: int, error: CuebookError | None) -> None:
            if error is None:
                self._finish(work)
            else:
                offer = asyncio.get_running_loop().create_task(self._offered(work, fact, answer, expected, error))
                self._offers.add(offer)
                offer.add_done_callback(self._offers.discard)

        try:
            self._log.post(
                subjects.task(run_id, n, fact),
                answer,
                scope=subjects.task_scope(run_id, n),
                expected=expected,
                correlation_id=envelope.correlation_id,
                causation_id=envelope.id,
                traceparent=envelope.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            failure = self._failure(work, _InvalidOutputError(str(error)))
            self._offer(work, "failed", failure, expected)

    async def _offered(self, work: _Work, fact: str, answer: Event, expected: int, error: CuebookError) -> None:
        """The answer was not taken: offer it again where the task is still ours, drop it where it has moved on."""
        if not isinstance(error, ConcurrencyConflictError):
            await asyncio.sleep(OFFER_AGAIN_S)
            self._offer(work, fact, answer, expected)
            return
        address = work.envelope.address
        scope = self._log.subjects.task_scope(address.run_id, address.n)
        while True:
            try:
                since = await self._log.scope_history(scope, after=expected)
                break
            except UnavailableError:
                await asyncio.sleep(OFFER_AGAIN_S)
        if all(not isinstance(item, Envelope) or isinstance(item.event, _STRAYS) for item in since) and since:
            self._offer(work, fact, answer, since[-1].sequence)
            return
        logger.info(
            "answer not needed any more: the task has moved on",
            extra={"instance": self.id, "run_id": address.run_id, "n": address.n},
        )
        ended = [item for item in since if isinstance(item, Envelope) and isinstance(item.event, _ENDED_WITHOUT_RESULT)]
        if ended and isinstance(answer, TaskCompleted) and work.event.compensates is None:
            await self._revert(work, answer)
        self._finish(work)

    async def _revert(self, work: _Work, answer: TaskCompleted) -> None:
        """Our effect came too late and nobody will use it: undo it, as far as the handler can, and say so."""
        entry = self._entries[work.event.handler]
        error: Error | None = None
        if entry.undo is None:
            error = Error(type="NoCompensationError", message="the handler has no compensation")
        else:
            arguments = (entry.validate(work.event.input), entry.validate_output(answer.output), self._context(work))
            try:
                await self._within_deadline(work, entry.undo, entry.undo_is_async, arguments)
            except Exception as raised:  # noqa: BLE001 - whatever the author's code raises is what a person must see
                error = self._failure(work, raised).error
        if error is not None:
            logger.error("a late effect was not undone: %s", error.message, extra={"instance": self.id})
        address, envelope = work.envelope.address, work.envelope
        await self._log.append(
            self._log.subjects.task(address.run_id, address.n, "reverted"),
            TaskReverted(output=answer.output, attempt=work.event.attempt, by=self.id, error=error),
            correlation_id=envelope.correlation_id,
            causation_id=envelope.id,
            traceparent=envelope.traceparent,
        )

    def _finish(self, work: _Work) -> None:
        address = work.envelope.address
        if self._work.get((address.run_id, address.n)) is work:
            del self._work[address.run_id, address.n]
        self.handled += 1
        if not self._work:
            self._idle.set()

    def _report(self, work: _Work, message: str, fraction: float | None) -> None:
        """Store progress at most once a second per task; what comes in between is replaced by what comes later."""
        scheduled = work.progress is not None
        work.progress = TaskProgressed(message=message, fraction=fraction, attempt=work.event.attempt)
        if scheduled:
            return
        wait_s = max(0.0, work.reported_at + PROGRESS_EVERY_S - time.monotonic())
        asyncio.get_running_loop().call_later(wait_s, self._send_progress, work)

    def _send_progress(self, work: _Work) -> None:
        progress, work.progress = work.progress, None
        work.reported_at = time.monotonic()
        address = work.envelope.address
        if progress is None or self._work.get((address.run_id, address.n)) is not work:
            return

        def done(sequence: int, error: CuebookError | None) -> None:
            if error is not None:
                self._logger.warning("progress was not stored: %s", error)

        self._log.post(
            self._log.subjects.progress(address.run_id, address.n),
            progress,
            correlation_id=work.envelope.correlation_id,
            causation_id=work.envelope.id,
            done=done,
        )


class _InvalidInputError(CuebookError):
    """The input does not fit the handler's model."""


class _InvalidOutputError(CuebookError):
    """The handler returned something else than it promises."""


class _TaskTimeoutError(CuebookError, TimeoutError):
    """The attempt took longer than the handler's timeout."""


class AgentHost:
    """Keeps one instance of each given agent class running, renews those that are spent, drains all at the end."""

    def __init__(self, connection: Connection, space: str, agents: list[type[Agent]]) -> None:
        for cls in agents:
            cls.handlers()
        self._agents = agents
        self.log = EventLog(connection, space, source="agents")
        self.ready = asyncio.Event()
        self.instances: list[Instance] = []
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._renewals: set[asyncio.Task[None]] = set()

    async def run(self, *, drain_s: float = 30.0) -> None:
        """Serve until `stop()`. Raises what an agent's `start` raises, and ConfigurationError for an unfit stream."""
        async with self.log:
            await self.log.verify()
            self.log.source = f"agents-{os.uname().nodename.split('.')[0].lower()[:30]}-{os.getpid()}"
            try:
                for cls in self._agents:
                    await self._add(cls)
                self.ready.set()
                await self._stopping.wait()
            finally:
                while leaving := [
                    *self._renewals,
                    *(one.drain("stopped", within_s=drain_s) for one in self._staying()),
                ]:
                    await asyncio.gather(*leaving)
                await self.log.appender.flushed()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `run()`: drain every instance within its deadline."""
        self._stopping.set()

    def _staying(self) -> list[Instance]:
        return [one for one in self.instances if not one.draining]

    async def _add(self, cls: type[Agent]) -> None:
        instance = Instance(self.log, cls, self._on_spent)
        await instance.start()
        self.instances.append(instance)

    def _on_spent(self, instance: Instance) -> None:
        renewal = asyncio.get_running_loop().create_task(self._renew(instance))
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewals.discard)

    async def _renew(self, instance: Instance) -> None:
        """A fresh instance first, then the old one leaves: no moment without slots."""
        spent = instance._taken >= instance.agent_class.recycle_after > 0
        try:
            if spent and not self._stopping.is_set():
                await self._add(instance.agent_class)
            await instance.drain("recycled" if spent else "drain requested")
        except Exception as error:  # noqa: BLE001 - a renewal that fails ends the process, which its supervisor restarts
            logger.exception("could not renew an instance", extra={"agent": instance.agent_class.name})
            self._failure = error
            self._stopping.set()
            return
        self.instances.remove(instance)
        if not self.instances:
            self._stopping.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
