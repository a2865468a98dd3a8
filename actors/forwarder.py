"""Events that were published at the edge, brought to the log: in order, each once, however often the link is cut.

They are stored in a stream of the edge under the subjects they will have. A batch of them goes to the log together
with a fact that says up to where the edge's stream has been forwarded, `event.cuebook.edge.<edge>`; the server takes
all of a batch or nothing, and only behind the last such fact that we have read. So a batch whose acknowledgement was
lost is never stored twice, whatever time has passed. Source: JetStream ADR-50.

The edge's stream is known by when it was made. When its disk is lost, it is made again, and counts as another one. So
does what comes after the disk was put back to an older copy, since it stands under numbers that were forwarded before:
such events are known by when they were stored, and from the first of them on the stream has another name.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cuebook.events.batch import Member, append_batch
from cuebook.events.codec import MAX_ID_LENGTH, encode, parse_headers
from cuebook.events.connection import Connection
from cuebook.events.envelope import Envelope
from cuebook.events.errors import (
    CommandRejectedError,
    ConcurrencyConflictError,
    ConfigurationError,
    CuebookError,
    HistoryRegressedError,
    StreamMissingError,
    UnavailableError,
)
from cuebook.events.facts import OutsideEvent
from cuebook.events.feed import Feed
from cuebook.events.jetstream import NAME_IN_USE, NO_ROOM, NO_STREAM, js_request
from cuebook.events.log import EventLog, Unreadable
from cuebook.events.lookup import first_match, last_match, message_at, sequence_before
from cuebook.events.stream import MAX_MESSAGE_BYTES
from cuebook.events.subjects import check_token

__all__ = ["Forwarder"]

BATCH = 100
READ_AHEAD = 1_000
RETRY_S = 1.0
BACK_OFF_S = 0.2
GIVE_UP_S = 1.0
"""Less than others have, since it reads the mark then. After a roll it would wait behind one that was left behind."""
PATIENCE = 5
"""Attempts to read what the log's older generations say, before it goes on without."""
DUPLICATE_WINDOW_S = 120
HEADERS_ADDED = 1_024
"""Room that a forwarded message needs beyond what the edge's stream takes."""
_DUPLICATE = "'err_code': 10201"
_is_header = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
"""Names that can be sent on (RFC 9110, tokens), as `parse_headers` gives them. A device may send others."""
_unsendable = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
"""In the value of a header: control characters, and what was not UTF-8. One byte stands for each, so it never grows."""
_NAMED = "cuebook_named"
"""In the metadata of the edge's stream, once it was put back: how it is called since,"""
_AFTER = "cuebook_after"
"""and up to where it has what is older."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Event:
    stream: str
    """When the stream was made that it was stored in."""
    subject: str
    body: bytes
    sequence: int
    stored_at: int
    headers: bytes | None


@dataclass(frozen=True, slots=True)
class _Mark:
    """Up to which sequence the log has the events of an edge's stream."""

    stream: str
    through: int
    stored_at: int = 0
    """When the newest of them was stored, in microseconds since 1970 by the edge's clock; 0 where nobody has said."""

    def covers(self, event: _Event) -> bool:
        """Whether the log has it. A younger one that stands where an older one stood has come since."""
        if event.stream != self.stream or event.sequence > self.through:
            return False
        return not 0 < self.stored_at < event.stored_at


class Forwarder:
    """Forwards what is published under `<space>.event.>` on the connection `local` to `log`. `run` without end.

    `forwarded` counts events since the start, `waiting` those that are stored here and not on the log yet. Of these
    `in_memory` outlive the edge's disk: they were read.
    """

    def __init__(self, local: Connection, log: EventLog, edge: str) -> None:
        self.forwarded = 0
        self.ready = asyncio.Event()
        """What is published here is stored."""
        self._local, self._log, self._edge = local, log, check_token(edge, "edge")
        self._stream = f"{log.subjects.stream}_EVENTS"
        self._mark = log.subjects.event(f"cuebook.edge.{edge}")
        self._queue: list[_Event] = []
        self._news = asyncio.Event()
        self._feed: Feed | None = None
        self._name, self._after = "", 0
        """What the edge's stream is called, and up to where it has events of the time when it was called otherwise."""
        self._told = _Mark("", 0)
        """What the log has; of another stream than the present one only after that was lost."""
        self._marked = 0
        """Where the last mark stands in the log, of whichever stream,"""
        self._newest = _Mark("", 0)
        """and what it says."""
        self._received = self._read_until = 0
        """The last one read of the edge's stream, and when the newest that was read was stored there."""
        self._unreadable = 0
        """How often what older marks say could not be read, one after the other."""
        self._said_two = self._said_unreadable = self._said_full = False

    @property
    def waiting(self) -> int:
        """Events that are stored here and not on the log yet."""
        return self.in_memory + (self._feed.pending if self._feed is not None else 0)

    @property
    def in_memory(self) -> int:
        """Those of them that were read: they are told even where the edge's disk is lost now."""
        return len(self._queue)

    async def run(self) -> None:
        """Forward until cancelled. Raises ConfigurationError when a stream is not as it must be."""
        forwarding = asyncio.ensure_future(self._keep_forwarding())
        receiving = asyncio.ensure_future(self._keep_receiving())
        try:
            for ended in (await asyncio.wait([forwarding, receiving], return_when=asyncio.FIRST_COMPLETED))[0]:
                ended.result()
        finally:
            for one in (forwarding, receiving):
                one.cancel()
            await asyncio.wait([forwarding, receiving])

    async def _keep_receiving(self) -> None:
        """See to it that the edge's stream is there, and read it. Where it is lost, begin again with a fresh one."""
        while True:
            try:
                await self._ensure_stream()
            except UnavailableError as error:
                logger.warning("waiting for the edge's JetStream: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            self.ready.set()
            if self._received:  # a feed knows nothing of what another one has read
                await self._go_on()
            try:
                async with Feed(
                    self._local,
                    self._stream,
                    filters=[f"{self._log.subjects.space}.event.>"],
                    start=self._received + 1,
                    on_message=self._receive,
                    held=lambda: len(self._queue) > READ_AHEAD,
                ) as self._feed:
                    await self._feed.failure
            except UnavailableError as error:
                logger.debug("the edge's stream of events is read again: %s", error)
                if self._local.is_closed:
                    raise
                await asyncio.sleep(RETRY_S)
            except (HistoryRegressedError, ConfigurationError) as error:
                if not await self._is_lost():
                    if not isinstance(error, HistoryRegressedError):
                        raise
                    continue
                logger.error(  # noqa: TRY400 - what happened to a disk
                    "the edge's JetStream has lost its events; those not read yet are gone, and it begins afresh",
                    extra={"edge": self._edge, "stream": self._stream, "read": len(self._queue), "error": str(error)},
                )
            finally:
                self._feed = None

    async def _keep_forwarding(self) -> None:
        while True:
            while self._queue:
                first = self._queue[0]
                if first.stream != self._told.stream:
                    self._told = _Mark(first.stream, self._after if first.stream == self._name else 0)
                    await self._read_mark()
                    self._drop_forwarded()
                elif first.sequence <= self._told.through:
                    await self._name_anew(first)
                else:
                    await self._forward([event for event in self._queue[:BATCH] if event.stream == first.stream])
                if self._feed is not None:
                    self._feed.resume()
            self._news.clear()
            await self._news.wait()

    async def _is_lost(self) -> bool:
        """Whether the edge's stream is not there any more, or another one of its name is."""
        while True:
            try:
                info = await js_request(self._local, f"STREAM.INFO.{self._stream}", {}, none_for={NO_STREAM})
            except UnavailableError as error:
                logger.debug("cannot look at the edge's stream of events: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return info is None or _name_of(info) != self._name

    async def _ensure_stream(self) -> None:
        space = self._log.subjects.space
        config = {
            "name": self._stream,
            "description": f"cuebook space {space}: events of edge {self._edge} on their way to the log",
            "subjects": [f"{space}.event.>"],
            "retention": "limits",
            "discard": "new",
            "storage": "file",
            "max_msg_size": MAX_MESSAGE_BYTES - HEADERS_ADDED,
            "duplicate_window": DUPLICATE_WINDOW_S * 10**9,
            "allow_direct": True,
            "num_replicas": 1,
        }
        await js_request(self._local, f"STREAM.CREATE.{self._stream}", config, none_for={NAME_IN_USE})
        info = await js_request(self._local, f"STREAM.INFO.{self._stream}", {})
        if _name_of(info) != self._name:
            self._name, self._after, self._received = _name_of(info), int(_metadata(info).get(_AFTER, 0)), 0

    async def _name_anew(self, first: _Event) -> None:
        """What is stored here was put back to an older copy, and this event has come since, the first one to do so."""
        name = self._next_name(first.stream)
        try:
            await self._rename(first.stream, name, first.sequence - 1)
        except UnavailableError as error:
            logger.debug("events wait at the edge: %s", error)
            await asyncio.sleep(RETRY_S)
            return
        named = [replace(one, stream=name) if one.stream == first.stream else one for one in self._queue]
        self._queue = list({(one.stream, one.sequence): one for one in named}.values())

    async def _go_on(self) -> None:
        """After a restart of the server, perhaps. Where its disk was put back, what was read and is missing is told."""
        while True:
            try:
                after = await self._still_there()
                if after < self._received:
                    waiting = [one.sequence - 1 for one in self._queue if one.stream == self._name]
                    await self._rename(self._name, self._next_name(self._name), min([after, *waiting]))
            except StreamMissingError:
                return
            except UnavailableError as error:
                logger.debug("cannot look at the edge's stream of events: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                self._received = after
                return

    async def _still_there(self) -> int:
        """Up to where the stream is what we have read: as far as that was, also where we have removed it since."""
        first = await first_match(self._local, self._stream, ">")
        if first is None:
            info = await js_request(self._local, f"STREAM.INFO.{self._stream}", {})
            return min(int(info["state"]["last_seq"]), self._received)
        if first.sequence > self._received:
            return self._received
        if first.recorded_at > self._read_until:
            return first.sequence - 1
        return min(await sequence_before(self._local, self._stream, self._read_until + 1), self._received)

    def _next_name(self, name: str) -> str:
        names = [one.partition("+") for one in (name, self._newest.stream)]
        times = [int(times) for made, _, times in names if made == _made(name) and times.isdecimal()]
        return f"{_made(name)}+{max(times, default=0) + 1}"

    async def _rename(self, name: str, into: str, after: int) -> None:
        """Call the edge's stream otherwise from a sequence on. Raises UnavailableError."""
        info = await js_request(self._local, f"STREAM.INFO.{self._stream}", {}, none_for={NO_STREAM})
        if info is not None and _name_of(info) == name:
            metadata = {**_metadata(info), _NAMED: into, _AFTER: str(after)}
            await js_request(self._local, f"STREAM.UPDATE.{self._stream}", {**info["config"], "metadata": metadata})
        if self._name == name:
            self._name, self._after = into, after
        logger.error(
            "the edge's JetStream was put back to an older copy; what has come since is told all the same",
            extra={"edge": self._edge, "stream": self._stream, "after": after, "told": self._told.through},
        )

    async def _read_mark(self) -> None:
        """Up to where the log says that it has our events, however long it takes until it answers."""
        while True:
            try:
                await self._log.verify()  # the link may be back before the hub has its stream
                self._marked, self._told = await self._last_mark()
            except (UnavailableError, StreamMissingError):
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _last_mark(self) -> tuple[int, _Mark]:
        """Where the last mark stands in the log, and the last one of our stream.

        Raises UnavailableError, ConfigurationError while the log does not answer, or is not as it must be.
        """
        found = await last_match(self._log.connection, self._log.chain.stream, self._mark)
        try:
            if found is None and (found := await self._log.last_match(self._mark)) is None:
                return 0, self._told
            mark = _mark_in(self._log.decode(*found))
            self._newest = mark
            if mark.stream != self._told.stream:
                mark = await self._search(self._marked, found.sequence)
        except (UnavailableError, ConfigurationError) as error:
            await self._log.verify()  # is it there? then what is not is older, and lies where we cannot read
            if not self._log.chain.earlier:
                raise
            self._unreadable += 1
            if self._unreadable < PATIENCE:  # it may have been the link, for a moment
                raise UnavailableError(str(error)) from error
            known = self._told if self._told.through else replace(self._told, through=await self._removed())
            if not self._said_unreadable:
                self._said_unreadable = True
                logger.error(  # noqa: TRY400 - a stream that somebody has dropped
                    "up to where the log has the events of this edge cannot be read any more: it goes on after those"
                    " that are removed here, so some may be told twice",
                    extra={"edge": self._edge, "through": known.through, "error": str(error), "remedy": error.remedy},
                )
            return found.sequence if found is not None else self._marked, known
        self._unreadable = 0
        return found.sequence, mark

    async def _removed(self) -> int:
        """Up to where events were removed from the edge's stream, since the log had them. Raises UnavailableError."""
        info = await js_request(self._local, f"STREAM.INFO.{self._stream}", {}, none_for={NO_STREAM})
        if info is None or _name_of(info) != self._told.stream:
            return 0
        return max(int(info["state"]["first_seq"]) - 1, 0)

    async def _search(self, after: int, until: int) -> _Mark:
        """The last mark is of another stream: a disk was replaced or put back, or there are two edges with one name."""
        begun, ours = _Mark(self._told.stream, self._after), self._told
        async for item in self._log.read(after=after, until=until, filters=[self._mark]):
            mark = _mark_in(item)
            if mark.stream == ours.stream:
                ours = mark
        another = _made(self._newest.stream) != _made(ours.stream)
        if another and ours.through and ours != begun and not self._said_two:
            self._said_two = True
            logger.error(
                "another machine forwards events under the name of this edge: give each edge a name of its own",
                extra={"edge": self._edge},
            )
        return ours

    def _receive(self, subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        self._received, self._read_until = sequence, max(self._read_until, recorded_at)
        event = _Event(self._name, subject, body, sequence, recorded_at, headers)
        follows = bool(self._queue) and self._queue[-1].stream == event.stream
        if follows or not self._is_told(event):  # else it was forwarded before a restart, and not removed yet
            self._queue.append(event)
            self._news.set()

    def _is_told(self, event: _Event) -> bool:
        """Whether the log has it, under the name that its stream has or under another that it had before or since."""
        if self._told.covers(event):
            return True
        newest = replace(self._newest, stream=event.stream)
        return _made(self._newest.stream) == _made(event.stream) and newest.stored_at > 0 and newest.covers(event)

    async def _forward(self, events: list[_Event], *, told: Sequence[_Event] = ()) -> None:
        """Append events with a mark that tells of these, or of others."""
        try:
            await self._append(events, told or events)
        except ConcurrencyConflictError:
            before = self._marked
            await self._read_mark()  # an attempt of ours had succeeded after all
            if self._marked == before:
                await asyncio.sleep(BACK_OFF_S)  # until it can be seen
        except (UnavailableError, ConfigurationError) as error:  # such as an old stream that one cannot read from here
            logger.debug("events wait at the edge: %s", error)
            if error.remedy == NO_ROOM and not self._said_full:
                self._said_full = True
                said = "the log has no room, events wait at the edge: %s"
                logger.error(said, NO_ROOM, extra={"edge": self._edge})  # noqa: TRY400 - what happened at the hub
            await asyncio.sleep(RETRY_S)
            await self._read_mark()
        except CommandRejectedError as error:
            through = self._told.through
            await self._read_mark()
            if not events:
                raise
            if self._told.through == through:
                await self._forward_apart(events, error)
        self._drop_forwarded()

    async def _forward_apart(self, events: list[_Event], error: CommandRejectedError) -> None:
        """The log refuses the batch for one of them: forward the halves, and of one alone only that it was refused."""
        if len(events) > 1:
            half = len(events) // 2
            await self._forward(events[:half])
            if self._told.through >= events[half - 1].sequence:
                await self._forward(events[half:])
            return
        [event] = events
        known = _DUPLICATE in str(error)
        logger.log(
            logging.INFO if known else logging.ERROR,
            "the log has an event of the edge already" if known else "the log refuses an event of the edge; it is lost",
            extra={"edge": self._edge, "subject": event.subject, "sequence": event.sequence, "error": str(error)},
        )
        await self._forward([], told=[event])

    async def _append(self, events: list[_Event], told: Sequence[_Event]) -> None:
        stored_at = max(self._told.stored_at, *(event.stored_at for event in told))  # the edge's clock may go back
        mark_after = _Mark(self._told.stream, max(self._told.through, told[-1].sequence), stored_at)
        event_id = self._log.ids()
        data = {"edge": self._edge, **asdict(mark_after), "events": len(events)}
        mark = encode(OutsideEvent(data=data), event_id=event_id, source=f"edge-{self._edge}", event_type="event")
        members = [Member(self._mark, mark, event_id), *(self._member(event) for event in events)]
        last = await append_batch(
            self._log.connection,
            members,
            scope=self._mark,
            expected=self._marked if self._marked >= self._log.chain.whole else 0,  # no mark is carried over by a roll
            first_after=self._log.first_after,
            give_up_s=GIVE_UP_S,
        )
        self._marked, self._newest, self._told = last - len(events), mark_after, mark_after
        self._said_full = False
        self.forwarded += len(events)

    def _member(self, event: _Event) -> Member:
        """The event as it was, under an id: its author's, or one made of its place in the edge's stream."""
        told = parse_headers(event.headers)
        headers = {
            name: _unsendable.sub("?", value)
            for name, value in told.items()
            if _is_header(name) and not name.startswith("nats-")
        }
        made, _, times = event.stream.partition("+")
        stream = "".join(digit for digit in made if digit.isdigit()) + (f"r{times}" if times else "")
        own_id, event_id = f"{self._edge}-{stream}-{event.sequence}", told.get("nats-msg-id", "")
        if not 0 < len(event_id) <= MAX_ID_LENGTH or not event_id.isprintable():  # the log would refuse to read it
            event_id = own_id
        if headers.get("ce-id") != told.get("ce-id"):  # else two that differ in such bytes only would count as one
            headers["ce-id"] = own_id
        subject = event.subject.replace("\N{REPLACEMENT CHARACTER}", "?")  # for one byte that is not UTF-8, as above
        return Member(subject, event.body, event_id, {**headers, "Nats-Msg-Id": event_id})

    def _drop_forwarded(self) -> None:
        ours = [one for one in self._queue if one.stream == self._told.stream]
        told = len(list(itertools.takewhile(self._is_told, ours)))  # what follows one that has come since has, too
        self._queue = [*ours[told:], *(one for one in self._queue if one.stream != self._told.stream)]
        kept = [one.sequence for one in ours[told:]]
        until = min([self._told.through, self._received, *(sequence - 1 for sequence in kept)])
        if until and self._told.stream == self._name:  # what was not read yet may have come after the disk was put back
            self._purging = asyncio.get_running_loop().create_task(self._purge(self._told, until))

    async def _purge(self, told: _Mark, until: int) -> None:
        """Remove what was told, unless something younger stands there now, since the disk was put back under us."""
        try:
            last = await message_at(self._local, self._stream, until)
            if last is None or 0 < told.stored_at < last.recorded_at:
                return
            if self._local.is_connected:  # else it would be said when the server is back, perhaps with an older copy
                await js_request(self._local, f"STREAM.PURGE.{self._stream}", {"seq": until + 1})
        except CuebookError as error:  # also when it is gone
            logger.debug("removed later: %s", error)  # with the next batch


def _mark_in(item: Envelope | Unreadable) -> _Mark:
    """What a mark says; of no stream where it is none, since anybody may publish there."""
    event = item.event if isinstance(item, Envelope) else None
    match event.data if isinstance(event, OutsideEvent) else None:
        case {"stream": str(stream), "through": int(through), **more}:
            stored_at = more.get("stored_at")
            return _Mark(stream, through, stored_at if isinstance(stored_at, int) else 0)
        case _:
            return _Mark("", 0)


def _made(name: str) -> str:
    """When the stream of that name was made."""
    return name.partition("+")[0]


def _name_of(info: dict[str, Any]) -> str:
    return str(_metadata(info).get(_NAMED) or info["created"])


def _metadata(info: dict[str, Any]) -> dict[str, str]:
    return info["config"].get("metadata") or {}
