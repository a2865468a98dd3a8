"""Times as people say and read them. Everything is microseconds since 1970, UTC; a time without an offset is UTC."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import NamedTuple

from cuebook.cli.exits import InputError

__all__ = ["Point", "clock", "day_and_clock", "iso", "now", "parse_duration", "parse_point", "parse_since", "span"]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_LONGEST_S = 100 * 365 * 86400
_MOMENT_HELP = "write an age such as 90s, 1h30m or 2d, or a time such as 2026-01-31T12:00Z"


class Point(NamedTuple):
    """A place in the log: a stream sequence, or the moment in microseconds when `sequence` is None."""

    sequence: int | None
    moment: int = 0


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `1h30m`, `2d`, `500ms`. Raises InputError."""
    if _DURATION.fullmatch(text) is None:
        raise InputError(f"{text!r} is no span of time", remedy="write it as 90s, 1h30m, 2d or 500ms")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _LONGEST_S:
        raise InputError(f"{text!r} is longer than a hundred years")
    return seconds


def parse_since(text: str) -> int:
    """The moment an age or an ISO time means. Raises InputError."""
    if _DURATION.fullmatch(text) is not None:
        return now() - int(parse_duration(text) * 1_000_000)
    return _parse_time(text, _MOMENT_HELP)


def parse_point(text: str) -> Point:
    """A stream sequence, an age or an ISO time. Raises InputError."""
    if text.isascii() and text.isdigit():
        if len(text) > 18:
            raise InputError(f"{text[:20]!r} is no stream sequence")
        return Point(int(text))
    if _DURATION.fullmatch(text) is not None:
        return Point(None, parse_since(text))
    return Point(None, _parse_time(text, f"write a stream sequence, {_MOMENT_HELP.removeprefix('write ')}"))


def _parse_time(text: str, help_text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp() * 1_000_000))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{text!r} is no moment", remedy=help_text) from error


def iso(moment: int | datetime) -> str | None:
    """ISO 8601 in UTC with microseconds, as programs read it; None for 0, which means: not yet."""
    when = moment if isinstance(moment, datetime) else _at(moment)
    return None if when is None else when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def day_and_clock(moment: int) -> str:
    """For lists: to the second, UTC."""
    when = _at(moment)
    return "" if when is None else f"{when:%Y-%m-%d %H:%M:%S}"


def clock(moment: int) -> str:
    """For event lines: date and time to the millisecond, UTC."""
    when = _at(moment)
    return "" if when is None else f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d}"


def span(seconds: float) -> str:
    """A length of time in at most two units: 12 ms, 3.4 s, 5m 12s, 2h 5m, 3d 4h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for big, small, unit, lesser in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= big:
            count, rest = divmod(int(seconds), big)
            return f"{count}{unit} {rest // small}{lesser}"
    raise AssertionError(seconds)


def _at(moment: int) -> datetime | None:
    if not moment:
        return None
    try:
        return datetime.fromtimestamp(moment / 1_000_000, UTC)
    except (ValueError, OverflowError, OSError):  # an author's clock may say anything
        return None
