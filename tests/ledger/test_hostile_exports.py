"""Files that somebody has made who knows how exports are written: all sums fit, and yet something is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pytest

from cuebook.events.errors import CuebookError
from cuebook.ledger import parquet
from cuebook.ledger.errors import ExportError
from cuebook.ledger.exports import sound_records
from cuebook.ledger.manifest import End, Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.parquet import ParquetWriter
from cuebook.ledger.record import leaf_of
from tests.ledger.files import checkpoints_of, history, read, written

FORMATS = ["jsonl", "parquet"]
HEADER = Header(space="cue", stream="CUE", filters=(), first=1, last=10, before=())


def resummed(lines: list[bytes]) -> bytes:
    """Lines without their sums, with all sums made anew."""
    done, whole = [], sha256()
    for line in lines:
        if line.startswith(b'{"cuebook":"end"'):
            end = json.loads(line + b"}")
            line = json.dumps({**end, "sha256": whole.hexdigest()}, separators=(",", ":")).encode()[:-1]
        done.append(b'%b,"sum":"%b"}\n' % (line, sha256(line).hexdigest().encode()))
        whole.update(done[-1])
    return b"".join(done)


def lines_of(data: bytes) -> list[bytes]:
    return [line[:-74] for line in data.split(b"\n")[:-1]]


def test_the_sums_are_made_as_the_writer_makes_them() -> None:
    data = written("jsonl", history(10))
    assert resummed(lines_of(data)) == data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"body":"AQ=="', b'"body":"AQ==ZXZpbA=="'),  # some decoders read what stands after the end
        (b'"body":"AQ=="', b'"body":"AR=="'),  # bits that nobody reads
        (b'"subject":"cue.event.order.1"', b'"subject":"cue.event\\u002eorder.1"'),
    ],
)
def test_a_message_is_written_in_one_way_only(old: bytes, new: bytes, key: PrivateKey) -> None:
    records = [one._replace(body=b"\1", subject=b"cue.event.order.1") for one in history(10)]
    lines = lines_of(written("jsonl", records))
    assert old in lines[3]
    lines[3] = lines[3].replace(old, new)
    report = read("jsonl", resummed(lines), checkpoints_of(records, key, 10))
    assert [(one.kind, one.first) for one in report.findings] == [("altered", 3)]


def test_a_view_that_is_no_text_is_altered() -> None:
    lines = lines_of(written("jsonl", history(10)))
    lines[3] = lines[3].replace(b'"view":{', b'"view":{\xff')
    assert [(one.kind, one.first) for one in read("jsonl", resummed(lines)).findings] == [("altered", 3)]


def test_a_header_that_is_nested_too_deep_is_refused() -> None:
    lines = [b'{"cuebook":"export","format":1,"space":' + b"[" * 100_000, *lines_of(written("jsonl", history(3)))[1:]]
    with pytest.raises(CuebookError, match="cannot be read"):
        read("jsonl", resummed(lines))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shift", [1, 500])
def test_an_end_that_names_other_sequences_is_found(name: str, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    to_data = End.to_data
    monkeypatch.setattr(
        End, "to_data", lambda end: to_data(replace(end, first=end.first + shift, last=end.last + shift))
    )
    data = written(name, history(10))
    monkeypatch.undo()
    report = read(name, data)
    assert [one.kind for one in report.findings] == ["other tree"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "subject",
    [
        b"$JS.API.STREAM.DELETE.CUE",
        b"cue2.event.x",
        b"cue",
        b"cue.event.x reply",
        b"cue.x 0\r\n\r\nPUB cue.y",
        b"cue.\t",
    ],
)
def test_a_subject_that_no_log_of_the_space_can_hold_is_found(name: str, subject: bytes) -> None:
    records = history(10)
    records[4] = records[4]._replace(subject=subject)
    report = read(name, written(name, records))
    assert [(one.kind, one.first) for one in report.findings] == [("altered", 5)]


def test_rows_that_no_sum_covers_are_found(key: PrivateKey) -> None:
    """A table that shows more than was verified."""
    records, file = history(10), io.BytesIO()
    writer = ParquetWriter(file, HEADER)
    writer.add(records)
    writer._write_group()
    writer._sink.finishing = True  # what comes now is taken for the footer
    groups = list(writer._groups)
    tree, last = writer._tree, writer._last
    writer._tree = Frontier()
    writer.add([one._replace(body=b"forged") for one in history(1, first=10)])
    writer._write_group()
    writer._tree, writer._last, writer._groups = tree, last, groups
    writer.close()
    with pytest.raises(ExportError, match="row groups"):
        read("parquet", file.getvalue(), checkpoints_of(records, key, 10))


def test_a_small_file_of_more_rows_than_memory_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    writer = ParquetWriter(file, HEADER)
    writer.add(history(10))
    writer._write_group()
    monkeypatch.setattr(parquet, "GROUP", 10**9)
    count = 2_000_000
    columns = [pa.nulls(count, field.type) for field in writer._schema]
    writer._writer.write_table(pa.Table.from_arrays(columns, schema=writer._schema), row_group_size=count)
    writer._groups.append([writer._sink.cut(), 11, 10 + count, writer._sink.part.hexdigest()])
    writer.close()
    monkeypatch.undo()
    assert len(file.getvalue()) < 100_000
    with pytest.raises(ExportError, match="rows"):
        read("parquet", file.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        lambda group: [-5, *group[1:]],
        lambda group: [10**30, *group[1:]],
        lambda group: [float("inf"), *group[1:]],
        lambda group: [[], *group[1:]],
        lambda group: [group[0], None, None, group[3]],
    ],
)
def test_row_groups_that_are_nowhere_are_refused(change: Callable[[list[Any]], list[Any]]) -> None:
    file = io.BytesIO()
    writer = ParquetWriter(file, HEADER)
    writer.add(history(10))
    writer._write_group()
    writer._groups = [change(group) for group in writer._groups]
    writer.close()
    with pytest.raises(ExportError):
        list(sound_records_of(file.getvalue()))


def sound_records_of(data: bytes) -> Any:
    from cuebook.ledger.parquet import ParquetReader

    return sound_records(ParquetReader(io.BytesIO(data)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_of_what_came_before_seals_nothing_of_an_export(name: str, key: PrivateKey) -> None:
    before = history(100)
    tree = Frontier()
    for record in before:
        tree.add(leaf_of(record))
    header = replace(HEADER, first=101, last=110, before=tuple(tree.nodes))
    report = read(name, written(name, history(10, first=101), header), checkpoints_of(before, key, 100))
    assert report.sound
    assert not report.to_data()["sealed"]
