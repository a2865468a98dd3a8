"""A space as it was at a sequence of its log: the agents with what they had in hand. Folded, never asked of anybody.

Memory follows what was open then, not the length of the log.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from cuebook.actors.orchestrator.world import World
from cuebook.cli.directory import Directory
from cuebook.cli.history.views import Item
from cuebook.cli.meter import Meter
from cuebook.events.log import EventLog

__all__ = ["Past"]


class Past:
    """`advance` to one place after the other and look at `directory` and `in_flight` there."""

    def __init__(self, log: EventLog) -> None:
        self.sequence = 0
        self.directory = Directory()
        self._log, self._world = log, World(log.subjects, {})
        self._world.registry = self.directory.registry

    async def advance(self, until: int, *, silent: bool = False) -> None:
        """Fold everything after the last place up to sequence `until`."""
        subjects = self._log.subjects
        filters = [subjects.all_agents, subjects.all_runs, subjects.all_rejected]
        with Meter(self.sequence + 1, until, silent=silent) as meter:
            async with aclosing(self._log.read(after=self.sequence, until=until, filters=filters)) as items:
                async for item in items:
                    self.apply(item)
                    meter.at(item.sequence)
        self.sequence = until

    def apply(self, item: Item) -> None:
        """Fold the next message."""
        self._world.fold(item)
        self._world.owed.clear()  # for who decides; here nobody does
        self.directory.describe(item)

    def in_flight(self) -> dict[str, int]:
        """How many tasks each instance had."""
        return {one.instance: len(one.tasks) for one in self.directory.registry.instances.values()}

    @property
    def instances(self) -> list[Any]:
        """All instances, by agent and age."""
        return sorted(self.directory.registry.instances.values(), key=lambda one: (one.agent, one.registered_sequence))
