"""Who is heard and who is not. Heartbeats are not events; a change of health is.

Silence counts from the last heartbeat by this process's monotonic clock. It only decides when to try somebody else;
what guarantees that a task has one outcome is the expected sequence. An instance that may be offline for a while is
suspect for as long: nothing new is placed there, and what it has stays with it.
"""

from __future__ import annotations

import contextlib

from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.world import World
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, InvalidTokenError
from cuebook.events.facts import AgentLost, AgentRecovered, AgentSuspected, Event

__all__ = ["Liveness"]

SUSPECT_AFTER_BEATS = 3
LOST_AFTER_BEATS = 6
INBOX_STALLED_S = 3.0
UNKNOWN_S = 3.0
"""What an instance says when it registers is read sooner."""
STRANGE_S = 600.0
"""Whoever was heard and is not known is forgotten then. Anybody may be allowed to publish there."""
MINIMUM_BEAT_S = 0.05
OWN_PAUSE_S = 1.0
"""An orchestrator that has not looked for so long was stopped or busy itself."""


class Liveness:
    """Last heartbeats, and the facts that follow when they stop or come back."""

    def __init__(self, world: World, port: Port) -> None:
        self._world, self._port = world, port
        self._heard: dict[tuple[str, str], float] = {}
        self._behind_since: dict[tuple[str, str], float] = {}
        self._strange_since: dict[tuple[str, str], float] = {}
        self._checked_at = 0.0

    def start(self, now: float) -> None:
        """Begin to decide. Whom a standby has long not heard was silent before, as far as that makes it suspect.

        Not further: it may be the standby that did not listen, so everybody has some more beats for a word.
        """
        for key, last in self._heard.items():
            instance = self._world.registry.instances.get(key)
            beat_s = max(instance.heartbeat_s, MINIMUM_BEAT_S) if instance is not None else 0.0
            self._heard[key] = min(max(last, now - beat_s * SUSPECT_AFTER_BEATS), now)
        self._behind_since.clear()
        self._strange_since.clear()
        self._checked_at = now

    def expect(self, instance: InstanceState, now: float) -> None:
        """The instance should be heard from now on."""
        self._heard.setdefault((instance.agent, instance.instance), now)

    def forget(self, instance: InstanceState) -> None:
        """The instance has stopped."""
        self._heard.pop((instance.agent, instance.instance), None)
        self._behind_since.pop((instance.agent, instance.instance), None)

    def heard(self, agent: str, instance: str, received: int, now: float, *, active: bool) -> None:
        """A heartbeat. `received`: the stream sequence of the last assignment that reached the instance."""
        key = (agent, instance)
        self._heard[key] = now
        state = self._world.registry.instances.get(key)
        if not active:
            return
        if state is None or state.health == "unregistered":
            self._meet(key, now)
            return
        if state.health in ("suspect", "lost"):
            self._post(state, "recovered", AgentRecovered())
        if state.health in ("healthy", "suspect", "draining"):
            self._check_inbox(state, received, now)

    def check(self, now: float) -> None:
        """Record who has fallen silent."""
        pause_s = now - self._checked_at
        self._checked_at = now
        if pause_s > OWN_PAUSE_S:  # it was us who did not listen: nobody was silent in that time
            self._heard = {key: last + pause_s for key, last in self._heard.items()}
        for key, since in list(self._strange_since.items()):
            if now - since > STRANGE_S:
                del self._strange_since[key]
        for key, last in list(self._heard.items()):
            instance = self._world.registry.instances.get(key)
            if instance is None or instance.health in ("stopped", "unregistered"):
                del self._heard[key]
                self._behind_since.pop(key, None)
                continue
            silent_s, beat_s = now - last, max(instance.heartbeat_s, MINIMUM_BEAT_S)
            lost_after_s = max(beat_s * LOST_AFTER_BEATS, instance.offline_for_s)
            if instance.health != "lost" and silent_s > lost_after_s:
                self._post(instance, "lost", AgentLost(silent_s=round(silent_s, 1)))
            elif instance.health in ("healthy", "draining") and silent_s > beat_s * SUSPECT_AFTER_BEATS:
                self._post(instance, "suspected", AgentSuspected(silent_s=round(silent_s, 1)))

    def _meet(self, key: tuple[str, str], now: float) -> None:
        """Nobody beats before it has registered: this one did so long ago, was lost, and is forgotten. It is to again.

        It may have said something since, such as that its answers came too late, and is known by that only.
        """
        if now - self._strange_since.setdefault(key, now) > UNKNOWN_S:
            del self._strange_since[key]
            with contextlib.suppress(InvalidTokenError):
                self._port.signal(*key, {"register": True})

    def _check_inbox(self, instance: InstanceState, received: int, now: float) -> None:
        """Assignments that do not reach a live instance mean that its consumer is gone: open it again."""
        key = (instance.agent, instance.instance)
        if instance.newest <= received:
            self._behind_since.pop(key, None)
        elif now - self._behind_since.setdefault(key, now) > INBOX_STALLED_S:
            self._behind_since.pop(key)
            after = max(received, instance.registered_sequence)
            self._port.open_inbox(instance.agent, instance.instance, after, anew=True)

    def _post(self, instance: InstanceState, fact: str, event: Event) -> None:
        if instance.pending:
            return
        subjects = self._world.subjects

        def done(_: int, error: CuebookError | None) -> None:
            if error is not None:
                instance.pending = ""
                if not isinstance(error, ConcurrencyConflictError):
                    return  # the next check asks again

        instance.pending = self._port.post(
            subjects.agent(instance.agent, instance.instance, fact),
            event,
            scope=subjects.agent_scope(instance.agent, instance.instance),
            expected=instance.last_sequence,
            done=done,
        )
