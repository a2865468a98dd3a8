"""The few numbers that stand for many measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Distribution", "middle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of times in milliseconds. Percentiles are times that were measured, by nearest rank; none are interpolated."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Distribution:
        """Raises ValueError when there are no times."""
        if not times_ms:
            raise ValueError("a distribution of nothing")
        ordered = sorted(times_ms)

        def percentile(percent: int) -> float:
            return ordered[math.ceil(len(ordered) * percent / 100) - 1]

        return cls(p50=percentile(50), p95=percentile(95), p99=percentile(99), max=ordered[-1])


def middle(rounds: Sequence[Distribution]) -> Distribution:
    """Of several rounds: the median of each percentile, so one disturbed round does not decide; the worst maximum."""
    return Distribution(
        p50=median(one.p50 for one in rounds),
        p95=median(one.p95 for one in rounds),
        p99=median(one.p99 for one in rounds),
        max=max(one.max for one in rounds),
    )
