"""A part of one stream, read in batches with bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

from cuebook.events.connection import Connection
from cuebook.events.errors import HistoryRegressedError, UnavailableError
from cuebook.events.feed import RETRY_S, UNACKED, Feed, OnMessage
from cuebook.events.jetstream import js_request
from cuebook.events.lookup import LAG_POLL_S, end_of, first_match

__all__ = ["Readable", "Stored", "collected", "stream_batches"]

READ_AHEAD = UNACKED
"""Messages a reader holds before the server is made to wait; it may send as many again."""
BATCH = READ_AHEAD // 4
"""Messages handed over at once: a reader that is slow with them shall not hold two loads."""


class Stored(NamedTuple):
    """A message as the stream holds it, byte for byte; what is not UTF-8 in its subject is there as surrogates."""

    subject: str
    body: bytes
    sequence: int
    recorded_ns: int
    headers: bytes | None


class Readable(Protocol):
    """What a Feed is to those who take its messages in batches."""

    failure: asyncio.Future[None]

    @property
    def pending(self) -> int:
        """Stored messages that match and have not come yet."""

    def resume(self) -> None:
        """There is room again."""


OpenFeed = Callable[[OnMessage, Callable[[], bool], Callable[[], None]], "FeedContext"]


class FeedContext(Protocol):
    """An asynchronous context that gives a feed."""

    async def __aenter__(self) -> Readable: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


async def stream_batches(
    connection: Connection, stream: str, *, after: int, until: int, filters: Sequence[str]
) -> AsyncGenerator[list[Stored]]:
    """Messages of a stream with `after` < sequence <= `until`, undecoded. `until` must be stored already.

    The server delivers from any replica, also from one that came back just now and lacks the latest: then the stream's
    leader is asked whether that was all, and the rest read when it is there.

    Raises UnavailableError when the connection is closed, HistoryRegressedError, ConfigurationError.
    """
    opened: list[Feed] = []
    while True:
        turn = len(opened)
        feed = _feed_from(connection, stream, filters, after, opened)
        try:
            async with aclosing(collected(feed, until)) as batches:
                async for batch in batches:
                    yield batch
                    after = batch[-1].sequence
        except UnavailableError:
            if not turn or connection.is_closed:
                raise
        else:
            if after >= until or await _is_all(connection, opened[turn], filters, after, until):
                return
        await asyncio.sleep(LAG_POLL_S)


async def _is_all(connection: Connection, feed: Feed, filters: Sequence[str], after: int, until: int) -> bool:
    """Whether nothing more came because there is nothing. Raises HistoryRegressedError where it is gone."""
    while True:
        try:
            if feed.opened > 1:  # did a server come back without its last ones?
                end = await end_of(lambda: js_request(connection, f"STREAM.INFO.{feed.stream}", {}), reached=until)
                if end.last < until:
                    raise HistoryRegressedError(f"stream {feed.stream} ends at {end.last}, but it had {until} before")
            return not feed.replicated or not await _has_more(connection, feed.stream, filters or [">"], after, until)
        except UnavailableError:
            if connection.is_closed:
                raise
            await asyncio.sleep(RETRY_S)


def _feed_from(connection: Connection, stream: str, filters: Sequence[str], after: int, opened: list[Feed]) -> OpenFeed:
    def feed(on_message: OnMessage, held: Callable[[], bool], on_open: Callable[[], None]) -> Feed:
        one = Feed(
            connection,
            stream,
            filters=filters,
            start=after + 1,
            on_message=on_message,
            held=held,
            on_open=on_open,
            exact=True,
        )
        opened.append(one)
        return one

    return feed


async def _has_more(connection: Connection, stream: str, filters: Sequence[str], after: int, until: int) -> bool:
    for one in filters:
        found = await first_match(connection, stream, one, after)
        if found is not None and found.sequence <= until:
            return True
    return False


async def collected(open_feed: OpenFeed, until: int | None) -> AsyncGenerator[list[Stored]]:
    """What a feed brings, in batches: up to a sequence that is stored already, or without end."""
    waiting: list[Stored] = []
    news = asyncio.Event()

    def receive(subject: str, body: bytes, sequence: int, recorded_ns: int, headers: bytes | None) -> None:
        waiting.append(Stored(subject, body, sequence, recorded_ns, headers))
        news.set()

    async with open_feed(receive, lambda: len(waiting) > READ_AHEAD, news.set) as feed:
        feed.failure.add_done_callback(lambda _: news.set())
        while True:
            while waiting:
                batch = waiting[:BATCH]
                del waiting[:BATCH]
                if len(waiting) <= READ_AHEAD // 2:
                    feed.resume()
                if until is not None and batch[-1].sequence >= until:
                    if batch := [message for message in batch if message.sequence <= until]:
                        yield batch
                    return
                yield batch
            if feed.failure.done():
                feed.failure.result()
            if until is not None and feed.pending == 0:
                return
            feed.resume()
            news.clear()
            await news.wait()
