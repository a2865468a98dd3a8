"""export -> import -> export is identical, whatever was published."""

from __future__ import annotations

import asyncio
import io
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.events.connection import Connection, connect
from cuebook.events.errors import ConcurrencyConflictError, ConfigurationError
from cuebook.events.log import EventLog
from cuebook.ledger.importing import Importer
from cuebook.ledger.source import Imported, Source
from tests.ledger.files import READERS, WRITERS, read

FORMATS = ["jsonl", "parquet"]
topics = st.sampled_from([b"event.a", b"event.b.c", b"run.r1.started", b"event.\xff\xfe"])
names = st.sampled_from(["ce-id", "traceparent", "X-Own", "Cuebook-Original", "Nats-Msg-Id", "x y"])
values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), min_size=1, max_size=20)
messages = st.lists(
    st.tuples(topics, st.none() | st.lists(st.tuples(names, values), max_size=3), st.binary(max_size=300)),
    min_size=1,
    max_size=12,
)
Message = tuple[bytes, list[tuple[str, str]] | None, bytes]


def block(headers: list[tuple[str, str]] | None) -> bytes:
    if headers is None:
        return b""
    return b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers) + b"\r\n"


async def publish(log: EventLog, found: list[Message]) -> None:
    """Store them; all are stored when this returns, but for those that repeat a message id."""
    answered = asyncio.Semaphore(0)
    inbox = log.connection.new_inbox()
    listener = await log.connection.listen(inbox, lambda *message: answered.release())
    for topic, headers, body in found:
        subject, head = log.subjects.space.encode() + b"." + topic, block(headers)
        to = b"%b %b" % (subject, inbox.encode())
        if head:
            frame = b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(head), len(head) + len(body), head, body)
        else:
            frame = b"PUB %b %d\r\n%b\r\n" % (to, len(body), body)
        log.connection.write(frame)
    async with asyncio.timeout(60):
        for _ in found:
            await answered.acquire()
    await listener.close()


async def exported(log: EventLog, name: str) -> bytes:
    facts = await log.verify()
    source = Source(log, facts)
    after = facts.first_sequence - 1
    header = await source.header(after=after, until=facts.last_sequence, filters=[], view=True)
    file = io.BytesIO()
    writer = WRITERS[name](file, header)
    async for batch in source.batches(after=after, until=facts.last_sequence):
        writer.add(batch)
    writer.close()
    return file.getvalue()


async def imported(connection: Connection, space: str, name: str, data: bytes) -> EventLog:
    report = read(name, data)
    assert report.sound
    assert report.end is not None
    origin = Imported(header=report.header, end=report.end)
    importer = Importer(connection, space, origin, reroot=True, live_effects=False)
    stored = await importer.prepare()
    await importer.fill(READERS[name](io.BytesIO(data)), stored=stored)
    return EventLog(connection, space, source="tests")


async def there_and_back(nats_url: str, found: list[Message]) -> None:
    connection = await connect(nats_url, name="tests")
    space = f"t{secrets.token_hex(4)}"
    async with connection, EventLog(connection, space, source="tests") as log:
        await log.ensure()
        await publish(log, found)
        if not (await log.verify()).messages:
            return  # the server has refused all of them
        first = {name: await exported(log, name) for name in FORMATS}
        for name, other in zip(FORMATS, FORMATS[::-1], strict=True):
            copy = await imported(connection, f"{space}-{name}", name, first[name])
            assert await exported(copy, name) == first[name]
            assert await exported(copy, other) == first[other]
            again = await imported(connection, f"{space}-{name}-2", name, await exported(copy, name))
            assert await exported(again, name) == first[name]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(found=messages)
def test_whatever_was_published_comes_back_the_same(nats_url: str, found: list[Message]) -> None:
    asyncio.run(there_and_back(nats_url, found))


def test_the_largest_message_comes_back_the_same(nats_url: str) -> None:
    large = [("X-Own", "h" * 4000)]
    asyncio.run(
        there_and_back(
            nats_url,
            [
                (b"event.a", large, b"b" * 262_000),
                (b"event.a", [("X-Own", "h" * 260_000)], b""),
                (b"event.a", None, b""),
            ],
        )
    )


async def test_a_message_of_somebody_else_is_never_taken_for_one_of_the_export(nats_url: str, space: str) -> None:
    connection = await connect(nats_url, name="tests")
    async with connection, EventLog(connection, space, source="tests") as log:
        await log.ensure()
        await publish(log, [(b"event.a", None, b"%d" % n) for n in range(40)])
        data = await exported(log, "jsonl")
        report = read("jsonl", data)
        assert report.end is not None
        origin = Imported(header=report.header, end=report.end)
        there = f"{space}-b"
        write, frames = connection.write, 0

        def slip_in(frame: bytes) -> None:
            nonlocal frames
            if frame.startswith(f"HPUB {there}.event.a ".encode()):
                frames += 1
                if frames == 20:
                    write(b"PUB %b.event.a 1\r\nx\r\n" % there.encode())
            write(frame)

        connection.write = slip_in  # type: ignore[method-assign]
        importer = Importer(connection, there, origin, reroot=True, live_effects=False)
        with pytest.raises(ConcurrencyConflictError):
            await importer.fill(READERS["jsonl"](io.BytesIO(data)), stored=await importer.prepare())
        again = Importer(connection, there, origin, reroot=True, live_effects=False)
        stored = await again.prepare()
        assert stored == 20
        with pytest.raises(ConfigurationError, match="something else at 20"):
            await again.fill(READERS["jsonl"](io.BytesIO(data)), stored=stored)
