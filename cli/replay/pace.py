"""How fast history is played again: as fast as possible, as it happened, or a multiple of that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from cuebook.cli.exits import InputError

__all__ = ["Pace", "parse_speed"]

_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?)x")


def parse_speed(text: str) -> float | None:
    """The multiple in `10x` or `0.5x`; None for `max`. Raises InputError."""
    if text == "max":
        return None
    found = _SPEED.fullmatch(text)
    speed = float(found[1]) if found else 0.0
    if not 0.001 <= speed <= 1_000_000:
        raise InputError(
            f"{text!r} is no speed", remedy="write max, 1x for the original pace, or a multiple such as 10x or 0.5x"
        )
    return speed


class Pace:
    """When each event is due. The first one is due at once, the others as long after it as they were, divided."""

    def __init__(self, speed: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`speed` None: everything is due at once."""
        self._speed, self._clock = speed, clock
        self._first_ns: int | None = None
        self._began = 0.0

    def wait_s(self, recorded_ns: int) -> float:
        """Seconds until the event recorded then is due; 0 when it is, also where the server's clock went back."""
        if self._speed is None:
            return 0.0
        if self._first_ns is None:
            self._first_ns, self._began = recorded_ns, self._clock()
        due = self._began + (recorded_ns - self._first_ns) / 1e9 / self._speed
        return max(0.0, due - self._clock())
