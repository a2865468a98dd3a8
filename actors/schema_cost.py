"""What checking data against a JSON Schema can cost at most, counted before it is checked.

A schema from anybody can make a validator work for ever: definitions that each refer twice to the one before, or a
schema that refers to itself in two branches of an `anyOf`. The bound here is a number of checks, never a time, so that
everybody who folds the same log decides the same. It is an upper bound: a validator that stops at the first mistake
does less. One check takes some 10 to 100 ns.

Terms: a subschema applies its parts *in place* (`allOf`, `$ref`, `if`) or to the *children* of what it is given
(`properties`, `items`). In place it must come to an end; through children it may refer to itself, since data ends.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from cuebook.events.codec import pack_data
from cuebook.events.errors import ConfigurationError, PoisonMessageError

__all__ = ["MAX_CHECKS", "SchemaCost"]

MAX_CHECKS = 5_000_000
"""In one validation; a subschema of a few keywords, applied to one value, is one."""
MAX_STEPS = 200_000
"""Of counting itself, for one schema and again for one validation."""
MAX_PATTERN = 20_000
"""Places in all patterns of a schema, repetitions written out; compiled, each takes up to 10 kB."""
MAX_ECHO = 1_000_000
MAX_ECHOED_CHECKS = 20_000
"""A mistake in an `anyOf` is explained by those in each branch, which repeat the data: so many bytes and checks."""

_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE_MAPS = ("dependentSchemas", "dependencies")
_ALTERNATIVES = frozenset({"anyOf", "oneOf"})
_ITEMS = ("items", "additionalItems", "unevaluatedItems", "contains")
_PROPERTIES = ("additionalProperties", "unevaluatedProperties")
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
_AGAIN = 3
"""How often what is applied in place is applied once more to find out what nothing has looked at. By measurement."""
_NOT_FOLLOWED = ("$dynamicRef", "$recursiveRef")
_CONSTANTS = ("enum", "required", "dependentRequired", "type")
_OF_TEXT = ("minLength", "maxLength", "format", "contentEncoding", "contentMediaType")
_PER_CHECK = 16
"""Characters of a text, or places of a pattern, that one check gets through."""
_repetition = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}").match
_CAP = 10**15

_Key = tuple[int, bool]
"""A subschema by its identity, and whether it stands under alternatives."""


@dataclass(slots=True)
class _Part:
    """One subschema. `own`: checks for itself; `text`: more per 16 characters; `names`: the same for property names.

    `deep`: how often the whole of the data beneath is looked at. The rest are the subschemas it applies, each with how
    often, and those in place also with whether they are alternatives.
    """

    own: int = 1
    text: int = 0
    names: int = 0
    deep: int = 0
    in_place: list[tuple[_Part, int, bool]] = field(default_factory=list)
    items: list[_Part] = field(default_factory=list)
    prefix: list[_Part] = field(default_factory=list)
    properties: dict[str, _Part] = field(default_factory=dict)
    any_property: list[_Part] = field(default_factory=list)
    property_names: list[_Part] = field(default_factory=list)

    def beneath(self) -> Iterator[_Part]:
        yield from self.items
        yield from self.prefix
        yield from self.properties.values()
        yield from self.any_property
        yield from self.property_names


class SchemaCost:
    """The bound for one schema. Raises ConfigurationError where there is none, or whatever the data is exceeds it."""

    def __init__(self, schema: Any) -> None:
        self._root_schema = schema
        self._parts: dict[int, _Part] = {}
        self._closures: dict[_Key, list[tuple[_Part, int, bool]]] = {}
        self._steps = 0
        self.places = _check_document(schema)
        """Places in all its patterns."""
        self._anchors = {str(one["$anchor"]): one for one in _maps(schema) if "$anchor" in one}
        self._root = self._build(schema)
        self._flat = self._flat_cost()
        if self._find_excess(None)[0] > MAX_CHECKS:
            raise _too_costly("it")

    def find_excess(self, data: Any) -> str:
        """Why `data` is not checked against the schema; empty when it may be."""
        if self._flat * _size(data) <= MAX_CHECKS:
            return ""
        try:
            checks, _, _ = self._find_excess(data)
        except ConfigurationError as error:
            return str(error)
        return "" if checks <= MAX_CHECKS else str(_too_costly("this data"))

    def may_explain(self, data: Any) -> bool:
        """Whether a validator may be asked what is wrong with `data`: its answer tells everything that it tried."""
        if self._flat * _size(data) <= MAX_ECHOED_CHECKS:
            return True
        try:
            _, checks, echo = self._find_excess(data)
        except ConfigurationError:
            return False
        return checks <= MAX_ECHOED_CHECKS and echo <= MAX_ECHO

    # --- reading the schema ---

    def _build(self, schema: Any) -> _Part:
        """The graph of all subschemas that can be applied, each once, references followed."""
        waiting: list[tuple[_Part, dict[str, Any]]] = []
        root = self._part(schema, waiting)
        while waiting:
            part, content = waiting.pop()
            self._read(part, content, waiting)
        return root

    def _part(self, schema: Any, waiting: list[tuple[_Part, dict[str, Any]]]) -> _Part:
        if not isinstance(schema, dict):
            return _Part()  # true, false, or what the validator refuses to compile
        found = self._parts.get(id(schema))
        if found is None:
            found = self._parts[id(schema)] = _Part()
            waiting.append((found, schema))
        return found

    def _read(self, part: _Part, schema: dict[str, Any], waiting: list[tuple[_Part, dict[str, Any]]]) -> None:
        def made(value: Any) -> list[_Part]:
            return [self._part(one, waiting) for one in (value if isinstance(value, list) else [value])]

        def named(value: Any) -> list[_Part]:
            return [self._part(one, waiting) for one in value.values()] if isinstance(value, dict) else []

        again = 1 + _AGAIN * sum(name in schema for name in _UNEVALUATED)
        applied = [(self._part(schema[name], waiting), False) for name in _IN_PLACE if name in schema]
        applied += [(one, name in _ALTERNATIVES) for name in _IN_PLACE_LISTS for one in made(schema.get(name, []))]
        applied += [(one, False) for name in _IN_PLACE_MAPS for one in named(schema.get(name))]
        if "$ref" in schema:
            applied.append((self._part(self._resolve(schema["$ref"]), waiting), False))
        part.in_place = [(one, again, alternative) for one, alternative in applied]
        part.items = [one for name in _ITEMS if name in schema for one in made(schema[name])]
        part.prefix = made(schema.get("prefixItems", []))
        if isinstance(properties := schema.get("properties"), dict):
            part.properties = {name: self._part(one, waiting) for name, one in properties.items()}
        part.any_property = [self._part(schema[name], waiting) for name in _PROPERTIES if name in schema]
        part.any_property += named(patterns := schema.get("patternProperties"))
        part.property_names = [self._part(schema[name], waiting) for name in ("propertyNames",) if name in schema]
        if isinstance(patterns, dict):
            part.names = sum(1 + _places(one) // _PER_CHECK for one in patterns)
        part.text = sum(name in schema for name in _OF_TEXT)
        if isinstance(pattern := schema.get("pattern"), str):
            part.text += 1 + _places(pattern)
        part.deep = sum(name in schema for name in ("uniqueItems", "const"))
        part.own += len(schema) // _PER_CHECK + sum(_constants(schema.get(name)) for name in _CONSTANTS)

    def _resolve(self, reference: Any) -> Any:
        """The subschema a reference within the document names, by pointer or anchor."""
        own_id = self._root_schema.get("$id", "") if isinstance(self._root_schema, dict) else ""
        base, _, fragment = str(reference).partition("#")
        if base and base != str(own_id).rstrip("#"):
            raise ConfigurationError(f"not a JSON Schema: references to {base[:200]} are not followed")
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise ConfigurationError(f"not a JSON Schema: there is no anchor {fragment[:200]!r}")
            return self._anchors[fragment]
        found = self._root_schema
        for token in unquote(fragment).split("/")[1:]:
            name = token.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (LookupError, TypeError, ValueError):
                raise ConfigurationError(f"not a JSON Schema: there is nothing at {str(reference)[:200]}") from None
        return found

    # --- counting ---

    def _flat_cost(self) -> int:
        """Checks per byte of any data, when every subschema is applied to all of it; `_CAP` where that has no end."""
        costs: dict[int, int] = {}
        for part in _inside_out(self._root, lambda one: [*(p for p, _, _ in one.in_place), *one.beneath()]):
            if part is None:
                return _CAP
            cost = part.own + part.text + part.names + part.deep
            cost += sum(times * costs[id(one)] for one, times, _ in part.in_place)
            costs[id(part)] = min(cost + sum(costs[id(one)] for one in part.beneath()), _CAP)
        return costs[id(self._root)]

    def _closure(self, part: _Part, alternative: bool) -> list[tuple[_Part, int, bool]]:
        """What is applied in place when a subschema is, itself included, with how often."""
        found = self._closures.get((id(part), alternative))
        if found is None:
            order = []
            for one in _inside_out(part, lambda one: [p for p, _, _ in one.in_place]):
                if one is None:
                    raise ConfigurationError("not a JSON Schema: it refers to itself without going into the data")
                self._count(1 + len(one.in_place))
                order.append(one)
            times: Counter[_Key] = Counter({(id(part), alternative): 1})
            found = []
            for one in reversed(order):
                for under in (False, True):
                    if many := times[id(one), under]:
                        found.append((one, many, under))
                        for inner, often, alternatives in one.in_place:
                            key = (id(inner), under or alternatives)
                            times[key] = min(times[key] + many * often, _CAP)
            self._closures[id(part), alternative] = found
        self._count(len(found))
        return found

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _too_costly("this data")

    def _find_excess(self, data: Any) -> tuple[int, int, int]:
        """Checks in all; those under alternatives; and the bytes of data that these repeat. Stops at the limit."""
        self._steps = 0
        sizes = _Sizes()
        total = below = echo = 0
        level: list[tuple[Any, dict[_Key, tuple[_Part, int]]]] = [(data, {(id(self._root), False): (self._root, 1)})]
        while level:
            deeper: list[tuple[Any, dict[_Key, tuple[_Part, int]]]] = []
            for value, entered in level:
                children = _Children(value)
                for (_, under), (start, many) in entered.items():
                    for part, often, alternative in self._closure(start, under):
                        times = many * often
                        checks = times * self._checks(part, value, sizes)
                        total += checks
                        if alternative:
                            below += checks
                            echo += times * sizes.of(value)
                        if total > MAX_CHECKS:
                            return total, below, echo
                        self._count(children.enter(part, times, alternative))
                deeper += children.entered()
            level = deeper
        return total, below, echo

    def _checks(self, part: _Part, value: Any, sizes: _Sizes) -> int:
        checks = part.own
        if isinstance(value, str):
            checks += part.text * (1 + len(value) // _PER_CHECK)
        elif isinstance(value, dict):
            if part.names:
                checks += part.names * sum(1 + len(name) // _PER_CHECK for name in value)
            for one in part.property_names:
                closure = self._closure(one, False)
                self._count(len(closure))
                own = sum(times * (inner.own + inner.deep) for inner, times, _ in closure)
                text = sum(times * inner.text for inner, times, _ in closure)
                checks += sum(own + text * (1 + len(name) // _PER_CHECK) for name in value)
        if part.deep and isinstance(value, dict | list):
            checks += part.deep * sizes.of(value)
        return checks


class _Children:
    """The children of one value, and the subschemas that are applied to them."""

    __slots__ = ("_entries", "_value")

    def __init__(self, value: Any) -> None:
        self._value = value
        self._entries: dict[Any, dict[_Key, tuple[_Part, int]]] = {}

    def enter(self, part: _Part, times: int, alternative: bool) -> int:
        """Apply what `part` applies to the children; returns the steps that took."""
        value, steps = self._value, 0
        if isinstance(value, dict):
            if part.properties:
                few, many = sorted((value, part.properties), key=len)
                steps += len(few)
                for name in few:
                    if name in many:
                        self._add(name, part.properties[name], times, alternative)
            for one in part.any_property:
                steps += len(value)
                for name in value:
                    self._add(name, one, times, alternative)
        elif isinstance(value, list | tuple):
            steps += min(len(part.prefix), len(value)) + len(part.items) * len(value)
            for n, one in enumerate(part.prefix[: len(value)]):
                self._add(n, one, times, alternative)
            for one in part.items:
                for n in range(len(value)):
                    self._add(n, one, times, alternative)
        return steps

    def _add(self, name: Any, part: _Part, times: int, alternative: bool) -> None:
        entries = self._entries.setdefault(name, {})
        key = (id(part), alternative)
        entries[key] = part, times + (entries[key][1] if key in entries else 0)

    def entered(self) -> list[tuple[Any, dict[_Key, tuple[_Part, int]]]]:
        return [(self._value[name], entries) for name, entries in self._entries.items()]


class _Sizes:
    """How large values are, packed."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def of(self, value: Any) -> int:
        if not isinstance(value, dict | list | tuple | str):
            return 1
        found = self._known.get(id(value))
        if found is None:
            found = self._known[id(value)] = _size(value)
        return found


def _inside_out(root: _Part, inner: Any) -> Iterator[_Part | None]:
    """Each part after those that it leads to; None, and the end, where they lead back to it."""
    done: set[int] = set()
    open_: set[int] = set()
    stack: list[tuple[_Part, Iterator[_Part]]] = [(root, iter(inner(root)))]
    open_.add(id(root))
    while stack:
        part, rest = stack[-1]
        following = next((one for one in rest if id(one) not in done), None)
        if following is None:
            stack.pop()
            open_.discard(id(part))
            done.add(id(part))
            yield part
        elif id(following) in open_:
            yield None
            return
        else:
            open_.add(id(following))
            stack.append((following, iter(inner(following))))


def _check_document(schema: Any) -> int:
    """Refuse what the graph cannot show, and patterns that would take much memory; returns the places of these."""
    places = 0
    for one in _maps(schema):
        for name in _NOT_FOLLOWED:
            if name in one:
                raise ConfigurationError(f"not a JSON Schema that is followed here: it has {name}")
        if one is not schema and isinstance(one.get("$id"), str) and one["$id"]:
            raise ConfigurationError("not a JSON Schema that is followed here: a part of it has an $id of its own")
        if isinstance(pattern := one.get("pattern"), str):
            places += _places(pattern)
        if isinstance(patterns := one.get("patternProperties"), dict):
            places += sum(_places(pattern) for pattern in patterns)
    if places > MAX_PATTERN:
        raise ConfigurationError(f"the schema is too costly: its patterns have more than {MAX_PATTERN} places")
    return places


def _maps(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack.extend(one.values())
        elif isinstance(one, list | tuple):
            stack.extend(one)


def _constants(value: Any) -> int:
    """Checks that a list of constants costs: simple ones by the dozen, others by what there is to compare."""
    if not isinstance(value, list):
        return len(value) if isinstance(value, dict) else 0
    return len(value) // _PER_CHECK + sum(_size(one) for one in value if isinstance(one, list | dict))


def _places(pattern: str) -> int:
    """How long a pattern is with its repetitions written out; the engine's work for one character grows with it."""
    groups, total, last, at = [], 0, 0, 0
    while at < len(pattern):
        symbol, size = pattern[at], 1
        if symbol == "(":
            groups.append(total)
            total, last = 0, 0
        elif symbol == ")" and groups:
            last = max(total, 1)
            total += groups.pop()
        elif symbol == "{" and (found := _repetition(pattern, at)) is not None:
            count = max(int(found[1]), int(found[2] or 0), 1)
            total, last = min(total + last * (count - 1), _CAP), min(last * count, _CAP)
            size = len(found[0])
        else:
            if symbol == "\\":
                size = 2
                if pattern[at + 1 : at + 2] in "pPxuU" and pattern[at + 2 : at + 3] == "{":
                    size = max(pattern.find("}", at) - at + 1, 2)
            elif symbol == "[":
                size = _class_length(pattern, at)
            last, total = 1, total + 1
        at += size
    return total + sum(groups)


def _class_length(pattern: str, start: int) -> int:
    """Characters of a class such as `[a-z]`, with the classes inside it."""
    depth, at = 0, start
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]" and at > start + 1:
            depth -= 1
            if not depth:
                break
        at += 1
    return at - start + 1


def _size(data: Any) -> int:
    """Bytes, packed: at least one for each value and each character."""
    try:
        return len(pack_data(data))
    except PoisonMessageError:
        return _CAP


def _too_costly(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the schema is too costly: checking {what} may take more than {MAX_CHECKS} checks",
        remedy="let fewer alternatives refer to the same definitions",
    )
