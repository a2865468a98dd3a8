"""Driving one saga by replay: give it what the log has recorded, collect what it asks for next, notice drift.

The coroutine is stepped by hand, not by the event loop, so that its order is the log's order. Live it stays suspended
between answers; after a restart it runs again from the top with the recorded ones.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from cuebook.actors.attempt import raise_from_a_person, text_of
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.orchestrator.watchdog import watched
from cuebook.actors.saga import (
    Ask,
    Call,
    EndlessSagaError,
    NotDeterministicError,
    Run,
    Saga,
    Sleep,
    Step,
    StepExpiredError,
    TaskFailedError,
    Wait,
)
from cuebook.events.envelope import to_datetime
from cuebook.events.facts import Error
from cuebook.events.subjects import task_id

__all__ = ["Drift", "Execution", "Raised", "Returned", "describe", "describe_request", "drift_of", "error_of"]

Request = Call | Sleep | Wait | Ask
MAX_AWAITS = 100_000
"""Of one run. A step may be awaited again and again, and has its result at once then."""

NO_STEP = "put I/O into an agent, and wait with run.gather, run.sleep and the timeouts of steps"
_LOOPS = frozenset({"asyncio", "anyio", "sniffio", "trio"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Returned:
    """The saga is over; `result` is plain data."""

    result: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The saga raised."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Drift:
    """The saga's code asks for something else than the log has recorded. Either side is None where it has nothing."""

    step: int | None
    recorded: Any
    asked: Any
    reason: str


class Execution:
    """One run of a saga's function against the run's folded state."""

    def __init__(self, saga: Saga[Any, Any], state: RunState) -> None:
        self.saga = saga
        self.run = Run(state.run_id, to_datetime(state.began_at), state.correlation_id)
        self._clock = state.began_at
        self._coroutine = saga.function(self.run, saga.input_type.read(state.input))
        self._waiting: Step[Any] | None = None
        self._compared = self._awaits = 0
        self.outcome: Returned | Raised | Drift | None = None

    def close(self) -> None:
        """Drop the suspended function, whatever it does about that."""
        try:
            watched(self._coroutine.close)
        except BaseException as error:
            raise_from_a_person(error)
            logger.warning("the saga does not let itself be closed", extra={"run_id": self.run.id}, exc_info=True)

    def advance(self, state: RunState) -> None:
        """Go on as far as the recorded results allow.

        Afterwards `outcome` says whether the saga is over. Steps still open then are awaited before Returned counts.
        """
        items = state.items
        while self.outcome is None:
            waiting = self._waiting
            if waiting is not None:
                self._settle(waiting, items)
                if not waiting.settled:
                    break
                self._clock = max(self._clock, _ended_at(items[waiting.n]))
                self.run.now = to_datetime(self._clock)
            self._step(items)

    def unrecorded(self, state: RunState) -> list[tuple[int, Request]]:
        """The steps that the saga has asked for and the log does not have."""
        return [(step.n, step.request) for step in self.run.steps if step.n not in state.items]

    def unsettled(self, state: RunState) -> Step[Any] | None:
        """After the saga returned: a step that has not ended, or that failed without ever being awaited; else None."""
        for step in self.run.steps:
            if not step.settled:
                self._settle(step, state.items)
                if not step.settled:
                    return step
            if step.error is not None and not step.awaited:
                return step
        return None

    def _step(self, items: Mapping[int, TaskState | StepState]) -> None:
        self._awaits += 1
        try:
            if self._awaits > MAX_AWAITS:
                raise EndlessSagaError(f"it awaited more than {MAX_AWAITS} times")  # noqa: TRY301 - as from the saga
            yielded = _send(self._coroutine)
        except EndlessSagaError as error:
            self._waiting = None
            self.close()
            self.outcome = Drift(None, None, None, f"the saga does not come to an end: {error}")
            return
        except StopIteration as stop:
            self._waiting = None
            self.outcome = self._compare_new(items) or self._extra(items) or self._returned(stop.value)
            return
        except BaseException as error:  # noqa: BLE001 - whatever the author's code raises ends the run
            raise_from_a_person(error)
            self._waiting = None
            self.outcome = self._compare_new(items) or self._foreign(error) or self._extra(items) or Raised(error)
            return
        self.outcome = self._compare_new(items)
        if isinstance(yielded, Step):
            self._waiting = yielded
        else:
            self.close()
            self.outcome = Drift(None, None, repr(yielded), f"the saga awaited something that is no step; {NO_STEP}")

    @staticmethod
    def _foreign(error: BaseException) -> Drift | None:
        """What asyncio itself raises in a saga, which runs in no task: as bad as awaiting it, and no reason to undo."""
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        modules = (str(frame.f_globals.get("__name__", "")) for frame in frames)
        module = next((one for one in modules if one.partition(".")[0] in _LOOPS), None)
        if module is None:
            return None
        asked = f"{module}: {type(error).__name__}: {text_of(error)}"
        return Drift(None, None, asked, f"the saga used what needs an event loop; {NO_STEP}")

    def _returned(self, value: Any) -> Returned | Raised:
        if isinstance(value, Step):
            return Raised(NotDeterministicError("the saga returned a step; await it"))
        try:
            return Returned(self.saga.output_type.plain(value, warnings=False))
        except BaseException as error:  # noqa: BLE001 - pydantic's, several classes, or whatever a serializer raises
            raise_from_a_person(error)
            return Raised(NotDeterministicError(f"the saga's result cannot be stored: {error}"))

    def _compare_new(self, items: Mapping[int, TaskState | StepState]) -> Drift | None:
        for step in self.run.steps[self._compared :]:
            self._compared += 1
            item = items.get(step.n)
            if item is not None and item.status != "new":
                recorded, asked = describe(item), describe_request(step.request)
                if isinstance(item, TaskState) and item.compensates is not None:
                    return Drift(step.n, recorded, asked, "the run was already being undone at this step")
                if not _agree(recorded, asked, item):
                    return Drift(step.n, recorded, asked, "the saga asks for something else than it did")
        return None

    def _extra(self, items: Mapping[int, TaskState | StepState]) -> Drift | None:
        """Recorded steps that the present code never asked for."""
        for n in sorted(items):
            item = items[n]
            if n >= len(self.run.steps) and not (isinstance(item, TaskState) and item.compensates is not None):
                return Drift(n, describe(item), None, "the saga ended without asking for a step it once asked for")
        return None

    def _settle(self, step: Step[Any], items: Mapping[int, TaskState | StepState]) -> None:
        item = items.get(step.n)
        if item is None or not item.closed or step.settled:
            return
        name = task_id(item.run_id, item.n)
        if isinstance(item, TaskState):
            if item.status == "completed":
                step.settle(item.output)
            else:
                error = item.error or Error(type="Unknown", message="")
                step.fail(TaskFailedError(f"{name} was {item.status}: {error.message}", task=name, error=error))
        elif item.status in ("matched", "answered"):
            step.settle(item.value)
        elif item.status == "expired" and item.type == "sleep":
            step.settle(None)
        elif item.status == "expired":
            step.fail(StepExpiredError(f"{name} was not answered within {item.timeout_s:g} s"))
        else:
            step.fail(TaskFailedError(f"{name} was cancelled", task=name))


def drift_of(saga: Saga[Any, Any], state: RunState) -> Drift | None:
    """Where the saga's code goes another way than the run did, as far as it went; None where it does not."""
    execution = Execution(saga, state)
    try:
        execution.advance(state)
    finally:
        execution.close()
    return execution.outcome if isinstance(execution.outcome, Drift) else None


def _send(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Go on with the saga, which must not take the task that happens to run here for its own.

    Else `asyncio.timeout` in a saga would cancel whoever reads the log.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop: somebody replays a history
        task = None
    if task is None:
        return watched(coroutine.send, None)
    loop = asyncio.get_running_loop()
    asyncio.tasks._leave_task(loop, task)  # noqa: SLF001 - there is no other way
    try:
        return watched(coroutine.send, None)
    finally:
        asyncio.tasks._enter_task(loop, task)  # noqa: SLF001


def _agree(recorded: Any, asked: Any, item: TaskState | StepState) -> bool:
    """Whether both sides say the same; what another run has asked for may name that run where this one names itself."""
    if recorded == asked or item.origin is None:
        return bool(recorded == asked)
    theirs, ours = item.origin.run_id, item.run_id
    match recorded, asked:
        case str(), str():
            return recorded.replace(theirs, ours) == asked
        case dict(), dict():
            return recorded.keys() == asked.keys() and all(_agree(recorded[key], asked[key], item) for key in asked)
        case list(), list():
            pairs = zip(recorded, asked, strict=False)
            return len(recorded) == len(asked) and all(_agree(one, other, item) for one, other in pairs)
    return False


def describe(item: TaskState | StepState) -> dict[str, Any]:
    """What a recorded step asked for, in the form that is compared."""
    if isinstance(item, TaskState):
        return {"call": f"{item.agent}.{item.handler}", "input": item.input}
    if item.type == "sleep":
        return {"sleep": item.timeout_s}
    if item.type == "wait":
        return {"wait_for": item.topic, "match": item.match or {}}
    return {"ask_human": item.question}


def describe_request(request: Request) -> dict[str, Any]:
    """What a saga asks for, in the same form."""
    match request:
        case Call():
            return {"call": f"{request.agent}.{request.handler}", "input": request.input}
        case Sleep():
            return {"sleep": request.seconds}
        case Wait():
            return {"wait_for": request.topic, "match": request.match}
        case Ask():
            return {"ask_human": request.question}


def error_of(raised: BaseException) -> Error:
    """An exception as the log keeps it."""
    classes = [cls.__name__ for cls in type(raised).__mro__ if issubclass(cls, Exception)]
    return Error(type=type(raised).__name__, message=text_of(raised)[:2000], classes=classes)


def _ended_at(item: TaskState | StepState) -> int:
    return item.ended_at
