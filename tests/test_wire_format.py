"""docs/wire-format.md says what the code does, and its program does what it says."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from cuebook.events import codec, stream
from cuebook.events.codec import decode
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.facts import MessageRejected, OutsideEvent, TaskCompleted
from cuebook.events.log import EventLog
from cuebook.events.subjects import Subjects
from tests.commands import DEADLINE_S, Command
from tests.documents import ROOT, block
from tests.wire_format import DOCUMENT, EXAMPLE, rewritten

PAGE = DOCUMENT.relative_to(ROOT).as_posix()
SUBJECTS = Subjects("cue")


def shown(text: str) -> str:
    """Names and numbers that differ from run to run, made the same."""
    text = re.sub(r"(?<=[-'])[0-9a-f]{12}\b", "<id>", text)
    return re.sub(r"(?m)^\d+ |\.i[0-9a-f]{10}$", "", text)


def test_facts_and_bytes_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert text == rewritten(text), "rewrite it with: uv run python -m tests.wire_format"


def test_the_bytes_shown_are_the_map_shown() -> None:
    text = DOCUMENT.read_text()
    body = bytes.fromhex(text.partition("<!-- hex -->\n```text\n")[2].partition("```")[0])
    envelope = decode(SUBJECTS, "cue.run.r1.task.0.completed", body, sequence=9, recorded_at=1)
    version, key_id, signature, fields = ast.literal_eval(text.partition("which is `")[2].partition("`, the map")[0])
    assert [version, key_id, signature] == [1, envelope.key_id, envelope.signature]
    assert envelope == Envelope(
        id=fields["id"],
        event_type=fields["type"],
        time=fields["time"],
        source=fields["source"],
        correlation_id=fields["correlation"],
        causation_id=fields["causation"],
        data=fields["data"],
        event=EXAMPLE,
        address=SUBJECTS.parse("cue.run.r1.task.0.completed"),
        subject="cue.run.r1.task.0.completed",
        sequence=9,
        recorded_at=1,
    )
    assert isinstance(envelope.event, TaskCompleted)


def test_both_forms_of_the_cloud_event_are_the_same_event() -> None:
    structured = block(PAGE, "json", '{\n  "specversion"').encode()
    binary = json.dumps(json.loads(structured)["data"]).encode()
    headers = block(PAGE, "text", "NATS/1.0\nce-").replace("\n", "\r\n").encode() + b"\r\n"
    read = [
        decode(SUBJECTS, "cue.event.ticket.opened", body, sequence=9, recorded_at=1, headers=head)
        for body, head in (
            (structured, None),
            (structured, b"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\n\r\n"),
            (binary, headers),
        )
    ]
    assert read[0] == read[1] == read[2]
    first = read[0]
    assert (first.id, first.source, first.event_type) == ("mail-4711", "/mailbox/support", "com.example.ticket")
    assert (first.time, first.correlation_id) == (1_767_225_600_000_000, "thread-12")
    assert first.event == OutsideEvent(data={"id": "t-17", "text": "my blender arrived broken, order 8812"})


def test_plain_json_takes_the_rest_from_its_headers() -> None:
    headers = b"NATS/1.0\r\nNats-Msg-Id: m-1\r\nCue-Correlation-Id: c-1\r\nCue-Causation-Id: k-1\r\n\r\n"
    envelope = decode(SUBJECTS, "cue.event.x", b'{"a": 1}', sequence=9, recorded_at=1, headers=headers)
    assert (envelope.id, envelope.correlation_id, envelope.causation_id) == ("m-1", "c-1", "k-1")
    bare = decode(SUBJECTS, "cue.event.x", b"", sequence=9, recorded_at=1)
    assert (bare.id, bare.correlation_id, bare.causation_id, bare.data) == ("seq-9", "seq-9", "", {})


def test_the_limits_are_those_of_the_code() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert f"more than {codec.MAX_BYTES // 1024} KiB, nested deeper than {codec.MAX_DEPTH}" in text
    assert f"more than {codec.MAX_ITEMS:,} items" in text
    assert f"up to {codec.MAX_ID_LENGTH} characters" in text
    assert f"more than {stream.MAX_MESSAGE_BYTES // 1024} KiB with headers" in text
    assert stream.DUPLICATE_WINDOW_S == 120  # "within two minutes"


def test_the_python_program_does_what_the_page_says(example: Command) -> None:
    program = subprocess.run(
        [sys.executable, "-c", block(PAGE, "python", "# watch.py")],
        env={**os.environ, **example.exported()},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    printed = shown(program.stdout).splitlines()
    expected = shown(block(PAGE, "text", "8 live.")).splitlines()
    cut = expected.index("...")
    assert printed[:cut] == expected[:cut]
    rest = expected[cut + 1 :]
    assert printed[-len(rest) : -1] == rest[:-1]
    assert printed[-1].startswith(rest[-1].removesuffix(", ..."))


@pytest.mark.parametrize(
    ("subject", "body", "reason"),
    [
        ("event.ticket.opened", b"{nope", "neither an envelope nor JSON"),
        ("event.ticket.opened", b'{"id": 1}', "saga support: "),
        ("event.ticket.opened", b'{"id": "twice", "text": "Great service!"}', "run support-twice was started already"),
        ("nonsense", b"{}", "is none that cuebook reads"),
        ("run.nobody.cancel_requested", b"{}", "run nobody is not open"),
        ("run.twice.task.0.requested.classifier", b'{"input": {"id": "a", "text": "b"}}', "was requested before"),
    ],
)
async def test_what_has_no_effect_is_rejected(example: Command, subject: str, body: bytes, reason: str) -> None:
    connection = await connect(example.exported()["CUEBOOK_NATS_URL"], name="test")
    async with connection, EventLog(connection, "cue", source="test") as log:
        for _ in range(2 if "twice" in subject or b"twice" in body else 1):
            stored = await connection.jetstream(timeout=30).publish(f"cue.{subject}", body)
        async for item in log.follow(after=stored.seq):
            if item.subject == SUBJECTS.rejected(stored.seq):
                assert isinstance(item, Envelope)
                assert isinstance(item.event, MessageRejected)
                assert item.event.subject == f"cue.{subject}"
                assert reason in item.event.reason
                break
