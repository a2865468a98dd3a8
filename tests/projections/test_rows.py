"""Values on their way into PostgreSQL."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.events.facts import Error
from cuebook.projections.database import connect
from cuebook.projections.rows import (
    NULL,
    copy,
    exact_json,
    integer,
    is_plain,
    jsonb,
    later,
    moment,
    number,
    storable,
    text,
)
from tests.events.strategies import data

in_one_database = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_text = st.text(st.characters(), max_size=20) | st.text("\\\t\n\r\0\ud800Nx\x7f\x85\u2028", max_size=20)


async def stored(url: str, column_type: str, *values: str) -> list[Any]:
    """The values as PostgreSQL gives them back."""
    async with await connect(url, ["public"]) as connection:
        await connection.execute(f"CREATE TEMPORARY TABLE t (n serial, value {column_type})".encode())
        await copy(connection, b"COPY t (value) FROM STDIN", values)
        cursor = await connection.execute("SELECT value FROM t ORDER BY n")
        return [value for (value,) in await cursor.fetchall()]


@in_one_database
@given(values=st.lists(any_text, min_size=1))
async def test_text_comes_back_but_for_what_postgresql_cannot_hold(database_url: str, values: list[str]) -> None:
    assert await stored(database_url, "text", *map(text, values)) == [storable(value) for value in values]


@in_one_database
@given(values=st.lists(data | any_text, min_size=1, max_size=5))
async def test_data_comes_back_but_for_what_postgresql_cannot_hold(database_url: str, values: list[Any]) -> None:
    async with await connect(database_url, ["public"]) as connection:
        await connection.execute("CREATE TEMPORARY TABLE t (n serial, value jsonb)")
        await copy(connection, b"COPY t (value) FROM STDIN", [*map(jsonb, values)])
        cursor = await connection.execute("SELECT value::text FROM t ORDER BY n")
        found = [exactly(value) for (value,) in await cursor.fetchall()]
    assert found == [exactly(json.dumps(storable(value))) for value in values]


def exactly(written: str) -> Any:
    """Numbers as JSON has them, without a limit: jsonb writes 1e16 with all its digits."""
    return json.loads(written, parse_float=Decimal, parse_int=Decimal)


@given(value=data | any_text)
def test_the_exact_data_is_kept_where_something_was_replaced(value: Any) -> None:
    exact = exact_json(value)
    assert (exact is None) == (storable(value) == value)
    assert exact is None or json.loads(exact) == value


def test_text_is_looked_at_as_copy_does() -> None:
    assert [is_plain(value) for value in ("a b", "", "\u00e9", "a\\b", "a\tb", "\0")] == [True, True, True] + 3 * [
        False
    ]


async def test_numbers_of_any_size_fit(database_url: str) -> None:
    values = [0, -1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30]
    assert await stored(database_url, "bigint", *map(integer, values)) == [
        0, -1, 2**63 - 1, 2**63 - 1, 2**63 - 1, -(2**63), 2**63 - 1,
    ]  # fmt: skip
    floats = [0.0, -1.5, 1e308, 5e-324, float("inf")]
    assert await stored(database_url, "double precision", *map(number, floats)) == floats


async def test_moments_keep_their_microseconds(database_url: str) -> None:
    moments = [0, 1_790_000_000_123_456, 253_402_300_799_999_999]
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for value in moments:
            cursor = await connection.execute(
                "SELECT (extract(epoch FROM %s::timestamptz) * 1000000)::bigint", [moment(value)]
            )
            assert await cursor.fetchone() == (value,)


@pytest.mark.parametrize("written", [moment(2**63), moment(-(2**62)), later(0, float("inf"))])
def test_what_is_no_moment_is_null(written: str) -> None:
    assert written == NULL


def test_a_span_counts_from_the_moment() -> None:
    assert later(1_790_000_000_000_000, 1.5) == moment(1_790_000_001_500_000)
    assert {later(0, 1e12), later(2**62, 1e308)} == {"9999-12-31 23:59:59.999999+00"}
    assert {later(0, -1e12), later(0, -1e308)} == {"0001-01-01 00:00:00.000000+00"}


def test_errors_are_data_too() -> None:
    error = Error(type="E", message="a\0b", classes=["E", "Exception"])
    assert json.loads(jsonb(error).replace(r"\\", "\\")) == {
        "type": "E", "message": "a\u2400b", "classes": ["E", "Exception"], "retryable": True,
    }  # fmt: skip
