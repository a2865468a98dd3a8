"""A supervised process, as it sees itself: it says every second how it is, and does not outlive its supervisor.

One socket serves both: what is said goes out on it, and its other end closes when the supervisor is gone, however that
came. A thread waits for that, so it is noticed also where the event loop stands still.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["VARIABLE", "Supervised", "encode_place", "is_supervised"]

VARIABLE: Final = "CUEBOOK_SUPERVISED"
_MOST_UNSENT: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    fd: int
    number: int
    place: int
    relieves: bool
    without: list[str]


def is_supervised() -> bool:
    """Whether a supervisor has started this process, and it has not taken up its line yet."""
    return VARIABLE in os.environ


def encode_place(*, fd: int, number: int, place: int, relieves: bool, without: Iterable[str]) -> str:
    """What the environment of a supervised process says: its socket, what it is (see there), and whom not to serve."""
    return json.dumps({"fd": fd, "number": number, "place": place, "relieves": relieves, "without": sorted(without)})


class Supervised:
    """Our end of the line. `number` is ours among the processes; `without` names agents that a person has drained.

    `place`: what a process has in common with those before and after it, from 0. `relieves`: the one before still runs.
    """

    def __init__(self, place: _Place) -> None:
        self.number, self.without = place.number, frozenset(place.without)
        self.place, self.relieves = place.place, place.relieves
        os.set_inheritable(place.fd, False)  # what handlers start shall not hold the line open
        self._socket = socket.socket(fileno=place.fd)
        self._unsent = b""

    @classmethod
    def from_environment(cls) -> Supervised | None:
        """The line to our supervisor, taken out of the environment; None for a process that has none."""
        text = os.environ.pop(VARIABLE, "")
        return cls(_Place(**json.loads(text))) if text else None

    def tell(self, **report: Any) -> None:
        """Say how we are. Never waits: a supervisor that does not read misses some."""
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent += json.dumps(report).encode() + b"\n"
        try:
            sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # nobody reads now, or any more: the thread below knows
            return
        self._unsent = self._unsent[sent:]

    def when_orphaned(self, call: Callable[[], None]) -> None:
        """Call this, in a thread of its own, once the supervisor is gone."""

        def wait() -> None:
            try:
                while self._socket.recv(1024):
                    pass
            except OSError:
                pass
            call()

        threading.Thread(target=wait, daemon=True, name="supervisor").start()
