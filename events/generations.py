"""The generations of a space's log, and which stream takes in what is written now: the one place that finds out.

A log that was rolled goes on in a fresh stream under the same numbering, and each stream says in its metadata which
ones came before it. One Chain serves everything on a connection. It notices a roll by the marker that is published
again on `live.`, and looks once more after a reconnect, where that may have been missed.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, StreamMissingError, UnavailableError
from cuebook.events.jetstream import NO_STREAM, js_request
from cuebook.events.lookup import first_match
from cuebook.events.past import Generation, Past, PastOpener, StreamPast, parse_generations

__all__ = [
    "BEFORE", "FROZE", "KEPT", "NEXT", "WHOLE", "Chain", "StreamNames", "chain_of", "frozen_subject", "is_current",
    "marker_of", "stream_name", "use_past_opener",
]  # fmt: skip

BEFORE = "cuebook.before"
"""Key in the metadata of a stream: the generations before it, as JSON; see `pack_generations`."""
NEXT = "cuebook.next"
"""Key in the metadata of a stream that is, or was, rolled: the stream that comes after it."""
FROZE = "cuebook.froze"
"""Key in the metadata of the same: its last sequence when it was about to be frozen. Of this roll is only a marker
after it; an older one may be of a roll that was undone, or of nobody's."""
KEPT = "cuebook.kept"
"""Key in the metadata of a stream: nothing older than this sequence is in it, so an author who has read that expects
nothing in there. 0 where all that was open is in it from its first message on."""
WHOLE = "cuebook.whole"
"""Key in the metadata of a stream: from this sequence on all is in it, also what was not open."""
_POLL_S: Final = 0.02
_POLL_MOST_S: Final = 0.5
_NAMES: Final = 1024
"""Names that the server gives at once."""

logger = logging.getLogger(__name__)


class StreamNames(Protocol):
    """How a stream is called, what it takes in and where it says so again. `Subjects` is one."""

    @property
    def space(self) -> str:
        """Whose it is."""

    @property
    def stream(self) -> str:
        """The name of its first stream."""

    @property
    def all(self) -> str:
        """What it takes in."""

    @property
    def live(self) -> str:
        """Where each message is published again once it is stored."""

    @property
    def purpose(self) -> str:
        """What it is for, in a few words."""


def stream_name(names: StreamNames, generation: int) -> str:
    """The stream of a generation. `@` stands in no space id, so that names never meet."""
    return names.stream if generation == 1 else f"{names.stream}@{generation}"


def marker_of(names: StreamNames) -> str:
    """The subject of the last message of a generation."""
    return f"{names.all[:-1]}space.rolled"


def frozen_subject(names: StreamNames, generation: int) -> str:
    """All that the stream of a generation that has ended would take in, and by which it is found."""
    return f"rolled.{names.all[:-1]}{generation}"


def is_current(info: Mapping[str, Any], names: StreamNames) -> bool:
    """Whether a stream is what all is written to."""
    return not info["config"].get("mirror") and info["config"].get("subjects") == [names.all]


def _metadata(info: Mapping[str, Any]) -> dict[str, str]:
    return info["config"].get("metadata") or {}


class Chain:
    """The generations of one log; see `chain_of`."""

    def __init__(self, connection: Connection, names: StreamNames) -> None:
        self._connection, self._names = connection, names
        self.stream = names.stream
        """The current stream, as far as is known."""
        self.generation = 1
        self.start = 0
        """The last sequence of the generations before; the current one's own come after it."""
        self.earlier: Sequence[Generation] = ()
        self.kept = 0
        """What is older than this sequence is not in the current stream, nor any guard on it; see `KEPT`."""
        self.whole = 0
        """From this sequence on all is in the current stream; see `WHOLE`."""
        self.rolling = self.replicated = False
        """Nothing can be written just now: the next stream is being made. The current stream has several replicas."""
        self._before = "[]"
        self._pasts: dict[int, Past] = {}
        self._stale, self._listening = True, False
        self._looking = asyncio.Lock()
        self._looks = 0
        """How often anybody has begun to look,"""
        self._found: tuple[int, dict[str, Any]] | None = None
        """and what the last who found something found, with which of the looks it was."""
        self._errand: asyncio.Task[None] | None = None
        self.on_roll: list[Callable[[], None]] = []
        """Called when the current stream has become another one."""

    async def look(self) -> dict[str, Any]:
        """Find the current stream, by asking the server, and give its STREAM.INFO.

        Raises StreamMissingError, ConfigurationError, UnavailableError.
        """
        asked = self._looks
        async with self._looking:
            if self._found is not None and self._found[0] > asked:  # somebody has begun to look since we were asked
                return self._found[1]
            self._looks += 1
            if not self._listening:
                await self._connection.listen(f"live.{marker_of(self._names)}", self.suspect)
                self._connection.on_reconnect.append(self.suspect)
                self._listening = True
            self._stale = False  # what is noticed from here on counts
            try:
                info = self._take(await self._find())
            except BaseException:
                self._stale = True
                raise
            self._found = self._looks, info
            return info

    async def known(self) -> None:
        """Look, unless nothing has happened since that was done. Raises as `look`."""
        if self._stale or self._looking.locked():  # what somebody else is just finding out counts too
            await self.look()

    async def may_hold(self, scope: str, sequence: int) -> bool:
        """Whether the current stream has a message of a scope at a sequence, or may come to have one: its leader lags.

        Raises as `look`.
        """
        info = await self.look()
        if self.replicated and int(info["state"]["last_seq"]) < sequence:
            return True
        found = await first_match(self._connection, self.stream, scope, sequence - 1)
        return found is not None and found.sequence == sequence

    def look_soon(self) -> None:
        """Look, unless that is known, without waiting for it; and again until a roll that is under way is over."""
        if self._stale and (self._errand is None or self._errand.done()):
            self._errand = asyncio.get_running_loop().create_task(self._keep_looking())

    def guards(self, sequence: int) -> bool:
        """Whether what was stored at a sequence, about nothing that was open, can be expected under its scope."""
        return sequence >= self.whole or sequence < self.kept  # of what is older nothing is expected

    def generation_of(self, sequence: int) -> int:
        """Whose a sequence is."""
        if sequence > self.start:
            return self.generation
        return next((one.generation for one in self.earlier if sequence <= one.last), self.generation)

    async def pasts(self, after: int = 0) -> list[Past]:
        """The generations that have ended and hold something after a sequence, oldest first. Raises as `look`."""
        await self.known()
        return [await self._past(one) for one in self.earlier if one.last > after]

    async def past_after(self, after: int) -> Past | None:
        """The oldest of those that `pasts` gives. Ask again with its end: what is rolled meanwhile counts too."""
        await self.known()
        found = next((one for one in self.earlier if one.last > after), None)
        return await self._past(found) if found is not None else None

    async def past_at(self, sequence: int) -> Past | None:
        """The generation that has ended and holds a sequence; None for one of the current. Raises as `look`."""
        await self.known()
        found = next((one for one in self.earlier if one.first <= sequence <= one.last), None)
        return await self._past(found) if found is not None else None

    async def successor(self, marker: int) -> str | None:
        """The stream in which the log goes on after the marker at a sequence; waits until it is there.

        None when the log goes on where it was: nothing was rolled there.
        """
        pause_s = _POLL_S
        while True:
            try:
                await self.look()
            except UnavailableError as error:
                if self._connection.is_closed:
                    raise
                logger.debug("cannot look for the next stream: %s", error)
            else:
                following = next((one.stream for one in self.earlier if one.first == marker + 1), "")
                if following or self.start == marker:
                    return following or self.stream
                if not self.rolling:
                    return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_MOST_S)

    def suspect(self, *_: object) -> None:
        """What is known may not hold any more, since one may have missed that it was rolled: look before it is used."""
        self._stale = True
        self.look_soon()

    # --- finding ---

    async def _keep_looking(self) -> None:
        pause_s = _POLL_S
        while self._stale and not self._connection.is_closed:
            try:
                await self.look()
            except UnavailableError as error:
                logger.debug("cannot look for the current stream: %s", error)
            except ConfigurationError:
                return  # whoever needs it is told
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_MOST_S)

    async def _info(self, stream: str) -> dict[str, Any] | None:
        info: dict[str, Any] | None = await js_request(
            self._connection, f"STREAM.INFO.{stream}", {}, none_for={NO_STREAM}
        )
        return info

    async def _find(self) -> dict[str, Any]:
        info = await self._info(self.stream)
        if info is None and (name := await self._search()) is not None:
            info = await self._info(name)
        if info is None:
            raise StreamMissingError(
                f"there is no stream {self._names.stream} for space {self._names.space!r}",
                remedy="start the orchestrator once ('cuebook serve orchestrator' or 'cuebook dev'); "
                "it creates the stream",
            )
        looked = False
        while successor := _metadata(info).get(NEXT):
            following = await self._info(successor)
            if following is None or following["config"].get("mirror"):
                break
            info = following
            if NEXT in _metadata(info) and not looked:  # one step for each of a hundred generations would take long
                looked = True
                if (name := await self._search()) is not None and (newest := await self._info(name)) is not None:
                    info = newest
        return info

    async def _search(self) -> str | None:
        """The newest stream of the space, where the first one is not there any more."""
        is_ours = re.compile(rf"{re.escape(self._names.stream)}(?:@([0-9]+))?").fullmatch
        found: dict[int, str] = {}
        for subject in (self._names.all, f"rolled.{self._names.all[:-1]}*"):
            answer = await js_request(self._connection, "STREAM.NAMES", {"subject": subject})
            for name in answer.get("streams") or ():
                if match := is_ours(name):
                    found[int(match[1] or 1)] = name
            if found:
                break
        return found[max(found)] if found else None

    def _take(self, info: dict[str, Any]) -> dict[str, Any]:
        metadata = _metadata(info)
        before = metadata.get(BEFORE, "[]")
        earlier = self.earlier
        if before != self._before:
            try:
                earlier = parse_generations(before)
            except ConfigurationError as error:
                raise ConfigurationError(f"stream {info['config']['name']}: {error}", remedy=error.remedy) from error
            if self.earlier != earlier:
                self._pasts.clear()
            self._before = before
        stream, self.stream, self.earlier = self.stream, info["config"]["name"], earlier
        self.generation = earlier[-1].generation + 1 if earlier else 1
        self.start = earlier[-1].last if earlier else 0
        self.kept = int(metadata.get(KEPT, "0"))
        self.whole = int(metadata.get(WHOLE, self.start + 1 if earlier else "0"))
        self.rolling, self.replicated = NEXT in metadata, info["config"]["num_replicas"] > 1
        self._stale = self._stale or self.rolling
        if self.stream != stream:
            for tell in list(self.on_roll):
                tell()
        return info

    async def _past(self, about: Generation) -> Past:
        past = self._pasts.get(about.generation)
        if past is None:
            opener: PastOpener | None = self._connection.shared.get("past opener")
            if await self._info(about.stream) is not None:
                past = StreamPast(self._connection, about)
            elif opener is not None:
                past = await opener(self._connection, self._names.space, about)
            else:
                raise ConfigurationError(
                    f"generation {about.generation} of space {self._names.space!r} is not on the server any more: "
                    f"there is no stream {about.stream}",
                    remedy="restore that stream from its backup",
                )
            if about.segments and isinstance(past, StreamPast):
                return past  # which is being dropped
            self._pasts[about.generation] = past
        return past


def chain_of(connection: Connection, names: StreamNames) -> Chain:
    """The chain of a log over a connection: one for all who use that connection."""
    key = ("chain", names.stream)
    chain: Chain | None = connection.shared.get(key)
    if chain is None:
        chain = connection.shared[key] = Chain(connection, names)
    return chain


def use_past_opener(connection: Connection, opener: PastOpener) -> None:
    """Say how a generation is opened whose stream is not on the server any more."""
    connection.shared["past opener"] = opener
