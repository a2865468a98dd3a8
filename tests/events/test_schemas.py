"""A stored type is never edited: every change to one is found, but for fields that may be left out."""

from __future__ import annotations

import copy
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, ClassVar

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events import facts
from cuebook.events.catalogue import CATALOGUE, EVENT_TYPES, Catalogue, to_data
from cuebook.events.facts import Event
from cuebook.events.schemas import compare, present_schemas, released_schemas, schema_of
from tests.events.strategies import events

RELEASED = released_schemas()


def test_every_type_is_recorded_as_it_is_and_every_older_one_is_read() -> None:
    findings = compare(RELEASED, present_schemas(), CATALOGUE.upcasters)
    assert findings == [], "see what they say, and docs/versioning.md; then: cuebook events schema check --write"


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.event_type)
@given(data=st.data())
def test_what_is_written_fits_the_schema_of_its_type(cls: type[Event], data: st.DataObject) -> None:
    written = to_data(data.draw(events(cls)))
    assert jsonschema_rs.validator_for(RELEASED[cls.event_type]).is_valid(written)


def _places(schema: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a schema that says something about the data."""
    found = []
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "description" or (key == "properties" and not value):
            continue
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _places(value, (*path, key))
    return found


PLACES = [(event_type, place) for event_type, schema in RELEASED.items() for place in _places(schema)]


@given(st.sampled_from(PLACES))
def test_whatever_is_taken_out_of_a_schema_is_an_edit(chosen: tuple[str, tuple[Any, ...]]) -> None:
    event_type, (*outer, last) = chosen
    present = copy.deepcopy(RELEASED)
    at: Any = present[event_type]
    for key in outer:
        at = at[key]
    del at[last]
    (found,) = compare(RELEASED, present, {})
    assert (found.event_type, found.kind) == (event_type, "edited")
    assert found.details


def edited(**changes: Any) -> dict[str, Any]:
    """A schema of `run.stuck` with some of its fields made otherwise."""
    kept = [(one.name, one.type, one) for one in fields(facts.RunStuck) if one.name not in changes]
    wanted = [(name, *change) for name, change in changes.items() if change is not None]
    made = make_dataclass(
        "RunStuck", [*_fresh(kept), *wanted], kw_only=True, namespace={"__module__": facts.RunStuck.__module__}
    )
    made.__doc__ = facts.RunStuck.__doc__
    return schema_of(made)


def _fresh(kept: list[tuple[str, Any, Any]]) -> list[tuple[Any, ...]]:
    return [
        (name, hint) if one.default is MISSING else (name, hint, field(default=one.default)) for name, hint, one in kept
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "detail"),
    [
        ({"step": ("str | None", None)}, "edited", 'step: "integer" became "string"'),
        ({"reason": None}, "edited", "reason"),
        ({"reason": ("str", "")}, "edited", "reason may be left out now"),
        ({"since": ("int",)}, "edited", "since must be there now"),
        ({"since": ("int", 0)}, "extended", "since was added"),
    ],
)
def test_edits_are_told_from_extensions(changes: dict[str, Any], kind: str, detail: str) -> None:
    released = {"run.stuck.v1": RELEASED["run.stuck.v1"]}
    (found,) = compare(released, {"run.stuck.v1": edited(**changes)}, {})
    assert (found.kind, found.breaks) == (kind, kind == "edited")
    assert any(text.startswith(detail) for text in found.details), found.details


def test_a_new_version_keeps_the_old_one_readable_or_is_found() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class RunStuckLater(Event):
        event_type: ClassVar[str] = "run.stuck.v2"
        why: str

    others = [cls for cls in EVENT_TYPES if cls is not facts.RunStuck]
    later = Catalogue([*others, RunStuckLater], {"run.stuck.v1": lambda data: {"why": data["reason"]}})
    found = compare(RELEASED, present_schemas(later), later.upcasters)
    assert [(one.event_type, one.kind) for one in found] == [("run.stuck.v2", "new")]
    found = compare(RELEASED, present_schemas(later), {})
    assert ("run.stuck.v1", "removed") in [(one.event_type, one.kind) for one in found]
