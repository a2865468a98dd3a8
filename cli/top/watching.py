"""Keeping a `Board` up to date: the log is followed from its end, the rest is asked for now and then."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any, Final

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.overview import Tally
from cuebook.cli.diagnosis.probe_log import LOOK_BACK
from cuebook.cli.directory import ask_or_none, fold_agents
from cuebook.cli.history.runfold import RunFold
from cuebook.cli.moments import now
from cuebook.cli.top.board import WINDOW_S, Board
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.projections import queries

__all__ = ["Watch"]

ASK_S: Final = 1.0
TABLES_S: Final = 2.0
TALLY_SHARE: Final = 0.05
"""The most of this process's time that counting open runs may take, where no orchestrator counts them."""
_TAIL: Final = 20_000
"""Events read again at the start for the first rates, at most."""
_AT_LEAST: Final = 2_000
"""And at least so many, however old, for the newest endings."""


class Watch:
    """`begin` once, then `run` until cancelled; or only `begin` for a single frame."""

    def __init__(self, client: Client, database_url: str) -> None:
        self.board = Board(client.log.subjects.space)
        self._client, self._url = client, database_url
        self._after = 0
        self._fold: RunFold | None = None
        self._next_tally = 0.0
        self._ahead_us = 0

    @property
    def now(self) -> int:
        """By the clock of the log, microseconds since 1970, as far as the newest event tells."""
        return now() + self._ahead_us

    async def begin(self) -> None:
        """Everything as it is now. Raises UnavailableError, ConfigurationError."""
        log = self._client.log
        last = (await log.verify()).last_sequence
        self.board.begin_agents(await fold_agents(log, until=last), last)
        await self._ask()
        if self.board.overview is None:
            await self._fold_open(last)
        recent = await log.sequence_at(self.now - WINDOW_S * 1_000_000)
        self._after = max(min(recent, last - _AT_LEAST), last - _TAIL, 0)
        async with aclosing(log.read(after=self._after, until=last)) as items:
            async for item in items:
                self.board.apply(item)
        self._after = self.board.sequence = last
        await self._ask_tables()

    async def run(self) -> None:
        """Follow. Raises UnavailableError when the connection is closed, HistoryRegressedError."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._every(ASK_S, self._ask))
            if self._url:
                group.create_task(self._every(TABLES_S, self._ask_tables))

    async def _follow(self) -> None:
        async with aclosing(self._client.log.follow(after=self._after)) as items:
            async for item in items:
                self.board.apply(item)
                if self._fold is not None:
                    self._fold.apply(item)
                if isinstance(item, Envelope) and item.recorded_at > self.now:
                    self._ahead_us = item.recorded_at - now()

    async def _every(self, seconds: float, ask: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            self.board.connected = self._client.log.connection.is_connected
            await ask()

    async def _ask(self) -> None:
        told = await ask_or_none(self._client, "overview")
        if told is not None and "runs" in told:
            self.board.overview, self.board.overview_source = told, "orchestrator"
            self._fold = None
        elif self._fold is not None:
            self._tally()
        elif self.board.overview is not None:
            self.board.overview_source = "an orchestrator that no longer answers"

    # --- without an orchestrator ---

    async def _fold_open(self, last: int) -> None:
        log, self._fold = self._client.log, RunFold(0)
        filters = [log.subjects.all_runs, log.subjects.all_rejected]
        async with aclosing(log.read(after=max(last - LOOK_BACK, 0), until=last, filters=filters)) as items:
            async for item in items:
                self._fold.apply(item)
        self._tally()

    def _tally(self) -> None:
        began = time.perf_counter()
        if self._fold is None or began < self._next_tally:
            return
        tally = Tally(self._fold.open.values(), self.now)
        self.board.overview = tally.view(lambda _: "no orchestrator decides", lambda _: False)
        self.board.overview_source = f"the newest {LOOK_BACK:,} events, since no orchestrator answers"
        ended = time.perf_counter()
        self._next_tally = ended + (ended - began) / TALLY_SHARE

    # --- tables ---

    async def _ask_tables(self) -> None:
        if not self._url:
            return
        try:
            async with asyncio.timeout(TABLES_S), queries.reading(self._url, self.board.space) as connection:
                found = await queries.list_projections(connection, last_sequence=self.board.sequence)
        except (UnavailableError, ConfigurationError, TimeoutError):
            self.board.projections = []
            return
        self.board.projections = [
            {"projection": one.projection, "lag": one.lag, "health": one.health, "parked": one.parked}
            for one in found
            if one.shown
        ]
