"""What a metric is, and the cheap things in which values gather until somebody asks for them.

A histogram here is an array that the event loop adds to in a fifth of a microsecond; that of OpenTelemetry takes ten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

__all__ = ["LONG_S", "SHORT_S", "Distribution", "Histogram", "Metric", "Names", "Sample", "Source"]

Kind = Literal["counter", "gauge", "histogram"]
SHORT_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the buckets of what should be quick."""
LONG_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14400.0, 86400.0,
)  # fmt: skip
"""The same of what may take as long as it likes, such as a run that waits for a person."""
OTHERS: Final = "(others)"
_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """One metric, equal to itself only, so that it is quickly found.

    `name` with dots and `unit` as OpenTelemetry has them; `labels` are all but `space`, which each has. `by`: the
    service that has it, or `every`.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    about: str
    by: str

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        suffix = _SUFFIXES.get(self.unit, "") + ("_total" if self.kind == "counter" else "")
        return self.name.replace(".", "_") + suffix


class Distribution(NamedTuple):
    """A histogram at one moment. `counts`: in each bucket, the last one is of what is above all `bounds`."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Histogram:
    """How often something took how long. Not for several threads at once."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...] = SHORT_S) -> None:
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def record(self, value: float) -> None:
        """Add one value. What is below 0, as the difference of two clocks may be, counts as 0."""
        if value < 0.0:
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def now(self) -> Distribution:
        """What has been added so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Sample(NamedTuple):
    """One value of a metric. `labels`: the values of the metric's labels, in their order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Distribution


Source = Callable[[], Awaitable[Iterable[Sample]]]
"""Asked on the event loop whenever somebody looks, at most once a second."""


class Names:
    """Keeps a label from taking any value that somebody thinks of: beyond `most` names, new ones become `(others)`.

    Agents and sagas are few, but what a request is addressed to may be any word.
    """

    def __init__(self, most: int = 200) -> None:
        self._known: dict[str, str] = {}
        self._most = most

    def __call__(self, name: str) -> str:
        """The label for a name."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= self._most:
                return OTHERS
            found = self._known[name] = name
        return found
