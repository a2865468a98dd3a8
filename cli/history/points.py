"""Places in the log as people name them: a sequence, an age, a time. One that is not there is refused, never guessed.

At a time means: after the last event recorded at or before it, by the server's clock, to the microsecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cuebook.cli.exits import InputError
from cuebook.cli.moments import Point, clock, iso, now, parse_point
from cuebook.events.errors import NotFoundError
from cuebook.events.log import EventLog

__all__ = ["Place", "after_point", "find_place", "find_range", "last_place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the log: a sequence, and when the message there was recorded (microseconds since 1970).

    Sequence 0 is before everything.
    """

    sequence: int
    recorded_at: int

    @property
    def view(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        return {"sequence": self.sequence, "recorded_at": iso(self.recorded_at)}

    def __str__(self) -> str:
        if not self.sequence:
            return "the beginning"
        return f"{self.sequence} ({clock(self.recorded_at)} UTC)"


async def find_place(log: EventLog, text: str, *, early: bool = False) -> Place:
    """The place that `text` names; with `early` it may lie before the log begins.

    Raises InputError for what is no point or in the future, NotFoundError.
    """
    point = parse_point(text)
    last = await last_place(log)
    if point.sequence is None:
        if point.moment > now():
            raise _future(text, point, last)
        sequence = await log.sequence_at(point.moment + 1)
    else:
        sequence = point.sequence
    if sequence > last.sequence:
        if point.sequence is None:  # recorded since we looked
            return await find_place(log, text, early=early)
        raise _future(text, point, last)
    first = (await log.verify()).first_sequence
    if sequence < first and early:
        return Place(sequence=0, recorded_at=0)
    if sequence < first:
        found = await log.at(first)
        began = f", recorded {clock(found.recorded_at)} UTC" if found is not None else ""
        raise NotFoundError(
            f"nothing was recorded yet at {text}: space {log.subjects.space!r} begins at sequence {first}{began}",
            remedy="say a later --at, --from or --to",
        )
    return await _place(log, sequence)


async def last_place(log: EventLog) -> Place:
    """The end of the log as it is now. Raises NotFoundError when nothing was ever recorded."""
    last = (await log.verify()).last_sequence
    if not last:
        raise NotFoundError(
            f"nothing was ever recorded in space {log.subjects.space!r}", remedy="say another --space, or start work"
        )
    return await _place(log, last)


async def _place(log: EventLog, sequence: int) -> Place:
    found = await log.at(sequence)
    if found is None:
        raise NotFoundError(f"there is no message at sequence {sequence}")
    return Place(sequence=sequence, recorded_at=found.recorded_at)


async def find_range(log: EventLog, first: str, last: str) -> tuple[int, int | None]:
    """The range from `first` to `last`, both included, as (after, until); empty: from the beginning, to the end.

    Raises InputError for a range that is empty or in the future, NotFoundError for one before the log begins.
    """
    point = parse_point(first) if first else None
    if point is not None and point.sequence is not None and last.isdigit() and int(last) < point.sequence:
        raise InputError(f"the range ends at {last}, before it begins at {first}", remedy="exchange the two")
    until = (await find_place(log, last)).sequence if last else None
    if point is None:
        return 0, until
    end = await last_place(log)
    if (point.sequence is not None and point.sequence > end.sequence) or point.moment > now():
        raise _future(first, point, end)
    after = await after_point(log, first)
    if after >= end.sequence:
        raise InputError(f"nothing was recorded since {first}", remedy=f"the log ends at {end}")
    if until is not None and until <= after:
        raise InputError(f"nothing was recorded from {first} to {last}", remedy="widen the range")
    return after, until


async def after_point(log: EventLog, text: str) -> int:
    """The sequence after which a range begins that is said to begin at `text`, inclusive; it may be the last one."""
    point = parse_point(text)
    return max(point.sequence - 1, 0) if point.sequence is not None else await log.sequence_at(point.moment)


def _future(text: str, point: Point, last: Place) -> InputError:
    what = f"sequence {point.sequence}" if point.sequence is not None else text
    return InputError(f"{what} is in the future", remedy=f"the log ends at {last}")
