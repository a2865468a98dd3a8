"""Comparing two generations row by row, inside PostgreSQL: rows that only one has, and rows that differ, by key.

Both must stand at the same event in the transaction that compares. Columns that only one version has are named, not
compared. Equality is that of the stored bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from cuebook.events.errors import ConfigurationError
from cuebook.projections.database import Transaction
from cuebook.projections.generations import Generation
from cuebook.projections.statements import load_statements
from cuebook.projections.timeseries import History

__all__ = ["Difference", "TableComparison", "compare"]

PARKED: Final = "parked_events"
_PARKED_COLUMNS: Final = ("sequence", "event_id", "subject", "reason")

_SQL = load_statements("compare.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row that is not the same. `live`, `rebuilt`: the columns that differ, or None where there is no such row."""

    key: dict[str, Any]
    live: dict[str, Any] | None
    rebuilt: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableComparison:
    """One table. `rows`: keys in either; `samples`: the first differences by key.

    `uncompared`: columns, or the whole table, that only one of the two versions has.
    """

    table: str
    rows: int
    only_live: int
    only_rebuilt: int
    different: int
    uncompared: tuple[str, ...]
    samples: tuple[Difference, ...]

    @property
    def differences(self) -> int:
        """Rows that are not the same."""
        return self.only_live + self.only_rebuilt + self.different


@dataclass(frozen=True, slots=True)
class _Columns:
    types: dict[str, str]
    keys: tuple[str, ...]


async def compare(
    tx: Transaction, histories: Sequence[History], live: Generation, rebuilt: Generation, *, samples: int = 10
) -> list[TableComparison]:
    """All tables of both, by name, and what each has parked. `histories`: those of its tables that forget.

    Raises ConfigurationError for a table without a key.
    """
    times = {history.table: history.time for history in histories}
    await tx.execute(_SQL["settings"])
    theirs, ours = await _tables(tx, live), await _tables(tx, rebuilt)
    found = []
    for table in sorted(theirs | ours):
        if table not in theirs or table not in ours:
            found.append(_missing(table))
        else:
            found.append(await _compare_table(tx, table, times.get(table, ""), live, rebuilt, samples))
    parked = _PARKED_COLUMNS
    sources = [_content(_parked(one), parked[:1], parked) for one in (live, rebuilt)]
    found.append(await _compare(tx, PARKED, sources, parked[:1], (), samples))
    return found


async def _compare_table(
    tx: Transaction, table: str, time: str, live: Generation, rebuilt: Generation, samples: int
) -> TableComparison:
    theirs, ours = await _columns(tx, live, table), await _columns(tx, rebuilt, table)
    if not ours.keys or ours.keys != theirs.keys:
        raise ConfigurationError(
            f"table {table} of {rebuilt.projection} has no primary key, or not the one of the live table",
            remedy="give it the same one in both versions: rows are compared by key",
        )
    shared = tuple(name for name, kind in ours.types.items() if theirs.types.get(name) == kind)
    uncompared = tuple(sorted((ours.types.keys() | theirs.types.keys()) - set(shared)))
    horizon = max((one.kept_from for one in (live, rebuilt) if one.kept_from is not None), default=None)
    sources = []
    for one in (live, rebuilt):
        source: sql.Composable = sql.SQL("SELECT * FROM {}").format(sql.Identifier(one.tables_in, table))
        if horizon is not None and time:
            source += sql.SQL(" WHERE {} >= {}").format(sql.Identifier(time), sql.Literal(horizon))
        sources.append(_content(source, ours.keys, shared))
    return await _compare(tx, table, sources, ours.keys, uncompared, samples)


async def _compare(
    tx: Transaction,
    table: str,
    sources: Sequence[sql.Composable],
    keys: Sequence[str],
    uncompared: tuple[str, ...],
    samples: int,
) -> TableComparison:
    parts = {"live": sources[0], "rebuilt": sources[1], "keys": _names(keys)}
    cursor = await tx.execute(_statement("count").format(**parts))
    counts = await cursor.fetchone()
    assert counts is not None
    only_live, only_rebuilt, different, rows = counts
    found: list[Difference] = []
    if only_live or only_rebuilt or different:
        pairs = sql.SQL(", ").join(
            part for key in keys for part in (sql.Literal(key) + sql.SQL("::text"), sql.Identifier(key))
        )
        cursor = await tx.execute(_statement("sample").format(**parts, key_pairs=pairs, limit=sql.Literal(samples)))
        found = [_difference(key, before, after) for key, before, after in await cursor.fetchall()]
    return TableComparison(
        table=table,
        rows=rows,
        only_live=only_live,
        only_rebuilt=only_rebuilt,
        different=different,
        uncompared=uncompared,
        samples=tuple(found),
    )


def _difference(key: dict[str, Any], live: dict[str, Any] | None, rebuilt: dict[str, Any] | None) -> Difference:
    if live is None or rebuilt is None:
        return Difference(key=key, live=live, rebuilt=rebuilt)
    names = [name for name in live if live[name] != rebuilt[name]]
    return Difference(
        key=key, live={name: live[name] for name in names}, rebuilt={name: rebuilt[name] for name in names}
    )


def _missing(table: str) -> TableComparison:
    return TableComparison(
        table=table, rows=0, only_live=0, only_rebuilt=0, different=0, uncompared=("the whole table",), samples=()
    )


def _content(source: sql.Composable, keys: Sequence[str], columns: Sequence[str]) -> sql.Composable:
    """A subquery with the key columns, one of them again as `key`, and all columns as one record `content`."""
    return sql.SQL(
        "(SELECT {keys}, {first} AS key, content FROM ({source}) AS s, LATERAL (SELECT {columns}) AS content)"
    ).format(keys=_names(keys, "s"), first=sql.Identifier("s", keys[0]), source=source, columns=_names(columns, "s"))


def _parked(generation: Generation) -> sql.Composable:
    return sql.SQL("SELECT * FROM parked_events WHERE projection = {} AND generation = {}").format(
        sql.Literal(generation.projection), sql.Literal(generation.number)
    )


def _names(names: Sequence[str], table: str = "") -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(*filter(None, (table, name))) for name in names)


def _statement(name: str) -> sql.SQL:
    return sql.SQL(_SQL[name].decode())


async def _tables(tx: Transaction, generation: Generation) -> set[str]:
    cursor = await tx.execute(_SQL["tables"], [generation.tables_in])
    return {name for name, _ in await cursor.fetchall()}


async def _columns(tx: Transaction, generation: Generation, table: str) -> _Columns:
    cursor = await tx.execute(_SQL["columns"], [generation.tables_in, table])
    rows = await cursor.fetchall()
    keys = sorted((place, name) for name, _, place in rows if place > 0)
    return _Columns({name: kind for name, kind, _ in rows}, tuple(name for _, name in keys))
