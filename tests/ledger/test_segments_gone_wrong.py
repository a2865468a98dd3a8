"""Segments that somebody has forged with all sums, places that are full, and two who write at once."""

from __future__ import annotations

import asyncio
import json
import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest

from cuebook.events.connection import Connection
from cuebook.events.errors import CommandRejectedError, ConfigurationError
from cuebook.events.log import EventLog
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.seals import Seals
from cuebook.ledger.segments.archive import Archive, Archived
from cuebook.ledger.segments.bucket import BucketStore
from cuebook.ledger.segments.check import Report, check_segments
from cuebook.ledger.segments.index import MAGIC
from cuebook.ledger.segments.manifest import Blob, Segment
from cuebook.ledger.segments.shelf import read_shelf
from cuebook.ledger.segments.store import DirectoryStore, SegmentStore
from cuebook.ledger.source import Source
from tests.ledger.filling import fill

EVENTS = 400


@pytest.fixture
def folder(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "segments")


async def archived(
    log: EventLog, store: SegmentStore, key: PrivateKey, last: int = EVENTS, max_events: int = 100
) -> Archived:
    seals = Seals(log.connection, log.subjects.space, key.public)
    source = Source(log, await log.verify())
    return await Archive(source, log.subjects.space, seals, store, key=key).write(1, last, max_events=max_events)


async def verified(store: SegmentStore, space: str, key: PrivateKey) -> Report:
    shelf = await read_shelf(store, space)
    return await check_segments(shelf, shelf.segments, key=key.public)


# --- two at once ---


async def test_two_never_write_to_a_bucket_at_once(
    log: EventLog, connection: Connection, space: str, key: PrivateKey
) -> None:
    """In segments of other lengths the same sequences would be there twice, which nobody can read."""
    await fill(log, EVENTS)
    stores = [BucketStore(connection, f"{space}_segments") for _ in range(2)]
    work = [archived(log, store, key, max_events=size) for store, size in zip(stores, (50, 130), strict=True)]
    said = await asyncio.gather(*work, return_exceptions=True)
    assert {type(one) for one in said} <= {Archived, CommandRejectedError}  # it waits a little for the other one
    assert any(isinstance(one, Archived) for one in said)
    assert (await verified(stores[0], space, key)).sound
    assert (await archived(log, stores[1], key)).written == 0
    async with stores[0].writing():
        with pytest.raises(CommandRejectedError, match=r"segments of space .* are being changed by") as raised:
            await archived(log, stores[1], key)
    assert raised.value.remedy


# --- places ---


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond that, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_directory_is_said_and_gone_on_with(
    log: EventLog, folder: DirectoryStore, space: str, key: PrivateKey
) -> None:
    await fill(log, EVENTS)
    await archived(log, folder, key, last=100)
    with small_files(100), pytest.raises(ConfigurationError, match="cannot be written") as raised:
        await archived(log, folder, key)
    assert raised.value.remedy
    assert (await archived(log, folder, key)).kept == 1
    assert (await verified(folder, space, key)).count == EVENTS


async def test_segments_that_begin_where_the_log_ends_are_of_another_log(
    log: EventLog, folder: DirectoryStore, connection: Connection, space: str, key: PrivateKey
) -> None:
    await fill(log, EVENTS)
    await archived(log, folder, key)
    await connection.jetstream().delete_stream(space.upper())
    async with EventLog(connection, space, source="tests") as again:
        await again.ensure()
        await fill(again, 300)
        with pytest.raises(TamperedError, match="holds other messages than the log"):
            await archived(again, folder, key, last=300)


# --- forged ---


def forged(folder: DirectoryStore, segment: Segment, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest that was changed, with its sum made anew."""
    data = segment.to_data()
    change(data)
    text = json.dumps(data, separators=(",", ":")).encode()[:-1]
    sum_ = sha256(text).hexdigest().encode()
    (folder.path / f"{segment.name}.json").write_bytes(text + b',"sum":"' + sum_ + b'"}\n')


def nested() -> Any:
    found: Any = []
    for _ in range(900):
        found = [found]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"first": float("inf")},
        {"first_ns": float("inf")},
        {"first_ns": "-1"},
        {"last_ns": str(10**30)},
        {"data": {"bytes": float("inf"), "sha256": "0" * 64}},
    ],
    ids=str,
)
async def test_a_manifest_of_numbers_that_cannot_be_is_refused(
    log: EventLog, folder: DirectoryStore, key: PrivateKey, change: dict[str, Any]
) -> None:
    await fill(log, 10)
    await archived(log, folder, key, last=10)
    (segment,) = (await read_shelf(folder)).segments
    forged(folder, segment, lambda data: data.update(change))
    with pytest.raises(ExportError, match="makes no sense"):
        await read_shelf(folder)


async def test_a_manifest_that_is_nested_too_deep_is_refused(folder: DirectoryStore) -> None:
    folder.path.mkdir()
    text = b'{"cuebook":"segment","first":' + b"[" * 60_000
    name = "000000000001-000000000010.json"
    (folder.path / name).write_bytes(text + b',"sum":"' + sha256(text).hexdigest().encode() + b'"}\n')
    with pytest.raises(ExportError, match="makes no sense"):
        await read_shelf(folder)


@pytest.mark.parametrize(
    "block",
    [
        lambda block: [*block[:3], "10", *block[4:]],
        lambda block: [*block[:3], 10.0, *block[4:]],
        lambda block: [*block[:4], None, block[5]],
        lambda block: [*block[:5], 7],
        lambda block: [block[0], True, *block[2:]],
        lambda block: block[:5],
    ],
)
async def test_an_index_of_other_types_is_altered(
    log: EventLog, folder: DirectoryStore, space: str, key: PrivateKey, block: Callable[[list[Any]], list[Any]]
) -> None:
    await fill(log, 10)
    await archived(log, folder, key, last=10)
    (segment,) = (await read_shelf(folder)).segments
    exchange_head(folder, segment, lambda blocks: [block(one) for one in blocks])
    report = await verified(folder, space, key)
    assert [(one.kind, one.first, one.last) for one in report.findings] == [("altered", 1, 10)]


async def test_a_segment_that_claims_more_messages_than_anybody_can_count_is_altered(
    log: EventLog, folder: DirectoryStore, space: str, key: PrivateKey
) -> None:
    await fill(log, 10)
    await archived(log, folder, key, last=10)
    (segment,) = (await read_shelf(folder)).segments
    last = 2**62
    claims = replace(segment, last=last, after=(b"\0" * 32,) * last.bit_count())
    for path in list(folder.path.glob(f"{segment.name}.*")):
        path.rename(folder.path / f"{claims.name}{path.suffix}")
    exchange_head(folder, claims, lambda blocks: [[*blocks[0][:3], last, *blocks[0][4:]]])
    report = await verified(folder, space, key)
    assert [(one.kind, one.first, one.last) for one in report.findings] == [("altered", 1, last)]


def exchange_head(folder: DirectoryStore, segment: Segment, change: Callable[[Any], Any]) -> None:
    path = folder.path / f"{segment.name}.index"
    data = path.read_bytes()
    blocks, buckets = msgpack.unpackb(zlib.decompress(data[len(MAGIC) : segment.head.bytes]))
    head = MAGIC + zlib.compress(msgpack.packb([change(blocks), buckets]))
    index = head + data[segment.head.bytes :]
    path.write_bytes(index)
    sums = [Blob(bytes=len(one), sha256=sha256(one).hexdigest()) for one in (index, head)]
    (folder.path / f"{segment.name}.json").write_bytes(replace(segment, index=sums[0], head=sums[1]).text)


async def test_segments_of_another_space_with_the_same_key_are_found(
    log: EventLog, connection: Connection, folder: DirectoryStore, space: str, key: PrivateKey
) -> None:
    async with EventLog(connection, f"{space}b", source="tests") as other:
        await other.ensure()
        await fill(other, 10)
        await archived(other, folder, key, last=10)
    (segment,) = (await read_shelf(folder)).segments
    forged(folder, segment, lambda data: data.update(space=space))
    report = await verified(folder, space, key)
    assert [(one.kind, one.first, one.last) for one in report.findings] == [("altered", 1, 10)]
    assert report.signed == 0
