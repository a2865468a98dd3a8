"""How the agents of a process do, for metrics: how long handlers take, and what comes more than once or too late."""

from __future__ import annotations

from collections.abc import Iterable

from cuebook.actors.instance import Instance
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import LONG_S, Histogram, Sample

__all__ = ["Handling", "OfAgent"]


class OfAgent:
    """Over all instances of an agent, also those that have left."""

    __slots__ = ("_times", "late", "redelivered")

    def __init__(self) -> None:
        self.late = self.redelivered = 0
        self._times: dict[str, Histogram] = {}

    def ended(self, outcome: str, seconds: float) -> None:
        """A handler is done; `outcome`: completed, failed, cancelled or retried."""
        times = self._times.get(outcome)
        if times is None:
            times = self._times[outcome] = Histogram(LONG_S)
        times.record(seconds)

    def samples(self, agent: str) -> Iterable[Sample]:
        """What has been counted since the start."""
        yield Sample(names.REDELIVERIES, (agent,), self.redelivered)
        yield Sample(names.LATE, (agent,), self.late)
        for outcome, times in self._times.items():
            yield Sample(names.HANDLER_DURATION, (agent, outcome), times.now())


class Handling:
    """What a host of agents measures while it works."""

    def __init__(self) -> None:
        self._agents: dict[str, OfAgent] = {}

    def of(self, agent: str) -> OfAgent:
        """Where instances of an agent add to."""
        return self._agents.setdefault(agent, OfAgent())

    def samples(self, instances: Iterable[Instance]) -> list[Sample]:
        """How it is now, with `instances` as those of the host."""
        found = [sample for agent, one in self._agents.items() for sample in one.samples(agent)]
        here: dict[str, list[Instance]] = {agent: [] for agent in self._agents}
        for instance in instances:
            here.setdefault(instance.agent_class.name, []).append(instance)
        for agent, ours in here.items():
            taking = [one for one in ours if not one.draining]
            found += [
                Sample(names.HANDLER_IN_FLIGHT, (agent,), sum(one.in_flight for one in ours)),
                Sample(names.HANDLER_SLOTS, (agent,), sum(one.slots for one in taking)),
                Sample(names.HANDLER_PENDING, (agent,), sum(one.pending for one in taking)),
            ]
        return found
