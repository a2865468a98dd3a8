"""Python's garbage collector in a process that holds much for long: left to itself it is most of the tail.

It counts allocations less deallocations. With 10,000 tasks in flight these cancel out while the young generation
grows, so a collection comes seldom and stops everything for hundreds of milliseconds; see `just bench`, scenario S2.
Here the young are looked at often, a few milliseconds each time, and everything once a minute or when memory has grown.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Final, NoReturn

__all__ = ["settle_collector", "tend_collector"]

YOUNG_EVERY_S: Final = 0.5
ALL_EVERY_S: Final = 60.0
GROWTH: Final = 1.25
"""Memory that has grown by this factor since everything was looked at may be garbage: it is looked at again."""
SMALL_BYTES: Final = 128 << 20
"""Growth by less is no reason."""
_THRESHOLDS: Final = (100_000, 50, 50)
"""For a loop that is blocked, and cannot tend anything."""
_MEMORY: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def settle_collector() -> None:
    """Call once, when a process has started: what is there now is never looked at again, the rest more seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


async def tend_collector() -> NoReturn:
    """Settle the collector, then collect garbage in small pieces until cancelled."""
    settle_collector()
    clock = asyncio.get_running_loop().time
    looked_at, memory = clock(), _resident_bytes()
    while True:
        await asyncio.sleep(YOUNG_EVERY_S)
        if clock() - looked_at < ALL_EVERY_S and _resident_bytes() < max(memory * GROWTH, memory + SMALL_BYTES):
            gc.collect(0)
        else:
            gc.collect()
            looked_at, memory = clock(), _resident_bytes()


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say, which leaves the clock to decide."""
    try:
        return int(_MEMORY.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
