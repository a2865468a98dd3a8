"""What Hypothesis draws: tokens, plain data and every event type, with all fields filled as their types allow."""

from __future__ import annotations

import string
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from cuebook.events import facts
from cuebook.events.facts import Event
from cuebook.events.subjects import Address, Kind, Subjects

__all__ = ["EVENT_TYPES", "addresses", "data", "events", "ids", "subject_of", "tokens"]

EVENT_TYPES: tuple[type[Event], ...] = tuple(
    value
    for name in facts.__all__
    if isinstance(value := getattr(facts, name), type) and issubclass(value, Event) and value is not Event
)

_TAIL = string.ascii_lowercase + string.digits + "_-"
tokens = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from(string.ascii_lowercase + string.digits),
    st.text(_TAIL, max_size=63),
)
numbers = st.integers(0, 999_999_999)
ids = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=128)

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_integers = st.integers(-(2**63), 2**64 - 1)
_floats = st.floats(allow_nan=False, allow_infinity=False)
_scalars = st.none() | st.booleans() | _integers | _floats | _text
data = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4), max_leaves=20
)
"""Whatever JSON can say, within the limits."""


def events(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Instances of an event type, or of a dataclass that is part of one."""
    hints = get_type_hints(cls)
    return st.builds(cls, **{field.name: _values(hints[field.name]) for field in fields(cls)})


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is Any:
        return data
    if hint is int:
        return _integers
    if hint is float:
        return _floats
    if hint is str:
        return _text
    if hint is bool:
        return st.booleans()
    if hint is types.NoneType:
        return st.none()
    if is_dataclass(hint) and isinstance(hint, type):
        return events(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(_text, _values(arguments[1]), max_size=3)
    if origin is types.UnionType:
        return st.one_of([_values(argument) for argument in arguments])
    raise TypeError(f"no strategy for {hint}")


topics = st.lists(tokens, min_size=1, max_size=4).map(".".join).filter(lambda topic: len(topic) <= 255)


def _address(kind: Kind, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Address]:
    return st.fixed_dictionaries(parts).map(lambda fields: Address(kind, **({"fact": kind} | fields)))


addresses: st.SearchStrategy[Address] = st.one_of(
    _address("run", run_id=tokens, fact=tokens),
    _address("run", run_id=tokens, fact=st.just("requested"), agent=tokens),
    _address("task", run_id=tokens, n=numbers, fact=tokens),
    _address("task", run_id=tokens, n=numbers, fact=tokens, agent=tokens),
    _address("task", run_id=tokens, n=numbers, fact=tokens, agent=tokens, instance=tokens),
    _address("step", run_id=tokens, n=numbers, fact=tokens),
    _address("progress", run_id=tokens, n=numbers),
    _address("agent", agent=tokens, instance=tokens, fact=tokens),
    _address("saga", agent=tokens, fact=tokens),
    _address("event", topic=topics),
    _address("space", fact=tokens),
    _address("rejected", n=st.integers(0, 2**63 - 1)),
)


def subject_of(subjects: Subjects, address: Address) -> str:
    """The subject of an address, by the builder for its kind."""
    match address.kind:
        case "run":
            return subjects.run(address.run_id, address.fact, address.agent)
        case "task":
            return subjects.task(address.run_id, address.n, address.fact, address.agent, address.instance)
        case "step":
            return subjects.step(address.run_id, address.n, address.fact)
        case "progress":
            return subjects.progress(address.run_id, address.n)
        case "agent":
            return subjects.agent(address.agent, address.instance, address.fact)
        case "space":
            return subjects.of_space(address.fact)
        case "saga":
            return subjects.saga(address.agent, address.fact)
        case "event":
            return subjects.event(address.topic)
        case "rejected":
            return subjects.rejected(address.n)


def subject_for(subjects: Subjects, event_type: str) -> str:
    """Some subject that an event of this type belongs under."""
    kind, fact, *_ = (*event_type.split("."), "")
    match kind:
        case "run":
            return subjects.run("r", fact)
        case "task":
            return subjects.task("r", 0, fact, *{"requested": ("a",), "assigned": ("a", "i")}.get(fact, ()))
        case "step":
            return subjects.step("r", 0, fact)
        case "progress":
            return subjects.progress("r", 0)
        case "agent":
            return subjects.agent("a", "i", fact)
        case "saga":
            return subjects.saga("s", fact)
        case "rejected":
            return subjects.rejected(1)
        case "space":
            return subjects.of_space(fact)
        case _:
            return subjects.event("topic")
