"""SQL lives in `.sql` files beside the modules; a line `-- name: x` begins the statement (or statements) called x."""

from __future__ import annotations

import re
from importlib import resources

__all__ = ["load_statements", "migration_files"]

_PACKAGE = resources.files("cuebook.projections")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"bookkeeping_[0-9]{4}\.sql")


def load_statements(file: str) -> dict[str, bytes]:
    """The named statements of one file of this package. Bytes, since psycopg takes no built-up `str` for a query."""
    text = _PACKAGE.joinpath(file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: body.strip().encode() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def migration_files() -> list[tuple[str, bytes]]:
    """Name and content of the migrations of a space's bookkeeping tables, in the order in which they run."""
    found = [file for file in _PACKAGE.iterdir() if _MIGRATION.fullmatch(file.name)]
    return [(file.name, file.read_bytes()) for file in sorted(found, key=lambda file: file.name)]
