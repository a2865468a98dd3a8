"""History in segments: written once, read like the stream it came from, and every byte of it accounted for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, HistoryRegressedError
from cuebook.events.log import EventLog
from cuebook.events.past import Generation, Past, StreamPast
from cuebook.events.reading import Stored
from cuebook.ledger.errors import ExportError, SegmentsMissingError, TamperedError
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.sealer import Sealer
from cuebook.ledger.seals import Seals
from cuebook.ledger.segments import bucket, opening
from cuebook.ledger.segments.archive import Archive, Archived
from cuebook.ledger.segments.bucket import BucketStore
from cuebook.ledger.segments.cache import Cache
from cuebook.ledger.segments.check import Report, check_segments
from cuebook.ledger.segments.opening import SegmentOpener
from cuebook.ledger.segments.past import SegmentPast, SegmentReader
from cuebook.ledger.segments.shelf import Shelf, read_shelf
from cuebook.ledger.segments.store import DirectoryStore, SegmentStore
from cuebook.ledger.source import Source
from tests.ledger.filling import fill
from tests.waiting import eventually

EVENTS = 2_345


@pytest.fixture
async def seals(log: EventLog, key: PrivateKey, tmp_path: Path) -> Seals:
    """The log is filled and sealed."""
    await fill(log, EVENTS)
    sealer = Sealer(log, key, tmp_path / "checkpoints", every_s=0.1)
    running = asyncio.create_task(sealer.run())
    await eventually(lambda: sealer.sealed == EVENTS or running.done())
    sealer.stop()
    await running
    return Seals(log.connection, log.subjects.space, key.public)


@pytest.fixture(params=["directory", "bucket"])
def store(request: pytest.FixtureRequest, connection: Connection, space: str, tmp_path: Path) -> SegmentStore:
    if request.param == "bucket":
        return BucketStore(connection, f"{space}_segments")
    return DirectoryStore(tmp_path / "segments")


@pytest.fixture
def folder(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "segments")


async def archived(
    log: EventLog, seals: Seals, store: SegmentStore, last: int = EVENTS, key: PrivateKey | None = None
) -> Archived:
    source = Source(log, await log.verify())
    return await Archive(source, log.subjects.space, seals, store, key=key).write(1, last, max_events=1_000)


async def verified(store: SegmentStore, key: PrivateKey | None, last: int = EVENTS) -> Report:
    damaged: list[Exception] = []
    shelf = await read_shelf(store, damaged=damaged)
    report = await check_segments(shelf, shelf.segments, key=key.public if key else None, gaps=shelf.gaps(1, last))
    for error in damaged:
        report.find("unreadable", 0, 0, store.place, str(error))
    return report


async def past_of(store: SegmentStore, space: str, cache: Cache | None = None, last: int = EVENTS) -> SegmentPast:
    shelf = await read_shelf(store, space)
    return SegmentPast(SegmentReader(store, cache), shelf.segments, generation=1, name="x", first=1, last=last)


async def test_archived_segments_are_proved_and_written_once(
    log: EventLog, seals: Seals, store: SegmentStore, key: PrivateKey
) -> None:
    first = await archived(log, seals, store)
    assert (first.written, first.events, first.proved, first.unsigned) == (3, EVENTS, 3, 0)
    report = await verified(store, key)
    assert report.findings == []
    assert (report.count, report.signed, report.sealed_to, report.whole) == (EVENTS, 3, EVENTS, True)
    again = await archived(log, seals, store)
    assert (again.written, again.kept, again.events) == (0, 3, 0)


async def test_what_is_added_later_goes_on_from_the_last_segment(
    log: EventLog, seals: Seals, folder: DirectoryStore, key: PrivateKey
) -> None:
    await archived(log, seals, folder, last=1_100)
    assert [one.first for one in (await read_shelf(folder)).segments] == [1, 1001]
    later = await archived(log, seals, folder)
    assert (later.kept, later.events) == (2, EVENTS - 1_100)
    assert (await verified(folder, key)).findings == []


async def test_a_segment_that_is_lost_is_written_again_byte_for_byte(
    log: EventLog, seals: Seals, folder: DirectoryStore
) -> None:
    await archived(log, seals, folder)
    names = sorted(folder.path.glob("000000001001-*"))
    before = [path.read_bytes() for path in names]
    for path in names:
        path.unlink()
    report = await verified(folder, None)
    assert [(one.kind, one.first, one.last) for one in report.findings] == [("missing", 1001, 2000)]
    await archived(log, seals, folder)
    assert [path.read_bytes() for path in names] == before


async def test_a_segment_reader_is_a_stream_reader(
    log: EventLog, seals: Seals, store: SegmentStore, space: str, tmp_path: Path
) -> None:
    await archived(log, seals, store)
    segments = await past_of(store, space, Cache(tmp_path / "cache"))
    stream = StreamPast(log.connection, Generation(generation=1, stream=space.upper(), first=1, last=EVENTS))
    filters = ["", "run.>", "run.r7.>", "run.r7.*", "run.*.task.*.requested.*", "agent.echo.i1.>", "agent.>", "event.>",
               "rejected.*", "run.r7.task.3.>", "run.unknown.>", "event.order.placed.*", "*.r7.started"]  # fmt: skip
    places = st.integers(0, EVENTS + 5)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(places, places, st.lists(st.sampled_from(filters), max_size=1))
    def the_same(after: int, until: int, chosen: list[str]) -> None:
        async def both() -> tuple[list[Stored], list[Stored]]:
            named = [f"{space}.{one}" for one in chosen if one]
            return (
                await _all(stream, after, min(until, EVENTS), named),
                await _all(segments, after, min(until, EVENTS), named),
            )

        expected, found = asyncio.run_coroutine_threadsafe(both(), loop).result(30)
        assert found == expected

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(the_same)
    for sequence in (1, 999, 1000, 1001, 2000, EVENTS):
        assert await segments.at(sequence) == await stream.at(sequence)
    for scope in (f"{space}.{one}" for one in filters if one):
        assert await segments.first_match(scope) == await stream.first_match(scope)
        assert await segments.first_match(scope, 1500) == await stream.first_match(scope, 1500)
        assert [one[:4] for one in await segments.matches(scope, 700)] == [
            one[:4] for one in await stream.matches(scope, 700)
        ]
    for sequence in (1, 500, 1000, 1001, 1702, EVENTS):
        moment = (await stream.at(sequence) or pytest.fail("gone")).recorded_at
        assert await segments.sequence_at(moment) == await _before(stream, moment)
    assert await segments.sequence_at(2**55) == EVENTS
    assert await segments.sequence_at(1) == 0


async def _before(stream: StreamPast, moment: int) -> int:
    found = 0
    async for batch in stream.batches(after=0, until=EVENTS, filters=[]):
        for one in batch:
            if one.recorded_ns // 1000 >= moment:
                return found
            found = one.sequence
    return found


async def _all(past: Past, after: int, until: int, filters: Sequence[str]) -> list[Stored]:
    async with aclosing(past.batches(after=after, until=until, filters=filters)) as batches:
        return [one async for batch in batches for one in batch]


async def test_of_one_run_only_what_the_index_names_is_read(
    log: EventLog, seals: Seals, store: SegmentStore, space: str, tmp_path: Path
) -> None:
    await archived(log, seals, store)
    shelf = await read_shelf(store, space)
    reader = SegmentReader(store, Cache(tmp_path / "cache"))
    past = SegmentPast(reader, shelf.segments, generation=1, name="x", first=1, last=EVENTS)
    assert await past.matches(f"{space}.run.unknown.>") == []
    assert 0 < reader.bytes_read < sum(one.index.bytes for one in shelf.segments)
    found = await past.matches(f"{space}.agent.echo.i1.>")
    assert found
    assert reader.bytes_read < sum(one.index.bytes + one.data.bytes for one in shelf.segments)


async def test_what_was_fetched_is_taken_from_the_cache_unless_it_was_altered(
    log: EventLog, seals: Seals, connection: Connection, space: str, tmp_path: Path
) -> None:
    store = BucketStore(connection, f"{space}_segments")
    await archived(log, seals, store)
    cache = Cache(tmp_path / "cache")
    first, second, third = [await past_of(store, space, cache) for _ in range(3)]
    expected = await _all(first, 0, EVENTS, [])
    assert await _all(second, 0, EVENTS, []) == expected
    assert second._reader.bytes_read == 0
    for path in (tmp_path / "cache").glob("*/*"):
        path.write_bytes(b"something else")
    assert await _all(third, 0, EVENTS, []) == expected
    assert third._reader.bytes_read > 0


def test_the_cache_stays_within_its_size(tmp_path: Path) -> None:
    from hashlib import sha256

    cache = Cache(tmp_path, max_bytes=50_000)
    for n in range(1_000):
        data = b"%d" % n * 100
        cache.put(sha256(data).digest(), data)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) < 50_000 + 200 * 400
    assert cache.get(sha256(b"999" * 100).digest()) == b"999" * 100


async def test_an_altered_byte_anywhere_is_found_and_named(
    log: EventLog, seals: Seals, folder: DirectoryStore, key: PrivateKey
) -> None:
    await archived(log, seals, folder)
    files = sorted(path for path in folder.path.iterdir() if path.suffix in (".gz", ".json", ".index"))
    chance = random.Random(7)
    for path in files:
        whole = path.read_bytes()
        for place in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(4))]:
            altered = bytearray(whole)
            altered[place] ^= 1 << chance.randrange(8)
            path.write_bytes(altered)
            report = await verified(folder, key)
            assert not report.sound, (path.name, place)
            name = path.name.partition(".")[0]
            named = report.findings[0]
            assert name in str(named) or named.first >= int(name[:12]), (path.name, place, str(named))
            if path.suffix == ".gz":
                assert named.last - named.first < 500
                assert int(name[:12]) <= named.first <= named.last <= int(name[13:])
        for cut in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(cut)
            assert not (await verified(folder, key)).sound, (path.name, len(cut))
        path.write_bytes(whole)
    assert (await verified(folder, key)).sound


async def test_who_forges_all_sums_is_found_by_the_signature(
    log: EventLog, seals: Seals, folder: DirectoryStore, key: PrivateKey, tmp_path: Path, space: str
) -> None:
    await archived(log, seals, folder)
    forged = DirectoryStore(tmp_path / "forged")
    stolen = (await read_shelf(folder)).segments[0].proof
    segments = await past_of(folder, space)
    from dataclasses import replace

    from cuebook.ledger.merkle import Frontier
    from cuebook.ledger.record import Record
    from cuebook.ledger.segments.blocks import SegmentWriter

    async with forged.writing() as place:
        with (place / "1.part").open("wb") as file:
            writer = SegmentWriter(file, Frontier())
            for one in await _all(segments, 0, 1_000, []):
                subject, body, sequence, recorded_ns, headers = one
                body = b"{}" if sequence == 400 else body
                name = subject.encode("utf-8", "surrogateescape")
                writer.add(Record(sequence, recorded_ns, name, headers or b"", body))
            segment, index = writer.finish(space, 1)
        await forged.put(f"{segment.name}.gz", place / "1.part")
    await forged.put(f"{segment.name}.index", index)
    await forged.put(f"{segment.name}.json", replace(segment, proof=stolen).text)
    assert (await verified(forged, None, last=1_000)).sound
    report = await verified(forged, key, last=1_000)
    assert [(one.kind, one.first, one.last) for one in report.findings] == [("altered", 1, 1000)]
    other = PrivateKey("example.com/other", b"\x09" * 32)
    assert not (await verified(folder, other)).sound


async def test_without_a_sealer_segments_are_unsigned_until_a_key_signs_them(
    log: EventLog, folder: DirectoryStore, key: PrivateKey
) -> None:
    await fill(log, 30)
    seals = Seals(log.connection, log.subjects.space, key.public)
    assert (await archived(log, seals, folder, last=30)).unsigned == 1
    report = await verified(folder, key, last=30)
    assert (report.sound, report.signed) == (True, 0)
    signed = await archived(log, seals, folder, last=30, key=key)
    assert (signed.written, signed.proved, signed.unsigned) == (0, 1, 0)
    assert (await verified(folder, key, last=30)).signed == 1


async def test_segments_of_another_log_are_refused(
    log: EventLog, seals: Seals, folder: DirectoryStore, connection: Connection, key: PrivateKey, space: str
) -> None:
    await archived(log, seals, folder)
    async with EventLog(connection, f"{space}b", source="tests") as other:
        await other.ensure()
        await fill(other, 1_001)
        with pytest.raises(ConfigurationError, match="is of space"):
            await archived(other, Seals(connection, f"{space}b", None), folder, last=1_001)
    await connection.jetstream(timeout=30).delete_stream(space.upper())
    async with EventLog(connection, space, source="tests") as again:
        await again.ensure()
        await fill(again, EVENTS)
        with pytest.raises(TamperedError, match="holds other messages than the log"):
            await archived(again, Seals(connection, f"{space}c", None), folder)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (b"", ExportError, "is no manifest"),
        (b"PAR1", ExportError, "is no manifest"),
        (b'{"cuebook":"segment","format":9}', TamperedError, "altered or cut short"),
        (b'{"cuebook":"export","format":1}\n', ExportError, "is no manifest"),
    ],
)
async def test_a_file_that_is_no_manifest_is_refused_by_name(
    folder: DirectoryStore, wrong: bytes, error: type[Exception], says: str
) -> None:
    folder.path.mkdir()
    await folder.put("000000000001-000000000002.json", wrong)
    with pytest.raises(error, match=says) as raised:
        await read_shelf(folder)
    assert "000000000001-000000000002.json" in str(raised.value)
    assert getattr(raised.value, "remedy", "")


async def test_a_newer_format_is_refused(log: EventLog, seals: Seals, folder: DirectoryStore) -> None:
    from hashlib import sha256

    await archived(log, seals, folder)
    path = next(folder.path.glob("*.json"))
    data = path.read_bytes().replace(b'"format":1', b'"format":2', 1).rpartition(b',"sum":"')[0]
    path.write_bytes(data + b',"sum":"' + sha256(data).hexdigest().encode() + b'"}\n')
    with pytest.raises(ExportError, match="format 2"):
        await read_shelf(folder)


async def test_files_of_others_are_left_alone(log: EventLog, seals: Seals, folder: DirectoryStore) -> None:
    folder.path.mkdir()
    (folder.path / "notes.json").write_text("{}")
    (folder.path / "000000000001-000000000009.part").write_text("left by a crash")
    assert (await archived(log, seals, folder)).written == 3
    assert (folder.path / "notes.json").read_text() == "{}"
    assert not list(folder.path.glob("*.part"))


async def test_two_never_write_to_a_directory_at_once(folder: DirectoryStore) -> None:
    async with folder.writing():
        with pytest.raises(ConfigurationError, match="somebody else"):
            async with DirectoryStore(folder.path).writing():
                pass


async def test_what_a_killed_put_left_in_the_bucket_is_removed_unless_it_may_still_be_at_work(
    connection: Connection, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BucketStore(connection, f"{space}_segments")
    await store.put("000000000001-000000000002.gz", b"x" * 300_000)
    js = connection.jetstream(timeout=30)
    await js.publish(f"$O.{space}_segments.C.torn", b"y" * 1000)
    before = (await js.stream_info(f"OBJ_{space}_segments")).state.messages
    async with store.writing():
        assert (await js.stream_info(f"OBJ_{space}_segments")).state.messages == before
    monkeypatch.setattr(bucket, "TORN_AFTER_S", -10)
    async with store.writing():
        assert (await js.stream_info(f"OBJ_{space}_segments")).state.messages == before - 1
    assert await store.read("000000000001-000000000002.gz", 131_000, 200) == b"x" * 200


async def test_parts_are_read_where_two_wrote_at_once(connection: Connection, space: str) -> None:
    store = BucketStore(connection, f"{space}_segments")
    await store.put("a.index", b"".join(bytes([n]) * 16_384 for n in range(4)))
    info = await (await connection.jetstream(timeout=30).object_store(f"{space}_segments")).get_info("a.index")
    chunks = [bytes([n]) * 16_384 for n in range(4)]
    subject = f"$O.{space}_segments.C.{info.nuid}"
    await connection.jetstream(timeout=30).purge_stream(f"OBJ_{space}_segments", subject=subject)
    for n, chunk in enumerate(chunks):
        await connection.jetstream(timeout=30).publish(subject, chunk)
        await connection.jetstream(timeout=30).publish(f"$O.{space}_segments.C.other{n}", b"z")
    assert await store.read("a.index", 16_380, 40_000) == b"".join(chunks)[16_380:56_380]


async def test_a_log_with_a_hole_is_not_archived(
    log: EventLog, seals: Seals, folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Source.batches

    async def without_one(
        self: Source, *, after: int, until: int, filters: Sequence[str] = ()
    ) -> AsyncIterator[object]:
        async for batch in whole(self, after=after, until=until, filters=filters):
            yield [record for record in batch if record.sequence != 1_500]

    monkeypatch.setattr(Source, "batches", without_one)
    with pytest.raises(HistoryRegressedError, match="nothing from 1500 to 1500"):
        await archived(log, seals, folder)


async def test_a_reader_is_told_what_is_missing_and_what_to_set(
    log: EventLog, seals: Seals, folder: DirectoryStore, space: str, tmp_path: Path
) -> None:
    await archived(log, seals, folder)
    digest = (await read_shelf(folder)).digest(1, EVENTS)
    about = Generation(generation=1, stream=space.upper(), first=1, last=EVENTS, segments=folder.place, digest=digest)
    opened = await SegmentOpener()(log.connection, space, about)
    assert (opened.first, opened.last) == (1, EVENTS)
    moved = folder.path.rename(tmp_path / "elsewhere")
    with pytest.raises(SegmentsMissingError, match=r"cannot be read: .* is not in"):
        await opened.at(1)
    log.connection.shared.pop("segments")  # as over a new connection
    with pytest.raises(SegmentsMissingError, match=f"sequences 1 to {EVENTS} .* only in segments") as raised:
        await SegmentOpener()(log.connection, space, about)
    assert "CUEBOOK_SEGMENTS" in raised.value.remedy
    assert (await SegmentOpener(str(moved))(log.connection, space, about)).last == EVENTS
    for path in moved.glob("000000001001*"):
        path.unlink()
    log.connection.shared.pop("segments")
    with pytest.raises(SegmentsMissingError, match="lacks sequences 1001 to 2000"):
        await SegmentOpener(str(moved))(log.connection, space, about)


async def test_all_generations_in_one_place_are_opened_with_one_look(
    log: EventLog, seals: Seals, store: SegmentStore, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archived(log, seals, store)
    whole = await read_shelf(store)
    looks: list[str] = []

    async def counted(store: SegmentStore, *args: Any, **options: Any) -> Shelf:
        looks.append(store.place)
        return await read_shelf(store, *args, **options)

    monkeypatch.setattr(opening, "read_shelf", counted)
    for number, first in enumerate(range(1, EVENTS, 100), start=1):
        last = min(first + 99, EVENTS)
        about = Generation(
            generation=number, stream=f"{space.upper()}@{number}", first=first, last=last,
            segments=store.place, digest=whole.digest(first, last),
        )  # fmt: skip
        past = await SegmentOpener()(log.connection, space, about)
        found = await past.at(last)
        assert found is not None
        assert found.sequence == last
    assert looks == [store.place]


async def test_a_damaged_manifest_hides_its_own_sequences_only(
    log: EventLog, seals: Seals, folder: DirectoryStore, space: str
) -> None:
    await archived(log, seals, folder)
    manifest = next(folder.path.glob("000000001001*.json"))
    manifest.write_bytes(manifest.read_bytes().replace(b'"count":1000', b'"count":1001'))

    def about(first: int, last: int) -> Generation:
        return Generation(generation=1, stream=space.upper(), first=first, last=last, segments=folder.place)

    past = await SegmentOpener()(log.connection, space, about(1, 1000))
    assert await past.at(1000) is not None
    with pytest.raises(TamperedError, match="was altered or cut short"):
        await SegmentOpener()(log.connection, space, about(1001, 1002))
