"""Where the files of segments are kept: a directory, or a bucket of the object store. Any part of a file can be read.

A file is there whole or not at all, in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from cuebook.events.errors import ConfigurationError, NotFoundError
from cuebook.ledger.segments.manifest import range_of

__all__ = ["DIRECTORY", "ELSEWHERE", "SETTING", "DirectoryStore", "SegmentFileMissingError", "SegmentStore"]

DIRECTORY: Final = "directory "
"""What the place of a directory begins with, where it is written down."""
SETTING: Final = "--segments DIR, or CUEBOOK_SEGMENTS"
"""How one says where segments are."""
_PART: Final = ".part"
ELSEWHERE: Final = "get the file again from another copy, or write it again with 'cuebook space archive'"


class SegmentFileMissingError(NotFoundError):
    """A file that should be there is not, or is shorter than it should be."""


class SegmentStore(Protocol):
    """Keeps files by name."""

    @property
    def place(self) -> str:
        """What people, and the metadata of the stream, call it."""

    @property
    def remote(self) -> bool:
        """Whether reading twice is dearer than a copy on this machine."""

    async def names(self) -> list[str]:
        """The manifests that are there, sorted; other files are none of ours. Raises ConfigurationError."""

    async def read(self, name: str, start: int, size: int) -> bytes:
        """A part of a file. Raises SegmentFileMissingError, UnavailableError."""

    async def read_all(self, name: str, most: int) -> bytes:
        """A small file, of `most` bytes at most. Raises as `read`."""

    async def size(self, name: str) -> int:
        """How many bytes a file has. Raises as `read`."""

    async def put(self, name: str, data: Path | bytes) -> None:
        """Store a file, in place of one of this name. Raises ConfigurationError, UnavailableError."""

    def writing(self) -> contextlib.AbstractAsyncContextManager[Path]:
        """A folder for files that are being written, and that nobody else writes now; removes what a crash has left."""


class DirectoryStore:
    """A directory on this machine, or one that is mounted."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def place(self) -> str:
        """See SegmentStore."""
        return f"{DIRECTORY}{self.path}"

    async def names(self) -> list[str]:
        """See SegmentStore."""
        try:
            return sorted(entry.name for entry in self.path.iterdir() if range_of(entry.name))
        except OSError as error:
            raise ConfigurationError(
                f"the directory of segments {str(self.path)!r} cannot be read: {error.strerror}",
                remedy="say where the segments are: --segments DIR, or CUEBOOK_SEGMENTS",
            ) from error

    async def read(self, name: str, start: int, size: int) -> bytes:
        """See SegmentStore."""
        return await asyncio.to_thread(self._read, name, start, size)

    async def read_all(self, name: str, most: int) -> bytes:
        """See SegmentStore."""
        return await asyncio.to_thread(self._read, name, 0, most, exact=False)

    async def size(self, name: str) -> int:
        """See SegmentStore."""
        try:
            return (self.path / name).stat().st_size
        except OSError as error:
            raise SegmentFileMissingError(f"{name} is not in {self.path}", remedy=ELSEWHERE) from error

    async def put(self, name: str, data: Path | bytes) -> None:
        """See SegmentStore."""
        try:
            await asyncio.to_thread(self._put, name, data)
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path / name)!r} cannot be written: {error.strerror}", remedy="choose another --to"
            ) from error

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Path]:
        """See SegmentStore."""
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("ab")
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path)!r} cannot be written to: {error.strerror}", remedy="choose another --to"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(
                    f"somebody else is writing segments to {str(self.path)!r}", remedy="wait until they are done"
                ) from error
            for left in self.path.glob(f"*{_PART}"):
                left.unlink(missing_ok=True)
            yield self.path

    def _read(self, name: str, start: int, size: int, *, exact: bool = True) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                file.seek(start)
                found = file.read(size)
        except FileNotFoundError as error:
            raise SegmentFileMissingError(f"{name} is not in {self.path}", remedy=ELSEWHERE) from error
        except OSError as error:
            raise ConfigurationError(
                f"{str(self.path / name)!r} cannot be read: {error.strerror}", remedy=ELSEWHERE
            ) from error
        if exact and len(found) < size:
            raise SegmentFileMissingError(
                f"{name} in {self.path} is cut short: it ends at byte {start + len(found)}, of {start + size} at least",
                remedy=ELSEWHERE,
            )
        return found

    def _put(self, name: str, data: Path | bytes) -> None:
        part = data if isinstance(data, Path) else self.path / f"{name}{_PART}"
        if isinstance(data, bytes):
            part.write_bytes(data)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.path / name)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
