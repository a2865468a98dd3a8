r"""Values and rows in COPY's text format, and writing them.

Text is what PostgreSQL takes in fastest from Python: a row is one `"\t".join`. What PostgreSQL cannot hold, U+0000 and
lone surrogates, becomes U+2400 and U+FFFD; the audit log keeps the exact data beside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeAlias

from pydantic_core import PydanticSerializationError, SchemaSerializer, core_schema

from cuebook.projections.database import Transaction

__all__ = [
    "NULL",
    "Merge",
    "Row",
    "copy",
    "exact_json",
    "flag",
    "integer",
    "jsonb",
    "later",
    "moment",
    "number",
    "storable",
    "text",
]

NULL: Final = r"\N"
FALSE, TRUE = "f", "t"
ROWS_PER_WRITE: Final = 1_000
"""PostgreSQL takes in the first rows of a batch while the later ones are still being written."""
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999
_FOR_EVER_S: Final = 1e12

Row: TypeAlias = dict[str, str]
"""Columns in COPY text. In a change, a missing column keeps its value: columns are overwritten, never cleared."""

_SERIALIZER = SchemaSerializer(
    core_schema.any_schema(), core_schema.CoreConfig(ser_json_inf_nan="strings", ser_json_bytes="base64")
)
"""Three times as fast as the json module."""

_SPECIAL = re.compile("[\\\\\t\n\r\0\ud800-\udfff]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\0": "\u2400"}
_COLUMNS = re.compile(rb"COPY\s+\w+\s*\(([^)]*)\)")


def is_plain(value: str) -> bool:
    """Whether COPY takes the text as it is. May say no for some that it would."""
    return value.isprintable() and "\\" not in value


def text(value: str) -> str:
    """Any string, whatever it holds."""
    return value if value.isprintable() and "\\" not in value else _SPECIAL.sub(_escape, value)


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0], "\ufffd")


def jsonb(value: Any) -> str:
    """Plain data or a dataclass as jsonb; None becomes the JSON value null. NaN and infinities become strings."""
    try:
        written = _to_json(value)
    except PydanticSerializationError:  # lone surrogates
        written = _to_json(storable(value))
    if "\\" not in written:
        return written
    if r"\u0000" in written:
        written = _to_json(storable(value))
    return written.replace("\\", r"\\")


def exact_json(value: Any) -> bytes | None:
    """The data as JSON in ASCII if `jsonb` replaces characters in it, else None."""
    if value == storable(value):
        return None
    try:
        return json.dumps(value, default=str).encode("ascii")
    except TypeError:  # MessagePack allows bytes as keys
        return ascii(value).encode("ascii")


def _to_json(value: Any) -> str:
    return _SERIALIZER.to_json(value, fallback=str).decode()


def storable(value: Any) -> Any:
    """Plain data or a dataclass, as plain data that PostgreSQL can hold."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(lambda match: "\u2400" if match[0] == "\0" else "\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if is_dataclass(value):
        return {field.name: storable(getattr(value, field.name)) for field in fields(value)}
    return value


def integer(value: int) -> str:
    """A bigint; what has more than 64 bits becomes the nearest that has not."""
    return str(max(-(2**63), min(value, 2**63 - 1)))


def number(value: float) -> str:
    """A double precision."""
    return repr(float(value))


def flag(value: bool) -> str:
    """A boolean."""
    return TRUE if value else FALSE


def moment(microseconds: int) -> str:
    """A timestamptz; NULL outside the years 1 to 9999, which only a wrong clock or a hostile author can write."""
    seconds, rest = divmod(microseconds, 1_000_000)
    try:
        return f"{_second(seconds)}.{rest:06d}+00"
    except (OverflowError, ValueError, OSError):
        return NULL


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(" ")


def later(microseconds: int, seconds: float) -> str:
    """The moment some seconds after another, or the one in the years 1 to 9999 that comes nearest; NULL after infinity.

    Not NULL, since a change that holds NULL is none: whether an earlier moment stayed would depend on the batches.
    """
    if not math.isfinite(seconds):
        return NULL
    then = microseconds + int(max(-_FOR_EVER_S, min(seconds, _FOR_EVER_S)) * 1_000_000)
    return moment(max(_FIRST_MOMENT, min(then, _LAST_MOMENT)))


def array(tokens: Iterable[str]) -> str:
    """An array of tokens or numbers as a parameter to be cast. Quoted, since `null` is a token too."""
    return "{" + ",".join([f'"{token}"' for token in tokens]) + "}"


async def copy(tx: Transaction, statement: bytes, lines: Sequence[str]) -> None:
    """Run `COPY ... FROM STDIN` with rows in text format."""
    async with tx.cursor().copy(statement) as target:
        for start in range(0, len(lines), ROWS_PER_WRITE):
            await target.write(("\n".join(lines[start : start + ROWS_PER_WRITE]) + "\n").encode())


class Merge:
    """Writes rows to a table: new ones straight into it, changes over a temporary table and one UPDATE."""

    def __init__(self, insert: bytes, update: bytes) -> None:
        """`insert`: COPY into the table; `update`: from `changed_<table>`, a temporary table with the same columns."""
        match = _COLUMNS.match(insert)
        assert match is not None
        self._insert = insert
        self._change = insert.replace(b"COPY ", b"COPY changed_", 1)
        table = self._change.split(maxsplit=2)[1]
        # A transaction may hold several batches, and its rows are there until it ends.
        self._update = update + b";\nDELETE FROM " + table
        self._columns = tuple(column.strip().decode() for column in match[1].split(b","))
        self._nulls = [NULL] * len(self._columns)

    async def write(self, tx: Transaction, *, new: Iterable[Row], changed: Iterable[Row]) -> None:
        """Write each row once; both may be empty."""
        if lines := [self._line(row) for row in new]:
            await copy(tx, self._insert, lines)
        if lines := [self._line(row) for row in changed]:
            await copy(tx, self._change, lines)
            await tx.execute(self._update)

    def _line(self, row: Row) -> str:
        return "\t".join(map(row.get, self._columns, self._nulls))
