"""Spaces to which a slice of history can be sent, each of which knows what it has already. For files see line_files.

A recording is a space made for the purpose and marked so that no orchestrator and no agent drives it. Each copy is
stored only right after the one before, so it can neither repeat nor leave out nor change the order. In a living space,
which others write to, each message waits for the one before and names its place in the source.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from contextlib import aclosing
from typing import Final, Protocol

from cuebook.cli.meter import Meter
from cuebook.cli.replay.slices import Message, Slice
from cuebook.events.append import WINDOW, Appender
from cuebook.events.copies import Original, copy_guard, copy_headers, original_of
from cuebook.events.errors import (
    ConfigurationError,
    CuebookError,
    HistoryRegressedError,
    StreamMissingError,
)
from cuebook.events.log import EventLog
from cuebook.events.stream import StreamFacts

__all__ = ["Destination", "LiveSpace", "Recording"]

FIRST_WINDOW: Final = 10_000
SKEW_NS: Final = 24 * 3600 * 10**9
"""So far may the clocks of two servers be apart."""
_OTHER: Final = "send it to another one"
_NOTHING: Final = 2**63
"""Beyond all sequences."""
_SENT: Final = re.compile(rb"\r\nCuebook-Replayed: ([0-9a-f]{12}) ([0-9]{1,19})\r\n")


class Destination(Protocol):
    """`open` says after which sequence of the source it goes on; `has_some`: because it has what comes before that.

    `name` is for people; `stored` counts what was stored since it was made, which is certain after `flush`.
    """

    name: str
    stored: int
    has_some: bool

    async def open(self) -> int:
        """Look what is there, or make it. Raises ConfigurationError, UnavailableError, HistoryRegressedError."""

    async def put(self, message: Message) -> None:
        """Take the next message; waits while there is no room. Raises ConcurrencyConflictError, UnavailableError."""

    async def flush(self) -> None:
        """Wait until everything is stored. Raises as `put`."""

    async def close(self) -> None:
        """Let go; what is stored stays."""


class _Space(ABC):
    """A space of any server, and what sending to it needs."""

    def __init__(self, part: Slice, log: EventLog) -> None:
        self.part, self.log = part, log
        self.name = f"space {log.subjects.space}"
        self._cut = len(part.log.subjects.space)
        self._appender = Appender(log.connection, first_after=self._first_after)
        self.stored, self.has_some = 0, False
        self._opened = False
        self._failure: CuebookError | None = None
        self._answered = asyncio.Event()

    async def close(self) -> None:
        """See Destination."""
        if self._opened:
            self._opened = False
            await self._appender.__aexit__(None, None, None)

    async def flush(self) -> None:
        """See Destination."""
        await self._appender.flushed()
        if self._failure is not None:
            raise self._failure

    def _subject(self, subject: str) -> str:
        return self.log.subjects.space + subject[self._cut :]

    async def _enter(self) -> None:
        if not self._opened:
            await self._appender.__aenter__()
            self._opened = True
        await self._appender.flushed()
        self._failure = None

    def _done(self, sequence: int, error: CuebookError | None) -> None:  # noqa: ARG002 - as the appender calls it
        self.stored += error is None
        self._failure = self._failure or error
        self._answered.set()

    async def _first_after(self, scope: str, after: int) -> tuple[int, str] | None:
        found = await self.log.first_match(scope, after)
        return (found.sequence, self._token_in(found.headers)) if found is not None else None

    @abstractmethod
    def _token_in(self, headers: bytes | None) -> str:
        """The name of a copy by its headers; empty when it is none of ours."""

    def _token(self, sequence: int) -> str:
        return f"replay-{self.part.key}-{sequence}"


class Recording(_Space):
    """A space that holds this slice and nothing else."""

    def __init__(self, part: Slice, log: EventLog) -> None:
        super().__init__(part, log)
        self.name = f"recording {log.subjects.space}"
        self._last, self._before = 0, b""

    async def open(self) -> int:
        """See Destination."""
        await self._enter()
        facts = await self.log.ensure(recording=True, origin=self.part.origin)
        began = self._began(facts)
        self._last, self._before, self.has_some = facts.last_sequence, b"", facts.last_sequence > 0
        if not self._last:
            return began
        stream = self.log.subjects.stream
        found = await self.log.message_at(self._last)
        original = original_of(found.headers) if found is not None else None
        if found is None or original is None:
            raise ConfigurationError(f"{stream} holds something at {self._last} that is no copy", remedy=_OTHER)
        source = await self.part.log.message_at(original.sequence)
        if source is None or source.body != found.body:
            raise HistoryRegressedError(
                f"sequence {original.sequence} of {self.part.log.subjects.stream} is not what was copied to {stream}",
                remedy=f"the source is another one, or was rewritten: {_OTHER}",
            )
        return original.sequence

    def _began(self, facts: StreamFacts) -> int:
        """After which sequence of the source it begins. Raises ConfigurationError when it is not for this slice."""
        if not facts.recording:
            raise ConfigurationError(
                f"an orchestrator may drive space {self.log.subjects.space!r}: what is sent there would start runs and "
                "run tasks",
                remedy="send it to a space that does not exist yet, which is then made as a recording; or, if that is "
                "what you want, say --live-effects",
            )
        began = self.part.began_in(facts.origin)
        if began is None:
            raise ConfigurationError(f"recording {self.log.subjects.space!r} holds something else", remedy=_OTHER)
        if began > self.part.after:
            raise ConfigurationError(
                f"recording {self.log.subjects.space!r} begins after sequence {began}; nothing can be put before that",
                remedy=_OTHER,
            )
        return began

    async def put(self, message: Message) -> None:
        """See Destination."""
        while self._appender.under_way >= WINDOW and self._failure is None:
            self._answered.clear()
            await self._answered.wait()
        if self._failure is not None:
            raise self._failure
        original = Original(message.sequence, message.recorded_ns, message.headers)
        self._appender.post(
            self._subject(message.subject),
            message.body,
            event_id=self._token(message.sequence),
            scope=self.log.subjects.all,
            expected=self._last,
            block=self._block(original),
            done=self._done,
        )
        self._last += 1

    def _block(self, original: Original) -> bytes:
        token = self._token(original.sequence).encode()
        guard = copy_guard(self._before, self._last, self.log.subjects.all)
        self._before = token
        return copy_headers(original, token, guard)

    def _token_in(self, headers: bytes | None) -> str:
        original = original_of(headers)
        return self._token(original.sequence) if original is not None else ""


class LiveSpace(_Space):
    """A space that an orchestrator drives: what is sent there has effects."""

    def __init__(self, part: Slice, log: EventLog, *, itself: bool = False, silent: bool) -> None:
        """`itself`: the slice is of this very space, and so comes to hold what is sent."""
        super().__init__(part, log)
        self._itself, self._silent = itself, silent

    async def open(self) -> int:
        """See Destination."""
        try:
            facts = await self.log.verify()
        except StreamMissingError as error:
            raise StreamMissingError(
                f"there is no space {self.log.subjects.space!r} for effects to happen in",
                remedy="start its orchestrator first, or leave out --live-effects: then a recording is made",
            ) from error
        if facts.recording:
            raise ConfigurationError(
                f"space {self.log.subjects.space!r} is a recording, where nothing has effects",
                remedy="leave out --live-effects",
            )
        await self._enter()
        newest = await self._newest(facts)
        self.has_some = newest > 0
        return max(newest, self.part.after)  # never more than was asked for

    async def _newest(self, facts: StreamFacts) -> int:
        """What was sent before, looked for from the end backwards until before the slice was recorded.

        Raises ConfigurationError where the slice begins before that: it would be left out.
        """
        filters = [self._subject(one) for one in self.part.filters]
        begins = await self.part.first()
        first = await self.part.log.at(begins)
        horizon_ns = (first.recorded_at if first is not None else 0) * 1000 - SKEW_NS
        until, size, found, oldest_ns = facts.last_sequence, FIRST_WINDOW, 0, 2**63
        lowest = _NOTHING
        if self.part.types:  # nobody knows which is its first one
            begins = _NOTHING - 1
        with Meter(1, max(until, 1), silent=self._silent) as meter:
            while until > 0 and lowest > begins and oldest_ns > horizon_ns:
                after = max(0, until - size)
                async with aclosing(self.log.batches(after=after, until=until, filters=filters)) as batches:
                    async for batch in batches:
                        oldest_ns = min(oldest_ns, batch[0].recorded_ns)
                        places = [place for message in batch if (place := self._place_in(message.headers))]
                        found, lowest = max(found, *places, 0), min(lowest, *places, _NOTHING)
                        meter.at(facts.last_sequence - batch[0].sequence + 1)
                until, size = after, size * 4
        if begins < lowest < _NOTHING:
            raise ConfigurationError(
                f"{self.name} has it from sequence {lowest} on; nothing can be put before that",
                remedy=f"go on from there (--from {lowest}), or {_OTHER}",
            )
        return found

    def _place_in(self, headers: bytes | None) -> int:
        sent = _SENT.search(headers or b"")
        return int(sent[2]) if sent is not None and sent[1].decode() == self.part.key else 0

    async def put(self, message: Message) -> None:
        """See Destination."""
        if self._itself and self._place_in(message.headers):
            return  # it was sent before, and here it stands
        self._answered.clear()
        token = self._token(message.sequence)
        self._appender.post(
            self._subject(message.subject),
            message.body,
            event_id=token,
            block=_live_block(message.headers, token, self.part.key, message.sequence),
            done=self._done,
        )
        await self._answered.wait()
        if self._failure is not None:
            raise self._failure

    def _token_in(self, headers: bytes | None) -> str:  # only an append that expects something asks
        raise AssertionError(headers)


def _live_block(headers: bytes, token: str, key: str, sequence: int) -> bytes:
    """What the author wrote, without what the server would act on once more."""
    kept = [
        line
        for line in headers.split(b"\r\n")[1:]
        if line and not line.lstrip().lower().startswith((b"nats-", b"cuebook-"))
    ]
    own = [b"Nats-Msg-Id: %b" % token.encode(), b"Cuebook-Replayed: %b %d" % (key.encode(), sequence)]
    return b"\r\n".join([b"NATS/1.0", *kept, *own, b"", b""])
