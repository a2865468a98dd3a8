"""A type of an author's data: how its values get into the log, and out of it again as they were.

In the log everything is what JSON can say. A strict model takes a moment or a UUID from such data only when it knows
that it comes from JSON. A type whose values would come back otherwise, or not at all, is refused where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import to_json

from cuebook.events.errors import ConfigurationError

__all__ = ["DataType"]

T = TypeVar("T")
_WITH_CONFIG = frozenset({"model", "dataclass", "typed-dict"})
_FIELDS = frozenset({"model-fields", "dataclass-args", "typed-dict"})


class DataType(Generic[T]):
    """`hint`: a pydantic model, or anything else pydantic can validate. Raises PydanticUserError for what it cannot."""

    def __init__(self, hint: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(hint)
        self.check: Callable[[Any], T] = self._adapter.validate_python
        """A value as an author's code gives it. Raises ValidationError."""
        self.read: Callable[[Any], T] = self._read_json if _depends_on_json(self._adapter) else self.check
        """A value from plain data of the log. Raises ValidationError."""

    def _read_json(self, data: Any) -> T:
        return self._adapter.validate_json(to_json(data))

    def plain(self, value: T, *, warnings: bool = True) -> Any:
        """A value as plain data. Raises PydanticSerializationError for what JSON cannot say."""
        return self._adapter.dump_python(value, mode="json", by_alias=True, warnings=warnings)

    def schema(self, mode: Literal["validation", "serialization"] = "validation") -> dict[str, Any]:
        """Its JSON Schema. Raises PydanticUserError where there is none."""
        return self._adapter.json_schema(mode=mode)

    def check_round_trip(self, what: str) -> None:
        """Raise ConfigurationError for a type that cannot read what it writes; `what` names its use."""
        for owner, fields, config, extra in _classes(self._adapter):
            for name, field in fields:
                written = field.get("serialization_alias", name)
                if written not in _names_read(name, field, config):
                    raise ConfigurationError(
                        f"{what} cannot read what it writes: field {name!r} of {owner} is written as {written!r}",
                        remedy="give the field one alias for both, or AliasChoices with the one that is written",
                    )
                if field.get("serialization_exclude") is True and field["schema"]["type"] != "default":
                    raise ConfigurationError(
                        f"{what} cannot read what it writes: field {name!r} of {owner} is required and left out",
                        remedy="give the field a default",
                    )
            if extra:
                raise ConfigurationError(
                    f"{what} cannot read what it writes: {owner} writes {extra!r}, which is computed, and forbids it",
                    remedy="allow extra fields, or make it a plain property",
                )


def _parts(adapter: TypeAdapter[Any]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """The parts of the core schema, each with the configuration of the class it stands in."""
    try:
        stack: list[tuple[Any, Mapping[str, Any]]] = [(adapter.core_schema, {})]
        while stack:
            node, config = stack.pop()
            if isinstance(node, list | tuple):
                stack.extend((one, config) for one in node)
            elif isinstance(node, Mapping):
                part = dict(node)
                if part.get("type") in _WITH_CONFIG:
                    config = part.get("config") or {}
                yield part, config
                stack.extend((one, config) for name, one in part.items() if name not in ("metadata", "cls", "default"))
    except PydanticUserError:  # it names what is not defined yet; whoever uses the type hears of it
        return


def _depends_on_json(adapter: TypeAdapter[Any]) -> bool:
    """Whether the same data may be valid as JSON and not as Python's, or mean something else."""
    return any(
        part.get("strict") is True or config.get("strict") is True or part.get("type") in ("bytes", "json-or-python")
        for part, config in _parts(adapter)
    )


def _classes(
    adapter: TypeAdapter[Any],
) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]], Mapping[str, Any], str]]:
    """Classes of the type: name, fields, configuration, and a computed field that it would not take back."""
    for part, config in _parts(adapter):
        if part.get("type") not in _FIELDS:
            continue
        fields = part["fields"]
        named = list(fields.items()) if isinstance(fields, dict) else [(one["name"], one) for one in fields]
        forbids = "forbid" in (part.get("extra_behavior"), config.get("extra_fields_behavior"))
        computed = [one.get("alias", one["property_name"]) for one in part.get("computed_fields") or ()]
        owner = part.get("model_name") or part.get("dataclass_name") or part.get("cls_name") or "the type"
        yield owner, named, config, computed[0] if forbids and computed else ""


def _names_read(name: str, field: dict[str, Any], config: Mapping[str, Any]) -> set[str]:
    alias = field.get("validation_alias")
    if alias is None or config.get("validate_by_alias") is False:
        return {name}
    by_name = {name} if config.get("populate_by_name") or config.get("validate_by_name") else set()
    if isinstance(alias, str):
        return {alias} | by_name
    paths = alias if alias and isinstance(alias[0], list) else [alias]
    return {path[0] for path in paths if len(path) == 1} | by_name
