"""Many coarse timers, cheap to set and to cancel: one bucket of keys for each twentieth of a second.

A task's deadline is set once per task and nearly always cancelled, so a heap would fill with the dead.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

__all__ = ["Timers"]

BUCKET_US = 50_000


class Timers:
    """Keys and when they are due, in microseconds since 1970. A key is due once; setting it again moves it."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Hashable]] = {}
        self._due: dict[Hashable, int] = {}
        self._next: float = math.inf

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Hashable, due: int) -> None:
        """Make `key` due not before `due`, and at most a bucket later."""
        bucket = -(-due // BUCKET_US)
        before = self._due.get(key)
        if before is not None:
            if before == bucket:
                return
            self._buckets[before].discard(key)
        self._due[key] = bucket
        found = self._buckets.get(bucket)
        if found is None:
            self._buckets[bucket] = {key}
            self._next = min(self._next, bucket)
        else:
            found.add(key)

    def cancel(self, key: Hashable) -> None:
        """Forget `key`; it need not be set."""
        bucket = self._due.pop(key, None)
        if bucket is not None:
            self._buckets[bucket].discard(key)

    def expired(self, now: int) -> Iterator[Hashable]:
        """Take out everything due by `now`, earlier ones first."""
        current = now // BUCKET_US
        if self._next > current:
            return
        for bucket in sorted(bucket for bucket in self._buckets if bucket <= current):
            keys = self._buckets.pop(bucket)
            for key in keys:
                if self._due.get(key) == bucket:
                    del self._due[key]
                    yield key
        self._next = min(self._buckets, default=math.inf)
