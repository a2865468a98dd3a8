"""What is measured: four loads, each a number of tasks or runs that are started in a certain rhythm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["SCENARIOS", "WARM_UP", "Scenario"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`count` tasks (or runs, of `saga`) a round.

    Closed, with `outstanding`: the next one starts when one of so many has ended. Open, with `starts_per_s`: each
    starts at its time, whatever became of the others, and is measured from that time. Of each, `pause_s` is waiting
    that the handler was asked for; the rest of the time until the client has the result is overhead.
    """

    name: str
    title: str
    count: int
    handler: str = "noop"
    saga: str = ""
    outstanding: int = 0
    starts_per_s: float = 0.0
    pause_s: float = 0.0

    def scaled(self, scale: float) -> Scenario:
        """The same rhythm for a shorter time: `scale` times as many, and no more outstanding than there are."""
        count = max(round(self.count * scale), 1)
        return replace(self, count=count, outstanding=min(self.outstanding, count))


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="S1", title="throughput: a no-op, 1,000 outstanding", count=20_000, outstanding=1_000),
        Scenario(
            name="S2",
            title="concurrency: 1,000 starts/s, 10 s of waiting in each",
            count=30_000,
            handler="wait",
            starts_per_s=1_000,
            pause_s=10,
        ),
        Scenario(name="S3", title="latency: a no-op, one at a time", count=2_000, outstanding=1),
        Scenario(
            name="S4",
            title="sagas: three no-op steps with compensation, 500 outstanding",
            count=5_000,
            saga="three",
            outstanding=500,
        ),
    )
}

WARM_UP: Final = Scenario(name="warm-up", title="", count=2_000, outstanding=200)
"""Before the first round of a scenario, followed by some of the scenario itself."""
