"""Checking data against the JSON Schemas that agents and questions carry in their events.

Schemas come from the log, so from anybody: remote references are never fetched, patterns run on a linear-time engine,
and what a check may cost is bounded before it begins, by a count and not by a clock.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import jsonschema_rs

from cuebook.actors.schema_cost import SchemaCost
from cuebook.events.errors import ConfigurationError

__all__ = ["CompiledSchema", "compile_schema", "find_error"]

_CACHE_SIZE = 2_000
_CACHE_PLACES = 100_000
"""In the patterns of all schemas that are kept; see `schema_cost.MAX_PATTERN`."""
_MAX_TEXT = 500
_compiled: OrderedDict[str, CompiledSchema] = OrderedDict()


class CompiledSchema:
    """A schema ready for use."""

    __slots__ = ("_cost", "_validator", "places")

    def __init__(self, schema: dict[str, Any]) -> None:
        self._cost = SchemaCost(schema)
        self.places = self._cost.places
        try:
            self._validator = jsonschema_rs.Draft202012Validator(
                schema, pattern_options=jsonschema_rs.RegexOptions(), retriever=_refuse_reference
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"not a JSON Schema: {str(error)[:_MAX_TEXT]}") from error

    def find_error(self, data: Any) -> str:
        """The first thing wrong with `data`, with its place, or an empty string."""
        if excess := self._cost.find_excess(data):
            return excess
        if self._validator.is_valid(data):
            return ""
        if not self._cost.may_explain(data):
            return "it does not fit the schema, and there are too many ways in which it does not"
        return self._explain(data)

    def _explain(self, data: Any) -> str:
        try:
            self._validator.validate(data)
        except jsonschema_rs.ValidationError as first:
            where = ".".join(str(part) for part in first.instance_path)
            text = f"{where}: {first.message}" if where else str(first.message)
            return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."  # it quotes the data
        return "it does not fit the schema"


def compile_schema(schema: dict[str, Any]) -> CompiledSchema:
    """Make a schema ready for use. Raises ConfigurationError for what is no schema, or one that is too costly."""
    key = json.dumps(schema, sort_keys=True)
    found = _compiled.get(key)
    if found is None:
        found = _compiled[key] = CompiledSchema(schema)
        places = sum(one.places for one in _compiled.values())
        while len(_compiled) > _CACHE_SIZE or places > _CACHE_PLACES:
            places -= _compiled.popitem(last=False)[1].places
    return found


def find_error(schema: dict[str, Any], data: Any) -> str:
    """The first thing wrong with `data`, with its place, or an empty string. A broken schema accepts nothing."""
    if not schema:
        return ""
    try:
        return compile_schema(schema).find_error(data)
    except ConfigurationError as error:
        return str(error)


def _refuse_reference(uri: str) -> Any:
    raise ValueError(f"references to {uri} are not followed")
