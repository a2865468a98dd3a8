"""Agents as a process: one instance of each class, renewed when it is spent, drained at the end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from cuebook.actors.agent import Agent
from cuebook.actors.edge import Edge
from cuebook.actors.instance import Instance
from cuebook.actors.shelf import Shelf
from cuebook.events.connection import Connection
from cuebook.events.errors import StreamMissingError, UnavailableError
from cuebook.events.log import EventLog
from cuebook.events.stream import refuse_recording

if TYPE_CHECKING:
    from cuebook.actors.handling import Handling
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["AgentHost"]

DRAIN_S = 30.0
RETRY_S = 1.0

logger = logging.getLogger(__name__)


class AgentHost:
    """Keeps one instance of each given agent class running, renews those that are spent, drains all at the end."""

    def __init__(
        self,
        connection: Connection,
        space: str,
        agents: list[type[Agent]],
        *,
        tracing: Tracing | None = None,
        edge: Edge | None = None,
        handling: Handling | None = None,
    ) -> None:
        """Take the settings. With `edge`, work goes on there while the log cannot be reached.

        `handling` is told how long handlers take; it measures over all instances of this host.
        """
        self._tracing, self._handling, self._edge, self._space = tracing, handling, edge, space
        for cls in agents:
            cls.handlers()
        self._agents = agents
        self.log = EventLog(connection, space, source="agents")
        self.ready = asyncio.Event()
        self.instances: list[Instance] = []
        self.drained: list[str] = []
        """Agents whose instance was asked to leave, as by `cuebook agent drain`: they are not served here any more."""
        self.drain_s = DRAIN_S
        self._handled = 0
        self._stopping = asyncio.Event()
        self._failure: Exception | None = None
        self._renewals: dict[Instance, asyncio.Task[None]] = {}

    @property
    def handled(self) -> int:
        """Tasks that ended here since the start, whichever instance had them."""
        return self._handled + sum(one.handled for one in self.instances)

    async def run(self, *, drain_s: float = DRAIN_S) -> None:
        """Serve until `stop()`, or until every instance has been asked to leave. `drain_s` may be set anew meanwhile.

        Raises what an agent's `start` raises, ConfigurationError for an unfit stream or a recording, and
        UnavailableError when the server has closed the connection for good.
        """
        self.drain_s = drain_s
        async with self.log:
            if self._edge is None:
                refuse_recording(await self.log.verify())
            self.log.source = f"agents-{os.uname().nodename.split('.')[0].lower()[:30]}-{os.getpid()}"
            try:
                if self._edge is None:
                    for cls in self._agents:
                        await self._add(cls)
                else:
                    await self._add_at_edge(self._edge)
                if not self._stopping.is_set():
                    self.ready.set()
                await self._until_stopped()
            finally:
                self._stopping.set()
                while self.instances or self._renewals:
                    leaving = [self._retire(one, "stopped", self.drain_s) for one in self.instances]
                    await asyncio.gather(*leaving, *self._renewals.values())
                if not self.log.connection.is_closed and (self._edge is None or self._edge.linked):
                    await self.log.appender.flushed()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `run()`: drain every instance within its deadline."""
        self._stopping.set()

    def renew(self) -> None:
        """Put a fresh instance in the place of each, such as after a change of `concurrency`."""
        for instance in list(self.instances):
            if not instance.draining:
                self._start_renewal(instance, "renewed")

    async def _until_stopped(self) -> None:
        closed = asyncio.ensure_future(self.log.connection.closed.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([closed, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (closed, stopping):
                one.cancel()
        if self.log.connection.is_closed and self._failure is None:
            self._failure = UnavailableError("the connection to NATS was closed for good")

    async def _add(self, cls: type[Agent], shelf: Shelf | None = None) -> None:
        instance = Instance(self.log, cls, self._on_spent, tracing=self._tracing, shelf=shelf, handling=self._handling)
        if await instance.start(self._stopping):
            self.instances.append(instance)

    async def _add_at_edge(self, edge: Edge) -> None:
        """First those that have been here before, which need no log; then those that have to register with it."""
        shelves = [(cls, await edge.shelf(self._space, cls.name)) for cls in self._agents]
        if shelves:
            await edge.say_what_nobody_serves(self._space)
        for cls, shelf in sorted(shelves, key=lambda one: not one[1].instance):
            await self._add_from(cls, shelf)

    async def _add_from(self, cls: type[Agent], shelf: Shelf) -> None:
        while not self._stopping.is_set():
            try:
                if not shelf.is_open:  # the link was cut while it registered
                    await shelf.open()
                if not shelf.instance:
                    refuse_recording(await self.log.verify())
                await self._add(cls, shelf)
            except (UnavailableError, StreamMissingError) as error:
                logger.warning("an agent that was never here waits for the log: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _retire(self, instance: Instance, reason: str, within_s: float) -> None:
        if self.log.connection.is_closed:
            await instance.abandon()
        elif self._edge is not None and not self._edge.linked:
            await instance.leave_work(within_s=within_s)
        else:
            await instance.drain(reason, within_s=within_s)
        if instance in self.instances:
            self.instances.remove(instance)
            self._handled += instance.handled

    def _on_spent(self, instance: Instance) -> None:
        self._start_renewal(instance, "recycled" if instance.is_spent else "")

    def _start_renewal(self, instance: Instance, reason: str) -> None:
        if instance in self._renewals:
            return
        renewal = asyncio.get_running_loop().create_task(self._renew(instance, reason))
        self._renewals[instance] = renewal
        renewal.add_done_callback(lambda _: self._renewals.pop(instance, None))

    async def _begin_anew(self, instance: Instance, shelf: Shelf) -> None:
        """What it had was given to others, or done, when it left; of what it knows here nothing counts any more."""
        logger.error(
            "the edge's JetStream was put back to an older copy: an instance had left since, a new one takes its place",
            extra={"agent": instance.agent_class.name, "instance": instance.id},
        )
        await instance.leave_outlived()
        if instance in self.instances:
            self.instances.remove(instance)
            self._handled += instance.handled
        while not self._stopping.is_set():
            if await shelf.forget():
                await self._add_from(instance.agent_class, shelf)
                return
            await asyncio.sleep(RETRY_S)

    async def _renew(self, instance: Instance, reason: str) -> None:
        """A fresh instance first, then the old one leaves: no moment without slots. No reason: it just leaves."""
        try:
            if instance.outlived and instance.shelf is not None:
                await self._begin_anew(instance, instance.shelf)
                return
            if not reason:
                self.drained.append(instance.agent_class.name)
            elif not self._stopping.is_set():
                await self._add(instance.agent_class)
            await self._retire(instance, reason or "drain requested", self.drain_s)
        except Exception as error:  # a renewal that fails ends the process, which its supervisor restarts
            logger.exception("could not renew an instance", extra={"agent": instance.agent_class.name})
            self._failure = error
            self._stopping.set()
            return
        if not self.instances:
            self._stopping.set()
