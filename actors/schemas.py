"""Checking data against the JSON Schemas that agents and questions carry in their events.

Schemas come from the log, so from anybody: remote references are never fetched and patterns run on a linear-time
engine.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import jsonschema_rs

from cuebook.events.errors import ConfigurationError

__all__ = ["compile_schema", "find_error"]

_CACHE_SIZE = 2_000
_MAX_TEXT = 500
_compiled: OrderedDict[str, Any] = OrderedDict()


def compile_schema(schema: dict[str, Any]) -> Any:
    """A validator with `is_valid(data)`. Raises ConfigurationError for what is no schema."""
    key = json.dumps(schema, sort_keys=True)
    found = _compiled.get(key)
    if found is None:
        try:
            found = jsonschema_rs.Draft202012Validator(
                schema, pattern_options=jsonschema_rs.RegexOptions(), retriever=_refuse_reference
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"not a JSON Schema: {str(error)[:_MAX_TEXT]}") from error
        _compiled[key] = found
        if len(_compiled) > _CACHE_SIZE:
            _compiled.popitem(last=False)
    return found


def find_error(schema: dict[str, Any], data: Any) -> str:
    """The first thing wrong with `data`, with its place, or an empty string. A broken schema accepts nothing."""
    if not schema:
        return ""
    try:
        validator = compile_schema(schema)
    except ConfigurationError as error:
        return str(error)
    return describe_error(validator, data)


def describe_error(validator: Any, data: Any) -> str:
    """As `find_error`, with a compiled validator."""
    if validator.is_valid(data):
        return ""
    first = next(iter(validator.iter_errors(data)))
    where = ".".join(str(part) for part in first.instance_path)
    text = f"{where}: {first.message}" if where else str(first.message)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."  # it quotes the data


def _refuse_reference(uri: str) -> Any:
    raise ValueError(f"references to {uri} are not followed")
