"""How far a long reading of the log is, on stderr: a line that changes on a terminal, else one now and then."""

from __future__ import annotations

import sys
import time
from typing import Self

from cuebook.cli.moments import span

__all__ = ["Meter"]

FIRST_AFTER_S = 1.0
TERMINAL_EVERY_S = 0.2
PLAIN_EVERY_S = 10.0
_LOOK_EVERY = 500


class Meter:
    """Call `at` with each sequence read. Says nothing about what takes less than a second, or when it is silent."""

    def __init__(self, first: int, last: int, *, silent: bool = False, verb: str = "read") -> None:
        self._first, self._last, self._silent, self._verb = first, last, silent, verb
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + FIRST_AFTER_S
        self._count = 0
        self._said = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._said and self._terminal:
            sys.stderr.write("\r\x1b[K")

    def at(self, sequence: int) -> None:
        """The message at this sequence has been read."""
        self._count += 1
        if not self._count % _LOOK_EVERY:
            self.reached(sequence, self._count)

    def reached(self, sequence: int, count: int) -> None:
        """So many messages were dealt with in all, up to this sequence; for those who count themselves."""
        self._count = count
        if self._silent:
            return
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (TERMINAL_EVERY_S if self._terminal else PLAIN_EVERY_S)
        self._said = True
        share = (sequence - self._first + 1) / max(self._last - self._first + 1, 1)
        elapsed = now - self._began
        left = span(elapsed / share - elapsed) if share > 0 else "?"
        text = f"{self._verb} {self._count} events, {self._count / elapsed:.0f}/s, {share:.0%}, {left} left"
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()
