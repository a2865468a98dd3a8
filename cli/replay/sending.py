"""Sending a slice of history somewhere, at a pace. What was interrupted goes on where it was when it is run again."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from cuebook.cli.exits import InputError, Interruption
from cuebook.cli.interrupts import checkpoint
from cuebook.cli.meter import PLAIN_EVERY_S
from cuebook.cli.moments import clock, span
from cuebook.cli.options import Output, Target, login_name
from cuebook.cli.output import line, note, show_one
from cuebook.cli.replay.destinations import Destination, LiveSpace, Recording
from cuebook.cli.replay.line_files import FileDestination, Stdout
from cuebook.cli.replay.pace import Pace, parse_speed
from cuebook.cli.replay.slices import Choice, Message, Slice, make_slice
from cuebook.cli.session import reading_segments, session
from cuebook.events.connection import connect
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, CuebookError, StreamMissingError
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token

__all__ = ["Order", "Progress", "Sending", "Where", "parse_destination", "send"]

NAP_S: Final = 0.25
"""Between two looks at the clock while the next event is not due."""
BEGINNINGS: Final = 5
"""How often it begins again at what the destination has, without getting any further, before it gives up."""
FLUSH_WITHIN_S: Final = 5.0
_SERVER: Final = r"(?:nats|tls|ws|wss)://[^/,]+"
_URL: Final = re.compile(rf"({_SERVER}(?:,{_SERVER})*)(?:/([^/]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A destination as it was named. Just one of `path` and `space` says something; `-` is stdout."""

    path: str = ""
    space: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to send, where, how fast, and whether it may have effects."""

    choice: Choice
    into: str
    creds: str
    speed: str
    live_effects: bool


def parse_destination(text: str, space: str) -> Where:
    """A space, nats://HOST:PORT/SPACE (without a space: the same one), a path with a `/` or `.jsonl`, or `-`.

    Raises InputError, InvalidTokenError.
    """
    if text == "-" or text.endswith(".jsonl"):
        return Where(path=text)
    if found := _URL.fullmatch(text):
        return Where(server=found[1], space=check_token(found[2] or space, "space"))
    if "/" in text and "://" not in text:
        return Where(path=text)
    if not text or "://" in text:
        raise InputError(
            f"{text!r} is no destination",
            remedy="name a space, nats://HOST:PORT/SPACE, a file ending in .jsonl, or - for stdout",
        )
    return Where(space=check_token(text, "space"))


async def send(target: Target, order: Order, output: Output, interruption: Interruption) -> None:
    """Send the slice and say what was sent.

    Raises InputError, NotFoundError, ConfigurationError for a destination that is none for this, UnavailableError.
    """
    if order.live_effects and not (order.choice.runs or order.choice.filters or order.choice.types):
        raise InputError(
            "--live-effects with everything there is would do all work ever recorded once more",
            remedy="say what to send, such as --filter 'event.>'",
        )
    where, pace = parse_destination(order.into, target.space), Pace(parse_speed(order.speed))
    async with session(target, follows=True) as client, AsyncExitStack() as stack:
        part = await make_slice(client.log, order.choice)
        await part.first()
        silent = output.for_programs
        destination = await _open_destination(part, where, order, stack, silent=silent)
        stack.push_async_callback(destination.close)
        began_after = await destination.open()
        if destination.has_some:
            note(f"{destination.name} has it up to sequence {began_after}; going on after that", output)
        resumed_after = began_after if destination.has_some else None
        sending = Sending(part, destination, pace, interruption if where.path == "-" else None, target.hint)
        with Progress(part, destination.name, silent=silent) as progress:
            await sending.run(began_after, progress)
    view = {
        "stream": part.log.subjects.stream,
        "destination": destination.name,
        "sent": destination.stored,
        "resumed_after": resumed_after,
        "after": part.after,
        "until": part.until,
    }
    if where.path != "-":
        show_one(output, view, partial(_print, view))


def _print(view: dict[str, Any]) -> None:
    line(f"sent {view['sent']} events of {view['stream']}, up to sequence {view['until']}, to {view['destination']}")


async def _open_destination(
    part: Slice, where: Where, order: Order, stack: AsyncExitStack, *, silent: bool
) -> Destination:
    if where.path and order.live_effects:
        raise InputError("a file has no effects", remedy="leave out --live-effects")
    if where.path:
        return Stdout(part) if where.path == "-" else FileDestination(part, Path(where.path))
    connection = part.log.connection
    if where.server:
        theirs = Target(nats_url=where.server, creds=order.creds, space=where.space)
        connection = reading_segments(await connect(theirs.nats_url, name="cuebook replay", **theirs.client_options))
        stack.push_async_callback(connection.close)
    log = EventLog(connection, where.space, source=login_name())
    itself = await _is_itself(part, log, live_effects=order.live_effects)
    return LiveSpace(part, log, itself=itself, silent=silent) if order.live_effects else Recording(part, log)


async def _is_itself(part: Slice, log: EventLog, *, live_effects: bool) -> bool:
    """A log is not copied into itself; only outside events may be said again where they were said."""
    try:
        theirs, ours = await log.verify(), await part.log.verify()
    except StreamMissingError:
        return False
    here, there = part.log.subjects.stream, log.subjects.stream
    if (there, theirs.created) != (here, ours.created):
        return False
    outside = f"{part.log.subjects.space}.event."
    if not live_effects or not all(one.startswith(outside) for one in part.filters):
        raise InputError(
            f"space {log.subjects.space!r} is where these events come from",
            remedy="send them to another space; into their own, only outside events (--filter 'event.>') can be sent "
            "again, with --live-effects",
        )
    return True


class Sending:
    """One sending under way."""

    def __init__(
        self, part: Slice, destination: Destination, pace: Pace, interruption: Interruption | None, hint: str
    ) -> None:
        self._part, self._destination, self._pace = part, destination, pace
        self._interruption, self._hint = interruption, hint

    async def run(self, after: int, progress: Progress) -> None:
        """Send everything after a sequence of the source."""
        left = BEGINNINGS
        while True:
            try:
                return await self._pump(after, progress)
            except ConcurrencyConflictError as error:
                # What was lost on its way makes the server refuse all that follows it; so does another writer.
                found = await self._destination.open()
                left = BEGINNINGS if found > after else left - 1
                after = max(found, after)
                if not left:
                    raise CommandRejectedError(
                        f"somebody else writes to {self._destination.name}", remedy="let one finish, then run it again"
                    ) from error

    async def _pump(self, after: int, progress: Progress) -> None:
        part = self._part
        try:
            async with aclosing(_messages(part, after)) as messages:
                async for message in messages:
                    wait_s = self._pace.wait_s(message.recorded_ns)
                    if wait_s:
                        await self._wait(message, progress)
                    await self._destination.put(message)
                    progress.at(message, self._destination.stored)
                    if self._interruption is not None:
                        self._interruption.resume = f"cuebook replay send ... --from {message.sequence + 1}{self._hint}"
            await self._destination.flush()
        except asyncio.CancelledError:
            # What is under way is not lost: it is stored or it is not, and the next time looks.
            with contextlib.suppress(CuebookError, TimeoutError):
                async with asyncio.timeout(FLUSH_WITHIN_S):
                    await self._destination.flush()
            raise

    async def _wait(self, message: Message, progress: Progress) -> None:
        await self._destination.flush()
        while wait_s := self._pace.wait_s(message.recorded_ns):
            progress.waiting(message, self._destination.stored, wait_s)
            await asyncio.sleep(min(wait_s, NAP_S))
            checkpoint()


async def _messages(part: Slice, after: int) -> AsyncGenerator[Message]:
    if after >= part.until:
        return
    async with aclosing(part.log.batches(after=after, until=part.until, filters=part.filters)) as batches:
        async for batch in batches:
            for stored in batch:
                message = part.take(stored)
                if message is not None:
                    yield message


class Progress:
    """How far it is, on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, part: Slice, name: str, *, silent: bool) -> None:
        self._part, self._name, self._silent = part, name, silent
        self._bar: Any = None
        self._task: Any = None
        self._began = time.monotonic()
        self._next = self._began + PLAIN_EVERY_S
        self._count = self._calls = 0

    def __enter__(self) -> Self:
        if not self._silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._bar.start()
            total = self._part.until - self._part.after
            self._task = self._bar.add_task(f"to {self._name}", total=total, said="")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, message: Message, sent: int) -> None:
        """A message was handed over."""
        self._count = sent
        self._calls += 1
        if not self._silent and self._calls % 100 == 0:
            self._say(message, f"{sent / max(time.monotonic() - self._began, 0.001):.0f}/s")

    def waiting(self, message: Message, sent: int, wait_s: float) -> None:
        """The next message is not due yet."""
        self._count = sent
        if not self._silent:
            self._say(message, f"next in {span(wait_s)}: {clock(message.recorded_ns // 1000)}")

    def _say(self, message: Message, said: str) -> None:
        done = message.sequence - self._part.after
        if self._bar is not None:
            self._bar.update(self._task, completed=done, said=f"{self._count} sent, {said}")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            share = done / max(self._part.until - self._part.after, 1)
            sys.stderr.write(f"{self._count} events sent, {share:.0%}, {said}\n")
            sys.stderr.flush()
