"""Python's garbage collector in a process that holds much for long: with its defaults it is most of the tail.

At 10,000 tasks in flight each full collection stops everything for some 100 ms; see `just bench`, scenario S2.
"""

from __future__ import annotations

import gc

__all__ = ["settle_collector"]

_THRESHOLDS = (50_000, 20, 50)


def settle_collector() -> None:
    """Call once, when a process has started: what is there now is never looked at again, the rest more seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
