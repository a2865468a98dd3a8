"""What other clients publish: plain JSON and CloudEvents, by the CloudEvents NATS binding 1.0.3."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.codec import MAX_BYTES, MAX_DEPTH, decode, encode, parse_headers
from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError, UnknownEventError
from cuebook.events.facts import OutsideEvent, RunRequested, TaskRequested
from cuebook.events.subjects import Subjects
from tests.events.strategies import data

SUBJECTS = Subjects("cue")
RECORDED_AT = 1_700_000_000_000_000
TOPIC = SUBJECTS.event("ticket.opened")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REQUIRED = {"specversion": "1.0", "id": "e-1", "source": "/desk", "type": "com.example.ticket"}


def block(headers: dict[str, str] | list[tuple[str, str]]) -> bytes:
    pairs = headers.items() if isinstance(headers, dict) else headers
    return b"NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs).encode() + b"\r\n"


def read(
    body: Any, headers: dict[str, str] | list[tuple[str, str]] | bytes | None = None, subject: str = TOPIC
) -> Envelope:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    header_block = block(headers) if isinstance(headers, dict | list) else headers
    return decode(SUBJECTS, subject, raw, sequence=7, recorded_at=RECORDED_AT, headers=header_block)


def binary(**attributes: str) -> dict[str, str]:
    return {f"ce-{name}": value for name, value in (REQUIRED | attributes).items()}


@given(data)
def test_plain_json_is_read_as_it_stands(value: Any) -> None:
    found = read(value)
    assert found.data == json.loads(json.dumps(value))
    assert (found.id, found.event_type, found.source, found.time) == ("seq-7", "ticket.opened", "outside", RECORDED_AT)


@given(data)
def test_what_was_read_can_be_written_again(value: Any) -> None:
    found = read(value)
    encode(OutsideEvent(data=found.data), event_id=found.id, source="tests")


def test_an_empty_body_is_an_empty_object() -> None:
    assert read(b"").data == {}


def test_the_message_id_header_names_a_plain_event() -> None:
    found = read(
        {}, {"Nats-Msg-Id": "order-17", "Cue-Correlation-Id": "c", "Cue-Causation-Id": "d", "traceparent": TRACE}
    )
    assert (found.id, found.correlation_id, found.causation_id, found.traceparent) == ("order-17", "c", "d", TRACE)


def test_plain_json_may_ask_for_a_task_and_for_a_run() -> None:
    task = read({"handler": "issue", "input": {"cents": 5}}, subject="cue.run.r.task.0.requested.refund")
    assert task.event == TaskRequested(handler="issue", input={"cents": 5})
    assert task.event_type == "task.requested.v1"
    assert read({"input": 5}, subject="cue.run.r.requested.support").event == RunRequested(input=5)


def test_a_fact_that_does_not_exist_is_unknown() -> None:
    with pytest.raises(UnknownEventError):
        read({}, subject="cue.run.r.task.0.admired")


# --- CloudEvents -----------------------------------------------------------------------------------------------------


def test_a_binary_event_has_its_attributes_in_headers() -> None:
    found = read(
        {"text": "broken"},
        binary(time="2026-01-02T03:04:05.678901+01:00", correlationid="c", causationid="d", traceparent=TRACE),
    )
    assert (found.id, found.source, found.event_type) == ("e-1", "/desk", "com.example.ticket")
    assert (found.correlation_id, found.causation_id, found.traceparent) == ("c", "d", TRACE)
    assert found.time == 1_767_319_445_678_901
    assert found.event == OutsideEvent(data={"text": "broken"})


def test_a_structured_event_has_everything_in_its_body() -> None:
    body = REQUIRED | {"time": "2026-01-02T02:04:05Z", "data": [1], "correlationid": "c"}
    for headers in ({"Content-Type": "Application/CloudEvents+json; charset=UTF-8"}, None):
        found = read(body, headers)
        assert (found.id, found.event_type, found.data, found.correlation_id) == ("e-1", "com.example.ticket", [1], "c")
        assert found.time == 1_767_319_445_000_000


def test_the_content_type_decides_between_the_two_modes() -> None:
    found = read(REQUIRED | {"data": 1}, binary(id="other") | {"content-type": "application/cloudevents+json"})
    assert (found.id, found.data) == ("e-1", 1)
    found = read(REQUIRED | {"data": 1}, binary(id="other") | {"content-type": "application/json"})
    assert (found.id, found.data) == ("other", REQUIRED | {"data": 1})


def test_header_names_may_be_of_any_case_and_the_first_of_duplicates_counts() -> None:
    pairs = [(name.upper(), value) for name, value in binary().items()]
    assert read({}, [*pairs, ("ce-id", "second"), ("Ce-Source", "/second")]).id == "e-1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Euro%20%E2%82%AC", "Euro €"), ("%e2%82%ac", "€"), ('"quoted value"', "quoted value"),
        (r'"a \"b\" \\ c"', r'a "b" \ c'), ("100%25", "100%"), ("%2525", "%25"), ("café", "café"), ("a%zz", "a%zz"),
    ],
)  # fmt: skip
def test_header_values_are_unquoted_and_percent_decoded_once(written: str, meant: str) -> None:
    assert read({}, binary(id=written)).id == meant


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40))
def test_every_value_percent_encoded_by_the_rules_comes_back(value: str) -> None:
    encoded = "".join(
        character
        if "!" <= character <= "~" and character not in '"%'
        else "".join(f"%{b:02X}" for b in character.encode())
        for character in value
    )
    assert read({}, binary(id=encoded)).id == value


@pytest.mark.parametrize("value", [b"%FF", b"\xff", b"%C3", b"%00", b"%0D%0A", b"a" * 129])
def test_a_header_that_is_no_good_id_is_poison(value: bytes) -> None:
    headers = block(binary()).replace(b"e-1", value)
    with pytest.raises(PoisonMessageError):
        read({}, headers)


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_cloud_event_without_a_required_attribute_is_poison(missing: str) -> None:
    attributes = {name: value for name, value in REQUIRED.items() if name != missing}
    with pytest.raises(PoisonMessageError, match=missing):
        read(attributes, {"content-type": "application/cloudevents+json"})
    if missing != "specversion":  # without it the mode is not binary
        with pytest.raises(PoisonMessageError, match=missing):
            read({}, {f"ce-{name}": value for name, value in attributes.items()})


def test_a_version_of_cloud_events_to_come_is_unknown() -> None:
    with pytest.raises(UnknownEventError):
        read(REQUIRED | {"specversion": "2.0"})


@pytest.mark.parametrize("body", [[], [REQUIRED], 1, None, "x"])
def test_a_structured_event_is_one_object(body: Any) -> None:
    with pytest.raises(PoisonMessageError):
        read(body, {"content-type": "application/cloudevents-batch+json"})


def test_binary_data_must_be_json_inside() -> None:
    assert read(REQUIRED | {"data_base64": base64.b64encode(b'{"a": 1}').decode()}).data == {"a": 1}
    for wrong in ("%%%", base64.b64encode(b"\x00\x01").decode(), 5, None):
        with pytest.raises(PoisonMessageError):
            read(REQUIRED | {"data_base64": wrong})


@pytest.mark.parametrize(
    "time", ["", "yesterday", "2026-01-02T03:04:05", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", 5, None, []]
)
def test_a_time_without_a_place_on_the_clock_is_poison(time: Any) -> None:
    with pytest.raises(PoisonMessageError):
        read(REQUIRED | {"time": time})


@pytest.mark.parametrize("name", ["correlationid", "causationid", "traceparent"])
def test_an_extension_of_the_wrong_type_is_poison(name: str) -> None:
    with pytest.raises(PoisonMessageError, match=name):
        read(REQUIRED | {name: {"a": 1}})


def test_a_trace_that_is_none_is_ignored() -> None:
    assert read({}, {"traceparent": "x" * 50_000}).traceparent == ""


def test_the_subject_says_what_a_cloud_event_is_about_ours() -> None:
    subject = "cue.run.r.task.0.requested.refund"
    assert read(REQUIRED | {"data": {"input": 5}}, subject=subject).event == TaskRequested(input=5)
    assert read(REQUIRED | {"type": "task.requested.v1", "data": {"input": 5}}, subject=subject).event == TaskRequested(
        input=5
    )
    with pytest.raises(UnknownEventError):
        read(REQUIRED | {"type": "task.requested.v2", "data": {"input": 5}}, subject=subject)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"{}{}", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b"[Infinity]", b"[-Infinity]", b"1e999",
        b'{"a": 1, "a": 2}', b"'a'", b"18446744073709551616", b"-9223372036854775809", b"1" * 10_000, b'"\\ud800"',
        b'{"\\udfff": 1}', b"01", b"\x00", b"hello", b"\x93\x01\x02", b"\xc1",
    ],
)  # fmt: skip
def test_what_is_not_strict_json_is_poison(body: bytes) -> None:
    with pytest.raises(PoisonMessageError):
        read(body)


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 1.5e308, -0.0])
def test_the_largest_numbers_are_read(number: float) -> None:
    assert read(number).data == number


def test_plain_json_may_take_256_kib_and_nest_16_deep() -> None:
    assert len(read(b'"' + b"x" * (MAX_BYTES - 2) + b'"').data) == MAX_BYTES - 2
    with pytest.raises(PoisonMessageError, match="262145"):
        read(b'"' + b"x" * (MAX_BYTES - 1) + b'"')
    read(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(PoisonMessageError, match="deeper"):
        read(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert read(b'"\\ud83d\\ude00"').data == "😀"


def test_header_lines_without_a_name_are_skipped() -> None:
    assert parse_headers(b"NATS/1.0 100 Idle\r\nA:  b \r\nnonsense\r\nA: c\r\n\r\n") == {"a": "b"}
    assert parse_headers(None) == parse_headers(b"") == {}
