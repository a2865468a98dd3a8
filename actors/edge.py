"""The far side of a link that may be cut: the edge's own JetStream, and whether the log can be reached from there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from cuebook.actors.shelf import Shelf, make_stream, open_shelf, unserved
from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, CuebookError, UnavailableError
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token

__all__ = ["Edge"]

LOOK_EVERY_S = 1.0
ANSWER_WITHIN_S = 2.0

logger = logging.getLogger(__name__)


class Edge:
    """One edge, called `name`, with a connection to its own JetStream. The connection stays the caller's.

    `linked` says whether the log answered when last asked; `watch` asks. Before the first answer nobody knows: None.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self.connection = check_token(name, "edge"), connection
        self.linked: bool | None = None
        self.shelves: list[Shelf] = []
        self.on_linked: list[Callable[[], None]] = []
        self._changed_at = time.monotonic()

    @property
    def cut_for_s(self) -> float:
        """For how many seconds the log has not answered; 0 while it does, and before anybody knows."""
        return time.monotonic() - self._changed_at if self.linked is False else 0.0

    @property
    def waiting(self) -> int:
        """Answers that the log does not have yet."""
        return sum(shelf.waiting for shelf in self.shelves)

    @property
    def status(self) -> str:
        """How it stands with the link, in words; empty while it holds and nothing waits."""
        answers = f"{waiting} answers kept" if (waiting := self.waiting) else ""
        if self.linked is False:
            cut = f"cut off from the log for {self.cut_for_s:.0f} s"
            return f"{cut}, {answers}" if answers else cut
        return answers

    async def shelf(self, space: str, agent: str) -> Shelf:
        """What an agent had here, on the edge's own JetStream. Raises as `open_shelf`."""
        shelf = await open_shelf(self.connection, space, self.name, agent)
        self.shelves.append(shelf)
        return shelf

    async def say_what_nobody_serves(self, space: str) -> None:
        """Warn of work that is kept here for an agent that is not served, such as one that was taken off the list."""
        left = await unserved(self.connection, space, self.name, {shelf.agent for shelf in self.shelves})
        for agent, tasks in left.items():
            logger.warning(
                "nobody serves an agent that has work here: serve it until that is told, or its tasks go to others",
                extra={"edge": self.name, "agent": agent, "tasks": tasks},
            )

    async def watch(self, log: EventLog) -> None:
        """Ask the log whether it is there, without end, and tell when that changes. See to what is kept here, too."""
        while True:
            await self._look(log)
            await self._look_after_shelves(log.subjects.space)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_after_shelves(self, space: str) -> None:
        """What is kept here outlives the disk that it is on, as long as this process does."""
        if not any(shelf.is_open for shelf in self.shelves):
            return
        try:
            epoch = await make_stream(self.connection, space)
            for shelf in self.shelves:
                await shelf.restore(epoch)
        except CuebookError as error:  # who has something to keep says it
            logger.debug("cannot look after what is kept at the edge: %s", error)

    async def _look(self, log: EventLog) -> None:
        try:
            await js_request(log.connection, f"STREAM.INFO.{log.chain.stream}", {}, ANSWER_WITHIN_S)
            linked = True
        except UnavailableError as error:
            linked, reason = False, str(error)
        except ConfigurationError:  # it answers; who needs the stream says what is wrong with it
            linked = True
        if linked is self.linked:
            return
        lasted_s = round(time.monotonic() - self._changed_at, 1)
        was, self.linked, self._changed_at = self.linked, linked, time.monotonic()
        facts = {"edge": self.name, "answers_kept": self.waiting}
        if not linked:
            logger.warning(
                "the link to the log is cut: work goes on, answers and events are kept here",
                extra={**facts, "reason": reason},
            )
        elif was is not None:
            logger.info("the link to the log is back", extra={**facts, "cut_for_s": lasted_s})
        if linked:
            log.chain.suspect()  # a connection to the leaf node, which was never lost, has missed all that was said
            log.appender.resend()
            for callback in list(self.on_linked):
                try:
                    callback()
                except CuebookError:
                    logger.exception("a callback of the link raised", extra=facts)
