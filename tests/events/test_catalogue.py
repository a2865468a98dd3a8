"""What was stored in an older version is read as the newest one, step by step, by the real codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.catalogue import EVENT_TYPES, Catalogue, Upcast
from cuebook.events.codec import decode, encode
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConfigurationError, PoisonMessageError, UnknownEventError
from cuebook.events.facts import Event, TaskCompleted
from cuebook.events.subjects import Subjects

SUBJECTS = Subjects("cue")
SUBJECT = "cue.run.r1.noted"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedFirst(Event):
    """As it was written at first."""

    event_type: ClassVar[str] = "run.noted.v1"
    text: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedSecond(Event):
    """Then there were several lines."""

    event_type: ClassVar[str] = "run.noted.v2"
    lines: list[str]
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Event):
    """As it is now: who said it is never empty."""

    event_type: ClassVar[str] = "run.noted.v3"
    lines: list[str]
    author: str


def to_lines(data: dict[str, Any]) -> dict[str, Any]:
    data["lines"] = data.pop("text").split("\n")
    return data


def to_author(data: dict[str, Any]) -> dict[str, Any]:
    data["author"] = data.pop("by", "") or "somebody"
    return data


STEPS: dict[str, Upcast] = {"run.noted.v1": to_lines, "run.noted.v2": to_author}
CATALOGUE = Catalogue([*EVENT_TYPES, Noted], STEPS)


def stored(event: Event) -> bytes:
    return encode(event, event_id="e1", source="tests", now=5)


def read(body: bytes, subject: str = SUBJECT) -> Envelope:
    return decode(SUBJECTS, subject, body, sequence=7, recorded_at=6, catalogue=CATALOGUE)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=5))
def test_each_version_is_read_as_the_newest(text: str, by: str) -> None:
    now = Noted(lines=text.split("\n"), author=by or "somebody")
    second = NotedSecond(lines=text.split("\n"), by=by)
    for event in (NotedFirst(text=text, by=by), second, now):
        envelope = read(stored(event))
        assert envelope.event == now
        assert (envelope.event_type, envelope.id, envelope.sequence) == (event.event_type, "e1", 7)


def test_what_is_stored_stays_as_it_is() -> None:
    envelope = read(stored(NotedFirst(text="a\nb")))
    assert envelope.data == {"text": "a\nb"}
    assert envelope.event == Noted(lines=["a", "b"], author="somebody")


def test_plain_json_is_read_as_the_newest_version_unless_it_names_another() -> None:
    assert read(b'{"lines": ["a"], "author": "ann"}').event == Noted(lines=["a"], author="ann")
    named = b'{"specversion": "1.0", "id": "1", "source": "s", "type": "run.noted.v1", "data": {"text": "a"}}'
    assert read(named).event == Noted(lines=["a"], author="somebody")


@pytest.mark.parametrize("data", [None, 1, "text", [], {}, {"text": 5}, {"text": None}])
def test_an_older_version_of_the_wrong_shape_is_refused_and_never_raises_otherwise(data: Any) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Anything(Event):
        event_type: ClassVar[str] = "run.noted.v1"

    from cuebook.events.codec import pack_data

    inner = pack_data({"id": "e1", "type": "run.noted.v1", "data": data})
    with pytest.raises(PoisonMessageError, match=r"run\.noted\.v1"):
        read(pack_data([1, "", b"", inner]))


def test_versions_that_are_not_known_are_refused() -> None:
    class Later(TaskCompleted):
        event_type = "run.noted.v4"

    with pytest.raises(UnknownEventError, match=r"run\.noted\.v4"):
        read(encode(Later(), event_id="e1", source="s", event_type="run.noted.v4"))
    with pytest.raises(PoisonMessageError, match="does not belong"):
        read(stored(NotedFirst(text="a")), "cue.run.r1.completed")


GAPS: list[tuple[list[type[Event]], dict[str, Upcast], str]] = [
    ([Noted], {"run.noted.v2": to_author}, r"events of run\.noted\.v1 could not be read"),
    ([Noted], {"run.noted.v1": to_lines}, r"events of run\.noted\.v2 could not be read"),
    ([Noted], {**STEPS, "run.noted.v3": to_lines}, r"upcaster of run\.noted\.v3 leads nowhere"),
    ([Noted, NotedSecond], STEPS, "two classes"),
    ([], STEPS, "leads nowhere"),
]


@pytest.mark.parametrize(("types", "steps", "complaint"), GAPS)
def test_a_catalogue_with_a_gap_is_refused(types: list[type[Event]], steps: dict[str, Upcast], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Catalogue(types, steps)


@pytest.mark.parametrize("event_type", ["run.noted", "run.noted.v0", "run.noted.vx", "noted.v1", "run.a.b.v1"])
def test_a_type_must_be_of_the_form(event_type: str) -> None:
    kind = type("Odd", (NotedFirst,), {"event_type": event_type, "__slots__": ()})
    with pytest.raises(ConfigurationError, match="is not <family>"):
        Catalogue([kind], {})
