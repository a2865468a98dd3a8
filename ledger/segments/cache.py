"""Parts of segments that were fetched before, in a folder of bounded size, named by their SHA-256.

What is read from it has that SHA-256 or is not taken, so that a cache can be wrong without harm; it can be deleted at
any time, and a folder that cannot be written is as if it were empty.
"""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256
from pathlib import Path
from typing import Final

__all__ = ["Cache", "cache_folder"]

MAX_BYTES: Final = 256 * 1024 * 1024
_LOOK_EVERY: Final = 200
"""How many parts come in before the folder is measured again."""


def cache_folder() -> Path:
    """Where programs of this user keep what they can fetch again. Source: XDG Base Directory Specification."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    base = Path(named) if named.startswith("/") else Path(home) / ".cache" if home else Path("/var/cache")
    return base / "cuebook" / "segments"


class Cache:
    """Parts by their SHA-256."""

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder if folder is not None else cache_folder()
        self._max_bytes = max_bytes
        self._until_look = 0

    def get(self, digest: bytes) -> bytes | None:
        """The part with this SHA-256, if it is there."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if sha256(data).digest() != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what was used last is removed last
        return data

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep a part, if that is possible."""
        path = self._path(digest)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
            self._until_look -= 1
            if self._until_look < 0:
                self._until_look = _LOOK_EVERY
                self._shrink()
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / name[2:]

    def _shrink(self) -> None:
        """Remove the oldest until a tenth is free."""
        files = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= self._max_bytes:
            return
        for _, size, path in sorted(files):
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
            if total <= self._max_bytes * 9 // 10:
                return
