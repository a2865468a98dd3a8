"""The sagas that an orchestrator has the code of: by name, and of each name several versions where several are served.

A new run is of the newest version; a run that is under way goes on with the version that it started with, and with no
other unless that one says so (`@saga(continues=...)`). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cuebook.actors.saga import Saga
from cuebook.events.errors import ConfigurationError

__all__ = ["Repertoire", "age"]

_NUMBERS = re.compile(r"(\d+)")


class Repertoire(Mapping[str, Saga[Any, Any]]):
    """The newest version of each saga, by name, in the order given; `find` knows the others."""

    def __init__(self, sagas: Iterable[Saga[Any, Any]] = ()) -> None:
        """Take the sagas. Raises ConfigurationError for two that cannot be told apart, or that cannot be called."""
        self._versions: dict[str, dict[str, Saga[Any, Any]]] = {}
        for saga in sagas:
            there = self._versions.setdefault(saga.name, {})
            if there.setdefault(saga.version, saga) is not saga:
                raise ConfigurationError(
                    f"two sagas are called {saga.name!r}, version {saga.version!r}",
                    remedy="give the newer one another version=, or one of them another name=",
                )
            saga.input_type  # noqa: B018 - a saga that cannot work is refused before anything starts
        for name, there in self._versions.items():
            self._versions[name] = dict(sorted(there.items(), key=lambda item: age(item[0])))
        self._newest = {name: list(there.values())[-1] for name, there in self._versions.items()}

    def __getitem__(self, name: str) -> Saga[Any, Any]:
        return self._newest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._newest)

    def __len__(self) -> int:
        return len(self._newest)

    def find(self, name: str, version: str) -> Saga[Any, Any] | None:
        """The code for a run that started with a version: that one, else the newest that goes on with its runs."""
        there = self._versions.get(name, {})
        if version in there or not version:  # a run that does not say is as old as the fact that could have said it
            return there.get(version) or self._newest.get(name)
        return next((saga for saga in reversed(there.values()) if version in saga.continues), None)

    def versions(self, name: str) -> list[Saga[Any, Any]]:
        """All versions of a saga, the oldest first; empty for one that is not here."""
        return list(self._versions.get(name, {}).values())

    def everything(self) -> list[Saga[Any, Any]]:
        """Every version of every saga."""
        return [saga for there in self._versions.values() for saga in there.values()]

    def why_not(self, name: str, version: str) -> str:
        """Why a run of a version does not go on, for people, or an empty string."""
        there = self._versions.get(name)
        if there is None:
            return f"no orchestrator serves saga {name!r}"
        if self.find(name, version) is not None:
            return ""
        return f"no orchestrator serves saga {name!r} version {version}, only version {' and '.join(there)}"

    def names(self) -> str:
        """All of them for people, such as `order,support@1,support@2`."""
        return ",".join(
            saga.name if len(self._versions[saga.name]) == 1 else f"{saga.name}@{saga.version}"
            for saga in self.everything()
        )


def age(version: str) -> list[tuple[int, int, str]]:
    """The order of versions: numbers in them count as numbers, so that 10 comes after 9, and 1.10 after 1.9."""
    parts = [part for part in _NUMBERS.split(version) if part]
    return [(1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part) for part in parts]
