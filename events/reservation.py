"""One at a time changes which streams a space has: whoever rolls it, undoes that, or drops an old stream.

In the same way one at a time writes segments to its bucket.

JetStream has no configuration update that fails when somebody else was first, so two who mean well could remove a
stream in which the other has just begun to write. A key that expires keeps them apart: it is renewed while its holder
lives, and free a few seconds after that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

import nats.errors
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from cuebook.events.connection import Connection, ended
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, UnavailableError
from cuebook.events.leases import EXPIRES_S, leases

__all__ = ["Reservation", "reserved"]

_RENEW_S: Final = 0.7
_TRY_S: Final = 0.2
_ANSWER_S: Final = 1.5


class Reservation:
    """That the streams of a space, or its segments, are ours to change."""

    def __init__(self, bucket: KeyValue, what: str, holder: str, revision: int, until: float) -> None:
        """`until`: by the monotonic clock, when it ends unless it is renewed."""
        self._bucket, self._what, self._holder = bucket, what, holder
        self._revision, self._until = revision, until
        self._times = self._begun = 1

    async def begin(self, within_s: float) -> None:
        """Wait until it is ours, and look at everything anew from here on. Raises UnavailableError."""
        give_up = time.monotonic() + within_s
        while time.monotonic() >= self._until:
            if time.monotonic() >= give_up:
                raise self._lost()
            await asyncio.sleep(_TRY_S)
        self._begun = self._times

    def check(self) -> None:
        """Raise UnavailableError if somebody else may have had it since `begin`; for before what cannot be undone."""
        if time.monotonic() >= self._until or self._begun != self._times:
            raise self._lost()

    def _lost(self) -> UnavailableError:
        return UnavailableError(
            f"for some seconds the {self._what} of the space were not reserved for this command: it stood still, or "
            "the server did not answer",
            remedy="say it again",
        )

    async def keep(self) -> None:
        """Renew it until cancelled; where it was lost, get it again when it is free."""
        while True:
            await asyncio.sleep(_RENEW_S if self._until else _TRY_S)
            began, mine = time.monotonic(), self._holder.encode()
            try:
                if self._until:
                    self._revision = await self._bucket.update(self._what, mine, last=self._revision)
                else:
                    self._revision = await self._bucket.create(self._what, mine)
                    self._times += 1
            except (KeyWrongLastSequenceError, APIError):
                self._until = 0.0
            except (nats.errors.Error, JetStreamError, TimeoutError):
                continue  # it may still come in time
            else:
                self._until = began + EXPIRES_S

    async def give_back(self) -> None:
        """Let the next one begin at once."""
        with contextlib.suppress(nats.errors.Error, JetStreamError, TimeoutError):
            await self._bucket.delete(self._what, last=self._revision)


@contextlib.asynccontextmanager
async def reserved(
    connection: Connection, space: str, holder: str, *, replicas: int = 1, what: str = "streams"
) -> AsyncIterator[Reservation]:
    """Have the streams of a space to oneself, or `what` else. `holder`: for others; `replicas`: of a new bucket.

    Waits for one who was killed. Raises CommandRejectedError when somebody is at it, UnavailableError.
    """
    try:
        bucket = await leases(connection, space, replicas=replicas, timeout_s=_ANSWER_S)
        began, revision = await _acquire(bucket, what, space, holder)
    except (nats.errors.Error, JetStreamError, TimeoutError) as error:
        raise UnavailableError(
            f"the {what} of space {space!r} could not be reserved: {str(error) or type(error).__name__}"
        ) from error
    found = Reservation(bucket, what, holder, revision, began + EXPIRES_S)
    keeper = asyncio.get_running_loop().create_task(found.keep())
    try:
        yield found
    finally:
        await ended(keeper)
        await found.give_back()


async def _acquire(bucket: KeyValue, what: str, space: str, holder: str) -> tuple[float, int]:
    """When it was asked for, and the revision of the key."""
    seen = 0
    while True:
        began = time.monotonic()
        try:
            return began, await bucket.create(what, holder.encode())
        except KeyNotFoundError:
            pass  # there when it was to be created, and ended when nats-py looked at it
        except KeyWrongLastSequenceError:
            try:
                entry = await bucket.get(what)
            except KeyNotFoundError:
                continue  # it has ended just now
            if seen and entry.revision != seen:  # renewed: its holder lives
                other = (entry.value or b"").decode("utf-8", "replace")
                raise CommandRejectedError(
                    f"the {what} of space {space!r} are being changed by {other}", remedy="wait until that is done"
                ) from ConcurrencyConflictError(space, 0)
            seen = entry.revision or 0
        await asyncio.sleep(_TRY_S)
