"""What an agent's instances can do: one set of handlers for most agents, several while releases run side by side.

Instances that registered the same set share one `Variant`, whatever version they say they are of. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from cuebook.actors.schemas import CompiledSchema, compile_schema, find_error
from cuebook.events.catalogue import to_data
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import HandlerSpec

__all__ = ["Team", "Variant", "dump_team", "load_team"]

REMEMBERED_LEFT = 10
"""Variants of an agent that nobody has any more and that are still known, for what waits for them."""


class Variant:
    """One set of handlers. `version` is the one that registered it last.

    `versions` counts its instances that have not stopped, by version; `left_sequence` and `left_at` say where in the
    log and when (microseconds since 1970) the last of them stopped, 0 while there are some.
    """

    __slots__ = ("_validators", "handlers", "left_at", "left_sequence", "version", "versions")

    def __init__(self, handlers: dict[str, HandlerSpec]) -> None:
        self.handlers = handlers
        self.version = ""
        self.versions: Counter[str] = Counter()
        self.left_at = self.left_sequence = 0
        self._validators: dict[str, CompiledSchema] = {}

    def find(self, name: str) -> tuple[str, HandlerSpec] | None:
        """The handler by name; an empty name means the only one. None when there is no such handler."""
        handlers = self.handlers
        if not name and len(handlers) == 1:
            name = next(iter(handlers))
        spec = handlers.get(name)
        return (name, spec) if spec is not None else None

    def find_input_error(self, name: str, data: Any) -> str:
        """What is wrong with `data` as input of a handler that there is, or an empty string."""
        validator = self._validators.get(name)
        if validator is None:
            try:
                validator = compile_schema(self.handlers[name].input_schema)
            except ConfigurationError as error:
                return str(error)
            self._validators[name] = validator
        return validator.find_error(data)


class Team:
    """The variants of one agent. `variants`: those that are known, the longest known first.

    `present`: those that have instances, lost ones included, since they may come back; when everybody has stopped, all
    that are known. `revision` grows with every change of `present`; what was decided about waiting tasks is stale then.
    """

    __slots__ = ("present", "revision", "variants")

    def __init__(self) -> None:
        self.variants: list[Variant] = []
        self.present: list[Variant] = []
        self.revision = 0

    def join(self, handlers: dict[str, HandlerSpec], version: str) -> Variant:
        """An instance has these handlers. Returns the variant that it shares with others."""
        variant = next((one for one in self.variants if one.handlers == handlers), None)
        if variant is None:
            variant = Variant(handlers)
            self.variants.append(variant)
        variant.version = version
        variant.versions[version] += 1
        variant.left_at = variant.left_sequence = 0
        if variant.versions.total() == 1:
            self.count()
        return variant

    def leave(self, variant: Variant, version: str, sequence: int, moment: int) -> None:
        """An instance of a variant has stopped, or says that it is of another one."""
        variant.versions[version] -= 1
        variant.versions = +variant.versions
        if not variant.versions:
            variant.left_sequence, variant.left_at = sequence, moment
            left = [one for one in self.variants if not one.versions]
            if len(left) > REMEMBERED_LEFT:
                self.variants.remove(min(left, key=lambda one: one.left_sequence))
            self.count()

    def count(self) -> None:
        """Find out anew who is present."""
        self.present = [one for one in self.variants if one.versions] or list(self.variants)
        self.revision += 1

    @property
    def newest(self) -> Variant:
        """The one to speak of when only one can be: known last, among those present."""
        return self.present[-1]

    def find_output_error(self, handler: str, output: Any) -> str:
        """What is wrong with a result that a person supplies; nothing when one variant could have given it."""
        found = [one.find(handler) for one in self.present]
        errors = [find_error(one[1].output_schema, output) for one in found if one is not None]
        return errors[-1] if errors and all(errors) else ""

    def name(self, variant: Variant) -> str:
        """For people, such as `version 2`; variants that say the same version are told apart by number."""
        versions = sorted(variant.versions) or [variant.version]
        text = f"version {' or '.join(one or '(unnamed)' for one in versions)}"
        alike = [one for one in self.variants if (sorted(one.versions) or [one.version]) == versions]
        return text if len(alike) < 2 or variant not in alike else f"{text} (set {alike.index(variant) + 1})"

    def names(self, variants: Iterable[Variant]) -> str:
        """Several of them, for people."""
        return " and ".join(self.name(one) for one in variants)


_load_handlers = TypeAdapter(dict[str, HandlerSpec]).validate_python


def dump_team(team: Team) -> list[dict[str, Any]]:
    """The variants as plain data, in their order."""
    return [
        {
            "handlers": {name: to_data(spec) for name, spec in one.handlers.items()},
            "version": one.version,
            "versions": dict(one.versions),
            "left_at": one.left_at,
            "left_sequence": one.left_sequence,
        }
        for one in team.variants
    ]


def load_team(data: Iterable[dict[str, Any]]) -> Team:
    """The inverse of `dump_team`."""
    team = Team()
    for saved in data:
        variant = Variant(_load_handlers(saved["handlers"]))
        variant.version, variant.versions = saved["version"], Counter(saved["versions"])
        variant.left_at, variant.left_sequence = saved["left_at"], saved["left_sequence"]
        team.variants.append(variant)
    team.count()
    return team
