"""The schemas of event types, and whether a released one was edited where it should have been versioned.

`types.json` beside this module holds every type that was ever released, older versions included, with the JSON Schema
of its data. A type there is never changed but by fields that may be left out; `compare` tells.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cuebook.events.catalogue import CATALOGUE, Catalogue

__all__ = ["Finding", "compare", "present_schemas", "released_schemas", "schema_of"]

_SCALARS: dict[Any, dict[str, Any]] = {
    Any: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    types.NoneType: {"type": "null"},
}
_WORDS = frozenset({"description", "title", "examples", "deprecated"})
"""Keywords of JSON Schema that change nothing for the data."""

Kind = Literal["edited", "removed", "extended", "new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of a type since it was released. `edited` and `removed` break what is stored; the others do not."""

    event_type: str
    kind: Kind
    details: list[str]

    @property
    def breaks(self) -> bool:
        """Whether events that are stored mean something else now, or cannot be read."""
        return self.kind in ("edited", "removed")


def schema_of(cls: type[Any]) -> dict[str, Any]:
    """The data of an event type, or of an object in it, as JSON Schema 2020-12 with nothing but its keywords."""
    hints = get_type_hints(cls)
    properties, required = {}, []
    for one in fields(cls):
        properties[one.name] = _schema(hints[one.name])
        if one.default is MISSING and one.default_factory is MISSING:
            required.append(one.name)
        elif one.default is not MISSING and one.default is not None:
            properties[one.name] = {**properties[one.name], "default": one.default}
    schema: dict[str, Any] = {"type": "object", "description": _meaning(cls), "properties": properties}
    return schema | ({"required": required} if required else {})


def _schema(hint: Any) -> dict[str, Any]:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if is_dataclass(hint) and isinstance(hint, type):
        return schema_of(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if origin is types.UnionType:
        return {"anyOf": [_schema(argument) for argument in arguments]}
    raise TypeError(f"{hint!r} has no schema here")


def _meaning(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def present_schemas(catalogue: Catalogue = CATALOGUE) -> dict[str, dict[str, Any]]:
    """The schema of every type that this release writes, by its name."""
    return {event_type: schema_of(cls) for event_type, cls in sorted(catalogue.types.items())}


def released_schemas() -> dict[str, dict[str, Any]]:
    """The schema of every type that was ever released, by its name."""
    found: dict[str, dict[str, Any]] = json.loads((files(__package__) / "types.json").read_text(encoding="utf-8"))
    return found


def compare(
    released: Mapping[str, dict[str, Any]], present: Mapping[str, dict[str, Any]], readable: Mapping[str, Any]
) -> list[Finding]:
    """What became of each released type, and what is new; empty when nothing happened.

    `readable`: older types that are read through upcasters, by name.
    """
    found = []
    for event_type in sorted(released.keys() | present.keys()):
        if event_type not in released:
            found.append(Finding(event_type=event_type, kind="new", details=[]))
        elif event_type in present:
            edits, additions = list[str](), list[str]()
            for edit, text in _differences(released[event_type], present[event_type], ""):
                (edits if edit else additions).append(text)
            if edits or additions:
                kind: Kind = "edited" if edits else "extended"
                found.append(Finding(event_type=event_type, kind=kind, details=edits or additions))
        elif event_type not in readable:
            found.append(Finding(event_type=event_type, kind="removed", details=["no upcaster reads it"]))
    return found


def _differences(old: Any, new: Any, where: str) -> Iterator[tuple[bool, str]]:
    """Each difference with whether it is an edit; a field that is new and may be left out is none."""
    place = where or "the data"
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new or type(old) is not type(new):
            yield True, f"{place}: {_short(old)} became {_short(new)}"
        return
    yield from _field_differences(old, new, where)
    for name in _named(old, new, "$defs"):
        before, after = old.get("$defs", {}).get(name), new.get("$defs", {}).get(name)
        if before is not None and after is not None:
            yield from _differences(before, after, f"{where}<{name}>")
    for keyword in sorted((old.keys() | new.keys()) - _WORDS - {"properties", "required", "$defs"}):
        if keyword not in old or keyword not in new:
            yield True, f"{place}: {keyword} was {'added' if keyword in new else 'removed'}"
            continue
        before, after = old[keyword], new[keyword]
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            for one, other in zip(before, after, strict=True):
                yield from _differences(one, other, where)
        else:
            yield from _differences(before, after, where)


def _field_differences(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[tuple[bool, str]]:
    required, before_required = set(new.get("required", ())), set(old.get("required", ()))
    for name in sorted(required ^ before_required):
        yield True, f"{_inside(where, name)} {'must be there now' if name in required else 'may be left out now'}"
    for name in _named(old, new, "properties"):
        before, after = old.get("properties", {}).get(name), new.get("properties", {}).get(name)
        if after is None:
            yield True, f"{_inside(where, name)} was removed"
        elif before is not None:
            yield from _differences(before, after, _inside(where, name))
        elif name not in required:
            yield False, f"{_inside(where, name)} was added"


def _named(old: dict[str, Any], new: dict[str, Any], keyword: str) -> list[str]:
    return sorted(old.get(keyword, {}).keys() | new.get(keyword, {}).keys())


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
