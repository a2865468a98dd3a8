"""Which orchestrator decides: a key that expires unless its holder renews it.

The lease only avoids wasted work. Two holders at once, after a pause or a partition, are harmless: the expected
sequence of every append is what keeps decisions single.
"""

from __future__ import annotations

import asyncio
import logging
import time

import nats.errors
from nats.js.errors import APIError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from cuebook.events.connection import Connection
from cuebook.events.leases import EXPIRES_S, leases
from cuebook.events.subjects import Subjects

__all__ = ["Lease"]

RENEW_S = 1.0
TRY_S = 0.5
_KEY = "orchestrator"

logger = logging.getLogger(__name__)


class Lease:
    """Holds, or waits for, the space's orchestrator lease. `held` is set while this process is the one that decides."""

    def __init__(self, connection: Connection, subjects: Subjects, holder: str, *, replicas: int = 1) -> None:
        """`replicas`: of the bucket, when it is made; as many as the log has, or it is lost with one node."""
        self._connection, self._space, self._holder = connection, subjects.space, holder
        self._replicas = replicas
        self._revision = 0
        self._until = 0.0
        self.asked = asyncio.Event()
        """Set once it is known who has it, this process or another."""
        self.held = asyncio.Event()
        self.lost = asyncio.Event()
        self.lost.set()

    async def keep(self) -> None:
        """Acquire and renew for ever; run it as a task. Cancelling it gives the lease back."""
        try:
            while True:
                try:
                    bucket = await self._open()
                    while True:
                        await self._turn(bucket)
                        await asyncio.sleep(RENEW_S if self.held.is_set() else TRY_S)
                except (nats.errors.Error, JetStreamError, TimeoutError) as error:
                    logger.warning("the lease cannot be renewed: %s", str(error) or type(error).__name__)
                    self._expire()
                    await asyncio.sleep(TRY_S)
        finally:
            await self._release()

    async def _open(self) -> KeyValue:
        return await leases(self._connection, self._space, replicas=self._replicas)

    async def _turn(self, bucket: KeyValue) -> None:
        began = time.monotonic()
        try:
            if self.held.is_set():
                self._revision = await bucket.update(_KEY, self._holder.encode(), last=self._revision)
            else:
                self._revision = await bucket.create(_KEY, self._holder.encode())
        except (KeyWrongLastSequenceError, APIError):
            self._expire(at_once=True)
            self.asked.set()
            return
        self._until = began + EXPIRES_S
        if not self.held.is_set():
            logger.info("this orchestrator decides now", extra={"holder": self._holder})
            self.lost.clear()
            self.held.set()
        self.asked.set()

    def _expire(self, *, at_once: bool = False) -> None:
        if self.held.is_set() and (at_once or time.monotonic() >= self._until):
            logger.warning("another orchestrator may decide now", extra={"holder": self._holder})
            self.held.clear()
            self.lost.set()

    async def _release(self) -> None:
        if not self.held.is_set() or not self._connection.is_connected:
            return
        try:
            bucket = await self._open()
            await bucket.delete(_KEY, last=self._revision)
        except (nats.errors.Error, JetStreamError, TimeoutError) as error:
            logger.info("the lease was not given back and will expire: %s", str(error) or type(error).__name__)
        self.held.clear()
        self.lost.set()
