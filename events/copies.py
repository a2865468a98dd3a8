"""What a message in a copy of a log was where it came from: the server gives it a new time, and acts on its headers.

So a copy stores the original's place, time and headers in one header of its own, which means something only in streams
that are marked as an import. Everything that reads such a stream sees the original.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from typing import NamedTuple

__all__ = ["IMPORT", "Original", "copy_guard", "copy_headers", "original_of"]

IMPORT = "cuebook.import"
"""Key in the metadata of a stream that was filled from an export: what was imported, as JSON."""
_HEADER = re.compile(rb"\r\nCuebook-Original: 1 ([0-9]{1,19}) ([0-9]{1,19}) ([A-Za-z0-9+/=]*)\r\n")


class Original(NamedTuple):
    """Sequence, nanoseconds since 1970, and raw headers (empty: none) that the message had."""

    sequence: int
    recorded_ns: int
    headers: bytes


def copy_headers(original: Original, name: bytes, guard: bytes) -> bytes:
    """The header block of a copy. `name`: its message id; `guard`: the condition for storing it, from `copy_guard`."""
    sequence, recorded_ns, headers = original
    return b"NATS/1.0\r\n%bNats-Msg-Id: %b\r\nCuebook-Original: 1 %d %d %b\r\n\r\n" % (
        guard, name, sequence, recorded_ns, b64encode(headers)
    )  # fmt: skip


def copy_guard(before: bytes, last: int, everything: str) -> bytes:
    """The condition of storing a copy: behind the one named `before` or, where that is empty, where all ends at `last`.

    To expect sequences all along would not do: with somebody else's message in the place of one of ours, those that
    follow would be taken. `everything`: the filter for all of the stream, since the server takes an expected last
    sequence of 0 for none; measured on 2.15.1.
    """
    if before:
        return b"Nats-Expected-Last-Msg-Id: %b\r\n" % before
    if last:
        return b"Nats-Expected-Last-Sequence: %d\r\n" % last
    scope = everything.encode()
    return b"Nats-Expected-Last-Subject-Sequence: 0\r\nNats-Expected-Last-Subject-Sequence-Subject: %b\r\n" % scope


def original_of(headers: bytes | None) -> Original | None:
    """What a copy's headers say; None when they are not those of a copy."""
    found = _HEADER.search(headers or b"")
    if found is None:
        return None
    sequence, recorded_ns, encoded = found.groups()
    try:
        return Original(int(sequence), int(recorded_ns), b64decode(encoded, validate=True))
    except binascii.Error:
        return None
