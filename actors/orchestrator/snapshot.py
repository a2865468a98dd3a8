"""Snapshots of the fold, so that starting does not read the whole log. Disposable: without one, only time is lost."""

from __future__ import annotations

import asyncio
import io
import logging
import zlib
from typing import Any

import msgpack
import nats.errors
from nats.js import api
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from cuebook.events.connection import Connection
from cuebook.events.subjects import Subjects

__all__ = ["SnapshotStore"]

FORMAT = 6
"""Grows when the fold changes its shape; a snapshot of another format is not used."""
_NAME = "orchestrator"

logger = logging.getLogger(__name__)


class SnapshotStore:
    """The space's latest snapshot, in a JetStream object store."""

    def __init__(self, connection: Connection, subjects: Subjects, *, replicas: int = 1) -> None:
        self._connection, self._bucket, self._replicas = connection, f"{subjects.space}_snapshots", replicas

    async def save(self, data: dict[str, Any]) -> int:
        """Store the dump of a World; returns its size in bytes. Raises nats errors, which lose nothing."""
        packed = await asyncio.to_thread(zlib.compress, msgpack.packb({"format": FORMAT, "world": data}), level=1)
        bucket = await self._open()
        await bucket.put(_NAME, packed)
        return len(packed)

    async def load(self) -> dict[str, Any] | None:
        """The last dump, or None when there is none that this release can use."""
        content = io.BytesIO()
        try:
            bucket = await self._connection.jetstream().object_store(self._bucket)
            await bucket.get(_NAME, writeinto=content)
            data = msgpack.unpackb(zlib.decompress(content.getvalue()), strict_map_key=False)
        except NotFoundError:
            return None
        except (nats.errors.Error, JetStreamError, zlib.error, ValueError, TimeoutError) as error:
            logger.warning("the snapshot cannot be used, reading the whole log: %s", str(error) or type(error).__name__)
            return None
        if not (isinstance(data, dict) and isinstance(data.get("world"), dict)):
            logger.warning("the snapshot cannot be used, reading the whole log: it is none")
            return None
        if data.get("format") != FORMAT:
            logger.info("the snapshot is of format %s, reading the whole log", data.get("format"))
            return None
        world: dict[str, Any] = data["world"]
        return world

    async def _open(self) -> ObjectStore:
        js = self._connection.jetstream()
        try:
            return await js.object_store(self._bucket)
        except NotFoundError:
            config = api.ObjectStoreConfig(description="folds, disposable", replicas=self._replicas)
            return await js.create_object_store(self._bucket, config)
