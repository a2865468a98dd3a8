"""The orchestrator as a process: reads the log, keeps the lease, ticks, answers questions, saves snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.js.errors import Error as JetStreamError

from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.inboxes import Inboxes
from cuebook.actors.orchestrator.lease import Lease
from cuebook.actors.orchestrator.listening import SnapshotGapError
from cuebook.actors.orchestrator.lookback import LookBack
from cuebook.actors.orchestrator.overview import Overview, unserved
from cuebook.actors.orchestrator.queries import answer_query, pack_answer
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.snapshot import SnapshotStore
from cuebook.actors.saga import Saga
from cuebook.events.append import Done
from cuebook.events.connection import Connection, ended, json_object
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConfigurationError, CuebookError, UnavailableError
from cuebook.events.facts import Event, RunCompleted, RunStarted, RunStuck, StepAsked, StepWaiting, TaskRequested
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog, Unreadable
from cuebook.events.log_feed import LogFeed
from cuebook.events.release import release
from cuebook.events.stream import refuse_recording

if TYPE_CHECKING:
    from cuebook.actors.orchestrator.tallies import Tallies
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["OrchestratorService"]

TICK_S = 0.05
SNAPSHOT_EVERY_S = 60.0
SNAPSHOT_MIN_EVENTS = 10_000
RETRY_S = 0.5
CLOCK_EVERY_S = 30.0
CLOCK_LOOKS = 3
"""The quickest answer tells the time best."""
_FROM_SAGAS = (RunCompleted, RunStuck, TaskRequested, StepWaiting, StepAsked)
"""Events that carry what a saga's code has made; all other data here comes from the log."""

logger = logging.getLogger(__name__)


class OrchestratorService:
    """One orchestrator process of a space. `run()` until cancelled or `stop()`; a standby until it gets the lease.

    `age_s`: for how many seconds the process has run already. A saga that is new counts the events since it began.
    """

    def __init__(
        self,
        connection: Connection,
        space: str,
        sagas: Sequence[Saga[Any, Any]],
        *,
        replicas: int = 1,
        age_s: float = 0.0,
        tracing: Tracing | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        self.name = f"orchestrator-{os.uname().nodename.split('.')[0].lower()[:30]}-{os.getpid()}"
        self._connection, self._replicas = connection, replicas
        self.log = EventLog(connection, space, source="orchestrator")
        self.sagas = Repertoire(sagas)
        self.core = Orchestrator(self.log.subjects, self.sagas, self)
        self.caught_up = asyncio.Event()
        self.deciding = asyncio.Event()
        """It decides, and the log says from when the events of its sagas count."""
        self.in_place = asyncio.Event()
        """It is deciding, or stands by for another."""
        self._stopping = asyncio.Event()
        self._feed: LogFeed | None = None
        self._target = 0
        self._snapshots = SnapshotStore(connection, self.log.subjects, replicas=replicas)
        self._snapshot_at = 0
        self._lease: Lease | None = None
        self._overview = Overview()
        self._inboxes = Inboxes(connection, self.log.subjects)
        self._errands: set[asyncio.Task[None]] = set()
        self._look_back = LookBack(self.log, self._errand)
        self._clock_us = self._clock_error_us = 0
        self._age_s, self._made_s = age_s, time.monotonic()
        self._tallies = tallies
        """Told of every event that is folded while this one decides: others count what others decide about."""
        self._tracer = None
        if tracing is not None:  # the import too is only for those who want traces
            from cuebook.actors.orchestrator.tracing import RunTracer

            self._tracer = RunTracer(tracing, self.log, self._errand)
        self._own: dict[int, tuple[str, Event, str, str, str]] = {}
        """What we appended and have not read back yet, by sequence: it need not be decoded."""

    @property
    def lag(self) -> int:
        """Events that are stored and not folded yet, as the server last said."""
        return self._feed.pending if self._feed is not None else 0

    async def run(self) -> None:
        """Serve until `stop()`.

        Raises ConfigurationError for a stream that could lose events or that is a recording, HistoryRegressedError.
        """
        async with self.log, self._noticing_rolls():
            facts = await self.log.ensure(replicas=self._replicas)
            refuse_recording(facts)
            began = facts.last_sequence
            if began and self._age_s:
                began = await self._find_beginning()
            self.core.world.listening.process_began = began
            await self._restore()
            try:
                await self._serve()
            except SnapshotGapError as error:
                logger.info("the snapshot cannot be used, reading the whole log: %s", error)
                self._forget(began)
                await self._serve()

    @contextlib.asynccontextmanager
    async def _noticing_rolls(self) -> AsyncIterator[None]:
        self.log.chain.on_roll.append(self._on_roll)
        try:
            yield
        finally:
            self.log.chain.on_roll.remove(self._on_roll)

    async def _find_beginning(self) -> int:
        """Where the stream ended when this process began: the last sequence that was certainly stored before."""
        clocks = []
        for _ in range(CLOCK_LOOKS):
            await self._set_clock()
            clocks.append((self._clock_error_us, self._clock_us))
        self._clock_error_us, self._clock_us = min(clocks)
        age_us = int((self._age_s + time.monotonic() - self._made_s) * 1_000_000)
        return await self.log.sequence_at(self.now() - age_us - self._clock_error_us)

    async def _serve(self) -> None:
        await self._set_clock()
        facts = await self.log.verify()
        self._target = facts.last_sequence  # before the feed, which delivers at once
        heartbeats = await self._connection.listen(
            self.log.subjects.heartbeat("a", "b").replace(".a.b", ".*.*"), self._on_heartbeat
        )
        try:
            async with self.log.feed(self._on_message, after=self.core.world.position.sequence) as feed:
                self._feed = feed
                await self._catch_up(feed.failure)
                await self._take_part(feed.failure)
        finally:
            await heartbeats.close()
        await self._save_snapshot()

    async def _take_part(self, failure: asyncio.Future[None]) -> None:
        """Decide whenever the lease is held, until told to stop."""
        questions = await self._connection.listen(f"query.{self.log.subjects.space}.*", self._on_query)
        self._lease = lease = Lease(self._connection, self.log.subjects, self.name, replicas=self._replicas)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(lease.keep()),
                    group.create_task(self._follow_lease(lease)),
                    group.create_task(self._tick()),
                    group.create_task(self._follow_clock()),
                    group.create_task(self._save_snapshots()),
                    group.create_task(_raise_when_done(failure)),
                ]
                await self._stopping.wait()
                self.core.deactivate()
                await self.log.appender.flushed()
                await ended(*tasks)  # cancelled until they are: a call of nats-py may swallow one
        finally:
            for errand in self._errands:
                errand.cancel()
            await questions.close()

    def stop(self) -> None:
        """End `run()` in good order.

        Nothing is decided any more, what is under way is acknowledged, the lease is free.
        """
        self._stopping.set()

    # --- the fold ---

    def _forget(self, began: int) -> None:
        """Begin with nothing, as without a snapshot."""
        self.core = Orchestrator(self.log.subjects, self.sagas, self)
        self.core.world.listening.process_began = began
        self._snapshot_at = 0
        self.caught_up.clear()

    async def _restore(self) -> None:
        data = await self._snapshots.load()
        if data is None:
            return
        try:
            self.core.world.load(data)
        except SnapshotGapError as error:
            logger.info("the snapshot cannot be used, reading the whole log: %s", error)
            return
        except ValueError as error:
            logger.warning("the snapshot cannot be used, reading the whole log: %s", error)
            return
        position = self.core.world.position
        await self.log.verify_position(position)
        self._snapshot_at = position.sequence
        logger.info("snapshot of %d open runs at sequence %d", len(self.core.world.runs), position.sequence)

    def _on_message(self, subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        own = self._own.pop(sequence, None)
        if own is not None and own[0].encode() in body:  # else a server came back without what it had acknowledged
            envelope = self._own_envelope(*own, subject, sequence, recorded_at)
            first = type(own[1]) is RunStarted and self.log.chain.generation > 1
            touched = self.core.receive(envelope, guarded=not first or self._is_guarded(envelope, headers))
            if self._tallies is not None and self.core.active:
                self._tallies.saw(envelope, touched)
            if self._tracer is not None:
                self._tracer.saw(envelope, self.core.world)
            return
        item = self.log.decode(subject, body, sequence, recorded_at, headers)
        touched = self.core.receive(item, guarded=self._is_guarded(item, headers))
        if self._tallies is not None and self.core.active and isinstance(item, Envelope):
            self._tallies.saw(item, touched)
        if self._tracer is not None and self.caught_up.is_set() and isinstance(item, Envelope):
            self._tracer.saw(item, self.core.world)
        if not self.caught_up.is_set() and sequence >= self._target:
            self.caught_up.set()

    def _is_guarded(self, item: Envelope | Unreadable, headers: bytes | None) -> bool:
        return is_guarded(item, headers, self.log.chain.generation_of(item.sequence))

    def _on_roll(self) -> None:
        """What is assigned from here on stands in another stream: the inboxes have to be there."""
        for one in self.core.world.registry.instances.values() if self.core.active else ():
            if one.health not in ("stopped", "lost", "unregistered"):
                self.open_inbox(one.agent, one.instance, one.registered_sequence, anew=True)

    def _own_envelope(
        self,
        event_id: str,
        event: Event,
        correlation_id: str,
        causation_id: str,
        traceparent: str,
        subject: str,
        sequence: int,
        recorded_at: int,
    ) -> Envelope:
        """What decoding our own event would give, as far as the fold looks at it."""
        return Envelope(
            id=event_id,
            event_type=event.event_type,
            time=recorded_at,
            source=self.log.source,
            correlation_id=correlation_id or event_id,
            causation_id=causation_id,
            traceparent=traceparent,
            data=None,
            event=event,
            address=self.log.subjects.parse(subject),
            subject=subject,
            sequence=sequence,
            recorded_at=recorded_at,
        )

    async def _catch_up(self, failure: asyncio.Future[None]) -> None:
        target = self._target
        began, first = time.monotonic(), self.core.world.position.sequence
        if first >= target:
            self.caught_up.set()
        waiting: asyncio.Future[Any] = asyncio.ensure_future(self.caught_up.wait())
        await asyncio.wait([waiting, failure], return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            waiting.cancel()
            failure.result()
        seconds = time.monotonic() - began
        folded = max(target - first, 0)  # the snapshot may be of a standby that has read on since we looked
        logger.info("folded %d events in %.2f s, %d runs are open", folded, seconds, len(self.core.world.runs))

    # --- the loops ---

    async def _follow_lease(self, lease: Lease) -> None:
        await lease.asked.wait()
        if not lease.held.is_set():
            self.in_place.set()
        while True:
            await lease.held.wait()
            self.core.activate()
            if self._tracer is not None:
                self._tracer.activated(self.now())
            await lease.lost.wait()
            self.core.deactivate()
            if self._tracer is not None:
                self._tracer.deactivated()
            self._inboxes.forget_all()
            self.deciding.clear()
            self.in_place.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.core.tick()

    async def _follow_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            try:
                await self._set_clock()
            except UnavailableError as error:
                logger.info("the server does not tell the time: %s", error)

    async def _set_clock(self) -> None:
        """Moments in the log are the server's, and its clock may differ from ours."""
        began = time.monotonic_ns()
        info = await js_request(self._connection, f"STREAM.INFO.{self.log.chain.stream}", {})
        told = datetime.fromisoformat(info["ts"][:19] + "+00:00").timestamp() + float(
            "0." + info["ts"][20:26].strip("Z")
        )
        took = time.monotonic_ns() - began
        self._clock_us = int(told * 1_000_000) - (began + took // 2) // 1_000
        self._clock_error_us = took // 2_000 + 1

    async def _save_snapshots(self) -> None:
        while True:
            await asyncio.sleep(SNAPSHOT_EVERY_S)
            if self.core.world.position.sequence - self._snapshot_at >= SNAPSHOT_MIN_EVENTS:
                await self._save_snapshot()

    async def _save_snapshot(self) -> None:
        sequence = self.core.world.position.sequence
        if sequence == self._snapshot_at or not self._connection.is_connected:
            return
        try:
            size = await self._snapshots.save(self.core.world.dump())
        except (nats.errors.Error, JetStreamError, TimeoutError, ValueError, TypeError, OverflowError) as error:
            logger.warning("the snapshot was not saved: %s", str(error) or type(error).__name__)
            return
        self._snapshot_at = sequence
        logger.info("saved a snapshot of %d bytes at sequence %d", size, sequence)

    def _on_heartbeat(self, subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        _, _, agent, instance = subject.decode("utf-8", "replace").split(".")
        said = json_object(payload)
        if not said or not isinstance(received := said.get("received", 0), int):
            return  # not an agent's
        self.core.liveness.heard(agent, instance, received, time.monotonic(), active=self.core.active)

    def _on_query(self, subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        noun = subject.decode("utf-8", "replace").rpartition(".")[2]
        if not reply:
            return
        if noun == "orchestrators":
            answer = self._about_itself()
        elif not self.deciding.is_set():
            return  # a standby leaves the answer to the one that decides
        elif noun == "overview":
            answer = self._overview.get(self.core, self.now())
        else:
            answer = answer_query(self.core, noun, payload)
        self._connection.post(reply.decode(), pack_answer(answer, self._connection.max_payload))

    def _about_itself(self) -> dict[str, Any]:
        """What every orchestrator says about itself. `time`: its own clock, microseconds since 1970."""
        return {
            "name": self.name,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "release": release(),
            "deciding": self.deciding.is_set(),
            "holds_lease": self._lease is not None and self._lease.held.is_set(),
            "sequence": self.core.world.position.sequence,
            "lag": self.lag,
            "snapshot_sequence": self._snapshot_at,
            "open_runs": len(self.core.world.runs),
            "sagas": sorted(self.sagas),
            "time": time.time_ns() // 1000,
        }

    # --- the port ---

    def post(
        self,
        subject: str,
        event: Event,
        *,
        scope: str = "",
        expected: int | None = None,
        correlation_id: str = "",
        causation_id: str = "",
        traceparent: str = "",
        done: Done,
    ) -> str:
        """See Port."""

        def settled(sequence: int, error: CuebookError | None) -> None:
            if error is None and sequence > self.core.world.position.sequence:
                self._own[sequence] = event_id, event, correlation_id, causation_id, traceparent
            done(sequence, error)

        event_id = self.log.post(
            subject,
            event,
            scope=scope,
            expected=expected,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            checked=not isinstance(event, _FROM_SAGAS),
            done=settled,
        )
        return event_id

    def signal(self, agent: str, instance: str, message: dict[str, Any]) -> None:
        """See Port."""
        self._connection.post(self.log.subjects.control(agent, instance), json.dumps(message).encode())

    def open_inbox(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        """See Port."""
        if self._inboxes.want(agent, instance) or anew:
            self._errand(lambda: self._inboxes.open(agent, instance, after, anew=anew))

    def forget_inbox(self, agent: str, instance: str) -> None:
        """See Port."""
        self._inboxes.forget(agent, instance)

    def close_inbox(self, agent: str, instance: str) -> None:
        """See Port."""
        self._inboxes.forget(agent, instance)
        self._errand(lambda: self._inboxes.close(agent, instance))

    def first_sequence(self, scope: str, answer: Callable[[int], None]) -> None:
        """See Port."""

        async def look() -> None:
            answer(await self.log.first_sequence(scope))

        self._errand(look)

    def find_event(
        self, topic: str, match: dict[str, Any], after: int, until: int, answer: Callable[[int, Any], None]
    ) -> None:
        """See Port."""
        self._look_back.find(topic, match, after, until, answer)

    def was_rolled(self) -> bool:
        """See Port."""
        return self.log.chain.generation > 1

    def is_guard(self, sequence: int) -> bool:
        """See Port."""
        return self.log.chain.guards(sequence)

    def ready(self) -> None:
        """See Port."""
        self.deciding.set()
        self.in_place.set()
        for one in unserved(self.core):
            facts = {"saga": one["saga"], "runs": one["count"], "first": one["runs"][0]}
            logger.warning("open runs stand still: %s", one["reason"], extra=facts)

    def now(self) -> int:
        """See Port."""
        return time.monotonic_ns() // 1000 + self._clock_us

    def _errand(self, attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that needs an answer from the server, again and again until it answers."""

        async def persist() -> None:
            while True:
                try:
                    await attempt()
                except UnavailableError as error:
                    logger.warning("trying again: %s", error)
                    await asyncio.sleep(RETRY_S)
                except ConfigurationError:
                    logger.exception("the server refused an errand of the orchestrator")
                    return
                else:
                    return

        task = asyncio.get_running_loop().create_task(persist())
        self._errands.add(task)
        task.add_done_callback(self._on_errand_done)

    def _on_errand_done(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an errand of the orchestrator failed", exc_info=error)


async def _raise_when_done(future: asyncio.Future[None]) -> None:
    await asyncio.shield(future)
