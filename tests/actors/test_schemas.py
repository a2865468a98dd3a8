"""JSON Schemas from anybody: what they refuse, and what they cannot make us do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from cuebook.actors import schemas
from cuebook.actors.schemas import compile_schema, find_error
from cuebook.events.errors import ConfigurationError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


class Line(BaseModel):
    sku: str = Field(pattern="^[A-Z]{3}-[0-9]+$")
    count: int = Field(ge=1)


class Order(BaseModel):
    lines: list[Line]
    note: str | None = None


SCHEMA = Order.model_json_schema()


def test_data_that_fits_has_no_error() -> None:
    assert find_error(SCHEMA, {"lines": [{"sku": "ABC-1", "count": 2}]}) == ""
    assert find_error({}, object()) == ""


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"lines": [{"sku": "ABC-1", "count": "x"}]}, 'lines.0.count: "x" is not of type "integer"'),
        ({"lines": [{"sku": "ABC-1"}]}, 'lines.0: "count" is a required property'),
        ({"lines": [{"sku": "abc", "count": 1}]}, 'lines.0.sku: "abc" does not match "^[A-Z]{3}-[0-9]+$"'),
        ({}, '"lines" is a required property'),
        (None, 'null is not of type "object"'),
    ],
)
def test_an_error_says_where_and_what(data: Any, error: str) -> None:
    assert find_error(SCHEMA, data) == error
    assert compile_schema(SCHEMA).find_error(data) == error


def test_an_error_that_quotes_the_data_is_cut() -> None:
    assert len(find_error(SCHEMA, {"lines": "x" * 1_000_000})) <= 503


@pytest.mark.parametrize("schema", [{"type": "strnig"}, {"pattern": "("}, {"properties": 3}, {"minimum": "x"}])
def test_what_is_no_schema_accepts_nothing_and_says_so(schema: dict[str, Any]) -> None:
    assert find_error(schema, {}).startswith("not a JSON Schema: ")
    with pytest.raises(ConfigurationError, match="not a JSON Schema"):
        compile_schema(schema)


def test_references_inside_are_followed_and_those_outside_are_refused_without_asking_anybody() -> None:
    inside = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    assert find_error(inside, 3) == ""
    assert find_error(inside, "x")
    with listening() as (url, asked):
        for schema in (
            {"$ref": f"{url}/schema.json"},
            {"properties": {"a": {"$ref": f"{url}/other.json#/$defs/x"}}},
            {"$schema": f"{url}/meta.json", "type": "integer"},
            {"$id": f"{url}/root.json", "$ref": "relative.json"},
            {"$dynamicRef": f"{url}/dynamic.json"},
        ):
            assert find_error(schema, {"a": 1}), schema
        assert asked == []
    assert find_error({"$ref": "file:///etc/hostname"}, 1).startswith("not a JSON Schema: ")


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_no_pattern_takes_time_out_of_proportion(pattern: str) -> None:
    """On a backtracking engine each of these would not end in a lifetime."""
    assert find_error({"type": "string", "pattern": pattern}, "a" * 50_000 + "!")
    assert find_error({"patternProperties": {pattern: {}}, "additionalProperties": False}, {"a" * 5_000 + "!": 1})


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", "(?<!a)b"])
def test_patterns_that_need_backtracking_are_refused(pattern: str) -> None:
    assert find_error({"pattern": pattern}, "aa").startswith("not a JSON Schema: ")


def test_a_schema_is_compiled_once_and_the_memory_for_that_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_CACHE_SIZE", 10)
    schemas._compiled.clear()
    first = compile_schema({"const": 0, "type": "integer"})
    assert compile_schema({"type": "integer", "const": 0}) is first
    for n in range(30):
        assert find_error({"const": n, "title": "many"}, n) == ""
    assert len(schemas._compiled) == 10


@given(JSON, JSON)
def test_no_schema_and_no_data_raises(schema: Any, data: Any) -> None:
    if isinstance(schema, dict):
        assert isinstance(find_error(schema, data), str)
    assert isinstance(find_error({"enum": [data]}, data), str)
    assert find_error({"const": data}, data) == ""


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A web server, and what it was asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()
