"""The native form: what is written can be read, and is the same."""

from __future__ import annotations

from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.codec import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_ID_LENGTH,
    MAX_ITEMS,
    WRAPPING,
    check_data,
    decode,
    encode,
    pack_data,
    unpack_data,
)
from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError, UnknownEventError
from cuebook.events.facts import Event, OutsideEvent, RunStarted, RunStuck, TaskCompleted, TaskRequested
from cuebook.events.subjects import Subjects
from tests.events.strategies import EVENT_TYPES, data, events, ids, subject_for

SUBJECTS = Subjects("cue")
TOPIC = SUBJECTS.event("ticket.opened")


def read(body: bytes, subject: str = TOPIC) -> Envelope:
    return decode(SUBJECTS, subject, body, sequence=7, recorded_at=1_700_000_000_000_000)


def envelope(inner: dict[str, Any] | bytes, version: Any = 1) -> bytes:
    packed = inner if isinstance(inner, bytes) else msgpack.packb(inner)
    return bytes(msgpack.packb([version, "", b"", packed]))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.__name__)
@given(drawn=st.data(), event_id=ids, correlation=ids, causation=ids | st.just(""))
def test_every_event_decodes_to_what_was_encoded(
    cls: type[Event], drawn: st.DataObject, event_id: str, correlation: str, causation: str
) -> None:
    event = drawn.draw(events(cls))
    body = encode(event, event_id=event_id, source="tests", correlation_id=correlation, causation_id=causation, now=17)
    found = read(body, subject_for(SUBJECTS, cls.event_type))
    assert found.event == event
    assert (found.id, found.correlation_id, found.causation_id, found.time) == (event_id, correlation, causation, 17)
    assert (found.event_type, found.source, found.sequence) == (cls.event_type, "tests", 7)


@given(data)
def test_plain_data_unpacks_to_what_was_packed(value: Any) -> None:
    check_data(value)
    assert unpack_data(pack_data(value)) == value


def test_an_event_that_begins_a_conversation_is_its_own_correlation() -> None:
    assert read(encode(OutsideEvent(), event_id="a", source="s")).correlation_id == "a"


def test_fields_this_release_does_not_know_are_ignored() -> None:
    body = envelope({"id": "a", "type": "task.completed.v1", "data": {"output": 1, "colour": "red"}, "later": [1]})
    assert read(body, "cue.run.r.task.0.completed").event == TaskCompleted(output=1)


def test_an_absent_time_is_when_the_message_was_recorded() -> None:
    assert read(envelope({"id": "a", "type": "t"})).time == 1_700_000_000_000_000


def test_a_body_may_take_256_kib_and_not_a_byte_more() -> None:
    def of(size: int) -> bytes:
        return encode(OutsideEvent(data="x" * size), event_id="a", source="s", now=2**50)

    room = MAX_BYTES - len(of(100_000)) + 100_000
    assert len(of(room)) == MAX_BYTES
    assert len(read(of(room)).data) == room
    with pytest.raises(PoisonMessageError, match="262145 bytes"):
        of(room + 1)
    with pytest.raises(PoisonMessageError, match="262145 bytes"):
        read(of(room) + b" ")


def test_what_users_say_may_nest_16_deep_and_no_deeper() -> None:
    deepest = nested(MAX_DEPTH)
    assert read(encode(OutsideEvent(data=deepest), event_id="a", source="s")).data == deepest
    with pytest.raises(PoisonMessageError, match="deeper than 16"):
        encode(OutsideEvent(data=nested(MAX_DEPTH + 1)), event_id="a", source="s")
    with pytest.raises(PoisonMessageError, match="deeper than 16"):
        read(envelope({"id": "a", "type": "t", "data": nested(MAX_DEPTH + 1)}))


def test_whatever_an_author_may_say_still_fits_its_compensation() -> None:
    deepest = nested(MAX_DEPTH)
    subject = "cue.run.r.task.1.requested.a"
    wrapped = {"input": deepest, "output": deepest}
    for request in (TaskRequested(input=deepest), TaskRequested(input=wrapped, compensates=0)):
        assert read(encode(request, event_id="a", source="s"), subject).event == request
    stuck = RunStuck(reason="", recorded={"input": wrapped}, asked={"input": wrapped})
    assert read(encode(stuck, event_id="a", source="s"), "cue.run.r.stuck").event == stuck


@pytest.mark.parametrize(
    "event",
    [
        TaskRequested(input=nested(MAX_DEPTH + 1)),
        TaskCompleted(output=nested(MAX_DEPTH + 1)),
        RunStarted(saga="s", input=nested(MAX_DEPTH + 1)),
        TaskRequested(input=nested(MAX_DEPTH + WRAPPING), compensates=0),
        RunStuck(reason="", recorded=nested(MAX_DEPTH + WRAPPING)),
    ],
)
def test_what_would_not_fit_later_is_refused_when_it_is_said(event: Event) -> None:
    with pytest.raises(PoisonMessageError, match="deeper"):
        encode(event, event_id="a", source="s")


def test_an_outside_event_of_any_type_may_nest_16_deep_and_no_deeper() -> None:
    with pytest.raises(PoisonMessageError, match="deeper than 16"):
        encode(OutsideEvent(data=nested(MAX_DEPTH + 1)), event_id="a", source="s", event_type="com.example.ticket")


def test_a_list_or_map_may_hold_4096_items_and_no_more() -> None:
    for most, more in (
        (list(range(MAX_ITEMS)), list(range(MAX_ITEMS + 1))),
        ({str(n): n for n in range(MAX_ITEMS)}, {str(n): n for n in range(MAX_ITEMS + 1)}),
    ):
        assert read(encode(OutsideEvent(data=most), event_id="a", source="s")).data == most
        with pytest.raises(PoisonMessageError, match="4096"):
            encode(OutsideEvent(data=more), event_id="a", source="s")
        with pytest.raises(PoisonMessageError, match="4096"):
            read(envelope({"id": "a", "type": "t", "data": more}))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"bytes", {1: 2}, {b"k": 1}, {1, 2}, object(), 2**64, -(2**63) - 1, "\ud800"]
)
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(PoisonMessageError):
        encode(OutsideEvent(data={"here": [value]}), event_id="a", source="s")


def test_tuples_are_written_as_lists() -> None:
    assert read(encode(OutsideEvent(data=(1, (2,))), event_id="a", source="s")).data == [1, [2]]


@pytest.mark.parametrize(
    "names",
    [
        {"event_id": ""},
        {"event_id": "a" * (MAX_ID_LENGTH + 1)},
        {"event_id": "a\r\nb"},
        {"event_id": "a\x00"},
        {"event_id": "\udcff"},
        {"correlation_id": "c" * (MAX_ID_LENGTH + 1)},
        {"correlation_id": "\x1b[31m"},
        {"causation_id": "c" * (MAX_ID_LENGTH + 1)},
        {"source": "s" * 257},
        {"event_type": "t" * 257},
        {"event_type": "\u2028"},
    ],
)
def test_ids_and_names_that_could_not_be_read_are_not_written(names: dict[str, str]) -> None:
    with pytest.raises(PoisonMessageError):
        encode(OutsideEvent(), **cast("Any", {"event_id": "a", "source": "s"} | names))
    keys = {"event_id": "id", "event_type": "type", "correlation_id": "correlation", "causation_id": "causation"}
    inner = {"id": "a", "type": "t"} | {keys.get(name, name): value for name, value in names.items()}
    with pytest.raises(PoisonMessageError):
        read(envelope(msgpack.packb(inner, unicode_errors="surrogatepass")))


@pytest.mark.parametrize("inner", [{}, {"id": "a"}, {"type": "t"}, [], 1, None, b"x"])
def test_an_envelope_needs_an_id_and_a_type(inner: Any) -> None:
    with pytest.raises(PoisonMessageError):
        read(envelope(msgpack.packb(inner)))


@pytest.mark.parametrize(
    "field",
    [
        {"id": 1}, {"type": 1}, {"time": "x"}, {"time": -1}, {"time": 2**63}, {"time": True}, {"source": None},
        {"traceparent": 1}, {"data": b"x"}, {"data": {b"k": 1}}, {"data": float("nan")},
    ],
)  # fmt: skip
def test_an_envelope_with_a_field_of_the_wrong_type_is_poison(field: dict[str, Any]) -> None:
    with pytest.raises(PoisonMessageError):
        read(envelope({"id": "a", "type": "t"} | field))


@pytest.mark.parametrize(
    "outer",
    [
        [], [1], [1, "", b""], [1, "", b"", b"", 1], ["1", "", b"", b""], [1, 2, b"", b""], [1, "", "", b""],
        [1, "", b"", "x"], [True, "", b"", b""], [1.0, "", b"", b""],
    ],
)  # fmt: skip
def test_an_outer_part_of_the_wrong_shape_is_poison(outer: list[Any]) -> None:
    with pytest.raises(PoisonMessageError) as caught:
        read(msgpack.packb(outer))
    assert not isinstance(caught.value, UnknownEventError)


@pytest.mark.parametrize("outer", [[2], [2, "", b"", b""], [2, {"more": 1}], [99, 1, 2, 3, 4, 5, 6]])
def test_an_envelope_of_a_later_version_is_told_from_a_broken_one(outer: list[Any]) -> None:
    with pytest.raises(UnknownEventError):
        read(msgpack.packb(outer))


def test_a_type_of_a_later_release_is_told_from_a_broken_one() -> None:
    for event_type in ("task.completed.v2", "task.admired.v1"):
        with pytest.raises(UnknownEventError):
            read(envelope({"id": "a", "type": event_type, "data": {}}), "cue.run.r.task.0.completed")


@pytest.mark.parametrize(
    ("subject", "event_type"),
    [
        ("cue.run.r.task.0.completed", "task.failed.v1"),
        ("cue.run.r.task.0.completed", "run.completed.v1"),
        ("cue.run.r.completed", "task.completed.v1"),
        ("cue.agent.a.i.lost", "agent.stopped.v1"),
        ("cue.rejected.3", "task.rejected.v1"),
    ],
)
def test_a_type_that_does_not_belong_under_its_subject_is_poison(subject: str, event_type: str) -> None:
    data = {"error": {"type": "E", "message": ""}, "reason": ""}
    with pytest.raises(PoisonMessageError, match="belong") as caught:
        read(envelope({"id": "a", "type": event_type, "data": data}), subject)
    assert not isinstance(caught.value, UnknownEventError)


@pytest.mark.parametrize("position", range(0, 60, 7))
def test_a_truncated_envelope_is_poison(position: int) -> None:
    body = encode(TaskCompleted(output={"a": 1}), event_id="abc", source="tests")
    for cut in (body[: 1 + position], body + b"\xc0"):
        with pytest.raises(PoisonMessageError):
            read(cut, "cue.run.r.task.0.completed")
