"""When an agent process has done its share: after so many tasks, or with so much memory. It then ends in good order.

Who started it starts it again: what leaks in a handler, or in a library that it calls, never adds up.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cuebook.cli.exits import InputError

__all__ = ["Limits", "parse_bytes"]

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BYTES: Final = re.compile(r"(\d+)([KMG]?)(?:i?B)?", re.IGNORECASE)
_LEAST_BYTES: Final = 1 << 20
"""Who says less has left out the unit, and each process would be spent as soon as it is ready."""
_MEMORY: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`tasks`: 0 is no limit. `memory`: of this process, resident, in bytes; 0 is no limit."""

    tasks: int = 0
    memory: int = 0

    def reached(self, tasks: int) -> str:
        """Which limit is reached after so many tasks, in words; empty if none."""
        if 0 < self.tasks <= tasks:
            return f"{tasks} tasks done, the limit is {self.tasks}"
        if self.memory and (resident := _resident_bytes()) >= self.memory:
            return f"{resident >> 20} MiB of memory, the limit is {self.memory >> 20} MiB"
        return ""


def parse_bytes(text: str) -> int:
    """A size such as `512M`, `2G` or `1000000000`; 0 or nothing: no limit. Raises InputError, also below 1 MiB."""
    if not text:
        return 0
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} is no size", remedy="write bytes, or a number with K, M or G, such as 512M")
    size = int(found[1]) * _UNITS[found[2].upper()]
    if 0 < size < _LEAST_BYTES:
        raise InputError(f"{text!r} is {size} bytes, less than any process has", remedy="say the unit, such as 512M")
    return size


def _resident_bytes() -> int:
    try:
        return int(_MEMORY.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux: the count of tasks is all there is
        return 0
