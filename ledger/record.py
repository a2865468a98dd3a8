"""One message as the log holds it, and the bytes of it that are sealed. docs/audit.md has them with test vectors."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64encode
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

__all__ = ["DOMAIN", "Record", "is_of", "leaf_data", "leaf_of", "parse_leaf_data", "view_of"]

DOMAIN = b"cuebook-leaf-v1\n"
_FIXED = struct.Struct(">QQIII")
_MAX_BRACKETS = 500
_LEAF = b"\0" + DOMAIN
_pack = _FIXED.pack
_blank = re.compile(rb"[ \t\r\n]").search


class Record(NamedTuple):
    """A stored message, byte for byte. `recorded_ns`: when the server stored it, nanoseconds since 1970.

    `headers` is the raw block with its first line, empty when there is none.
    """

    sequence: int
    recorded_ns: int
    subject: bytes
    headers: bytes
    body: bytes


def is_of(record: Record, space: str) -> bool:
    """Whether a log of a space can hold it: its subject is filed there, and is one word to the server."""
    return record.subject.startswith(f"{space}.".encode()) and _blank(record.subject) is None


def leaf_data(record: Record) -> bytes:
    """What stands for the message in the tree: a domain, sequence, time, three lengths, then subject, headers, body."""
    sequence, recorded_ns, subject, headers, body = record
    fixed = _pack(sequence, recorded_ns, len(subject), len(headers), len(body))
    return DOMAIN + fixed + subject + headers + body


def leaf_of(record: Record) -> bytes:
    """The hash of its leaf."""
    sequence, recorded_ns, subject, headers, body = record
    fixed = _pack(sequence, recorded_ns, len(subject), len(headers), len(body))
    return sha256(b"".join((_LEAF, fixed, subject, headers, body))).digest()


def parse_leaf_data(data: bytes) -> Record:
    """The message that leaf data stands for. Raises ValueError."""
    start = len(DOMAIN) + _FIXED.size
    if not data.startswith(DOMAIN) or len(data) < start:
        raise ValueError("no leaf of a cuebook log")
    sequence, recorded_ns, subject, headers, body = _FIXED.unpack_from(data, len(DOMAIN))
    if len(data) != start + subject + headers + body:
        raise ValueError("the leaf's lengths do not add up")
    cut = start + subject
    return Record(sequence, recorded_ns, data[start:cut], data[cut : cut + headers], data[cut + headers :])


def view_of(body: bytes) -> str:
    """The body as JSON for people and their tools; `null` where it is neither text nor one of our envelopes.

    It depends on nothing but the body: an envelope is shown as it is packed, whatever this release knows of its type.
    """
    try:
        if body[:1] and body[0] & 0xF0 == 0x90:
            shown: Any = msgpack.unpackb(msgpack.unpackb(body, max_ext_len=0)[3], max_ext_len=0)
        else:
            shown = _text(body.decode("utf-8"))
        return _dumps(shown)
    except Exception:  # noqa: BLE001 - what nobody can read is shown as such; the bytes are there
        return "null"


def _text(text: str) -> Any:
    """JSON as what it says, any other text as it is; how deep Python's parser goes shall make no difference."""
    if text[:1] not in "{[" or text.count("[") + text.count("{") > _MAX_BRACKETS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    raise TypeError(type(value).__name__)


_dumps = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_other).encode
