"""Facts about agent instances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cuebook.events.facts.base import Event, HandlerSpec

__all__ = [
    "AgentDraining",
    "AgentLost",
    "AgentRecovered",
    "AgentRegistered",
    "AgentStopped",
    "AgentSuspected",
    "AnswerDropped",
    "DrainRequested",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRegistered(Event):
    """An instance offers `slots` tasks at a time. `labels`: what it has; `recycle_after`: tasks until it is renewed.

    `offline_for_s`: it may be silent for so long, and goes on working, before its tasks go to others.
    """

    event_type: ClassVar[str] = "agent.registered.v1"
    slots: int
    handlers: dict[str, HandlerSpec]
    version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    recycle_after: int = 0
    heartbeat_s: float = 1.0
    description: str = ""
    host: str = ""
    pid: int = 0
    offline_for_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSuspected(Event):
    """Heartbeats are missing; nothing new is placed there."""

    event_type: ClassVar[str] = "agent.suspected.v1"
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLost(Event):
    """Heartbeats were missing for too long; its tasks go to others."""

    event_type: ClassVar[str] = "agent.lost.v1"
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecovered(Event):
    """A suspected or lost instance is heard again."""

    event_type: ClassVar[str] = "agent.recovered.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDropped(Event):
    """An answer of this instance to task `n` of a run came when the task had moved on; it changed nothing.

    The instance worked on while nobody heard it. `fact`: what the answer was; `attempt`: the one it answered. Whether
    an effect was undone says `task.reverted`.
    """

    event_type: ClassVar[str] = "agent.dropped.v1"
    run_id: str
    n: int
    attempt: int = 0
    fact: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Event):
    """Somebody asks the instance to finish what it has and stop."""

    event_type: ClassVar[str] = "agent.drain_requested.v1"
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDraining(Event):
    """The instance takes nothing new and finishes what it has."""

    event_type: ClassVar[str] = "agent.draining.v1"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStopped(Event):
    """The instance is gone, in good order; whatever it still had was handed back."""

    event_type: ClassVar[str] = "agent.stopped.v1"
    reason: str = ""
    handled: int = 0
