"""Who waits for an event with certain data: found by a value it must have, not by asking everybody who waits."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["MatchIndex", "matches"]

Who = TypeVar("Who", bound=Hashable)
_SIMPLE = (str, int, float, type(None))


def matches(wanted: Mapping[str, Any], data: Any) -> bool:
    """Whether `data` is an object that has all of `wanted`, value by value."""
    return isinstance(data, dict) and all(name in data and data[name] == value for name, value in wanted.items())


class MatchIndex(Generic[Who]):
    """Those who wait, each with what an event must have. Each is filed under one of its fields: that which few share.

    What no simple value tells apart (an empty match, or one of lists and maps) is asked every time.
    """

    def __init__(self) -> None:
        self._wanted: dict[Who, Mapping[str, Any]] = {}
        self._filed: dict[Who, tuple[str, Any]] = {}
        self._fields: dict[str, dict[Any, set[Who]]] = {}
        self._others: set[Who] = set()

    def __len__(self) -> int:
        return len(self._wanted)

    def __iter__(self) -> Iterator[Who]:
        return iter(self._wanted)

    def add(self, who: Who, wanted: Mapping[str, Any]) -> None:
        """`who` waits for an event whose data has all of `wanted`."""
        self.discard(who)
        self._wanted[who] = wanted
        simple = [(name, value) for name, value in wanted.items() if isinstance(value, _SIMPLE)]
        if not simple:
            self._others.add(who)
            return
        name, value = min(simple, key=lambda field: len(self._fields.get(field[0], {}).get(field[1], ())))
        self._filed[who] = name, value
        self._fields.setdefault(name, {}).setdefault(value, set()).add(who)

    def discard(self, who: Who) -> None:
        """`who` does not wait any more, if it did."""
        if self._wanted.pop(who, None) is None:
            return
        self._others.discard(who)
        if who in self._filed:
            name, value = self._filed.pop(who)
            values = self._fields[name]
            values[value].discard(who)
            if not values[value]:
                del values[value]
                if not values:
                    del self._fields[name]

    def waiting_for(self, data: Any) -> list[Who]:
        """All whose match `data` has."""
        if not isinstance(data, dict):
            return []
        found = [*self._others]
        for name, values in self._fields.items():
            if name in data and isinstance(value := data[name], _SIMPLE):
                found += values.get(value, ())
        return [who for who in found if matches(self._wanted[who], data)]
