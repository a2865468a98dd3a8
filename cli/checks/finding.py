"""What a check says: findings for people, with what to do, and measures for monitoring."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

__all__ = ["UNSEEN", "Finding", "Kind", "Level", "Limits", "Measure", "Report", "Thresholds", "worst"]


class Level(IntEnum):
    """How bad. The order is that of monitoring plugins: what is unknown is worse than fine, and better than wrong."""

    OK = 0
    UNKNOWN = 1
    WARNING = 2
    CRITICAL = 3

    @property
    def word(self) -> str:
        """As people and programs read it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found. `about`: what it is about, such as an agent or a run; may be empty."""

    code: str
    level: Level
    message: str
    remedy: str = ""
    about: str = ""

    @property
    def view(self) -> dict[str, Any]:
        """For programs."""
        return {
            "code": self.code,
            "level": self.level.word,
            "about": self.about or None,
            "message": self.message,
            "remedy": self.remedy or None,
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """A finding that can be made. docs/operations.md lists all of them.

    `meaning`: one sentence for the documentation. `remedy`: what to do, with {names} of what it is about.
    """

    code: str
    level: Level
    meaning: str
    remedy: str

    def found(
        self, message: str, *, level: Level | None = None, about: str = "", remedy: str | None = None, **names: Any
    ) -> Finding:
        """It was found. `level` and `remedy`, where they are not always the same; `names`: those in the remedy."""
        if not remedy:
            remedy = self.remedy.format_map(names) if names else self.remedy
        return Finding(
            code=self.code, level=self.level if level is None else level, message=message, remedy=remedy, about=about
        )

    @property
    def documented_remedy(self) -> str:
        """The remedy as documentation shows it: names in capitals."""
        return re.sub(r"\{(\w+)\}", lambda name: name[1].upper(), self.remedy)


UNSEEN = Kind(
    "unseen",
    Level.UNKNOWN,
    "Something could not be looked at, since what it depends on is down.",
    "mend the other findings first",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a number is a warning, and critical; None: never."""

    warning: float | None = None
    critical: float | None = None

    def level(self, value: float) -> Level:
        """What a number means."""
        if self.critical is not None and value >= self.critical:
            return Level.CRITICAL
        return Level.WARNING if self.warning is not None and value >= self.warning else Level.OK


Thresholds = Mapping[str, Limits]
"""By measure, such as `projections.lag`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number that a check has found. `name` as in `Thresholds`; `unit`: s, B, % or nothing."""

    name: str
    value: float
    help: str
    unit: str = ""
    limits: Limits = Limits()


@dataclass(slots=True, kw_only=True)
class Report:
    """What one area is like. `lines`: how it is, in a few words each."""

    area: str
    lines: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """All lines in one."""
        return "; ".join(self.lines)

    @property
    def level(self) -> Level:
        """The worst finding's."""
        return worst(one.level for one in self.findings)


def worst(levels: Iterable[Level]) -> Level:
    """The worst of them; OK when there are none."""
    return max(levels, default=Level.OK)
