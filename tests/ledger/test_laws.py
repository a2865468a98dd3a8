"""What must hold for every export: it comes back as it was, and no altered byte goes unnoticed."""

from __future__ import annotations

import io
import json
import random
from bisect import bisect_right
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.errors import CuebookError
from cuebook.ledger import parquet
from cuebook.ledger.manifest import Header
from cuebook.ledger.merkle import Frontier, leaf_hash
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.parquet import ParquetReader
from cuebook.ledger.record import Record, leaf_data, leaf_of, parse_leaf_data, view_of
from tests.ledger.files import READERS, checkpoints_of, history, read, written

FORMATS = ["jsonl", "parquet"]
bodies = st.binary(max_size=200) | st.text(max_size=50).map(str.encode)
records = st.lists(
    st.builds(
        Record,
        st.just(0),
        st.integers(0, 2**63 - 1),
        st.binary(max_size=20).map(lambda rest: b"cue.event." + b"".join(rest.split())),
        st.just(b"") | st.binary(max_size=60),
        bodies,
    ),
    min_size=1,
    max_size=30,
).map(lambda found: [record._replace(sequence=n) for n, record in enumerate(found, 1)])


@pytest.mark.parametrize("name", FORMATS)
@given(found=records)
def test_what_was_written_is_read_and_written_again_the_same(name: str, found: list[Record]) -> None:
    data = written(name, found)
    reader = READERS[name](io.BytesIO(data))
    again = list(reader.items())
    assert again == found
    assert reader.end is not None
    assert written(name, again, reader.header) == data
    assert read(name, data).sound


@given(records)
def test_both_formats_say_the_same_of_their_messages(found: list[Record]) -> None:
    ends = []
    for name in FORMATS:
        reader = READERS[name](io.BytesIO(written(name, found)))
        list(reader.items())
        ends.append(replace(reader.end, sha256=""))
    assert ends[0] == ends[1]


@given(records)
def test_a_leaf_stands_for_one_message_only(found: list[Record]) -> None:
    for record in found:
        assert parse_leaf_data(leaf_data(record)) == record
        assert leaf_of(record) == leaf_hash(leaf_data(record))


@given(bodies)
def test_a_view_is_json_in_ascii_whatever_the_body(body: bytes) -> None:
    view = view_of(body)
    assert view.isascii()
    assert json.loads(view, parse_constant=pytest.fail) is not NotImplemented


def test_every_altered_byte_of_a_jsonl_export_is_found_in_its_line() -> None:
    data = written("jsonl", history(40))
    numbers = random.Random(20261122)
    for _ in range(10_000):
        place = numbers.randrange(len(data))
        line = data.count(b"\n", 0, place) + 1
        changed = mutated(data, place, numbers)
        try:
            finding = read("jsonl", changed).findings[0]
        except CuebookError:
            assert line == 1  # without its header it is no export
            continue
        assert finding.place in (f"line {line}", f"line {line + 1}" if line == 42 else ""), place
        assert finding.first == (line - 1 if line < 42 else 0), place


def test_every_altered_byte_of_a_parquet_export_is_found_in_its_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP", 10)
    data = written("parquet", history(40))
    ends = [group[0] for group in ParquetReader(io.BytesIO(data))._groups]
    numbers = random.Random(20261122)
    for _ in range(2_500):
        place = numbers.randrange(len(data))
        group = bisect_right(ends, place)
        changed = mutated(data, place, numbers)
        if group == len(ends):
            assert altered_footer(changed), place
        else:
            finding = read("parquet", changed).findings[0]
            assert group * 10 < finding.first <= finding.last <= group * 10 + 10, place


def altered_footer(data: bytes) -> bool:
    """Whether it is refused, or all that is found wrong is the footer."""
    try:
        report = read("parquet", data)
    except CuebookError:
        return True
    return [one.place.endswith("the footer") for one in report.findings] == [True]


def mutated(data: bytes, place: int, numbers: random.Random) -> bytes:
    changed = bytearray(data)
    changed[place] ^= numbers.randrange(1, 256)
    return bytes(changed)


def altered(found: list[Record], n: int, kind: str) -> list[Record]:
    """The messages after somebody did this to message number `n`."""
    one = found[n]
    rest = {
        "body": [one._replace(body=one.body + b" ")],
        "headers": [one._replace(headers=b"NATS/1.0\r\nX: y\r\n\r\n")],
        "subject": [one._replace(subject=one.subject + b"x")],
        "time": [one._replace(recorded_ns=one.recorded_ns + 1)],
        "moved between fields": [one._replace(subject=one.subject[:-1], body=one.subject[-1:] + one.body)],
    }[kind]
    return [*found[:n], *rest, *found[n + 1 :]]


KINDS = ["body", "headers", "subject", "time", "moved between fields"]


@pytest.mark.parametrize("name", FORMATS)
@given(n=st.integers(0, 59), kind=st.sampled_from(KINDS))
def test_who_alters_the_sums_too_is_found_between_two_checkpoints(name: str, n: int, kind: str) -> None:
    found = history(60)
    key = PrivateKey("example.com/cue", b"\x07" * 32)
    checkpoints = checkpoints_of(found, key, every=10)
    honest = read(name, written(name, found), checkpoints)
    assert (honest.sound, honest.agreed, honest.sealed_to) == (True, [10, 20, 30, 40, 50, 60], 60)
    forged = written(name, altered(found, n, kind))
    assert read(name, forged).sound  # by its own sums
    report = read(name, forged, checkpoints)
    (finding,) = report.findings
    assert (finding.kind, finding.first, finding.last) == ("altered", n // 10 * 10 + 1, n // 10 * 10 + 10)


@pytest.mark.parametrize("name", FORMATS)
def test_gaps_repetitions_and_exchanged_messages_are_named(name: str) -> None:
    found = history(30)
    header = Header(space="cue", stream="CUE", filters=(), first=1, last=30, before=())

    def first_finding(records: list[Record]) -> tuple[str, int, int]:
        one = read(name, written(name, records, header)).findings[0]
        return one.kind, one.first, one.last

    assert first_finding([*found[:9], *found[12:]]) == ("missing", 10, 12)
    assert first_finding(found[1:]) == ("missing", 1, 1)
    assert first_finding(found[:-2]) == ("missing", 29, 30)
    assert first_finding([*found[:5], found[4], *found[5:]]) == ("misplaced", 5, 5)
    assert first_finding([*found[:5], found[6], found[5], *found[7:]]) == ("missing", 6, 6)
    assert first_finding([*found, found[29]._replace(sequence=31)]) == ("misplaced", 31, 31)


@given(st.integers(1, 40), st.integers(0, 20), st.data())
def test_a_part_of_a_log_is_held_against_the_checkpoints_within_it(first: int, more: int, data: Any) -> None:
    found = history(60)
    key = PrivateKey("example.com/cue", b"\x07" * 32)
    checkpoints = checkpoints_of(found, key, every=7)
    before = Frontier()
    for record in found[: first - 1]:
        before.add(leaf_of(record))
    last = first + more
    header = Header(space="cue", stream="CUE", filters=(), first=first, last=last, before=tuple(before.nodes))
    part = found[first - 1 : last]
    report = read("jsonl", written("jsonl", part, header), checkpoints)
    assert report.agreed == [one.size for one in checkpoints if first - 1 <= one.size <= last]
    assert sorted(report.agreed + report.others) == [one.size for one in checkpoints]
    inside = [size for size in report.agreed if size >= first]
    if inside:
        n = data.draw(st.integers(0, inside[-1] - first))
        forged = read("jsonl", written("jsonl", altered(part, n, "body"), header), checkpoints)
        assert forged.findings[0].first <= first + n <= forged.findings[0].last


def test_a_wrong_tree_before_a_part_is_noticed(key: PrivateKey) -> None:
    found = history(20)
    header = Header(space="cue", stream="CUE", filters=(), first=11, last=20, before=(b"x" * 32, b"y" * 32))
    report = read("jsonl", written("jsonl", found[10:], header), checkpoints_of(found, key, every=10))
    assert report.findings[0].kind == "altered"
    assert "before the export" in report.findings[0].reason
