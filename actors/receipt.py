"""Which assignments have come to an instance, by deliveries that may lose some, repeat some and begin anew."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Receipt"]


class Receipt:
    """Each assignment is new once, and `until` says no more than what has come without a gap.

    `sequence` is that in the stream; `delivered` counts from 1 whenever the orchestrator begins the delivery anew (see
    Inboxes).
    """

    def __init__(self) -> None:
        self.until = 0
        """Up to this sequence all has come."""
        self.being_stored: set[int] = set()
        """Of what has come, what is not stored yet at the edge."""
        self._expected = 1
        self._gapped = False
        self._beyond: set[int] = set()

    @property
    def safely_until(self) -> int:
        """Up to this sequence all has come, and is stored where it is to be."""
        return min(self.until, min(self.being_stored) - 1) if self.being_stored else self.until

    def resume(self, until: int, sequences: Iterable[int]) -> None:
        """Go on after a restart: all has come up to `until`, and these."""
        self.until = until
        self._beyond = {sequence for sequence in sequences if sequence > until}

    def begin_anew(self) -> None:
        """The delivery begins anew: else its count, when its beginning is lost, might look like the old one's."""
        self._expected = 1

    def is_new(self, sequence: int, delivered: int) -> bool:
        """Count one that comes; False when it has come before."""
        if delivered == 1:  # delivery began anew, not after what we have without a gap
            self._gapped = False
        elif delivered != self._expected:  # also when the first ones of a delivery that began anew were lost
            self._gapped = True
        self._expected = delivered + 1
        if sequence <= self.until:
            return False
        if self._gapped:
            if sequence in self._beyond:
                return False
            self._beyond.add(sequence)
            return True
        self.until = sequence
        if sequence in self._beyond:
            self._beyond.discard(sequence)
            return False
        return True
