"""History as lines of JSON: a file that is gone on with where it ends, or stdout for another program."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO, Final

from cuebook.cli.exits import InputError
from cuebook.cli.history.views import event_view
from cuebook.cli.replay.slices import Message, Slice
from cuebook.events.errors import ConfigurationError, HistoryRegressedError, UnavailableError

__all__ = ["FileDestination", "Stdout"]

_TAIL_BYTES: Final = 4 * 1024 * 1024
"""A line is shorter: 256 KiB twice over, as JSON and in base64."""
_BEGINNING: Final = b'{"sequence": '
_OTHER: Final = "send it to another one"


def _line(part: Slice, message: Message) -> bytes:
    """One message as a line: as `events tail -o jsonl` has it, and with the bytes it was stored with."""
    recorded_at = message.recorded_ns // 1000
    item = part.log.decode(message.subject, message.body, message.sequence, recorded_at, message.headers)
    view: dict[str, Any] = {
        **event_view(item),
        "recorded_ns": str(message.recorded_ns),
        "headers": base64.b64encode(message.headers).decode() or None,
        "body": base64.b64encode(message.body).decode(),
    }
    return json.dumps(view, default=str).encode() + b"\n"


class Stdout:
    """Lines for another program. It forgets what it got: who goes on says --from."""

    name = "stdout"

    def __init__(self, part: Slice) -> None:
        self._part = part
        self.stored, self.has_some = 0, False

    async def open(self) -> int:
        """See Destination."""
        return self._part.after

    async def put(self, message: Message) -> None:
        """See Destination."""
        sys.stdout.write(_line(self._part, message).decode())
        self.stored += 1

    async def flush(self) -> None:
        """See Destination."""
        sys.stdout.flush()

    async def close(self) -> None:
        """See Destination."""


class FileDestination:
    """Lines in a file, which is made or gone on with. A line that was cut short is written anew."""

    def __init__(self, part: Slice, path: Path) -> None:
        self._part, self._path = part, path
        self._file: BinaryIO | None = None
        self.name = str(path)
        self.stored, self.has_some = 0, False

    async def open(self) -> int:
        """See Destination."""
        try:
            self._file = file = self._path.open("a+b")
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except BlockingIOError as error:
            raise ConfigurationError(
                f"somebody else is writing to {self._path}", remedy="wait until they are done, or choose another file"
            ) from error
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        whole, end, cut = tail.rpartition(b"\n")
        if not (cut.startswith(_BEGINNING) or _BEGINNING.startswith(cut)) or (not end and size > _TAIL_BYTES):
            raise self._foreign()
        if not end:
            file.truncate(0)
            return self._part.after
        file.seek(0)
        first, last = self._sequence_in(file.readline()), whole.rpartition(b"\n")[2]
        sequence = self._sequence_in(last)
        await self._compare(first, sequence, last)
        file.truncate(size - len(cut))
        self.has_some = True
        return sequence

    async def _compare(self, first: int, sequence: int, last: bytes) -> None:
        """The file must hold this slice, from its beginning, of this source."""
        stream = self._part.log.subjects.stream
        found = await self._part.log.message_at(sequence)
        if found is None or base64.b64encode(found.body).decode() != json.loads(last).get("body"):
            raise HistoryRegressedError(
                f"sequence {sequence} of {stream} is not what stands in {self._path}",
                remedy=f"the source is another one, or was rewritten: {_OTHER}",
            )
        if not await self._is_mine(sequence):
            raise ConfigurationError(f"{self._path} holds something else of {stream}", remedy=_OTHER)
        if await self._part.first() < first and not self._part.types:
            raise ConfigurationError(
                f"{self._path} begins at sequence {first}; nothing can be put before that", remedy=_OTHER
            )

    async def _is_mine(self, sequence: int) -> bool:
        part = self._part
        async with aclosing(part.log.batches(after=sequence - 1, until=sequence, filters=part.filters)) as batches:
            async for batch in batches:
                return part.take(batch[0]) is not None
        return False

    def _sequence_in(self, line: bytes) -> int:
        try:
            found = json.loads(line)["sequence"]
        except (ValueError, LookupError, TypeError) as error:
            raise self._foreign() from error
        if not isinstance(found, int):
            raise self._foreign()
        return found

    def _foreign(self) -> InputError:
        return InputError(f"{self._path} is there and holds no events", remedy=_OTHER)

    async def put(self, message: Message) -> None:
        """See Destination."""
        assert self._file is not None
        try:
            self._file.write(_line(self._part, message))
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be written: {error.strerror}") from error
        self.stored += 1

    async def flush(self) -> None:
        """See Destination."""
        assert self._file is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UnavailableError(f"{self._path} cannot be written: {error.strerror}") from error

    async def close(self) -> None:
        """See Destination."""
        if self._file is not None:
            self._file.close()
            self._file = None
