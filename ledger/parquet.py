"""Exports as Parquet, for those who query with tables: the same messages, a row each, in groups of a thousand.

What an export says about itself stands in the file's metadata under `cuebook`. So that any altered byte is found and
placed, it holds the SHA-256 of each row group, and one of the footer itself (taken with zeros in its own place); each
row has its leaf hash. Needs pyarrow.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import pairwise
from typing import Any, BinaryIO, Final

from cuebook.events.errors import ConfigurationError
from cuebook.ledger.errors import ExportError
from cuebook.ledger.manifest import Damage, End, Header
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.record import Record, leaf_of, view_of

__all__ = ["ParquetReader", "ParquetWriter"]

GROUP: Final = 1_000
"""Rows in a group: what is lost at most where bytes can no longer be read."""
MAX_ROWS: Final = 100 * GROUP
MAX_GROUP_BYTES: Final = 2 * 1024**3
"""Of a group that is read at once, unpacked: what takes little in a file can take more than there is in memory."""
MAGIC: Final = b"PAR1"
_NO_SUM: Final = b'"footer":"' + b"0" * 64 + b'"'
_CHUNK: Final = 1 << 20
_MAX_FOOTER_BYTES: Final = 1 << 30


def _libraries() -> tuple[Any, Any]:
    """The two modules of pyarrow, which are only there with an extra."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            "Parquet needs pyarrow, which is not installed", remedy="pip install 'cuebook[parquet]', or use JSONL"
        ) from missing
    return pa, pq


def _schema(pa: Any, *, view: bool) -> Any:
    columns = [
        ("sequence", pa.int64()),
        ("recorded_at", pa.timestamp("ns", tz="UTC")),
        ("subject", pa.string()),
        ("subject_bytes", pa.binary()),  # where the subject is no UTF-8, else null
        ("headers", pa.binary()),
        ("body", pa.binary()),
        ("leaf", pa.binary(32)),
    ]
    return pa.schema([*columns, ("view", pa.string())] if view else columns)


class ParquetWriter:
    """Writes an export to a file that is open for reading and writing bytes; `close` completes it."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        """Raises ConfigurationError when pyarrow is missing."""
        self._file, self._header = file, header
        self._sink = _Sink(file)
        self._pa, pq = _libraries()
        pa, self._schema = self._pa, _schema(self._pa, view=header.view)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), self._schema, compression="zstd", use_dictionary=False,
            write_statistics=["sequence", "recorded_at", "subject"], version="2.6", store_schema=True,
        )  # fmt: skip
        self._rows: list[tuple[Record, bytes]] = []
        self._tree = Frontier()
        self._first = self._last = 0
        self._groups: list[list[Any]] = []

    def add(self, records: Iterable[Record]) -> None:
        """Write messages."""
        for record in records:
            leaf = leaf_of(record)
            self._tree.add(leaf)
            self._first, self._last = self._first or record.sequence, record.sequence
            self._rows.append((record, leaf))
            if len(self._rows) == GROUP:
                self._write_group()

    def close(self) -> End:
        """Write the end."""
        if self._rows:
            self._write_group()
        end = End(
            count=self._tree.size,
            first=self._first,
            last=self._last,
            root=self._tree.root(),
            sha256=self._sink.whole.hexdigest(),
        )
        about = {
            **self._header.to_data(), "end": end.to_data(), "groups": self._groups, "footer": "0" * 64,
        }  # fmt: skip
        self._sink.finishing = True
        self._writer.add_key_value_metadata({"cuebook": json.dumps(about, separators=(",", ":"))})
        self._writer.close()
        self._seal_footer()
        return end

    def _write_group(self) -> None:
        records = [record for record, _ in self._rows]
        names = [_name(record.subject) for record in records]
        columns: list[Any] = [
            [record.sequence for record in records],
            [record.recorded_ns for record in records],
            [name for name, _ in names],
            [raw for _, raw in names],
            [record.headers for record in records],
            [record.body for record in records],
            [leaf for _, leaf in self._rows],
        ]
        if self._header.view:
            columns.append([view_of(record.body) for record in records])
        pa = self._pa
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=GROUP)
        first, last = records[0].sequence, records[-1].sequence
        self._groups.append([self._sink.cut(), first, last, self._sink.part.hexdigest()])
        self._sink.part = sha256()
        self._rows.clear()

    def _seal_footer(self) -> None:
        start = self._sink.data_bytes
        self._file.flush()
        self._file.seek(start)
        footer = self._file.read()
        place = footer.index(_NO_SUM)
        self._file.seek(start + place + len(b'"footer":"'))
        self._file.write(sha256(footer).hexdigest().encode())
        self._file.flush()


class ParquetReader:
    """Reads an export from a file that is open for bytes. `end` is there when all was read and it is complete."""

    name = "parquet"

    def __init__(self, file: BinaryIO) -> None:
        """Read the footer; what was altered in it is told by `items`.

        Raises ExportError, and ConfigurationError when pyarrow is missing.
        """
        self._pa, pq = _libraries()
        self._file = file
        self.position = 0
        self.end: End | None = None
        size = file.seek(0, os.SEEK_END)
        _check_end(file, size)
        self._altered = ""
        try:
            self._parquet = pq.ParquetFile(file)
            about = json.loads((self._parquet.metadata.metadata or {}).get(b"cuebook", b"null"))
            self.header = Header.from_data(about)
            self._end = End.from_data(about["end"])
            self._groups = [
                (int(size), int(first), int(last), str(sum_)) for size, first, last, sum_ in about["groups"]
            ]
            said = str(about["footer"]).encode()
            _check_groups(self._groups, size)
            self._check_table()
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"the Parquet file's footer cannot be read: {str(error)[:80]}", remedy="get the file again"
            ) from error
        start = self._groups[-1][0] if self._groups else len(MAGIC)
        file.seek(min(start, size))
        blank = file.read().replace(b'"footer":"' + said + b'"', _NO_SUM, 1)
        if sha256(blank).hexdigest().encode() != said:
            self._altered = f"bytes {start} to {size - 1}, the footer"

    def _check_table(self) -> None:
        """Who opens the file as a table must see what is verified here, and no more. Raises ExportError."""
        count = self._parquet.metadata.num_row_groups
        if count != len(self._groups):
            raise ExportError(
                f"the Parquet file has {count} row groups, and sums of {len(self._groups)}", remedy="get the file again"
            )
        for number in range(count):
            group = self._parquet.metadata.row_group(number)
            if group.num_rows > MAX_ROWS or group.total_byte_size > MAX_GROUP_BYTES:
                raise ExportError(
                    f"row group {number + 1} has {group.num_rows} rows and {group.total_byte_size} bytes, more than "
                    "exports have",
                    remedy="get the file again",
                )
        if not self._parquet.schema_arrow.equals(_schema(self._pa, view=self.header.view)):
            raise ExportError("the Parquet file has other columns than exports have", remedy="get the file again")

    def items(self) -> Iterator[Record | Damage]:
        """All messages in order, and in their places what was altered."""
        if self._altered:
            yield Damage(self._altered, 0, 0, "its SHA-256 is another")
            return
        whole = sha256()
        start, sound = 0, True
        for number, (end, first, last, said) in enumerate(self._groups):
            part = sha256()
            for chunk in _chunks(self._file, start, end):
                part.update(chunk)
                whole.update(chunk)
            damage: Damage | None = None
            if part.hexdigest() != said:
                place = f"bytes {start} to {end - 1}, row group {number + 1}"
                damage = Damage(place, first, last, "their SHA-256 is another")
                sound = False
            start = end
            yield from self._group(number, damage)
            self.position = end
        if not self._groups:
            for chunk in _chunks(self._file, 0, len(MAGIC)):
                whole.update(chunk)
        if sound and whole.hexdigest() != self._end.sha256:
            yield Damage(f"bytes 0 to {start - 1}", 0, 0, "the SHA-256 of all row groups is another")
        elif sound:
            self.end = self._end

    def _group(self, number: int, damage: Damage | None) -> Iterator[Record | Damage]:
        named = 0
        try:
            table = self._parquet.read_row_group(number)
            times = table["recorded_at"].cast(self._pa.int64()).to_pylist()
            for item in _rows(table, times, self.header.view, self._groups[number], number):
                named += isinstance(item, Damage)
                yield item
        except Exception as error:  # bytes that were altered may fail anywhere in the reading
            if damage is None:
                raise ExportError(
                    f"row group {number + 1} cannot be read: {str(error)[:80]}", remedy="get the file again"
                ) from error
            named = 0
        if damage is not None and not named:
            yield damage


def _rows(
    table: Any, times: list[int], has_view: bool, group: tuple[int, int, int, str], number: int
) -> Iterator[Record | Damage]:
    _, first, last, _ = group
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "recorded_at"}
    views = columns["view"] if has_view else [None] * len(times)
    rows = zip(
        columns["sequence"], times, columns["subject"], columns["subject_bytes"], columns["headers"], columns["body"],
        columns["leaf"], views, strict=True,
    )  # fmt: skip
    for place, (sequence, moment, subject, raw, headers, body, leaf, view) in enumerate(rows):
        record = Record(sequence, moment, raw if raw is not None else subject.encode(), headers, body)
        if leaf_of(record) != leaf:
            wrong = "its leaf hash is another"
        elif has_view and view != view_of(body):
            wrong = "its view shows something else than its body says"
        elif _name(record.subject) != (subject, raw):
            wrong = "its subject is written in two ways"
        else:
            yield record
            continue
        where = f"row group {number + 1}, row {place + 1}"
        if last - first + 1 == len(times):  # its own sequence may be what was altered
            yield Damage(where, first + place, first + place, wrong)
        else:
            yield Damage(where, first, last, wrong)


def _name(subject: bytes) -> tuple[str, bytes | None]:
    try:
        return subject.decode(), None
    except UnicodeDecodeError:
        return subject.decode("utf-8", "replace"), subject


def _check_end(file: BinaryIO, size: int) -> None:
    """Raise ExportError unless there is a footer."""
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    if tail[4:] != MAGIC or not 0 < int.from_bytes(tail[:4], "little") <= min(size - 12, _MAX_FOOTER_BYTES):
        raise ExportError(
            f"the Parquet file has no end: it is cut short, or its last 8 of {size} bytes were altered",
            remedy="get the file again",
        )


def _check_groups(groups: list[tuple[int, int, int, str]], size: int) -> None:
    """Raise ValueError unless each ends after the one before, and in the file."""
    ends = [0, *(end for end, _, _, _ in groups), size]
    if any(end <= before for before, end in pairwise(ends)):
        raise ValueError(ends[-2])


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(min(_CHUNK, end - start))):
        start += len(chunk)
        yield chunk


class _Sink(io.RawIOBase):
    """Passes bytes on to the file, counting and hashing those before the footer."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.whole, self.part = sha256(), sha256()
        self.data_bytes = 0
        self.finishing = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if not self.finishing:
            self.whole.update(data)
            self.part.update(data)
            self.data_bytes += size
        self._file.write(data)
        return size

    def cut(self) -> int:
        """Bytes so far."""
        return self.data_bytes

    def close(self) -> None:
        """The file stays open: it is the caller's."""
