"""One attempt at a task: the author's code called with validated data, within its time; a blocking one in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import itertools
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from cuebook.actors.agent import Agent, Handler, PermanentError, Task, class_names
from cuebook.actors.deadlines import Deadlines
from cuebook.events.errors import CuebookError
from cuebook.events.facts import Error, TaskAssigned

__all__ = [
    "MAX_MESSAGE",
    "InvalidOutputError",
    "NotFinishedError",
    "PreparedHandler",
    "error_of",
    "raise_from_a_person",
    "text_of",
]

MAX_MESSAGE = 2_000
"""Characters of what a handler says that are stored."""
MAX_PARTS = 10
"""Errors of a group that are told."""

_W = TypeVar("_W")


class InvalidInputError(CuebookError):
    """The input does not fit the handler's model."""


class InvalidOutputError(CuebookError):
    """The handler returned something else than it promises."""


class NotFinishedError(CuebookError):
    """The handler ended with neither a result nor an error of its own."""


class PreparedHandler:
    """A handler of one agent object, prepared for calling."""

    __slots__ = (
        "_check_output",
        "_deadlines",
        "_function",
        "_plain",
        "_read_input",
        "_read_output",
        "_undo",
        "_undo_wants_task",
        "_wants_task",
        "name",
    )

    def __init__(self, handler: Handler[Any, Any], agent: Agent, deadlines: Deadlines) -> None:
        self.name, self._deadlines = handler.name, deadlines
        self._function = _as_async(handler.function.__get__(agent))
        self._wants_task, self._undo_wants_task = handler.wants_task, handler.undo_wants_task
        undo = handler.undo
        self._undo = _as_async(getattr(agent, undo.__name__, undo.__get__(agent))) if undo is not None else None
        self._read_input, self._read_output = handler.input_type.read, handler.output_type.read
        self._check_output, self._plain = handler.output_type.check, handler.output_type.plain

    @property
    def can_undo(self) -> bool:
        """Whether it has a compensation."""
        return self._undo is not None

    async def call(self, event: TaskAssigned, make_task: Callable[[_W], Task], work: _W) -> Any:
        """Do what is assigned and return the output as plain data; `make_task(work)` is the context where it is wanted.

        Raises what the author's code raises, and the errors of this module.
        """
        if event.compensates is not None:
            if self._undo is None:
                raise PermanentError(f"handler {self.name!r} has no compensation")
            try:
                given, output = event.input["input"], event.input["output"]
            except (TypeError, KeyError) as error:
                raise InvalidInputError("a compensation needs input and output of its step") from error
            await self.undo(given, output, event.timeout_s, lambda: make_task(work))
            return None
        try:
            value = self._read_input(event.input)
        except ValidationError as error:
            raise InvalidInputError(str(error)) from error
        arguments = (value, make_task(work)) if self._wants_task else (value,)
        with self._deadlines.within(event.timeout_s):
            result = await self._function(*arguments)
        try:
            return self._plain(self._check_output(result))
        except Exception as error:  # pydantic raises several classes of its own here
            raise InvalidOutputError(text_of(error)) from error

    async def undo(self, given: Any, output: Any, timeout_s: float, task: Callable[[], Task]) -> None:
        """Call the compensation for a step's input and output, as plain data. Raises as `call`."""
        assert self._undo is not None, "asked of a handler that can undo"
        try:
            done = self._read_input(given), self._read_output(output)
        except ValidationError as error:
            raise InvalidInputError(str(error)) from error
        context = (task(),) if self._undo_wants_task else ()
        with self._deadlines.within(timeout_s):
            await self._undo(*done, *context)


def error_of(raised: BaseException) -> Error:
    """What the log keeps of an exception; some kinds are not worth another attempt."""
    classes = class_names(type(raised))
    permanent = any(isinstance(one, PermanentError | InvalidInputError | InvalidOutputError) for one in _parts(raised))
    return Error(type=classes[0], message=text_of(raised), classes=classes, retryable=not permanent)


def _as_async(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    if inspect.iscoroutinefunction(function):
        return function

    async def call(*arguments: Any) -> Any:
        result = await _in_thread(function, arguments)
        return await result if inspect.isawaitable(result) else result  # a decorated `async def` may look plain

    return call


async def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call in a thread of its own: one that never returns holds up nothing else, not even the end of the process."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(
                RuntimeError("handler raised StopIteration") if type(error) is StopIteration else error
            )

    def work() -> None:
        result: Any = None
        raised: BaseException | None = None
        try:
            result = context.run(function, *arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits for it
            raised = error
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=work, name=getattr(function, "__qualname__", "handler"), daemon=True).start()
    return await outcome


def raise_from_a_person(error: BaseException) -> None:
    """Raise what is no word of the author's code but of a person who interrupts this process, else return.

    Where somebody handles SIGINT, as our services and asyncio's runner do, Ctrl-C raises nothing in the midst of code.
    """
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error


def text_of(error: BaseException) -> str:
    """What an error says, as an event can hold it, a group with what is in it; the author's `__str__` may raise."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the author's own __str__
        text = "(its text cannot be made)"
    if isinstance(error, BaseExceptionGroup):
        inner = (f"{type(one).__name__}: {text_of(one)}" for one in itertools.islice(_parts(error), MAX_PARTS))
        text = f"{text}: {'; '.join(inner)}"
    return text[:MAX_MESSAGE].encode(errors="replace").decode()  # half a surrogate pair cannot be stored


def _parts(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group, such as a TaskGroup raises, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _parts(one)
    else:
        yield error
