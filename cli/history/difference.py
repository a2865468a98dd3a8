"""What differs between two pieces of plain data: a JSON Patch (RFC 6902) that also says what was there before.

Applied to the first, in order, the changes give the second, so a diff never leaves anything out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Change", "apply_changes", "find_changes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One operation. `path`: the keys from the outside in; `value` has no meaning for remove, `before` none for add."""

    op: Literal["add", "remove", "replace"]
    path: tuple[str | int, ...]
    before: Any = None
    value: Any = None

    @property
    def pointer(self) -> str:
        """The path as a JSON Pointer (RFC 6901)."""
        return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in self.path)

    @property
    def name(self) -> str:
        """The path for people: items.2.status."""
        return ".".join(map(str, self.path))

    @property
    def view(self) -> dict[str, Any]:
        """As `-o json` prints it."""
        found: dict[str, Any] = {"op": self.op, "path": self.pointer}
        if self.op != "add":
            found["before"] = self.before
        if self.op != "remove":
            found["value"] = self.value
        return found


def find_changes(before: Any, after: Any) -> list[Change]:
    """The changes that make `after` of `before`; empty when they are equal, as JSON is: 1, 1.0 and true differ."""
    return list(_changes(before, after, ()))


def _changes(before: Any, after: Any, path: tuple[str | int, ...]) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _in_maps(before, after, path)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _in_lists(before, after, path)
    elif type(before) is not type(after) or before != after:
        yield Change(op="replace", path=path, before=before, value=after)


def _in_maps(before: dict[str, Any], after: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[Change]:
    for key, value in before.items():
        if key not in after:
            yield Change(op="remove", path=(*path, key), before=value)
    for key, value in after.items():
        if key in before:
            yield from _changes(before[key], value, (*path, key))
        else:
            yield Change(op="add", path=(*path, key), value=value)


def _in_lists(before: list[Any], after: list[Any], path: tuple[str | int, ...]) -> Iterator[Change]:
    shared = min(len(before), len(after))
    for n in range(shared):
        yield from _changes(before[n], after[n], (*path, n))
    for n in range(len(before) - 1, shared - 1, -1):  # from the end, so that every index still holds
        yield Change(op="remove", path=(*path, n), before=before[n])
    for n in range(shared, len(after)):
        yield Change(op="add", path=(*path, n), value=after[n])


def apply_changes(value: Any, changes: Iterable[Change]) -> Any:
    """What `value` becomes by the changes; it is left as it was. Raises LookupError where a change does not fit."""
    for change in changes:
        value = _apply(value, change, change.path)
    return value


def _apply(value: Any, change: Change, path: tuple[str | int, ...]) -> Any:
    if not path:
        return change.value
    key, *rest = path
    copy: Any = value.copy()
    if rest:
        copy[key] = _apply(value[key], change, tuple(rest))
    elif change.op == "remove":
        del copy[key]
    elif change.op == "add" and isinstance(copy, list):
        copy.insert(int(key), change.value)
    else:
        copy[key] = change.value
    return copy
