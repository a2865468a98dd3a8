"""Opening and writing export files, whatever their format."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from cuebook.events.errors import ConfigurationError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.jsonl import JsonlReader, JsonlWriter
from cuebook.ledger.manifest import Damage, End, Header
from cuebook.ledger.record import Record

__all__ = ["FORMATS", "Reader", "Writer", "format_of", "new_export", "open_export", "sound_records"]

FORMATS = ("jsonl", "parquet")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"PK\x03\x04": "zip"}
_PARQUET = b"PAR1"


class Reader(Protocol):
    """An export that is open for reading. `end` is there once all was read and the file is as it was written."""

    header: Header
    end: End | None

    @property
    def name(self) -> str:
        """The format."""

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""

    def items(self) -> Iterator[Record | Damage]:
        """All messages in order, and in their places what is not as it was written. May be called once."""


class Writer(Protocol):
    """An export that is being written."""

    def add(self, records: Iterable[Record]) -> None:
        """Write messages, in order."""

    def close(self) -> End:
        """Write the end."""


def format_of(path: str, said: str = "") -> str:
    """The format that was asked for, or that the file's name says. Raises ExportError."""
    named = "parquet" if Path(path).suffix in (".parquet", ".pq") else "jsonl"
    if (found := said or named) not in FORMATS:
        raise ExportError(f"there is no format {said!r}", remedy=f"use {' or '.join(FORMATS)}")
    if Path(path).suffix in (".gz", ".zst", ".bz2"):
        raise ExportError(
            f"{path!r}: exports are not compressed here", remedy="pack the file afterwards, or export to .parquet"
        )
    return found


@contextlib.contextmanager
def open_export(path: str | Path) -> Iterator[Reader]:
    """Open an export file; `-` is stdin, for JSONL.

    Raises ExportError for what is none, is newer or is cut short, TamperedError.
    """
    if path == "-":
        yield JsonlReader(sys.stdin.buffer)
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below, also when reading its beginning fails
    except OSError as error:
        raise ExportError(
            f"{str(path)!r} cannot be read: {error.strerror}", remedy="name the file of an export"
        ) from error
    with file:
        yield _reader(file, str(path))


def _reader(file: BinaryIO, path: str) -> Reader:
    start = file.read(4)
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4))
    end = file.read(4)
    file.seek(0)
    try:
        _refuse(start)
        if _PARQUET in (start, end):
            from cuebook.ledger.parquet import ParquetReader

            return ParquetReader(file)
        return JsonlReader(file)
    except (ExportError, TamperedError) as error:
        raise type(error)(f"{path}: {error}", remedy=error.remedy) from error


def _refuse(start: bytes) -> None:
    if not start:
        raise ExportError("the file is empty", remedy="make the export again")
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            raise ExportError(f"the file is packed with {program}", remedy="unpack it first")


@contextlib.contextmanager
def new_export(path: str, header: Header, name: str) -> Iterator[Writer]:
    """A new export file, which gets its name when the block ends well; `-` is stdout, for JSONL.

    Raises ConfigurationError when it cannot be written, or somebody else is at it.
    """
    if path == "-":
        if name != "jsonl":
            raise ExportError("Parquet cannot be written to a pipe", remedy="name a file")
        yield JsonlWriter(sys.stdout.buffer, header)
        return
    part = Path(f"{path}.part")
    try:
        with _alone(part) as file:
            try:
                if name == "jsonl":
                    yield JsonlWriter(file, header)
                else:
                    from cuebook.ledger.parquet import ParquetWriter

                    yield ParquetWriter(file, header)
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigurationError(f"{path!r} cannot be written: {error}", remedy="choose another file") from error


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """A file to be written, empty, which nobody else writes now. Raises ConfigurationError, OSError."""
    import fcntl

    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), part.stat())  # else theirs has got its name meanwhile
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise ConfigurationError(
                f"somebody else is writing to {str(part)!r}", remedy="wait until they are done, or choose another file"
            )
        file.truncate(0)
        yield file


def sound_records(reader: Reader) -> Iterator[Record]:
    """All messages of an export that is whole and unaltered, as far as it can tell by itself. Raises TamperedError."""
    for item in reader.items():
        if isinstance(item, Damage):
            raise TamperedError(f"{item.place}: {item.reason}", remedy="get the file again")
        yield item
