"""A feed of a whole log: through the generations that have ended, then live, and over to the next one at each roll."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Self

from cuebook.events.connection import Connection, ended
from cuebook.events.errors import CuebookError, HistoryRegressedError, StreamMissingError, UnavailableError
from cuebook.events.feed import RETRY_S, Feed, OnMessage
from cuebook.events.generations import Chain, marker_of
from cuebook.events.past import Past
from cuebook.events.subjects import Subjects

__all__ = ["LogFeed"]

logger = logging.getLogger(__name__)


class LogFeed:
    """Calls `on_message` for every message of the log matching `filters`, in order, from `start` on; see Feed.

    Use `async with`. What ended is read first, in the order in which it was written; nothing is skipped or doubled
    where one generation ends and the next begins.
    """

    def __init__(
        self,
        connection: Connection,
        subjects: Subjects,
        chain: Chain,
        *,
        filters: Sequence[str],
        start: int,
        on_message: OnMessage,
        held: Callable[[], bool] | None = None,
        on_open: Callable[[], None] | None = None,
        exact: bool = False,
    ) -> None:
        """As for Feed."""
        self._connection, self._subjects, self._chain = connection, subjects, chain
        self._filters, self._on_message = list(filters) or [subjects.all], on_message
        self._held, self._on_open, self._exact = held, on_open, exact
        self._next = max(start, 1)
        self._end = 0
        self._room = asyncio.Event()
        self._live: Feed | None = None
        self._opened_before = 0
        self._pump: asyncio.Task[None] | None = None
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the feed can never go on; cancelled when it is left."""

    async def __aenter__(self) -> Self:
        info = await self._chain.look()
        self._end = info["state"]["last_seq"]
        if self._next > self._chain.start:
            await self._go_live()
        else:
            self._pump = asyncio.get_running_loop().create_task(self._read_earlier())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._pump is not None:
            await ended(self._pump)
        if self._live is not None:
            await self._live.__aexit__(*exc_info)
        if not self.failure.cancel() and not self.failure.cancelled():
            self.failure.exception()  # somebody may not have looked; asyncio would complain about that

    @property
    def next_sequence(self) -> int:
        """The lowest sequence that may still come."""
        return self._live.next_sequence if self._live is not None else self._next

    @property
    def opened(self) -> int:
        """How often live delivery has begun; more than 1 after a loss, a reconnect or a roll."""
        return self._opened_before + (self._live.opened if self._live is not None else 0)

    @property
    def pending(self) -> int:
        """Stored messages that match and have not come yet; of generations that have ended, those that may match."""
        return self._live.pending if self._live is not None else max(self._end - self._next + 1, 0)

    def resume(self) -> None:
        """The receiver has room again. May be called at any time."""
        self._room.set()
        if self._live is not None:
            self._live.resume()

    # --- what has ended ---

    async def _read_earlier(self) -> None:
        try:
            while self._next <= self._chain.start:
                try:
                    past = await self._chain.past_after(self._next - 1)
                    if past is not None:
                        await self._read_here_or_elsewhere(past)
                    else:
                        await self._chain.look()  # meanwhile it may have been rolled again
                except UnavailableError as error:
                    await self._wait_for_server(error)
            while self._live is None:
                try:
                    await self._go_live()
                except UnavailableError as error:
                    await self._wait_for_server(error)
        except CuebookError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, it is handed on: to go on would be to skip
            logger.exception("a feed ended", extra={"space": self._subjects.space})
            self._fail(error)

    async def _read_here_or_elsewhere(self, past: Past) -> None:
        try:
            await self._read(past)
        except StreamMissingError:  # dropped in the middle: it is in segments now
            await self._chain.look()
            found = await self._chain.past_after(self._next - 1)
            if found is None or found.name == past.name:
                raise

    async def _wait_for_server(self, error: UnavailableError) -> None:
        if self._connection.is_closed:
            raise error
        logger.warning("a feed waits for the server", extra={"space": self._subjects.space, "error": str(error)})
        await asyncio.sleep(RETRY_S)

    async def _read(self, past: Past) -> None:
        batches = past.batches(after=self._next - 1, until=past.last, filters=self._filters)
        async with aclosing(batches):
            async for batch in batches:
                for subject, body, sequence, recorded_ns, headers in batch:
                    if sequence < self._next:
                        raise HistoryRegressedError(f"{past.name} gives {sequence} after {self._next - 1}")
                    self._next = sequence + 1
                    if self._exact:
                        self._on_message(subject, body, sequence, recorded_ns, headers)
                        continue
                    if not subject.isascii():
                        subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                    self._on_message(subject, body, sequence, recorded_ns // 1000, headers)
                while self._held is not None and self._held():
                    self._room.clear()
                    await self._room.wait()
                await asyncio.sleep(0)  # the others live on while a long history is read
        self._next = past.last + 1

    # --- live ---

    async def _go_live(self) -> None:
        live = Feed(
            self._connection,
            self._chain.stream,
            filters=self._filters,
            start=self._next,
            on_message=self._on_message,
            held=self._held,
            on_open=self._on_open,
            exact=self._exact,
            marker=marker_of(self._subjects),
            successor=self._chain.successor,
        )
        await live.__aenter__()
        self._live = live
        live.failure.add_done_callback(self._on_failure)
        if self._chain.rolling:
            live.stands_at_marker()

    def _on_failure(self, failure: asyncio.Future[None]) -> None:
        if failure.cancelled() or (error := failure.exception()) is None:
            return
        if isinstance(error, StreamMissingError) and self._live is not None:
            self._pump = asyncio.get_running_loop().create_task(self._read_on(self._live, error))
        else:
            self._fail(error)

    async def _read_on(self, gone: Feed, error: StreamMissingError) -> None:
        """We were cut off while the log was rolled, and the stream in which we were reading has been dropped since."""
        try:
            while True:
                try:
                    await self._chain.look()
                    if self._chain.stream == gone.stream:
                        raise error
                    await self._compare(gone.last)
                    break
                except UnavailableError as unavailable:
                    await self._wait_for_server(unavailable)
        except CuebookError as reason:
            self._fail(reason)
            return
        self._next, self._live = gone.next_sequence, None
        self._opened_before += gone.opened
        await gone.__aexit__(None, None, None)
        await self._read_earlier()

    async def _compare(self, last: tuple[int, int] | None) -> None:
        """What came last is still the same, wherever it lies now. Raises HistoryRegressedError."""
        past = await self._chain.past_at(last[0]) if last is not None else None
        if last is None or past is None:
            return
        found = await past.at(last[0])
        if found is None or found.recorded_at != last[1] // 1000:
            raise HistoryRegressedError(f"{past.name} holds another message at {last[0]} than was read before")

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)
