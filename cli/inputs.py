"""JSON from the command line: said outright, in a file, or on stdin. Checked before anything is sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cuebook.cli.exits import InputError

__all__ = ["parse_labels", "read_json"]

MAX_BYTES = 256 * 1024
"""Of an event; see cuebook.events.codec, which is not imported here since it checks again when the event is written."""


def read_json(text: str, what: str = "INPUT") -> Any:
    """The value of `text`: JSON, `@file`, or `-` for stdin. Raises InputError."""
    if text == "-":
        if sys.stdin.isatty():
            raise InputError(
                f"{what} is '-' but nothing is piped in", remedy=f"pipe JSON into it, or say {what} outright"
            )
        content, origin = sys.stdin.buffer.read(MAX_BYTES + 1), "stdin"
    elif text.startswith("@"):
        content, origin = _read_file(text[1:]), text[1:]
    else:
        content, origin = text.encode("utf-8", "surrogateescape"), what
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{origin} holds more than {MAX_BYTES} bytes",
            remedy="keep the payload elsewhere and send a reference to it",
        )
    return _parse(content, origin)


def parse_labels(labels: list[str]) -> dict[str, str] | None:
    """`key=value` pairs; None when there are none. Raises InputError."""
    found = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key:
            raise InputError(f"label {label!r} is not KEY=VALUE")
        found[key] = value
    return found or None


def _read_file(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read {name!r}: {error.strerror}", remedy="write @FILE with a file that exists"
        ) from error


def _parse(content: bytes, origin: str) -> Any:
    try:
        text = content.decode("utf-8")
        return json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_int=_bounded_integer
        )
    except InputError as error:
        raise InputError(f"{origin}: {error}", remedy=error.remedy) from error
    except (ValueError, RecursionError) as error:
        remedy = "JSON has strings in double quotes: '{\"id\": 1}' or '\"text\"'; @FILE reads a file and - reads stdin"
        raise InputError(f"{origin} is not JSON: {error}", remedy=remedy) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise InputError(f"the key {twice!r} is there twice")
    return found


def _bounded_integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise InputError(f"the integer {digits[:20]} has more than 64 bits", remedy="send it as a string")
    return value


def _refuse_constant(name: str) -> Any:
    raise InputError(f"{name} is not a JSON number")
