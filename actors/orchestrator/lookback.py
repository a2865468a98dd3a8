"""Searching the log for events that came before they were waited for: one reading of a topic for all who ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from cuebook.actors.orchestrator.matching import MatchIndex
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog

__all__ = ["LookBack"]

READINGS = 16
"""Of different topics, at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    after: int
    until: int
    answer: Callable[[int, Any], None]


@dataclass(slots=True)
class _Reading:
    """The searches that one reading of a topic serves. `open`: it has not begun, so more may join."""

    topic: str
    open: bool = True
    searches: MatchIndex[_Search] = field(default_factory=MatchIndex)


class LookBack:
    """Finds the first event for each search. `errand`: does something that needs the server until that answers."""

    def __init__(self, log: EventLog, errand: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]) -> None:
        self._log, self._errand = log, errand
        self._latest: dict[str, _Reading] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._readings = asyncio.Semaphore(READINGS)

    def find(
        self, topic: str, match: dict[str, Any], after: int, until: int, answer: Callable[[int, Any], None]
    ) -> None:
        """Find the first outside event in (after, until] whose data has all of `match`; no answer if there is none."""
        reading = self._latest.get(topic)
        if reading is None or not reading.open:
            reading = self._latest[topic] = _Reading(topic)
            self._errand(lambda: self._read(reading))
        reading.searches.add(_Search(after, until, answer), match)

    async def _read(self, reading: _Reading) -> None:
        turn = self._turns.setdefault(reading.topic, asyncio.Lock())
        async with turn, self._readings:
            reading.open = False
            if searches := list(reading.searches):
                await self._search(reading, min(one.after for one in searches), max(one.until for one in searches))
        if self._latest.get(reading.topic) is reading:
            del self._latest[reading.topic], self._turns[reading.topic]

    async def _search(self, reading: _Reading, after: int, until: int) -> None:
        filters = [self._log.subjects.event(reading.topic)]
        async with aclosing(self._log.read(after=after, until=until, filters=filters)) as items:
            async for item in items:
                if not isinstance(item, Envelope):
                    continue
                for search in reading.searches.waiting_for(item.data):
                    if search.after < item.sequence <= search.until:
                        reading.searches.discard(search)
                        self._answer(search, item)
                if not reading.searches:
                    return

    @staticmethod
    def _answer(search: _Search, item: Envelope) -> None:
        try:
            search.answer(item.sequence, item.data)
        except Exception:  # the other searches go on, and a person must see it
            logger.exception("an event found for a wait was not taken", extra={"sequence": item.sequence})
