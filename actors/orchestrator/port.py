"""What the orchestrator's decisions may ask of the outside: the one seam between deciding and doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cuebook.events.append import Done
from cuebook.events.facts import Event

__all__ = ["Port"]


class Port(Protocol):
    """Nothing here blocks; answers come as callbacks on the same thread."""

    def post(
        self,
        subject: str,
        event: Event,
        *,
        scope: str = "",
        expected: int | None = None,
        correlation_id: str = "",
        causation_id: str = "",
        traceparent: str = "",
        done: Done,
    ) -> str:
        """Append; see EventLog.post."""
        ...

    def signal(self, agent: str, instance: str, message: dict[str, Any]) -> None:
        """Tell a live instance something, at most once."""
        ...

    def open_inbox(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        """Make sure that the server pushes to the instance what is assigned to it after a sequence.

        `anew`: what was there does not deliver; begin again after that sequence.
        """
        ...

    def forget_inbox(self, agent: str, instance: str) -> None:
        """The instance is silent: when it comes back, its inbox has to be opened again."""
        ...

    def close_inbox(self, agent: str, instance: str) -> None:
        """The instance is gone."""
        ...

    def first_sequence(self, scope: str, answer: Callable[[int], None]) -> None:
        """Find the first sequence stored under a scope."""
        ...

    def find_event(
        self, topic: str, match: dict[str, Any], after: int, until: int, answer: Callable[[int, Any], None]
    ) -> None:
        """Find the first outside event in (after, until] whose data has all of `match`; no answer if there is none."""
        ...

    def was_rolled(self) -> bool:
        """Whether the server knows only of a part of the log whether something is the first under its scope."""
        ...

    def is_guard(self, sequence: int) -> bool:
        """Whether what was stored at a sequence, about no run and no instance, can be expected under its scope."""
        ...

    def ready(self) -> None:
        """From here on the log says of every saga from when its events count. May be called again."""
        ...

    def now(self) -> int:
        """Microseconds since 1970."""
        ...
