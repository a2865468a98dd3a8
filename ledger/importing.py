"""Filling a stream from an export, so that nothing happens by it.

An import goes into a stream of its own, which is made for it: marked as a recording, which no orchestrator and no agent
touches, not republished, and sealed by the server when it is complete. Sequences stay what they were wherever the
export leaves nothing out. The server gives each message a new time and would act on its headers, so both are carried in
one header of our own; whoever reads the stream sees the original. An import that was interrupted goes on where it was.

With `live_effects` the stream becomes a living space instead: work that was open in the export is then done.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any, Final

from cuebook.events.connection import Connection
from cuebook.events.copies import IMPORT, Original, copy_guard, copy_headers
from cuebook.events.errors import ConcurrencyConflictError, ConfigurationError, UnavailableError
from cuebook.events.jetstream import CONFLICTS, NO_MESSAGE, NO_STREAM, js_request
from cuebook.events.log import EventLog
from cuebook.events.lookup import message_at
from cuebook.events.stream import stream_config
from cuebook.events.subjects import Subjects
from cuebook.ledger.errors import ExportError
from cuebook.ledger.exports import Reader, sound_records
from cuebook.ledger.record import Record, is_of
from cuebook.ledger.source import Imported

__all__ = ["Importer"]

WINDOW: Final = 512
WINDOW_BYTES: Final = 8 * 1024 * 1024
ANSWER_WITHIN_S: Final = 10.0
_SEQUENCE: Final = b'"seq":'
_OURS: Final = b"nats-"
_NAME: Final = b"nats-msg-id"
_REPEATED: Final = b'"duplicate"'


class Importer:
    """One import of one export. The export is read twice: once to see that it is sound, and once to store it."""

    def __init__(
        self, connection: Connection, space: str, imported: Imported, *, reroot: bool, live_effects: bool
    ) -> None:
        """`imported`: header and end of an export that was read through.

        Raises ConfigurationError when it is of another space and `reroot` is not wanted.
        """
        self._connection, self._imported, self._live = connection, imported, live_effects
        self._subjects = Subjects(space)
        self._origin = imported.header.space
        self._rerooted = space != self._origin
        if self._rerooted and not reroot:
            raise ConfigurationError(
                f"the export is of space {self._origin!r}, and its subjects begin with that",
                remedy=f"import into space {self._origin} (of another server), or rename the subjects with --reroot",
            )
        if live_effects and not imported.keeps_sequences:
            raise ConfigurationError(
                "the export leaves messages out, so what refers to a sequence would mean another message",
                remedy="export without filters, or import without --live-effects",
            )
        self._first = imported.end.first if imported.keeps_sequences else 1
        self._before = self._name = b""

    async def prepare(self, *, replicas: int = 1) -> int:
        """Make the stream, or find one that this very import has begun. Returns how many messages it holds already.

        Raises ConfigurationError for a stream that is something else; UnavailableError.
        """
        stream = self._subjects.stream
        info = await js_request(self._connection, f"STREAM.INFO.{stream}", {}, none_for={NO_STREAM})
        if info is None:
            await js_request(self._connection, f"STREAM.CREATE.{stream}", self._config(replicas))
            await EventLog(self._connection, self._subjects.space, source="import").verify()
            return 0
        metadata, state = info["config"].get("metadata") or {}, info["state"]
        if not self._live and metadata.get(IMPORT) == self._imported.text:
            return int(state["messages"])
        ours = IMPORT not in metadata and state["last_seq"] + 1 == self._first + state["messages"]
        if self._live and ours and state["messages"] <= self._imported.end.count:  # `fill` looks whether it is this one
            await self._check_undriven()
            await EventLog(self._connection, self._subjects.space, source="import").verify()
            return int(state["messages"])
        if IMPORT in metadata:
            reason, remedy = "holds another import", "import into another --space, with --reroot"
        elif state["messages"]:
            reason, remedy = (
                f"holds {state['messages']} messages already",
                "import into a --space of its own, with --reroot",
            )
        else:
            reason = "is that of a living space, where open work would be done"
            remedy = "import into a --space of its own; or, if that is what you want, say --live-effects"
        raise ConfigurationError(f"stream {stream} {reason}", remedy=remedy)

    async def fill(self, reader: Reader, *, stored: int, watch: Callable[[int], None] | None = None) -> int:
        """Store what is not there yet; `watch` is called with each number of messages done. Returns how many came.

        Raises UnavailableError, after which the same import goes on where it was; TamperedError; ConfigurationError,
        ConcurrencyConflictError when somebody else writes to the stream.
        """
        if stored > (count := self._imported.end.count):
            raise ConfigurationError(
                f"stream {self._subjects.stream} holds {stored} messages, and the export {count}",
                remedy="somebody else has written to it: import into another --space, with --reroot",
            )
        records = sound_records(reader)
        last: Record | None = None
        for _ in range(stored):
            last = next(records)
        if last is not None:
            await self._compare(last, stored)
            self._name = _live_headers(last.headers, b"")[1]
        came = await self._publish(records, stored, watch)
        await self._complete(stored + came)
        return came

    async def _check_undriven(self) -> None:
        """An orchestrator would act on a request before it has seen its answer, which comes later in the export."""
        lease = f"{self._subjects.space}_leases"
        request = {"last_by_subj": f"$KV.{lease}.orchestrator"}
        held = await js_request(
            self._connection, f"STREAM.MSG.GET.KV_{lease}", request, none_for={NO_STREAM, NO_MESSAGE}
        )
        if held is not None and b"KV-Operation: " not in b64decode(held["message"].get("hdrs", "")):  # not given back
            raise ConfigurationError(
                f"an orchestrator decides in space {self._subjects.space!r}",
                remedy="stop it, import, and start it again: it must see all of the export at once",
            )

    def _config(self, replicas: int) -> dict[str, Any]:
        config = stream_config(self._subjects, replicas, recording=not self._live)
        config["first_seq"] = self._first
        if not self._live:
            config["max_msg_size"] *= 2  # a copy's headers are those of the original in base64, and some more
            del config["republish"]  # nobody shall hear of it a second time
            config["metadata"][IMPORT] = self._imported.text
            config["description"] = f"cuebook space {self._subjects.space}: imported from {self._origin}"
        return config

    async def _compare(self, record: Record, stored: int) -> None:
        """What was stored before must be what the file has there."""
        found = await message_at(self._connection, self._subjects.stream, self._first + stored - 1)
        if found is None or found.body != record.body:
            raise ConfigurationError(
                f"stream {self._subjects.stream} holds something else at {self._first + stored - 1} than the file",
                remedy="import into another --space, with --reroot",
            )

    async def _publish(self, records: Iterator[Record], stored: int, watch: Callable[[int], None] | None) -> int:
        inbox = self._connection.new_inbox()
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        def receive(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:  # noqa: ARG001
            answers.put_nowait(payload)

        listener = await self._connection.listen(inbox, receive)
        came = under_way = under_way_bytes = 0
        self._before = b""
        sizes: list[int] = []
        try:
            for record in records:
                frame = self._frame(record, self._first + stored + came - 1, inbox)
                self._connection.write(frame)
                came += 1
                under_way, under_way_bytes = under_way + 1, under_way_bytes + len(frame)
                sizes.append(len(frame))
                if under_way >= WINDOW or under_way_bytes >= WINDOW_BYTES:
                    taken = max(under_way // 2, 1)
                    await self._answers(answers, taken)
                    under_way, under_way_bytes = under_way - taken, under_way_bytes - sum(sizes[:taken])
                    del sizes[:taken]
                    if watch is not None:
                        watch(stored + came)
            await self._answers(answers, under_way)
        finally:
            await listener.close()
        return came

    async def _answers(self, answers: asyncio.Queue[bytes], count: int) -> None:
        for _ in range(count):
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    payload = await answers.get()
            except TimeoutError as error:
                raise UnavailableError(
                    "the server does not acknowledge any more", remedy="run the same command again: it goes on"
                ) from error
            if payload.startswith(b'{"error"') or _SEQUENCE not in payload:
                failure = json.loads(payload)["error"] if payload else {"description": "no stream listens", "code": 503}
                raise self._refusal(failure)
            if self._live and _REPEATED in payload:
                raise UnavailableError(
                    "the export holds two messages with the same Nats-Msg-Id, of which the server stores one in two "
                    "minutes",
                    remedy="run the same command again in two minutes: it goes on where it was",
                )

    def _refusal(self, failure: dict[str, Any]) -> Exception:
        if failure.get("err_code") in CONFLICTS:
            return ConcurrencyConflictError(self._subjects.stream, self._first)
        return UnavailableError(
            f"the server refused a message: {failure.get('description')}",
            remedy="run the same command again: it goes on where it was",
        )

    def _frame(self, record: Record, expected_last: int, inbox: str) -> bytes:
        if not is_of(record, self._origin):  # who may write here may write elsewhere too, and ask JetStream for things
            raise ExportError(
                f"sequence {record.sequence} of the export is under {record.subject[:80]!r}, which is not of space "
                f"{self._origin!r}",
                remedy="get the file again",
            )
        sequence, recorded_ns, subject, headers, body = record
        if self._rerooted:
            subject = self._subjects.space.encode() + subject[len(self._origin) :]
        name = b"%d" % sequence
        guard = copy_guard(self._before, expected_last, self._subjects.all)
        if self._live:
            block, name = _live_headers(headers, guard)
            self._before = name if name != self._name else b""  # where it is repeated it tells nothing
            self._name = name
        else:
            block, self._before = copy_headers(Original(sequence, recorded_ns, headers), name, guard), name
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
            subject, inbox.encode(), len(block), len(block) + len(body), block, body,
        )  # fmt: skip

    async def _complete(self, count: int) -> None:
        stream = self._subjects.stream
        info = await js_request(self._connection, f"STREAM.INFO.{stream}", {})
        state = info["state"]
        if (state["messages"], state["last_seq"]) != (count, self._first + count - 1) and not self._live:
            raise ConcurrencyConflictError(stream, self._first + count - 1)
        if not self._live and not info["config"].get("sealed"):
            await js_request(self._connection, f"STREAM.UPDATE.{stream}", {**info["config"], "sealed": True})


def _live_headers(headers: bytes, guard: bytes) -> tuple[bytes, bytes]:
    """What an author wrote, without what the server would act on once more; and its message id, an event's name."""
    kept, name = [], b""
    for line in headers.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == _NAME:
            name = name or value.strip()
        elif line and not key.strip().lower().startswith(_OURS):
            kept.append(line + b"\r\n")
    if name:
        kept.append(b"Nats-Msg-Id: %b\r\n" % name)
    return b"NATS/1.0\r\n%b%b\r\n" % (guard, b"".join(kept)), name
