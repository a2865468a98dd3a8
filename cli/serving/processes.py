"""What the system knows about this process."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["process_age_s"]

_STARTED = 19
"""Place of the start among the fields after the name, in clock ticks since boot. Source: proc_pid_stat(5), field 22."""


def process_age_s() -> float:
    """For how many seconds this process has run, up to a clock tick too many; 0.0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
