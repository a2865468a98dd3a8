"""How histories, tables that grow with time, may lie in PostgreSQL. Imports nothing heavy.

A projection says which of its tables are histories and what is added up from them; `timescale` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Aggregate", "History", "Timeseries"]


class Timeseries(StrEnum):
    """What histories are made of: native partitions, or hypertables; `auto` takes the latter where they can be had."""

    AUTO = "auto"
    NATIVE = "native"
    TIMESCALE = "timescale"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One table, partitioned by month of its column `time`; its primary key has that column.

    As a hypertable its older chunks are compressed: rows with the same `segment_by` (columns; may be empty) stand
    together, in the order of `order_by`.
    """

    table: str
    time: str
    segment_by: str
    order_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """A view that adds a history up: the same name, columns and rows whatever the history is made of.

    `query` has `{hour}` where the hour of a row is meant; `comments` describes the view.
    """

    name: str
    query: bytes
    comments: bytes
