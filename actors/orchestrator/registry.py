"""The agents as folded from the log: who registered, what they can do, how healthy they are. Pure and total.

An instance's life: registered (healthy) -> suspect -> lost -> healthy again when it is heard; draining; stopped for
good. One at the edge may register again under its name, when its process goes on after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cuebook.actors.orchestrator.variants import Team, Variant, dump_team, load_team
from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    DrainRequested,
)

__all__ = ["PLACEABLE", "InstanceState", "Registry", "dump_registry", "load_registry"]

PLACEABLE: Final = "healthy"
VERSION_LABEL: Final = "version"
_REMEMBERED_GONE = 200
"""Stopped and lost instances kept for `agent list`; the log has them all."""


class InstanceState:
    """One agent instance. `health`: healthy, suspect, lost, draining or stopped.

    `tasks` holds (run id, n) of what it was given and has not answered, including assignments still under way;
    `newest` is the sequence of the last assignment to it; `variant` the handlers it registered.
    """

    __slots__ = (
        "agent",
        "changed_at",
        "health",
        "heartbeat_s",
        "host",
        "instance",
        "labels",
        "last_sequence",
        "newest",
        "offline_for_s",
        "pending",
        "pid",
        "reason",
        "recycle_after",
        "registered_at",
        "registered_sequence",
        "slots",
        "tasks",
        "variant",
        "version",
        "wants_drain",
    )  # fmt: skip

    def __init__(self, agent: str, instance: str) -> None:
        self.agent, self.instance = agent, instance
        self.health = "unregistered"
        self.version = self.host = self.reason = ""
        self.labels: dict[str, str] = {}
        self.slots = self.pid = self.recycle_after = 0
        self.heartbeat_s, self.offline_for_s = 1.0, 0.0
        self.registered_at = self.changed_at = self.last_sequence = self.registered_sequence = self.newest = 0
        self.wants_drain = False
        self.tasks: set[tuple[str, int]] = set()
        self.variant: Variant | None = None
        self.pending = ""

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self.slots - len(self.tasks)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it has all these labels. Its version counts as the label `version`, unless it has one of its own."""
        own = {VERSION_LABEL: self.version, **self.labels}
        return labels.items() <= own.items()

    def apply(self, envelope: Envelope) -> None:  # noqa: C901 - one branch a fact
        """Fold one event of this instance's life."""
        self.last_sequence = envelope.sequence
        if self.health == "stopped":
            return
        before = self.health
        match envelope.event:
            case AgentRegistered() as event:
                self.health = "healthy"
                self.version, self.labels, self.slots = event.version, event.labels, event.slots
                self.host, self.pid, self.recycle_after = event.host, event.pid, event.recycle_after
                self.heartbeat_s, self.offline_for_s = event.heartbeat_s, event.offline_for_s
                if not self.registered_sequence:  # again when it goes on after a restart: its inbox began before
                    self.registered_at, self.registered_sequence = envelope.recorded_at, envelope.sequence
            case AgentSuspected():
                if self.health in ("healthy", "draining"):
                    self.health = "suspect"
            case AgentLost():
                self.health = "lost"
            case AgentRecovered():
                if self.health in ("suspect", "lost"):
                    self.health = "draining" if self.wants_drain else "healthy"
            case DrainRequested() as event:
                self.wants_drain, self.reason = True, event.reason
                if self.health == "healthy":
                    self.health = "draining"
            case AgentDraining() as event:
                self.wants_drain, self.reason = True, event.reason
                if self.health == "healthy":
                    self.health = "draining"
            case AgentStopped() as event:
                self.health, self.reason = "stopped", event.reason
            case _:
                pass
        if self.health != before:
            self.changed_at = envelope.recorded_at


class Registry:
    """All instances, and per agent the variants of it that they are of."""

    def __init__(self) -> None:
        self.instances: dict[tuple[str, str], InstanceState] = {}
        self.by_agent: dict[str, dict[str, InstanceState]] = {}
        self.teams: dict[str, Team] = {}
        """By agent; those that ever registered."""

    def apply(self, envelope: Envelope) -> InstanceState:
        """Fold one event under `agent.>`; returns the instance it was about."""
        address = envelope.address
        instance = self.instance(address.agent, address.instance)
        variant, version, stopped = instance.variant, instance.version, instance.health == "stopped"
        instance.apply(envelope)
        event = envelope.event
        if isinstance(event, AgentRegistered):
            if not stopped:
                team = self.teams.setdefault(address.agent, Team())
                instance.variant = team.join(event.handlers, event.version)
                if variant is not None:
                    team.leave(variant, version, envelope.sequence, envelope.recorded_at)
        elif instance.health in ("stopped", "lost"):
            if instance.health == "stopped" and not stopped:
                self._leave(instance, envelope)
            self._forget_oldest(envelope)
        return instance

    def instance(self, agent: str, instance: str) -> InstanceState:
        """The instance, made when new."""
        found = self.instances.get((agent, instance))
        if found is None:
            found = self.instances[agent, instance] = InstanceState(agent, instance)
            self.by_agent.setdefault(agent, {})[instance] = found
        return found

    def _leave(self, instance: InstanceState, envelope: Envelope) -> None:
        if instance.variant is not None:
            team = self.teams[instance.agent]
            team.leave(instance.variant, instance.version, envelope.sequence, envelope.recorded_at)

    def _forget_oldest(self, envelope: Envelope) -> None:
        gone = [one for one in self.instances.values() if one.health in ("stopped", "lost") and not one.tasks]
        if len(gone) > _REMEMBERED_GONE:
            for one in sorted(gone, key=lambda one: one.changed_at)[: len(gone) - _REMEMBERED_GONE]:
                del self.instances[one.agent, one.instance]
                del self.by_agent[one.agent][one.instance]
                if one.health == "lost":
                    self._leave(one, envelope)


_SAVED = tuple(name for name in InstanceState.__slots__ if name not in ("pending", "tasks", "variant"))


def dump_registry(registry: Registry) -> dict[str, Any]:
    """The registry as plain data. Tasks are not in it: they are folded into the runs."""
    return {
        "instances": [
            {name: getattr(one, name) for name in _SAVED} | {"variant": _place_of(one, registry)}
            for one in registry.instances.values()
        ],
        "teams": {agent: dump_team(team) for agent, team in registry.teams.items()},
    }


def load_registry(data: dict[str, Any]) -> Registry:
    """The inverse of `dump_registry`."""
    registry = Registry()
    registry.teams = {agent: load_team(saved) for agent, saved in data["teams"].items()}
    for saved in data["instances"]:
        instance = registry.instance(saved["agent"], saved["instance"])
        for name in _SAVED:
            setattr(instance, name, saved[name])
        if saved["variant"] is not None:
            instance.variant = registry.teams[instance.agent].variants[saved["variant"]]
    return registry


def _place_of(instance: InstanceState, registry: Registry) -> int | None:
    """Where its variant stands among those of its agent; None when it has none, or one that is forgotten."""
    if instance.variant is None:
        return None
    variants = registry.teams[instance.agent].variants
    return next((n for n, one in enumerate(variants) if one is instance.variant), None)
