"""Whatever somebody publishes costs little and ends in an envelope or a PoisonMessageError."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cuebook.events.codec import MAX_BYTES, decode, encode
from cuebook.events.errors import PoisonMessageError
from cuebook.events.subjects import Subjects
from tests.events.strategies import EVENT_TYPES, data, events, subject_for

SUBJECTS = Subjects("cue")
MAX_CALLS = 400_000
MAX_MEMORY_BYTES = 32 * 1024 * 1024
FILLER = b"\xc0" * (MAX_BYTES - 6_000)
subjects = st.sampled_from([subject_for(SUBJECTS, cls.event_type) for cls in EVENT_TYPES]) | st.text()
header_names = ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "content-type", "nats-msg-id"]
header_values = st.sampled_from(["1.0", "application/cloudevents", "%ff", '"', "x", "2026-01-01T00:00:00Z"])
header_lines = st.dictionaries(st.sampled_from(header_names), header_values | st.text(max_size=20))
header_blocks = (
    st.none()
    | st.binary(max_size=200)
    | header_lines.map(lambda lines: "NATS/1.0\r\n" + "".join(f"{name}:{lines[name]}\r\n" for name in lines)).map(
        lambda block: block.encode("utf-8", "replace")
    )
)
integers = st.integers(-(2**63), 2**64 - 1)
scalars = st.none() | st.booleans() | integers | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
keys = st.text(max_size=8) | st.binary(max_size=4)
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5))


def attempt(subject: str, body: bytes, headers: bytes | None = None) -> None:
    """Decode; anything but a PoisonMessageError gets out."""
    with contextlib.suppress(PoisonMessageError):
        decode(SUBJECTS, subject, body, sequence=1, recorded_at=1, headers=headers)


@given(subjects, st.binary(max_size=300), header_blocks)
def test_arbitrary_bytes_are_an_event_or_poison(subject: str, body: bytes, headers: bytes | None) -> None:
    attempt(subject, body, headers)
    attempt(subject, b"\x94\x01\xa0\xc4\x00" + body, headers)
    attempt(subject, bytes(msgpack.packb([1, "", b"", body])), headers)


@given(subjects, plain)
def test_arbitrary_messagepack_is_an_event_or_poison(subject: str, value: Any) -> None:
    attempt(subject, bytes(msgpack.packb(value)))
    attempt(subject, bytes(msgpack.packb([1, "", b"", msgpack.packb(value)])))


@given(st.sampled_from(EVENT_TYPES), plain)
def test_arbitrary_data_of_a_known_type_is_an_event_or_poison(cls: Any, value: Any) -> None:
    inner = msgpack.packb({"id": "a", "type": cls.event_type, "data": value})
    attempt(subject_for(SUBJECTS, cls.event_type), bytes(msgpack.packb([1, "", b"", inner])))


@given(subjects, data, header_blocks)
def test_arbitrary_json_is_an_event_or_poison(subject: str, value: Any, headers: bytes | None) -> None:
    attempt(subject, json.dumps(value).encode(), headers)


@given(st.sampled_from(EVENT_TYPES).flatmap(events), st.data())
def test_a_damaged_envelope_is_an_event_or_poison(event: Any, drawn: st.DataObject) -> None:
    body = bytearray(encode(event, event_id="a", source="s"))
    for _ in range(drawn.draw(st.integers(1, 4))):
        body[drawn.draw(st.integers(0, len(body) - 1))] = drawn.draw(st.integers(0, 255))
    attempt(subject_for(SUBJECTS, event.event_type), bytes(body))


def announced(data_bytes: bytes, event_type: str = "t") -> bytes:
    """An envelope whose data is given as raw MessagePack, true or not."""
    inner = b"\x83" + msgpack.packb("id") + msgpack.packb("a") + msgpack.packb("type") + msgpack.packb(event_type)
    return bytes(msgpack.packb([1, "", b"", inner + msgpack.packb("data") + data_bytes]))


def of_type(event_type: str, content: Any) -> bytes:
    return bytes(msgpack.packb([1, "", b"", msgpack.packb({"id": "a", "type": event_type, "data": content})]))


EVENT, TASK, AGENT = "cue.event.x", "cue.run.r.task.0.", "cue.agent.a.i.registered"
AGENT_TYPE = "agent.registered.v1"
MANY = range(4_096)
BOMBS: dict[str, tuple[str, bytes]] = {
    "a list that says it is 2^32 long": (EVENT, announced(b"\xdd\xff\xff\xff\xff")),
    "a map that says it is 2^32 long": (EVENT, announced(b"\xdf\xff\xff\xff\xff")),
    "a text that says it is 2^32 long": (EVENT, announced(b"\xdb\xff\xff\xff\xff")),
    "bytes that say they are 2^32 long": (EVENT, announced(b"\xc6\xff\xff\xff\xff")),
    "an extension that says it is 2^32 long": (EVENT, announced(b"\xc9\xff\xff\xff\xff\x01")),
    "an extension": (EVENT, announced(b"\xc7\x03\x05abc")),
    "an empty extension": (EVENT, announced(b"\xc7\x00\x05")),
    "a timestamp": (EVENT, announced(b"\xd6\xff\x00\x00\x00\x01")),
    "lists in lists, each announced as long as the body": (EVENT, announced(b"\xdd\x00\x03\xe0\x00" * 1000 + FILLER)),
    "lists in lists, each announced at the limit": (EVENT, announced(b"\xdc\x10\x00" * 1000 + FILLER)),
    "the same outside the envelope": (EVENT, b"\x94" + b"\xdc\x10\x00" * 1000 + FILLER),
    "lists nested 100,000 deep": (EVENT, announced(b"\x91" * 100_000 + b"\xc0")),
    "maps nested 80,000 deep": (EVENT, announced(b"\x81\xa1a" * 80_000 + b"\xc0")),
    "240,000 empty maps": (EVENT, announced(b"\xdc\x00\x3c" + (b"\xdc\x0f\xa0" + b"\x80" * 4_000) * 60)),
    "240,000 empty lists": (EVENT, announced(b"\xdc\x00\x3c" + (b"\xdc\x0f\xa0" + b"\x90" * 4_000) * 60)),
    "the same key twice": (EVENT, announced(b"\x82\xa1a\x01\xa1a\x02")),
    "JSON nested 100,000 deep": (EVENT, b"[" * 100_000 + b"]" * 100_000),
    "JSON objects nested 40,000 deep": (EVENT, b'{"a":' * 40_000 + b"1" + b"}" * 40_000),
    "an integer of 10,000 digits": (EVENT, b"1" * 10_000),
    "an integer of 260,000 digits": (EVENT, b"[" + b"1" * 260_000 + b"]"),
    "an infinite float": (EVENT, b"1" + b"0" * 260_000 + b".0"),
    "130,000 numbers in a list": (EVENT, b"[" + b",".join([b"1"] * 130_000) + b"]"),
    "85,000 objects in a list": (EVENT, b"[" + b",".join([b"{}"] * 85_000) + b"]"),
    "43,000 half characters": (EVENT, b'"' + b"\\ud800" * 43_000 + b'"'),
    "a type of 200,000 characters": ("cue.run.r.completed", of_type("x" * 200_000, {})),
    "a version of 200,000 characters": (EVENT, bytes(msgpack.packb(["x" * 200_000, "", b"", b""]))),
    "wrong classes of an error": (
        TASK + "failed",
        of_type("task.failed.v1", {"error": {"type": "", "message": "", "classes": [1] * len(MANY)}}),
    ),
    "wrong retry rules": (TASK + "requested.a", of_type("task.requested.v1", {"retry": {"rules": [{}] * len(MANY)}})),
    "wrong labels": (TASK + "requested.a", of_type("task.requested.v1", {"labels": {str(n): n for n in MANY}})),
    "a wrong label of 200,000 characters": (
        TASK + "requested.a",
        of_type("task.requested.v1", {"labels": {"x" * 200_000: 1}}),
    ),
    "wrong handlers": (
        AGENT,
        of_type(AGENT_TYPE, {"slots": 1, "handlers": {str(n): {"retry": 1, "timeout_s": ""} for n in MANY}}),
    ),
    "wrong rules of many handlers": (
        AGENT,
        of_type(AGENT_TYPE, {"slots": 1, "handlers": {str(n): {"retry": {"rules": [{}] * 4_000}} for n in range(60)}}),
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_for_little_work_and_little_memory(name: str) -> None:
    subject, body = BOMBS[name]
    assert len(body) <= MAX_BYTES
    error, calls = refusal(subject, body)
    assert len(str(error)) < 500  # it is stored, and shown to people
    assert calls <= work_for(len(body))

    tracemalloc.start()
    try:
        refusal(subject, body)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()


def work_for(size: int) -> int:
    """Calls of functions, ours and the interpreter's, that a message may cost: in proportion to its bytes."""
    return min(8 * size + 1_000, MAX_CALLS)


def refusal(subject: str, body: bytes, headers: bytes | None = None) -> tuple[PoisonMessageError, int]:
    """The error, and how many calls it took."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        decode(SUBJECTS, subject, body, sequence=1, recorded_at=1, headers=headers)
    except PoisonMessageError as error:
        return error, calls
    finally:
        sys.setprofile(before)
    pytest.fail("it was taken")


@pytest.mark.parametrize(
    "headers",
    [
        b"NATS/1.0\r\nce-specversion: 1.0\r\nce-type: t\r\nce-source: s\r\nce-id: " + b"%41" * 80_000 + b"\r\n\r\n",
        b"NATS/1.0\r\n" + b"a:b\r\n" * 50_000 + b"ce-specversion: 1.0\r\n\r\n",
        b"NATS/1.0\r\nce-specversion: 1.0\r\nce-id: " + b'"' + b"\\" * 200_000 + b'"\r\n\r\n',
    ],
)
def test_headers_as_large_as_the_message_are_refused_for_little_work(headers: bytes) -> None:
    _, calls = refusal("cue.event.x", b"{}", headers)
    assert calls <= work_for(len(headers))


@pytest.mark.parametrize("name", ["wrong classes of an error", "wrong retry rules"])
def test_a_wrong_list_is_refused_at_its_first_wrong_item(name: str) -> None:
    error, _ = refusal(*BOMBS[name])
    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= 2


@pytest.mark.parametrize(("name", "mistakes"), [("wrong labels", 4_096), ("wrong handlers", 8_192)])
def test_many_mistakes_are_counted_and_not_listed(name: str, mistakes: int) -> None:
    error, _ = refusal(*BOMBS[name])
    assert str(error).endswith(f": {mistakes} fields are wrong")


@pytest.mark.parametrize("name", ["an integer of 10,000 digits", "an integer of 260,000 digits"])
def test_the_length_of_a_number_is_looked_at_before_it_is_made(name: str) -> None:
    error, _ = refusal(*BOMBS[name])
    assert str(error) == "an integer has more than 64 bits"
