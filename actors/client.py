"""For programs and the CLI: start work, wait for its outcome, decide as a person.

Everything here is one append or one read; nothing needs a server of ours but the orchestrator that acts on it, and,
where a run is to be named by the key of a saga of which only the name is known, tells that key.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, Self, TypeVar

import nats.errors
from pydantic_core import to_jsonable_python

from cuebook.actors.forking import Fork, Past, plan_fork
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState, fold_run
from cuebook.actors.saga import Saga, derive_run_id
from cuebook.events.connection import Connection, Listener, ended
from cuebook.events.envelope import Envelope
from cuebook.events.errors import (
    CommandRejectedError,
    ConcurrencyConflictError,
    CuebookError,
    NotFoundError,
    UnavailableError,
)
from cuebook.events.facts import (
    DrainRequested,
    OutsideEvent,
    RetryPolicy,
    RunCancelRequested,
    RunRequested,
    RunRetryRequested,
    StepAnswered,
    TaskCancelRequested,
    TaskRequested,
    TaskResolved,
)
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token
from cuebook.telemetry.publish import Publishing, publishing
from cuebook.telemetry.trace import find_context, run_span, task_span

__all__ = ["Client", "Outcome"]

_TASK_ENDS = ("completed", "cancelled", "aborted", "rejected")
_RUN_ENDS = ("completed", "failed", "compensated", "cancelled", "rejected", "stuck")
LOOK_AGAIN_S = 5.0
ASK_KEY_S = 10.0
"""An orchestrator that died is replaced within a lease; a server that died comes back about as soon."""
ASK_AGAIN_S = 0.25
"""Live messages may be missed; this often the log itself is asked about some of what is still awaited."""
LOOKS = 100
"""About so many: those nobody has looked for longest. After a reconnect it is asked about all."""

logger = logging.getLogger(__name__)

_Kind = Literal["task", "run"]
T = TypeVar("T")


class Outcome:
    """How a run ended. `status` is completed, failed, compensated, cancelled, aborted, rejected or stuck."""

    __slots__ = ("error", "result", "run_id", "status")

    def __init__(self, run_id: str, status: str, result: Any, error: str) -> None:
        self.run_id, self.status, self.result, self.error = run_id, status, result, error

    def __repr__(self) -> str:
        return f"Outcome({self.run_id!r}, {self.status!r}, result={self.result!r}, error={self.error!r})"


class _Awaited:
    """Who waits for the end of one run, and which kind of fact ends it."""

    __slots__ = ("futures", "kind")

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.futures: list[asyncio.Future[Outcome]] = []


class Client:
    """A space as seen from outside. Use `async with`; `by` names the person or program in what it writes."""

    def __init__(self, connection: Connection, space: str, *, by: str = "client") -> None:
        self.log = EventLog(connection, space, source=by)
        self._connection, self._by = connection, by
        self._awaited: dict[str, _Awaited] = {}
        """By run id."""
        self._heard: set[_Kind] = set()
        """Kinds of runs whose ends reach us as live messages."""
        self._listening = asyncio.Lock()
        self._listeners: list[Listener] = []
        self._reconnected = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.log.__aenter__()
        self._connection.on_reconnect.append(self._reconnected.set)
        self._looker = asyncio.get_running_loop().create_task(self._keep_looking())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._connection.on_reconnect.remove(self._reconnected.set)
        await ended(self._looker)
        for listener in self._listeners:
            await listener.close()
        self._give_up("closed")
        await self.log.__aexit__(*exc_info)

    def _give_up(self, why: str) -> None:
        for run_id, awaited in self._awaited.items():
            for future in awaited.futures:
                _fail(future, UnavailableError(f"{why} before run {run_id} had ended; it goes on"))

    def new_id(self, prefix: str = "") -> str:
        """A fresh run id."""
        return f"{prefix}{'-' if prefix else ''}{os.urandom(8).hex()}"

    # --- starting work ---

    async def submit_task(
        self,
        agent: str,
        input: Any,  # noqa: A002 - the word of the event's field
        *,
        handler: str = "",
        run_id: str = "",
        priority: int = 0,
        affinity: str | None = None,
        labels: dict[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> str:
        """Request one standalone task; returns its run id once the request is stored.

        Raises CommandRejectedError when the run id was used before, PoisonMessageError, UnavailableError.
        """
        run_id = run_id or self.new_id()
        event = TaskRequested(
            handler=handler,
            input=input,
            priority=priority,
            affinity=affinity,
            labels=labels,
            timeout_s=timeout_s,
            retry=retry,
        )
        await self._open_run(self.log.subjects.task(run_id, 0, "requested", agent), event, run_id)
        return run_id

    async def submit_run(self, saga: str | Saga[Any, Any], input: Any, *, run_id: str = "") -> str:  # noqa: A002 - as above
        """Request a run of a saga; returns its run id once the request is stored. Raises as `submit_task`.

        Without a `run_id` the saga's key names the run as it does for an event, so a second one with the same key is
        rejected; without a key the id is a fresh one. The key of a saga that is given by name is asked of the
        orchestrator: UnavailableError when none answers. Nobody is asked with a `run_id`, or with the saga itself.
        """
        name = _name_of(saga)
        run_id = run_id or await self._run_id(saga, input) or self.new_id(name[:40])
        await self._open_run(self.log.subjects.run(run_id, "requested", name), RunRequested(input=input), run_id)
        return run_id

    async def _run_id(self, saga: str | Saga[Any, Any], data: Any) -> str:
        """The id that the saga's key gives, or an empty string."""
        if isinstance(saga, Saga):
            key = saga.key
        else:
            key = await self._ask_key(check_token(saga, "saga"))
        if isinstance(data, dict) and key in data:
            data = {key: to_jsonable_python(data[key], fallback=repr)}  # as the log gives it back
        return derive_run_id(_name_of(saga), key, data)

    async def _ask_key(self, saga: str) -> str:
        """By what a saga names its runs. One orchestrator may just be taking over from another: ask for a while."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + ASK_KEY_S
        while True:
            try:
                answer = await self.ask("sagas", {"saga": saga})
            except UnavailableError as error:
                if clock() < give_up:
                    await asyncio.sleep(ASK_AGAIN_S)
                    continue
                raise UnavailableError(
                    f"{error}, so nobody tells the key of saga {saga}",
                    remedy=f"{error.remedy}; or choose the run's id (new_id() is a fresh one), or give the saga itself",
                ) from error
            return str(answer.get("saga", {}).get("key", ""))

    async def publish(self, topic: str, data: Any, *, event_id: str = "") -> int:
        """Publish an outside event; returns its sequence. One with an `event_id` is stored once in two minutes."""
        message = publishing(topic, "", self.log.subjects.space)
        with _told(message):
            return await self.log.append(
                self.log.subjects.event(topic),
                OutsideEvent(data=data),
                event_id=event_id,
                event_type=topic,
                traceparent=message.traceparent,
            )

    async def _open_run(
        self, subject: str, event: RunRequested | TaskRequested, run_id: str, cause: RunState | None = None
    ) -> None:
        message = self._message(subject, run_id, cause)
        try:
            with _told(message):
                await self.log.append(
                    subject,
                    event,
                    scope=self.log.subjects.everything_of(run_id),
                    expected=0,
                    correlation_id=cause.correlation_id if cause else "",
                    causation_id=cause.opened_id if cause else "",
                    traceparent=message.traceparent,
                )
        except ConcurrencyConflictError as error:
            raise _taken(run_id) from error

    def _message(self, subject: str, run_id: str, cause: RunState | None = None) -> Publishing:
        origin = None
        if cause is not None:
            trace_id = find_context(cause.run_id, cause.traceparent, cause.correlation_id).trace_id
            span = task_span(trace_id, cause.run_id, 0) if cause.standalone else run_span(trace_id, cause.run_id)
            origin = trace_id, span
        return publishing(subject.rpartition(".")[2], run_id, self.log.subjects.space, origin=origin)

    # --- outcomes ---

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> Outcome:
        """Wait until a run has ended (or is stuck). Raises TimeoutError, NotFoundError when there is no such run.

        While the log is away it waits on; UnavailableError means that the connection was closed for good.
        """
        async with asyncio.timeout(timeout_s):
            state = await self._persist(lambda: self.state(run_id))
            if (outcome := _outcome(state)) is not None:
                return outcome
            future = await self.expect(run_id, "task" if state.standalone else "run")
            try:
                await self._persist(lambda: self._look_at(run_id))  # it may have ended before we listened
                return await future
            finally:
                self._forget(run_id, future)

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except UnavailableError:
                if self._connection.is_closed:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)

    async def expect(self, run_id: str, kind: Literal["task", "run"]) -> asyncio.Future[Outcome]:
        """A future for the outcome as the live messages tell it; call before submitting so that none is missed.

        `kind`: a standalone task ends with a fact of its task 0, a run of a saga with one of its own.
        """
        if kind not in self._heard:
            await self._listen(kind)
        awaited = self._awaited.get(run_id)
        if awaited is None:
            awaited = self._awaited[run_id] = _Awaited(kind)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        awaited.futures.append(future)
        return future

    async def run_task(
        self,
        agent: str,
        input: Any,  # noqa: A002 - as in submit_task
        *,
        timeout_s: float | None = None,
        run_id: str = "",
        **options: Any,
    ) -> Outcome:
        """Request a standalone task and wait `timeout_s` for its outcome; `options` and errors as for `submit_task`.

        After a TimeoutError the task goes on.
        """
        async with asyncio.timeout(timeout_s):
            fresh, run_id = not run_id, run_id or self.new_id()
            subject = self.log.subjects.task(run_id, 0, "requested", agent)
            return await self._run("task", run_id, subject, TaskRequested(input=input, **options), fresh=fresh)

    async def run_saga(
        self,
        saga: str | Saga[Any, Any],
        input: Any,  # noqa: A002 - as in submit_task
        *,
        timeout_s: float | None = None,
        run_id: str = "",
    ) -> Outcome:
        """Request a run of a saga and wait `timeout_s` for its outcome; ids and errors as for `submit_run`.

        After a TimeoutError the run goes on.
        """
        async with asyncio.timeout(timeout_s):
            name = _name_of(saga)
            run_id = run_id or await self._run_id(saga, input)
            fresh, run_id = not run_id, run_id or self.new_id(name[:40])
            subject = self.log.subjects.run(run_id, "requested", name)
            return await self._run("run", run_id, subject, RunRequested(input=input), fresh=fresh)

    async def _run(
        self, kind: _Kind, run_id: str, subject: str, event: RunRequested | TaskRequested, *, fresh: bool
    ) -> Outcome:
        future = await self.expect(run_id, kind)
        message = Publishing()

        def done(_: int, error: CuebookError | None) -> None:
            message.done(error)
            if error is not None:
                _fail(future, error)

        try:
            if fresh:  # then nothing refuses it, and its outcome says that it was stored
                message = self._message(subject, run_id)
                self.log.post(
                    subject,
                    event,
                    scope=self.log.subjects.everything_of(run_id),
                    expected=0,
                    traceparent=message.traceparent,
                    done=done,
                )
            else:
                await self._open_run(subject, event, run_id)
            return await future
        finally:
            self._forget(run_id, future)

    def _forget(self, run_id: str, future: asyncio.Future[Outcome]) -> None:
        awaited = self._awaited.get(run_id)
        if awaited is not None and future in awaited.futures:
            awaited.futures.remove(future)
            if not awaited.futures:
                del self._awaited[run_id]

    async def _listen(self, kind: _Kind) -> None:
        async with self._listening:
            if kind in self._heard:
                return
            ends, part = (_TASK_ENDS, "task.0.") if kind == "task" else (_RUN_ENDS, "")
            for fact in ends:
                subject = f"live.{self.log.subjects.space}.run.*.{part}{fact}"
                self._listeners.append(await self._connection.listen(subject, self._on_live))
            self._heard.add(kind)

    def _on_live(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:  # noqa: ARG002
        tokens = subject.split(b".")
        run_id = tokens[3].decode("utf-8", "replace")
        awaited = self._awaited.get(run_id)
        if awaited is None or (awaited.kind == "task") != (len(tokens) > 5):
            return
        item = self.log.decode(subject[5:].decode(), payload, 0, 0, None)
        if not isinstance(item, Envelope):
            return
        event = item.event
        error = getattr(event, "error", None)
        reason = error.message if error is not None else getattr(event, "reason", "")
        result = getattr(event, "output" if awaited.kind == "task" else "result", None)
        self._tell(run_id, Outcome(run_id, item.address.fact, result, reason))

    def _tell(self, run_id: str, outcome: Outcome) -> None:
        awaited = self._awaited.pop(run_id, None)
        for future in awaited.futures if awaited else ():
            if not future.done():
                future.set_result(outcome)

    async def _keep_looking(self) -> None:
        """Live messages come at most once, so the log is asked: about a few in turn, about all after a reconnect."""
        while True:
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._reconnected.wait()
                self._reconnected.clear()
                chosen = list(self._awaited)
            except TimeoutError:
                chosen = list(itertools.islice(self._awaited, LOOKS))
            try:
                for run_id in chosen:
                    await self._look_at(run_id)
            except CuebookError as error:
                logger.debug("could not look for outcomes: %s", error)  # the next look is soon
                if self._connection.is_closed:
                    self._give_up("the connection to NATS was closed for good")

    async def _look_at(self, run_id: str) -> None:
        awaited = self._awaited.pop(run_id, None)
        if awaited is None:
            return
        self._awaited[run_id] = awaited  # the last one to be looked at again
        subjects = self.log.subjects
        scope = subjects.task_scope(run_id, 0) if awaited.kind == "task" else subjects.run_scope(run_id)
        if (outcome := _outcome(fold_run(run_id, await self.log.scope_history(scope)))) is not None:
            self._tell(run_id, outcome)

    # --- looking ---

    async def state(self, run_id: str, *, until: int | None = None) -> RunState:
        """The folded state of a run, up to a sequence. Raises NotFoundError."""
        history = await self.log.history(run_id)
        state = fold_run(run_id, (item for item in history if until is None or item.sequence <= until))
        if state.status == "new" and not state.items:
            raise NotFoundError(f"there is no run {run_id} in space {self.log.subjects.space}")
        return state

    async def ask(self, noun: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the deciding orchestrator. Raises UnavailableError when none answers."""
        try:
            answer = await self._connection.request(
                self.log.subjects.query(noun), json.dumps(question or {}).encode(), timeout=2
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(
                f"no orchestrator answers in space {self.log.subjects.space}",
                remedy="start one with 'cuebook serve orchestrator MODULE:SAGA'",
            ) from error
        found: dict[str, Any] = json.loads(answer.data)
        return found

    # --- deciding as a person ---

    async def cancel(self, run_id: str, *, n: int | None = None, reason: str = "") -> int:
        """Ask for the end of a run, or of its task `n`. Raises NotFoundError, CommandRejectedError when it is over."""
        state = await self.state(run_id)
        if state.closed or state.outcome() in _TASK_ENDS:
            raise CommandRejectedError(f"run {run_id} is over: {state.outcome()}")
        subjects = self.log.subjects
        if n is None and state.standalone:
            n = 0
        if n is not None:
            task = state.items.get(n)
            if not isinstance(task, TaskState):
                raise NotFoundError(f"run {run_id} has no task {n}", remedy=f"see 'cuebook run show {run_id}'")
            if task.closed:
                raise CommandRejectedError(f"task {run_id}/{n} is over: {task.status}")
            return await self.log.append(
                subjects.task(run_id, n, "cancel_requested"), TaskCancelRequested(reason=reason, by=self._by)
            )
        return await self.log.append(
            subjects.run(run_id, "cancel_requested"), RunCancelRequested(reason=reason, by=self._by)
        )

    async def retry(self, run_id: str, *, note: str = "") -> str:
        """Go on with a stuck run, or run an ended one again under a new id. Returns the id of the run that goes on."""
        state = await self.state(run_id)
        if state.status == "stuck":
            event = RunRetryRequested(by=self._by, note=note)
            await self.log.append(self.log.subjects.run(run_id, "retry_requested"), event)
            return run_id
        if not (state.closed or state.outcome() in _TASK_ENDS):
            raise CommandRejectedError(f"run {run_id} is {state.outcome()}, there is nothing to retry")
        new_id = self.new_id(run_id[:40])
        if state.standalone:
            task = state.items[0]
            assert isinstance(task, TaskState)
            subject = self.log.subjects.task(new_id, 0, "requested", task.agent)
            request: TaskRequested | RunRequested = TaskRequested(
                handler=task.handler,
                input=task.input,
                priority=task.priority,
                affinity=task.affinity,
                labels=task.labels,
                timeout_s=task.asked_timeout_s,
                retry=task.retry,
            )
        else:
            subject = self.log.subjects.run(new_id, "requested", state.saga)
            request = RunRequested(input=state.input, retry_of=run_id)
        await self._open_run(subject, request, new_id, state)
        return new_id

    async def fork(
        self, run_id: str, *, at: int | None = None, answers: Mapping[int, Any] | None = None, new_id: str = ""
    ) -> Fork:
        """Start a run that shares the history of another up to the sequence `at`; returns once that is stored.

        `answers` replaces those of some steps, by number; without `at` the history is shared up to the last of these,
        or to its end. The orchestrator goes on with it, or rejects it where the saga's present code would not have come
        there. Raises NotFoundError, CommandRejectedError, PoisonMessageError, UnavailableError.
        """
        answers, history = answers or {}, await self.log.history(run_id)
        past = Past(run_id, history, at)
        if past.state.status == "new" and not past.state.items:
            raise NotFoundError(
                f"there is no run {run_id} in space {self.log.subjects.space}"
                if not history
                else f"run {run_id} began at sequence {history[0].sequence}, after {at}",
                remedy="see 'cuebook run show'" if history else "see 'cuebook run list'",
            )
        if at is None and answers and all(n in past.ends for n in answers):
            past = Past(run_id, history, max(past.ends[n] for n in answers))
        new_id = new_id or self.new_id(run_id[:40])
        fork = plan_fork(self.log.subjects, past, new_id, answers, by=self._by)
        try:
            await self.log.append_all(
                fork.events,
                scope=self.log.subjects.everything_of(new_id),
                expected=0,
                correlation_id=fork.correlation_id,
                causation_id=fork.causation_id,
            )
        except ConcurrencyConflictError as error:
            raise _taken(new_id) from error
        return fork

    async def resolve(self, run_id: str, n: int, *, action: str = "", value: Any = None, note: str = "") -> int:
        """Decide about an escalated task (action supply, retry or abort), or answer a question (no action).

        Raises NotFoundError when there is no such task or step, CommandRejectedError when it does not wait for a
        person, as when somebody else was faster.
        """
        item = (await self.state(run_id)).items.get(n)
        subjects = self.log.subjects
        try:
            if isinstance(item, StepState) and item.type == "ask" and item.status == "open":
                event = StepAnswered(value=value, by=self._by, note=note)
                return await self.log.append(
                    subjects.step(run_id, n, "answered"),
                    event,
                    scope=subjects.step_scope(run_id, n),
                    expected=item.last_sequence,
                )
            if isinstance(item, TaskState) and item.status == "escalated":
                if action not in ("supply", "retry", "abort"):
                    raise CommandRejectedError(
                        f"{run_id}/{n} is an escalated task", remedy="say supply with a result, retry, or abort"
                    )
                resolved = TaskResolved(action=action, output=value, by=self._by, note=note)  # type: ignore[arg-type]
                return await self.log.append(
                    subjects.task(run_id, n, "resolved"),
                    resolved,
                    scope=subjects.task_scope(run_id, n),
                    expected=item.last_sequence,
                )
        except ConcurrencyConflictError as error:
            raise CommandRejectedError(f"{run_id}/{n} was decided by somebody else") from error
        if item is None:
            raise NotFoundError(f"run {run_id} has no task or step {n}")
        raise CommandRejectedError(f"{run_id}/{n} is {item.status}: nothing there waits for a person (any more)")

    async def drain(self, agent: str, instance: str, *, reason: str = "") -> int:
        """Ask an instance to finish what it has and stop."""
        event = DrainRequested(reason=reason, by=self._by)
        return await self.log.append(self.log.subjects.agent(agent, instance, "drain_requested"), event)


def _name_of(saga: str | Saga[Any, Any]) -> str:
    return saga.name if isinstance(saga, Saga) else saga


def _taken(run_id: str) -> CommandRejectedError:
    return CommandRejectedError(
        f"run {run_id} exists already",
        remedy=f"look at it with 'cuebook run show {run_id}', or choose another id (--id)",
    )


@contextlib.contextmanager
def _told(message: Publishing) -> Iterator[None]:
    """Tell a message what becomes of it."""
    try:
        yield
    except BaseException as error:
        message.done(error)
        raise
    message.done()


def _fail(future: asyncio.Future[Outcome], error: CuebookError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever asked for it may be gone; asyncio would complain about that


def _outcome(state: RunState) -> Outcome | None:
    status = state.outcome()
    if state.standalone:
        task = state.items.get(0)
        if not isinstance(task, TaskState) or not task.closed:
            return None
        return Outcome(state.run_id, status, task.output, task.error.message if task.error else "")
    if not state.closed and status != "stuck":
        return None
    stuck = status == "stuck"  # then the error is why it was being undone, if it was; what counts is why it is stuck
    message = state.error.message if state.error is not None and not stuck else state.reason
    return Outcome(state.run_id, status, state.result, message)
