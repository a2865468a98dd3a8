"""Keeps all projections of a space up to date: reads the log once and gives each batch to every projection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from cuebook.events.connection import ended
from cuebook.events.envelope import Position
from cuebook.events.errors import UnavailableError
from cuebook.events.log import EventLog
from cuebook.projections.agents import Agents
from cuebook.projections.audit import Audit
from cuebook.projections.checkpoint import ReadAgainError
from cuebook.projections.database import UNHURRIED, Backoff, Outage, Transaction, connect, is_outage, schema_name
from cuebook.projections.generations import generations_of, written_by
from cuebook.projections.migrations import prepare_database
from cuebook.projections.projection import Batch, Projection
from cuebook.projections.reader import BATCH_SIZE, LogReader
from cuebook.projections.runs import Runs
from cuebook.projections.timescale import require_extension
from cuebook.projections.timeseries import Timeseries
from cuebook.projections.watch import Watch
from cuebook.projections.writer import Writer

if TYPE_CHECKING:
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["ALL", "Lag", "Runner", "RunnerStatus", "give_way"]

ALL: Final[tuple[Projection, ...]] = (Audit(), Runs(), Agents())
"""Every projection; the one with the most rows first: PostgreSQL takes them in while the others are folded."""

DRAIN_S: Final = 10.0
"""A batch that is being written when the end is asked for has this long to be committed."""
RETRY_S: Final = 0.5
NICENESS: Final = 10

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """`positions`: how far each projection has committed, by name. `backlog`: messages known to lie ahead.

    `parked`: events that could not be applied since the start, by projection.
    """

    positions: dict[str, Position]
    parked: dict[str, int]
    backlog: int
    database_available: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far one projection is: `position` is committed, `events` are stored after it, as the server last said.

    `since`: when the first of these was recorded, in microseconds since 1970; 0 when there are none, or none has come.
    """

    position: int
    events: int
    since: int


class Runner:
    """One per space and database. `await run()` until `drain()` or `stop` is set."""

    def __init__(
        self,
        log: EventLog,
        database_url: str,
        *,
        projections: Sequence[Projection] = ALL,
        batch_size: int = BATCH_SIZE,
        stop: asyncio.Event | None = None,
        tracing: Tracing | None = None,
        timeseries: Timeseries = Timeseries.AUTO,
    ) -> None:
        self._tracing, self._timeseries = tracing, timeseries
        self._log, self._url, self._batch_size = log, database_url, batch_size
        self._stop = stop or asyncio.Event()
        self._outage = Outage()
        self._space = log.subjects.space
        self._projections = projections
        self._writers = [Writer(projection, database_url, self._space, self._outage) for projection in projections]
        self._reader: LogReader | None = None
        self._watch = Watch(database_url, self._space, projections, self._go_over)
        self._moved = False
        self._batch: Batch = ()
        self.ready = asyncio.Event()
        """Set once the tables are there and every checkpoint is known."""

    def drain(self) -> None:
        """Commit what is being written and return from `run`."""
        self._stop.set()

    def status(self) -> RunnerStatus:
        """How far everything is, from memory."""
        return RunnerStatus(
            positions={writer.projection.name: writer.position for writer in self._writers},
            parked={writer.projection.name: writer.parked for writer in self._writers},
            backlog=self._reader.backlog if self._reader is not None else 0,
            database_available=not self._outage.under_way,
        )

    def lags(self) -> dict[str, Lag]:
        """How far each projection is behind the log, from memory; empty before the first look at it."""
        reader = self._reader
        return {writer.projection.name: self._lag(writer, reader) for writer in self._writers} if reader else {}

    def _lag(self, writer: Writer, reader: LogReader) -> Lag:
        done, batch = writer.position.sequence, self._batch
        if batch and done < batch[-1].sequence:  # sequences have no gaps
            since = batch[max(0, done + 1 - batch[0].sequence)].recorded_at
        else:
            since = reader.oldest_waiting
        return Lag(position=done, events=max(0, reader.end - done), since=since)

    async def run(self, *, until: int | None = None) -> None:
        """Apply the log to the projections, for ever or up to and including sequence `until`.

        Waits while PostgreSQL or NATS are away. Raises HistoryRegressedError when the log is not the one that was read,
        ConfigurationError when another process writes the same projections or PostgreSQL refuses, and UnavailableError
        when the log's connection was closed.
        """
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            async with AsyncExitStack() as stack:
                going = await self._unless(stopped, self._open(stack))
                await stack.enter_async_context(self._watch)
                while going:
                    try:
                        await self._follow(stopped, until)
                    except ReadAgainError as error:
                        logger.info("going on from the checkpoints", extra={"reason": str(error)})
                        going = await self._unless(stopped, self._reload())
                    except UnavailableError as error:
                        if self._log.connection.is_closed:
                            raise
                        logger.warning("the log is unavailable; the projections wait", extra={"reason": str(error)})
                        await asyncio.wait([stopped], timeout=RETRY_S)
                    else:
                        return
        finally:
            stopped.cancel()

    async def _open(self, stack: AsyncExitStack) -> bool:
        await self._prepare()
        for writer in self._writers:
            await stack.enter_async_context(writer)
        self._outage.ended()
        self.ready.set()
        return True

    async def _reload(self) -> bool:
        self._moved = False
        for writer in self._writers:
            await writer.reload()
        return True

    def _go_over(self, shown: dict[str, int]) -> None:
        """Another generation has taken the place of one of ours: let go of that and write the new one."""
        written = {writer.projection.name: writer.generation.number for writer in self._writers}
        if {**written, **shown} != written:
            self._moved = True
            if self._reader is not None:
                self._reader.interrupt(_moved())

    async def _prepare(self) -> None:
        backoff = Backoff()
        while True:
            try:
                async with await connect(self._url, [schema_name(self._space)], **UNHURRIED) as connection:
                    await prepare_database(connection, self._space, self._projections, timeseries=self._timeseries)
                    await require_extension(connection, self._projections)
                    await self._tell_histories(connection)
            except psycopg.Error as error:
                if not is_outage(error):
                    raise
                self._outage.began(error)
                await backoff.pause()
            else:
                return

    async def _tell_histories(self, connection: Transaction) -> None:
        """Say what the histories are made of: for those that stood there already it was decided long ago."""
        for projection in self._projections:
            found = written_by(await generations_of(connection, projection.name), projection.version)
            if found is None or found.timeseries is None:
                continue
            facts = {"projection": projection.name, "timeseries": found.timeseries, "why": found.timeseries_why}
            if self._timeseries in (Timeseries.AUTO, found.timeseries):
                logger.info("histories", extra=facts)
            else:
                logger.warning(
                    "histories are of another kind than asked for; 'cuebook projection rebuild' makes them anew",
                    extra={**facts, "wanted": self._timeseries.value},
                )

    async def _follow(self, stopped: asyncio.Future[Any], until: int | None) -> None:
        """Read on from the lowest checkpoint until the end is asked for. Raises ReadAgainError, UnavailableError."""
        async with AsyncExitStack() as stack:
            reader = self._reader = await self._unless(stopped, self._open_reader(stack))
            if self._moved:
                raise _moved()
            while reader is not None and not self._is_past(until):
                batch = await self._unless(stopped, reader.next_batch())
                if batch is None:
                    return
                if until is not None and batch[-1].sequence > until:
                    batch = [item for item in batch if item.sequence <= until]
                if await self._unless(stopped, self._apply(batch), grace_s=DRAIN_S) is None:
                    return

    async def _open_reader(self, stack: AsyncExitStack) -> LogReader:
        positions = {writer.position for writer in self._writers}
        for position in positions:
            await self._log.verify_position(position)
        after = min(positions, key=lambda position: position.sequence)
        return await stack.enter_async_context(LogReader(self._log, after=after, batch_size=self._batch_size))

    def _is_past(self, until: int | None) -> bool:
        return until is not None and all(writer.position.sequence >= until for writer in self._writers)

    async def _apply(self, batch: Batch) -> bool:
        again: list[ReadAgainError] = []
        self._batch = batch
        began = time.time_ns()

        async def apply(writer: Writer) -> None:
            try:
                await writer.apply(batch)
            except ReadAgainError as error:  # no reason to break off what the others are at
                again.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                for writer in self._writers:
                    group.create_task(apply(writer))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one is reason enough to stop
        if again:
            raise again[0]
        if self._tracing is not None:
            self._trace(self._tracing, batch, began)
        return True

    def _trace(self, tracing: Tracing, batch: Batch, began_ns: int) -> None:
        from cuebook.telemetry.projecting import project

        project(
            tracing,
            batch,
            [writer.projection.name for writer in self._writers],
            self._space,
            began=began_ns // 1000,
            ended=time.time_ns() // 1000,
            copies=self._log.sees_originals,
        )

    async def _unless(
        self, stopped: asyncio.Future[Any], work: Coroutine[Any, Any, _T], *, grace_s: float = 0.0
    ) -> _T | None:
        """The result of `work`, or None when the end was asked for and it has not come within the grace."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not self._outage.under_way:
                await asyncio.wait([task], timeout=grace_s)
            return task.result() if task.done() else None
        finally:
            await ended(task)


def give_way() -> None:
    """For a process that does nothing else: on a busy machine the work comes first, the views of it a moment later.

    Source: sched(7), on autogroups: Linux weighs sessions first, and within each of them processes.
    """
    with contextlib.suppress(PermissionError):  # a sandbox that forbids it, whose Nice= says the same
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no Linux, or none with autogroups: the process' own niceness is all
            Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def _moved() -> ReadAgainError:
    return ReadAgainError("another generation is to be written")
