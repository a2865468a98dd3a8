"""Filling a projection's tables again from event 1, beside those that are read, and letting them take their place.

The new generation is in a schema of its own. It is never ahead of the live one while the two are compared: what it
lacks is applied in the very transaction that compares, on one snapshot of both. Killed anywhere, the next rebuild goes
on from the checkpoint of what was built, or drops it where it is of no use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import IsolationLevel, sql

from cuebook.events.envelope import Position
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, NotFoundError, UnavailableError
from cuebook.events.log import EventLog
from cuebook.projections.checkpoint import ReadAgainError
from cuebook.projections.compare import TableComparison, compare
from cuebook.projections.database import UNHURRIED, Outage, Transaction, connect, is_outage, schema_name
from cuebook.projections.generations import (
    Generation,
    count_parked,
    drop_generation,
    drop_obsolete,
    generations_of,
    make_generation,
    previous_of,
    shown_of,
)
from cuebook.projections.migrations import lock_space, prepare_database
from cuebook.projections.projection import Projection
from cuebook.projections.reader import LogReader
from cuebook.projections.switch import catch_up, switch
from cuebook.projections.timescale import settle
from cuebook.projections.timeseries import Timeseries
from cuebook.projections.writer import Writer

__all__ = ["REBUILD_BATCH", "Progress", "RebuildReport", "RollbackReport", "rebuild", "rollback"]

REBUILD_BATCH: Final = 10_000
"""Nobody waits for a single event of a rebuild, and a run that begins and ends in one batch is written once."""
CLOSE: Final = 500
"""Messages that may be left for the switch, while which the service waits."""
LIVE_WAIT_S: Final = 0.1
NOTICED_WITHIN_S: Final = 2.0
"""PostgreSQL ends the session of a program that was killed a moment later."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a rebuild is. `stage`: reading, comparing, compressing, switching or done.

    Sequences; reading began at `first`.
    """

    stage: str
    projection: str
    first: int
    sequence: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """What became of one projection. `resumed_at`: the sequence from which an earlier attempt was gone on with, or 0.

    `events`: messages applied. `compared_at`: the sequence at which both were compared, or None, and why in
    `not_compared`. `before`: the generation that was shown. `timeseries`: what its histories are made of, and why.
    `dropped`: generations that were of no more use.
    """

    projection: str
    version: int
    generation: int
    before: int
    resumed_at: int
    events: int
    sequence: int
    seconds: float
    compared_at: int | None
    not_compared: str
    tables: tuple[TableComparison, ...]
    parked: int
    switched: bool
    timeseries: str | None
    timeseries_why: str | None
    dropped: tuple[int, ...]

    @property
    def differences(self) -> int:
        """Rows that are not the same in the live tables."""
        return sum(table.differences for table in self.tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """What a rollback did. `events`: messages that the earlier generation lacked; `sequence`: where it stands."""

    projection: str
    version: int
    generation: int
    before: int
    events: int
    sequence: int


@dataclass(slots=True, kw_only=True)
class _Build:
    """One projection under way. `regressed`: the log is not the one that the live tables were read from."""

    writer: Writer
    resumed_at: int
    regressed: bool
    began: float
    events: int = 0


async def rebuild(
    log: EventLog,
    database_url: str,
    projections: Sequence[Projection],
    *,
    dry_run: bool = False,
    trust_log: bool = False,
    everything: bool = False,
    timeseries: Timeseries = Timeseries.AUTO,
    samples: int = 10,
    batch_size: int = REBUILD_BATCH,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[RebuildReport]:
    """Build new generations of the projections, reading the log once; compare them with the live ones and show them.

    `dry_run`: compare, and drop what was built. `trust_log`: go on where the log is not the one that the live tables
    were read from. `everything`: bring months back that retention has dropped. Differences are reported, at most
    `samples` rows a table, and hinder nothing. `timeseries`: what the histories are made of from now on.

    Raises HistoryRegressedError, ConfigurationError when another rebuild is under way or the database is not ours, and
    UnavailableError; run again, it goes on.
    """
    async with _outages(), await connect(database_url, [schema_name(log.subjects.space)], **UNHURRIED) as control:
        await prepare_database(control, log.subjects.space, projections, timeseries=timeseries)
        one = _Rebuild(log, database_url, control, batch_size, on_progress, timeseries)
        async with AsyncExitStack() as stack:
            builds = [
                await one.begin(stack, projection, dry_run=dry_run, trust_log=trust_log, everything=everything)
                for projection in projections
            ]
            await one.fill(builds, compared=False)
            return [await one.finish(build, dry_run=dry_run, samples=samples) for build in builds]


async def rollback(
    log: EventLog,
    database_url: str,
    projection: Projection,
    *,
    now: bool = False,
    batch_size: int = REBUILD_BATCH,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RollbackReport:
    """Show the generation again that was shown before; what it lacks is applied first.

    Until then the views show the present one. `now`: show it at once as it stands; the service brings it up to date if
    it has that version. Raises NotFoundError when there is none, ConfigurationError when this release has another
    version of the projection than wrote it, HistoryRegressedError, UnavailableError.
    """
    space = log.subjects.space
    async with _outages(), await connect(database_url, [schema_name(space)], **UNHURRIED) as control:
        await prepare_database(control, space, [projection])
        found = await generations_of(control, projection.name)
        target = previous_of(found)
        if target is None:
            raise NotFoundError(
                f"projection {projection.name} has no generation that was shown before",
                remedy="'cuebook projection list' shows which there are; a rebuild makes one",
            )
        if target.state == "live" and target.claimed and not now:
            raise ConfigurationError(
                f"a service writes generation {target.number} of {projection.name}",
                remedy="roll back with --now: that service keeps it up to date",
            )
        if target.version != projection.version and not now:
            raise ConfigurationError(
                f"generation {target.number} of {projection.name} was written by version {target.version} of the "
                f"projection, this release has version {projection.version}",
                remedy=f"roll back with the release that wrote it, or with --now: as it stood at {target.sequence}",
            )
        if not now:
            await log.verify_position(target.position)
        one = _Rebuild(log, database_url, control, batch_size, on_progress, Timeseries.AUTO)
        writer = Writer(
            projection, database_url, space, Outage(), generation=target, state=target.state, applies=not now
        )
        async with writer:
            build = _Build(writer=writer, resumed_at=target.sequence, regressed=False, began=time.monotonic())
            if not now:
                await one.fill([build], compared=True)
            one.tell("switching", build)
            before = await switch(log, writer, batch_size=batch_size, follow=not now)
        one.tell("done", build)
        return RollbackReport(
            projection=projection.name,
            version=target.version,
            generation=target.number,
            before=before.number,
            events=writer.position.sequence - target.sequence,
            sequence=writer.position.sequence,
        )


class _Rebuild:
    """The steps that all projections of one rebuild take. `control` is a connection beside those of the writers."""

    def __init__(
        self,
        log: EventLog,
        database_url: str,
        control: Transaction,
        batch_size: int,
        on_progress: Callable[[Progress], None],
        timeseries: Timeseries,
    ) -> None:
        self._log, self._url, self._control = log, database_url, control
        self._batch_size, self._on_progress = batch_size, on_progress
        self._space, self._timeseries = log.subjects.space, timeseries

    async def _unfinished(self, name: str) -> Generation | None:
        """What somebody builds, or has left. Who was killed has let go only when PostgreSQL has noticed."""
        give_up = time.monotonic() + NOTICED_WITHIN_S
        while True:
            found = next((one for one in await generations_of(self._control, name) if one.state == "building"), None)
            if found is None or not found.claimed or time.monotonic() > give_up:
                return found
            await asyncio.sleep(0.05)

    async def begin(
        self, stack: AsyncExitStack, projection: Projection, *, dry_run: bool, trust_log: bool, everything: bool
    ) -> _Build:
        """Find what an earlier attempt has left, or make new tables, and claim them."""
        live = await self._live(projection.name)
        regressed = await self._regression(live.position)
        if regressed is not None and not trust_log:
            raise HistoryRegressedError(
                f"the live tables of {projection.name} were read from another log: {regressed}",
                remedy="find out which of the two is right; if it is the log, rebuild with --trust-log",
            )
        kept_from = None if everything else live.kept_from
        found = await self._unfinished(projection.name)
        if found is not None and found.claimed:
            raise _under_way(projection.name)
        if found is not None and not (
            found.version == projection.version
            and found.kept_from == kept_from
            and await self._regression(found.position) is None
            and (self._timeseries is Timeseries.AUTO or found.timeseries in (None, self._timeseries))
            and not (dry_run and found.sequence > live.sequence)
        ):
            await drop_generation(self._control, found)
            found = None
        if found is None:
            async with self._control.transaction():
                await lock_space(self._control, self._space)
                if any(one.state == "building" for one in await generations_of(self._control, projection.name)):
                    raise _under_way(projection.name)  # another one began at the same moment
                number = await make_generation(
                    self._control,
                    self._space,
                    projection,
                    "building",
                    timeseries=self._timeseries,
                    kept_from=kept_from,
                )
            found = next(one for one in await generations_of(self._control, projection.name) if one.number == number)
        writer = Writer(projection, self._url, self._space, Outage(), generation=found, state="building")
        await stack.enter_async_context(writer)
        return _Build(
            writer=writer,
            resumed_at=writer.position.sequence,
            regressed=regressed is not None,
            began=time.monotonic(),
        )

    async def fill(self, builds: Sequence[_Build], *, compared: bool) -> None:
        """Apply the log to all of them until each is about where it is to be: to be compared, or to be shown.

        About: the live one goes on meanwhile. What is missing then is applied in the transaction that follows.
        """
        before: int | None = None
        while True:
            targets = [await self._target(build, compared=compared) for build in builds]
            behind = [target - build.writer.position.sequence for build, target in zip(builds, targets, strict=True)]
            missing = max(behind, default=0)
            if missing <= 0 or (before is not None and (missing <= CLOSE or before <= missing <= self._batch_size)):
                return
            before = missing
            try:
                await self._read(builds, targets)
            except ReadAgainError as error:
                logger.warning("going on from the checkpoints", extra={"reason": str(error)})
                for build in builds:
                    await build.writer.reload()

    async def finish(self, build: _Build, *, dry_run: bool, samples: int) -> RebuildReport:
        """Compare, then show it, or drop it again."""
        writer, name = build.writer, build.writer.projection.name
        await self._analyze(writer.generation)
        self.tell("comparing", build)
        parked = await count_parked(self._control, writer.generation)
        compared_at, reason, tables = await self._compare(build, samples)
        live, dropped = await self._live(name), []
        if dry_run:
            await writer.__aexit__()
            await drop_generation(self._control, writer.generation)
        else:
            if writer.generation.timeseries == Timeseries.TIMESCALE:
                self.tell("compressing", build)
                await settle(self._control, writer.generation.tables_in, writer.projection)
            await self.fill([build], compared=True)
            self.tell("switching", build)
            live = await switch(self._log, writer, batch_size=self._batch_size, follow=not build.regressed)
            await writer.__aexit__()  # the service waits for it
            dropped = await self._drop_obsolete(name)
        self.tell("done", build)
        return RebuildReport(
            projection=name,
            version=writer.generation.version,
            generation=writer.generation.number,
            before=live.number,
            resumed_at=build.resumed_at,
            events=writer.position.sequence - build.resumed_at,
            sequence=writer.position.sequence,
            seconds=time.monotonic() - build.began,
            compared_at=compared_at,
            not_compared=reason,
            tables=tuple(tables),
            parked=parked,
            switched=not dry_run,
            timeseries=writer.generation.timeseries,
            timeseries_why=writer.generation.timeseries_why,
            dropped=tuple(dropped),
        )

    async def _drop_obsolete(self, name: str) -> list[int]:
        try:
            return await drop_obsolete(self._control, name)
        except psycopg.Error as error:  # people read the new one: that is what was asked for
            facts = {"projection": name, "reason": str(error).strip()}
            logger.warning("what is of no more use was not dropped; the next rebuild does it", extra=facts)
            return []

    def tell(self, stage: str, build: _Build, last: int = 0) -> None:
        """Say where it is."""
        at = build.writer.position.sequence
        name = build.writer.projection.name
        self._on_progress(
            Progress(stage=stage, projection=name, first=build.resumed_at, sequence=at, last=max(last, at))
        )

    async def _target(self, build: _Build, *, compared: bool) -> int:
        """To be compared: not beyond the live one. To be shown: to where a service keeps that, else the log's end."""
        live = await self._live(build.writer.projection.name)
        if not build.regressed and (
            live.claimed or (not compared and 0 < live.sequence >= build.writer.position.sequence)
        ):
            return live.sequence
        return (await self._log.verify()).last_sequence

    async def _read(self, builds: Sequence[_Build], targets: Sequence[int]) -> None:
        after = min((build.writer.position for build in builds), key=lambda position: position.sequence)
        slowest = min(builds, key=lambda build: build.writer.position.sequence)
        last = max(targets)
        self.tell("reading", slowest, last)
        async with LogReader(self._log, after=after, batch_size=self._batch_size) as reader:
            while after.sequence < last:
                batch = await reader.next_batch()
                try:
                    async with asyncio.TaskGroup() as group:
                        for build, target in zip(builds, targets, strict=True):
                            part = batch if batch[-1].sequence <= target else [i for i in batch if i.sequence <= target]
                            if part:
                                group.create_task(build.writer.apply(part))
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                after = Position(batch[-1].sequence)
                self.tell("reading", slowest, last)

    async def _compare(self, build: _Build, samples: int) -> tuple[int | None, str, list[TableComparison]]:
        """The sequence of the comparison and what was found, or None and why there is none."""
        writer = build.writer
        if build.regressed:
            return None, "the live tables were read from another log", []
        while True:
            live = await self._live(writer.projection.name)
            if live.sequence == 0:
                return None, "the live tables are empty", []
            if live.sequence >= writer.position.sequence:
                break
            if not live.claimed:
                return None, f"nobody writes the live tables; they stand at {live.sequence}", []
            await asyncio.sleep(LIVE_WAIT_S)
        async with writer.transaction(IsolationLevel.REPEATABLE_READ) as tx:
            # The first look decides what is seen: both generations at one moment, and what is written here after it.
            found = await generations_of(tx, writer.projection.name)
            live = shown_of(found) or live
            mine = next(one for one in found if one.number == writer.generation.number)
            await catch_up(self._log, writer, live.sequence, batch_size=self._batch_size)
            return live.sequence, "", await compare(tx, writer.projection.histories, live, mine, samples=samples)

    async def _analyze(self, generation: Generation) -> None:
        cursor = await self._control.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) "
            "AND relkind IN ('r', 'p') AND NOT relispartition",
            [generation.tables_in],
        )
        for (table,) in await cursor.fetchall():
            await self._control.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(generation.tables_in, table)))

    async def _live(self, projection: str) -> Generation:
        live = shown_of(await generations_of(self._control, projection))
        assert live is not None  # prepare_database shows one
        return live

    async def _regression(self, position: Position) -> HistoryRegressedError | None:
        try:
            await self._log.verify_position(position)
        except HistoryRegressedError as error:
            return error
        return None


def _under_way(projection: str) -> ConfigurationError:
    return ConfigurationError(
        f"a rebuild of projection {projection} is under way",
        remedy="wait for it to end: 'cuebook projection list' shows how far it is",
    )


@asynccontextmanager
async def _outages() -> AsyncIterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if not is_outage(error):
            raise
        raise UnavailableError(
            f"PostgreSQL is unavailable: {str(error).strip()}",
            remedy="'cuebook projection list' says what readers see; the same command goes on from where this one was",
        ) from error
