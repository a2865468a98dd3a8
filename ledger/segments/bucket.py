"""Segments in a bucket of the JetStream object store, as `nats object ls|get` sees it too; parts are read by chunk.

Source: JetStream ADR-20 for the layout: `$O.<bucket>.M.<name>` holds what is known of an object, and
`$O.<bucket>.C.<nuid>` its chunks, which follow each other in the stream unless two wrote at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import nats.errors
from nats.js import api
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError
from nats.js.object_store import ObjectStore

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.jetstream import NO_MESSAGE, NO_STREAM, js_request
from cuebook.events.lookup import StoredMessage, first_match, message_at
from cuebook.events.reservation import Reservation, reserved
from cuebook.ledger.segments.manifest import INDEX, MANIFEST, range_of
from cuebook.ledger.segments.store import SegmentFileMissingError

__all__ = ["BUCKET", "BucketStore"]

BUCKET: Final = "bucket "
"""What the place of a bucket begins with, where it is written down."""
_CHUNK: Final = 128 * 1024
_INDEX_CHUNK: Final = 16 * 1024
"""Of an index only small parts are read."""
TORN_AFTER_S = 3600.0
"""Chunks whose object is not there after this never get one."""
_SUFFIX: Final = "_segments"
_AT_ONCE: Final = 64
"""Requests under way."""
_AGAIN: Final = "write it again with 'cuebook space archive'"


@dataclass(frozen=True, slots=True)
class _Object:
    nuid: str
    size: int
    chunk: int
    first: int
    """Where its first chunk stands in the stream."""


class BucketStore:
    """The bucket `<space>_segments`, or another one."""

    remote = True

    def __init__(self, connection: Connection, bucket: str, *, replicas: int = 1) -> None:
        """`replicas`: of the bucket, should it have to be made."""
        self._connection, self._bucket, self._replicas = connection, bucket, replicas
        self._stream = f"OBJ_{bucket}"
        self._objects: dict[str, _Object] = {}
        self._reservation: Reservation | None = None

    @property
    def place(self) -> str:
        """See SegmentStore."""
        return f"{BUCKET}{self._bucket}"

    async def names(self) -> list[str]:
        """See SegmentStore."""
        return sorted(await self._names())

    async def read(self, name: str, start: int, size: int) -> bytes:
        """See SegmentStore."""
        for again in (False, True):
            found = await self._object(name, again=again)
            if start + size > found.size:
                raise SegmentFileMissingError(
                    f"{name} in {self.place} is cut short: it has {found.size} bytes, not {start + size}", remedy=_AGAIN
                )
            data = await self._part(found, start, size)
            if data is not None:
                return data
        raise SegmentFileMissingError(f"parts of {name} are missing in {self.place}", remedy=_AGAIN)

    async def read_all(self, name: str, most: int) -> bytes:
        """See SegmentStore."""
        for again in (False, True):
            found = await self._object(name, again=again)
            data = await self._part(found, 0, min(found.size, most)) if found.size else b""
            if data is not None:
                return data
        raise SegmentFileMissingError(f"parts of {name} are missing in {self.place}", remedy=_AGAIN)

    async def size(self, name: str) -> int:
        """See SegmentStore."""
        return (await self._object(name, again=True)).size

    async def put(self, name: str, data: Path | bytes) -> None:
        """See SegmentStore."""
        if self._reservation is not None and name.endswith(MANIFEST):
            self._reservation.check()  # else somebody else may have written the same sequences
        chunk = _INDEX_CHUNK if name.endswith((INDEX, MANIFEST)) else _CHUNK
        meta = api.ObjectMeta(name=name, options=api.ObjectMetaOptions(max_chunk_size=chunk))
        try:
            bucket = await self._open()
            if isinstance(data, bytes):
                await bucket.put(name, data, meta)
            else:
                with data.open("rb") as file:
                    await bucket.put(name, file, meta)
                data.unlink()
        except APIError as error:
            raise _refused(f"{self.place} does not take {name}: {error.description}", error) from error
        except (nats.errors.Error, JetStreamError, TimeoutError) as error:
            raise UnavailableError(
                f"{self.place} did not take {name}: {str(error) or type(error).__name__}",
                remedy="run the same command again: it goes on where it was",
            ) from error
        self._objects.pop(name, None)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Path]:
        """See SegmentStore."""
        space, holder = self._bucket.removesuffix(_SUFFIX), f"a program on {socket.gethostname()}"
        async with reserved(
            self._connection, space, holder, replicas=self._replicas, what="segments"
        ) as self._reservation:
            try:
                await self._remove_torn()
                with tempfile.TemporaryDirectory(prefix="cuebook-segments-") as folder:
                    yield Path(folder)
            finally:
                self._reservation = None

    async def _part(self, found: _Object, start: int, size: int) -> bytes | None:
        """A part of an object; None when a chunk is not where it should be."""
        first, last = start // found.chunk, (start + size - 1) // found.chunk
        parts: list[bytes] = []
        sequence = found.first + first
        subject = f"$O.{self._bucket}.C.{found.nuid}"
        for number in range(first, last + 1):
            chunk = await message_at(self._connection, self._stream, sequence)
            if chunk is None or chunk.subject != subject:  # another object's stands between
                chunk = await self._nth(subject, found.first, number)
            if chunk is None:
                return None
            parts.append(chunk.body)
            sequence = chunk.sequence + 1
        begin = start - first * found.chunk
        data = b"".join(parts)[begin : begin + size]
        return data if len(data) == size else None

    async def _nth(self, subject: str, first: int, number: int) -> StoredMessage | None:
        after, found = first - 1, None
        for _ in range(number + 1):
            found = await first_match(self._connection, self._stream, subject, after)
            if found is None:
                return None
            after = found.sequence
        return found

    async def _object(self, name: str, *, again: bool) -> _Object:
        if not again and (known := self._objects.get(name)) is not None:
            return known
        encoded = urlsafe_b64encode(name.encode()).decode()
        info = await self._meta(f"$O.{self._bucket}.M.{encoded}")
        if info is None or info.get("deleted"):
            raise SegmentFileMissingError(f"{name} is not in {self.place}", remedy=_AGAIN)
        first = await first_match(self._connection, self._stream, f"$O.{self._bucket}.C.{info['nuid']}")
        if first is None:
            raise SegmentFileMissingError(f"parts of {name} are missing in {self.place}", remedy=_AGAIN)
        chunk = (info.get("options") or {}).get("max_chunk_size") or _CHUNK
        found = self._objects[name] = _Object(info["nuid"], info["size"], chunk, first.sequence)
        return found

    async def _meta(self, subject: str) -> dict[str, Any] | None:
        answer = await js_request(
            self._connection,
            f"STREAM.MSG.GET.{self._stream}",
            {"last_by_subj": subject},
            none_for={NO_MESSAGE, NO_STREAM},
        )
        if answer is None:
            return None
        info: dict[str, Any] = json.loads(urlsafe_b64decode(answer["message"].get("data", "")))
        return info

    async def _names(self) -> list[str]:
        metas = await self._subjects(f"$O.{self._bucket}.M.>")
        names = []
        for subject in metas:
            with contextlib.suppress(ValueError):
                names.append(urlsafe_b64decode(subject.rpartition(".")[2]).decode())
        names = [name for name in names if range_of(name)]
        self._objects.clear()  # somebody may have written since
        there: list[bool] = []
        for place in range(0, len(names), _AT_ONCE):
            there += await asyncio.gather(*map(self._is_there, names[place : place + _AT_ONCE]))
        return [name for name, one in zip(names, there, strict=True) if one]

    async def _is_there(self, name: str) -> bool:
        try:
            await self._object(name, again=False)
        except SegmentFileMissingError:
            return False
        return True

    async def _remove_torn(self) -> None:
        """Chunks without an object that are old: whoever wrote them was killed, or else is still at it."""
        subjects = await self._subjects(f"$O.{self._bucket}.>")
        metas = [subject for subject in subjects if subject.startswith(f"$O.{self._bucket}.M.")]
        known = {info["nuid"] for subject in metas if (info := await self._meta(subject)) is not None}
        for subject in subjects:
            _, _, nuid = subject.rpartition(".")
            if not subject.startswith(f"$O.{self._bucket}.C.") or nuid in known:
                continue
            newest = await js_request(
                self._connection, f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}, none_for={NO_MESSAGE}
            )
            if newest is not None and _age_s(newest["message"]["time"]) > TORN_AFTER_S:
                await js_request(self._connection, f"STREAM.PURGE.{self._stream}", {"filter": subject})

    async def _subjects(self, which: str) -> list[str]:
        found: list[str] = []
        while True:
            request = {"subjects_filter": which, "offset": len(found)}
            info = await js_request(
                self._connection, f"STREAM.INFO.{self._stream}", request, none_for={NO_STREAM}, timeout_s=30
            )
            more = (info or {}).get("state", {}).get("subjects") or {}
            found += more
            if not more or len(found) >= info.get("total", 0):
                return found

    async def _open(self) -> ObjectStore:
        js = self._connection.jetstream()
        try:
            return await js.object_store(self._bucket)
        except NotFoundError:
            config = api.ObjectStoreConfig(description="segments of the log", replicas=self._replicas)
            return await js.create_object_store(self._bucket, config)


def _age_s(stamp: str) -> float:
    """How long ago the server's time was."""
    return (datetime.now(UTC) - datetime.fromisoformat(f"{stamp[:19]}+00:00")).total_seconds()


def _refused(text: str, error: APIError) -> ConfigurationError | UnavailableError:
    if (error.code or 500) >= 500:
        return UnavailableError(text, remedy="run the same command again: it goes on where it was")
    return ConfigurationError(text, remedy="say --to DIR, or give the object store room")
