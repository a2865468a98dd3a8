"""All segments of a log that are in one place, by their manifests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cuebook.events.errors import ConfigurationError, NotFoundError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.segments.manifest import Segment, digest_of
from cuebook.ledger.segments.store import SegmentStore

__all__ = ["Gap", "Shelf", "read_shelf"]

_MAX_MANIFEST_BYTES = 64 * 1024
_AT_ONCE = 64
"""Manifests that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Sequences that no segment has."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"sequence {self.first}" if self.first == self.last else f"sequences {self.first} to {self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """Segments in order, without those that only repeat what another has."""

    store: SegmentStore
    segments: Sequence[Segment]

    def covering(self, first: int, last: int) -> list[Segment]:
        """Those that hold something of a range."""
        return [one for one in self.segments if one.last >= first and one.first <= last]

    def gaps(self, first: int, last: int) -> list[Gap]:
        """What of a range no segment has."""
        found, expected = [], first
        for one in self.covering(first, last):
            if one.first > expected:
                found.append(Gap(first=expected, last=one.first - 1))
            expected = one.last + 1
        if expected <= last:
            found.append(Gap(first=expected, last=last))
        return found

    def digest(self, first: int, last: int) -> str:
        """What a range is held against later; see `digest_of`."""
        return digest_of(self.covering(first, last))


async def read_shelf(store: SegmentStore, space: str = "", *, damaged: list[Exception] | None = None) -> Shelf:
    """Read all manifests in a place. What is wrong with one is raised, or put into `damaged`.

    Raises ExportError, TamperedError; ConfigurationError for segments of another space than the one named.
    """
    found: list[Segment] = []
    names = await store.names()
    for place, name in enumerate(names):
        if not place % _AT_ONCE:
            reading = [store.read_all(one, _MAX_MANIFEST_BYTES) for one in names[place : place + _AT_ONCE]]
            texts = await asyncio.gather(*reading, return_exceptions=True)
        try:
            segment = _parsed(store, name, texts[place % _AT_ONCE], space)
            _check_order(found, segment)
        except (ConfigurationError, ExportError, NotFoundError, TamperedError) as error:
            if damaged is None:
                raise
            damaged.append(error)
            continue
        found.append(segment)
    return Shelf(store=store, segments=found)


def _check_order(found: Sequence[Segment], segment: Segment) -> None:
    if found and segment.first <= found[-1].last:
        raise TamperedError(
            f"{found[-1].name} and {segment.name} hold the same sequences, from {segment.first} on",
            remedy="remove the one that does not belong there",
        )
    if found and segment.first == found[-1].last + 1 and segment.before != found[-1].after:
        raise TamperedError(
            f"{segment.name} does not continue {found[-1].name}: they are of different logs",
            remedy="remove the one that does not belong there",
        )


def _parsed(store: SegmentStore, name: str, text: bytes | BaseException, space: str) -> Segment:
    if isinstance(text, BaseException):
        raise text
    segment = Segment.parse(text, f"{store.place}/{name}")
    if space and segment.space != space:
        raise ConfigurationError(
            f"{name} in {store.place} is of space {segment.space!r}, not of {space!r}",
            remedy="say where this space's segments are: --segments DIR, or CUEBOOK_SEGMENTS",
        )
    return segment
