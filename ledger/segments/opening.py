"""Finding the segments of a generation whose stream was dropped, wherever it was said that they are."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError
from cuebook.events.past import Generation, Past
from cuebook.ledger.errors import ExportError, SegmentsMissingError, TamperedError
from cuebook.ledger.segments.bucket import BUCKET, BucketStore
from cuebook.ledger.segments.cache import Cache
from cuebook.ledger.segments.past import SegmentPast, SegmentReader
from cuebook.ledger.segments.shelf import Shelf, read_shelf
from cuebook.ledger.segments.store import DIRECTORY, SETTING, DirectoryStore, SegmentStore

__all__ = ["SegmentOpener", "default_bucket", "store_at", "written_place"]


def default_bucket(space: str) -> str:
    """Where segments go that were not sent elsewhere."""
    return f"{space}_segments"


def store_at(connection: Connection, place: str) -> SegmentStore:
    """The store that was written down as `place`. Raises ConfigurationError."""
    if place.startswith(BUCKET):
        return BucketStore(connection, place.removeprefix(BUCKET))
    if place.startswith(DIRECTORY):
        return DirectoryStore(Path(place.removeprefix(DIRECTORY).partition(" on host ")[0]))
    raise ConfigurationError(f"segments in {place!r} cannot be read by this release", remedy="upgrade cuebook")


def written_place(store: SegmentStore) -> str:
    """How a place is written down: a directory with the machine that it is on."""
    return f"{store.place} on host {socket.gethostname()}" if isinstance(store, DirectoryStore) else store.place


@dataclass(frozen=True, slots=True)
class SegmentOpener:
    """Opens generations that are only in segments; see `events.past.PastOpener`.

    `directory`: where to look first, as a person has set it; empty: only where the stream's metadata say.
    """

    directory: str = ""

    async def __call__(self, connection: Connection, space: str, about: Generation) -> Past:
        """Raises SegmentsMissingError, saying what is missing and what to set; TamperedError for other segments."""
        what = f"sequences {about.first} to {about.last} of space {space!r} are only in segments"
        if not about.segments:
            raise ConfigurationError(
                f"stream {about.stream} is gone: generation {about.generation} of space {space!r}, sequences "
                f"{about.first} to {about.last}, was never dropped and is not on the server",
                remedy="restore that stream from its backup",
            )
        shelf, reader = await self._shelf(connection, space, about, what)
        if about.digest and shelf.digest(about.first, about.last) != about.digest:
            _opened(connection).pop((space, shelf.store.place), None)
            raise TamperedError(
                f"the segments in {shelf.store.place} are not those for which stream {about.stream} was dropped",
                remedy=f"say where the others are: {SETTING}; 'cuebook space segments verify' checks what is there",
            )
        return SegmentPast(
            reader,
            shelf.covering(about.first, about.last),
            generation=about.generation,
            name=shelf.store.place,
            first=about.first,
            last=about.last,
        )

    async def _shelf(
        self, connection: Connection, space: str, about: Generation, what: str
    ) -> tuple[Shelf, SegmentReader]:
        """All manifests in a place are read once over a connection, not once for each generation."""
        stores: list[SegmentStore] = [DirectoryStore(Path(self.directory))] if self.directory else []
        stores.append(store_at(connection, about.segments))
        reasons: list[str] = []
        altered: list[Exception] = []
        for store in stores:
            key, opened = (space, store.place), _opened(connection)
            known = opened.get(key)
            if known is not None and not known[0].gaps(about.first, about.last):
                return known
            damaged: list[Exception] = []
            try:
                shelf = await read_shelf(store, space, damaged=damaged)  # of another generation, it does no harm here
            except ConfigurationError as error:
                reasons.append(f"{store.place}: {error}")
                continue
            gaps = shelf.gaps(about.first, about.last)
            if not gaps:
                opened[key] = shelf, SegmentReader(shelf.store, Cache())
                return opened[key]
            reasons += [f"{store.place}: {error}" for error in damaged[:1]]
            altered += [error for error in damaged if isinstance(error, ExportError | TamperedError)]
            reasons.append(f"{store.place} lacks {', '.join(map(str, gaps[:3]))}")
        if altered:
            raise altered[0]
        raise SegmentsMissingError(
            f"{what}, in {about.segments}, and cannot be read there ({'; '.join(reasons)})",
            remedy=f"bring the segments here and say where they are: {SETTING}",
        )


def _opened(connection: Connection) -> dict[tuple[str, str], tuple[Shelf, SegmentReader]]:
    found: dict[tuple[str, str], tuple[Shelf, SegmentReader]] = connection.shared.setdefault("segments", {})
    return found
