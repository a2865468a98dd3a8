"""What differs between two states, field by field."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cuebook.cli.history.difference import apply_changes, find_changes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5]) | st.text("ab/~0", max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """As JSON: 1 is not true, nor 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(JSON, JSON)
def test_the_changes_applied_to_the_first_give_the_second(before: Any, after: Any) -> None:
    kept = json.dumps(before)
    assert same(apply_changes(before, find_changes(before, after)), after)
    assert json.dumps(before) == kept


@given(JSON, JSON)
def test_there_are_changes_just_where_there_is_a_difference(before: Any, after: Any) -> None:
    assert (find_changes(before, after) == []) == same(before, after)


@given(JSON, JSON)
def test_every_change_says_what_was_there(before: Any, after: Any) -> None:
    back = []
    for change in reversed(find_changes(before, after)):
        op = {"add": "remove", "remove": "add", "replace": "replace"}[change.op]
        back.append(type(change)(op=op, path=change.path, before=change.value, value=change.before))  # type: ignore[arg-type]
    assert same(apply_changes(after, back), before)


def test_a_change_is_written_as_json_patch() -> None:
    changes = find_changes({"a/b": [1, 2], "c": 1}, {"a/b": [1, 3, 4], "d": None})
    assert [change.view for change in changes] == [
        {"op": "remove", "path": "/c", "before": 1},
        {"op": "replace", "path": "/a~1b/1", "before": 2, "value": 3},
        {"op": "add", "path": "/a~1b/2", "value": 4},
        {"op": "add", "path": "/d", "value": None},
    ]
    assert changes[1].name == "a/b.1"
