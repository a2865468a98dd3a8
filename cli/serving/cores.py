"""How many processes a machine, or the part of it that we may use, keeps busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cuebook.cli.exits import InputError

__all__ = ["AUTO", "count_processes", "usable_cores"]

AUTO: Final = "auto"
MOST: Final = 1024
"""More are a mistake in writing."""


def count_processes(text: str) -> int:
    """The number that `auto` or a number of processes means here. Raises InputError."""
    if text.strip() == AUTO:
        return usable_cores()
    if not (text.strip().isascii() and text.strip().isdigit() and 1 <= int(text) <= MOST):
        raise InputError(f"{text!r} is no number of processes", remedy=f"say auto, or a number from 1 to {MOST}")
    return int(text)


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that we may run on, at least 1: as the scheduler says, and no more than our control group pays for.

    `root`: where /proc and /sys are. Source: sched_getaffinity(2); cpu.max of the kernel's cgroup-v2.rst, in which a
    group has at most what each group around it has.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux, or not allowed
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Processor time per time, of our control group and of those around it that have a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    mounted = root / "sys/fs/cgroup"
    group = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    for folder in (mounted / group, *(mounted / group).parents):
        try:
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file at the top; `max` is no limit
            pass
        if folder == mounted:
            return
