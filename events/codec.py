"""Bytes to envelopes and back.

Native body: a MessagePack array `[1, key_id, signature, inner]`, where `inner` is a packed map with the keys `id`,
`type`, `time` (microseconds since 1970), `source`, `correlation`, `causation`, `traceparent` and `data`; absent keys
mean empty. A body that is not such an array is read as JSON: a CloudEvent in structured mode (NATS binding 1.0.3, or a
JSON object with `specversion`), in binary mode (`ce-` headers), or plain data. So any NATS client can take part.

Limits come before anything else: 256 KiB, nesting of 16, 4,096 items in a list or map, no extension types, no duplicate
keys, finite numbers of at most 64 bits, text that is Unicode. What is written here can be read here.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote_to_bytes

import msgpack

from cuebook.events.catalogue import CATALOGUE, Catalogue, to_data
from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError, UnknownEventError
from cuebook.events.facts import (
    AgentRegistered,
    Event,
    OutsideEvent,
    RunStuck,
    TaskAssigned,
    TaskCopied,
    TaskRequested,
)
from cuebook.events.subjects import Address, Subjects

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_ID_LENGTH",
    "MAX_ITEMS",
    "check_data",
    "decode",
    "encode",
    "pack_data",
    "parse_headers",
    "unpack_data",
]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
"""Of what users say. The events that carry it (`input`, `output`) may nest `WRAPPING` deeper when they are read."""
WRAPPING = 4
"""A compensation's input within its task's data is the deepest: data, input, {input, output}, the user's."""
MAX_ITEMS = 4_096
"""In one list or map. MessagePack announces lengths before content: this bounds what a lie can make us allocate."""
MAX_CONTAINERS = 16_384
"""Lists and maps at one level of nesting; in 256 KiB more of them would be all but empty."""
MAX_MAPS = 2 * MAX_CONTAINERS
MAX_ID_LENGTH = 128
MAX_NAME_LENGTH = 256
"""Of a type or a source, in characters."""
MAX_HEADER_LENGTH = 4_096
"""Of one CloudEvents attribute as it comes, percent-encoded: enough for the longest name in any script."""
MAX_TIME = 253_402_300_799_999_999
"""The last microsecond of the year 9999, after which Python's and PostgreSQL's clocks end."""

_VERSION = 1
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,64})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_WRAPPERS = (AgentRegistered, RunStuck, TaskAssigned, TaskCopied)
_SCALARS = frozenset({str, int, bool, type(None)})
_CONTAINERS = (dict, list, tuple)
_pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(
    event: Event,
    *,
    event_id: str,
    source: str,
    correlation_id: str = "",
    causation_id: str = "",
    traceparent: str = "",
    event_type: str = "",
    now: int | None = None,
    checked: bool = False,
) -> bytes:
    """Encode an event. `correlation_id` defaults to the event's own id: it begins a conversation.

    `now`: microseconds since 1970, default the clock's. `checked`: the data was read from the log, or made here of
    what was without nesting it deeper, so it need not be looked at again. Raises PoisonMessageError when the body
    would exceed 256 KiB or holds something that `decode` would refuse.
    """
    event_type = event_type or event.event_type
    correlation_id = correlation_id or event_id
    _check_names(event_id, event_type, source, correlation_id, causation_id)
    data = to_data(event)
    if not checked:
        check_data(data, _room_for(event))
    inner = {
        "id": event_id,
        "type": event_type,
        "time": time.time_ns() // 1000 if now is None else now,
        "source": source,
        "correlation": correlation_id,
        "data": data,
    }
    if causation_id:
        inner["causation"] = causation_id
    if traceparent:
        inner["traceparent"] = traceparent
    body = pack_data([_VERSION, "", b"", pack_data(inner)])
    if len(body) > MAX_BYTES:
        raise _too_large(event_type, len(body))
    return body


def _room_for(event: Event) -> int:
    """How deep the data of an event may nest when it is written: what it carries must still fit a compensation."""
    if isinstance(event, OutsideEvent):
        return MAX_DEPTH
    wraps = isinstance(event, _WRAPPERS) or (isinstance(event, TaskRequested) and event.compensates is not None)
    return MAX_DEPTH + (WRAPPING if wraps else 1)


def pack_data(data: Any) -> bytes:
    """Pack plain data. Raises PoisonMessageError for what MessagePack cannot hold."""
    try:
        return _pack(data)
    except OverflowError as error:
        raise PoisonMessageError("an integer has more than 64 bits", remedy="send large integers as strings") from error
    except UnicodeEncodeError as error:
        raise PoisonMessageError("text holds what is not Unicode", remedy="send bytes as base64") from error
    except (TypeError, ValueError) as error:
        raise PoisonMessageError(f"cannot be packed: {error}", remedy="use only JSON types") from error


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(
    subjects: Subjects,
    subject: str,
    body: bytes,
    *,
    sequence: int,
    recorded_at: int,
    headers: bytes | None = None,
    catalogue: Catalogue = CATALOGUE,
) -> Envelope:
    """Decode one stored message; what is stored in an older version comes as the event of the newest.

    Raises PoisonMessageError, or UnknownEventError for a type of a newer release.
    """
    address = subjects.parse(subject)
    if len(body) > MAX_BYTES:
        raise _too_large("the message", len(body))
    if body and body[0] & 0xF0 == 0x90:  # a MessagePack array, which no UTF-8 text begins with
        return _decode_native(catalogue, address, subject, body, sequence, recorded_at)
    return _decode_foreign(catalogue, address, subject, body, sequence, recorded_at, parse_headers(headers))


def unpack_data(data: bytes) -> Any:
    """Unpack MessagePack under the limits. Raises PoisonMessageError."""
    try:
        value = _unpack(data)
        if _pack(value) != data:  # not as we write it: perhaps with a key twice, of which unpacking keeps the last
            _unpack(data, object_pairs_hook=_Maps().unique)
    except PoisonMessageError:
        raise
    except Exception as error:  # msgpack raises ValueError, its own classes, UnicodeDecodeError and RecursionError
        raise PoisonMessageError(f"malformed MessagePack: {str(error)[:200] or type(error).__name__}") from error
    return value


def check_data(data: Any, max_depth: int = MAX_DEPTH) -> None:
    """Raise PoisonMessageError unless `data` is what JSON can say, within the limits of depth and number of items."""
    level: list[Any] = [(data,)]
    for _ in range(max_depth + 1):
        deeper: list[Any] = []
        for container in level:
            if len(container) > MAX_ITEMS:
                raise PoisonMessageError(f"{len(container)} items in one list or map are more than {MAX_ITEMS}")
            if len(deeper) > MAX_CONTAINERS:
                raise PoisonMessageError(f"there are more than {MAX_CONTAINERS} lists and maps side by side")
            for value in _values(container) if isinstance(container, dict) else container:
                kind = type(value)
                if kind in _SCALARS:
                    continue
                if kind is dict or kind is list or isinstance(value, _CONTAINERS):
                    deeper.append(value)
                elif kind is not float or value - value != 0.0:  # infinities and NaN
                    _check_scalar(value)
        if not deeper:
            return
        level = deeper
    raise PoisonMessageError(f"the data is nested deeper than {max_depth}")


def parse_headers(headers: bytes | None) -> dict[str, str]:
    """A NATS header block as a dict with lower-case names. Of duplicates the first counts, as on the server.

    Bytes that are not UTF-8 come as lone surrogates (PEP 383), which no name or id may contain.
    """
    found: dict[str, str] = {}
    if headers:
        for line in headers.split(b"\r\n")[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                found.setdefault(
                    name.strip().decode("ascii", "replace").lower(), value.strip().decode("utf-8", "surrogateescape")
                )
    return found


def _decode_native(
    catalogue: Catalogue, address: Address, subject: str, body: bytes, sequence: int, recorded_at: int
) -> Envelope:
    outer = unpack_data(body)
    if not outer or type(outer[0]) is not int:
        raise PoisonMessageError("the envelope does not begin with its version")
    if outer[0] != _VERSION:
        raise UnknownEventError(f"envelope version {outer[0]} is not known", remedy="read it with a newer release")
    if len(outer) != 4 or not (type(outer[1]) is str and type(outer[2]) is type(outer[3]) is bytes):
        raise PoisonMessageError("the envelope is not [version, key id, signature, packed map]")
    inner = unpack_data(outer[3])
    if type(inner) is not dict:
        raise PoisonMessageError("the envelope's inner part is not a map")
    get = inner.get
    event_id, event_type, source = get("id"), get("type"), get("source", "")
    correlation_id, causation_id, traceparent = get("correlation", ""), get("causation", ""), get("traceparent", "")
    moment, data = get("time", recorded_at), get("data")
    if not (
        type(event_id) is type(event_type) is type(source) is str
        and type(correlation_id) is type(causation_id) is type(traceparent) is str
        and type(moment) is int
    ):
        raise PoisonMessageError("an envelope field is missing or of the wrong type", remedy="see docs/wire-format.md")
    return _envelope(
        catalogue, address, subject, sequence, recorded_at,
        event_id, event_type, source, moment, correlation_id, causation_id, traceparent, data,
        outer[1], outer[2],
    )  # fmt: skip


def _decode_foreign(
    catalogue: Catalogue,
    address: Address,
    subject: str,
    body: bytes,
    sequence: int,
    recorded_at: int,
    headers: dict[str, str],
) -> Envelope:
    """Plain JSON or a CloudEvent. Without an id of its own the event is named by its place in the log."""
    content = _parse_json(body) if body else {}
    if headers.get("content-type", "").lower().startswith("application/cloudevents") or (
        "ce-specversion" not in headers and type(content) is dict and {"specversion", "type"} <= content.keys()
    ):
        if type(content) is not dict:
            raise PoisonMessageError("a structured CloudEvent must be a JSON object; batches are not read")
        attributes, data = content, _structured_data(content)
    elif "ce-specversion" in headers:
        attributes = {name[3:]: _percent_decode(value) for name, value in headers.items() if name.startswith("ce-")}
        data = content
    else:
        attributes, data = {}, content
    if attributes:
        _check_cloud_event(attributes)

    def attribute(name: str, otherwise: str) -> str:
        value = attributes.get(name, otherwise)
        if type(value) is not str:
            raise PoisonMessageError(f"the CloudEvent's attribute {name!r} is not a string")
        return value

    event_id = attribute("id", headers.get("nats-msg-id", "")) or f"seq-{sequence}"
    event_type = attribute("type", "")
    if address.kind != "event" and not event_type.startswith(f"{address.kind}.{address.fact}.v"):
        event_type = ""  # the subject says what it is; the author's own word for it does not matter
    traceparent = attribute("traceparent", headers.get("traceparent", ""))
    return _envelope(
        catalogue, address, subject, sequence, recorded_at,
        event_id,
        event_type or catalogue.event_type_of(address),
        attribute("source", "outside"),
        _parse_time(attributes["time"]) if "time" in attributes else recorded_at,
        attribute("correlationid", headers.get("cue-correlation-id", "")),
        attribute("causationid", headers.get("cue-causation-id", "")),
        traceparent if _TRACEPARENT.fullmatch(traceparent) else "",  # a bad one is ignored: W3C Trace Context 3.2
        data,
        "", b"",
    )  # fmt: skip


def _envelope(
    catalogue: Catalogue,
    address: Address,
    subject: str,
    sequence: int,
    recorded_at: int,
    event_id: str,
    event_type: str,
    source: str,
    moment: int,
    correlation_id: str,
    causation_id: str,
    traceparent: str,
    data: Any,
    key_id: str,
    signature: bytes,
) -> Envelope:
    correlation_id = correlation_id or event_id
    _check_names(event_id, event_type, source, correlation_id, causation_id)
    if not 0 <= moment <= MAX_TIME:
        raise PoisonMessageError(f"time {moment} is not between the years 1970 and 9999")
    check_data(data, MAX_DEPTH if address.kind == "event" else MAX_DEPTH + WRAPPING)
    return Envelope(
        id=event_id,
        event_type=event_type,
        time=moment,
        source=source,
        correlation_id=correlation_id,
        causation_id=causation_id,
        traceparent=traceparent,
        data=data,
        event=catalogue.parse(address, event_type, data),
        address=address,
        subject=subject,
        sequence=sequence,
        recorded_at=recorded_at,
        key_id=key_id,
        signature=signature,
    )


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_names(event_id: str, event_type: str, source: str, correlation_id: str, causation_id: str) -> None:
    if not (
        0 < len(event_id) <= MAX_ID_LENGTH
        and len(correlation_id) <= MAX_ID_LENGTH
        and len(causation_id) <= MAX_ID_LENGTH
        and len(source) <= MAX_NAME_LENGTH
        and 0 < len(event_type) <= MAX_NAME_LENGTH
    ):
        raise PoisonMessageError(
            f"an id is empty or longer than {MAX_ID_LENGTH} characters, or a type or source than {MAX_NAME_LENGTH}"
        )
    if not f"{event_id}{event_type}{source}{correlation_id}{causation_id}".isprintable():
        raise PoisonMessageError("an id, type or source holds characters that cannot be printed")


def _values(container: dict[Any, Any]) -> Iterable[Any]:
    try:
        "".join(container)  # the quickest way to see that all keys are strings
    except TypeError as error:
        raise PoisonMessageError("a key is not a string") from error
    return container.values()


def _check_scalar(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise PoisonMessageError(f"{value} is not a number that JSON can say")
    if not isinstance(value, str | int | float):
        raise PoisonMessageError(f"{type(value).__name__} is not a JSON type", remedy="use only JSON types")


def _check_cloud_event(attributes: dict[str, Any]) -> None:
    for name in ("specversion", "id", "source", "type"):
        if type(attributes.get(name)) is not str or not attributes[name]:
            raise PoisonMessageError(f"the CloudEvent has no attribute {name!r}")
    if attributes["specversion"] != "1.0":
        raise UnknownEventError(f"CloudEvents version {attributes['specversion'][:20]!r} is not known")


def _structured_data(content: dict[str, Any]) -> Any:
    if "data_base64" not in content:
        return content.get("data")
    try:
        return _parse_json(base64.b64decode(content["data_base64"], validate=True))
    except (TypeError, ValueError) as error:
        raise PoisonMessageError("the CloudEvent's data_base64 is not base64", remedy="send JSON as data") from error


def _parse_json(body: bytes) -> Any:
    try:
        content = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_Maps().unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except PoisonMessageError:
        raise
    except (ValueError, RecursionError) as error:
        raise PoisonMessageError(
            f"the body is neither an envelope nor JSON: {str(error)[:200] or type(error).__name__}",
            remedy="send a JSON object, a CloudEvent or an envelope; see docs/wire-format.md",
        ) from error
    if b"\\u" in body:
        pack_data(content)  # refuses halves of surrogate pairs, which JSON can spell and Unicode does not have
    return content


class _Maps:
    """Makes the maps of one message, while they are few."""

    def __init__(self) -> None:
        self._count = 0

    def unique(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count += 1
        if self._count > MAX_MAPS:
            raise PoisonMessageError(f"there are more than {MAX_MAPS} maps")
        found = dict(pairs)
        if len(found) != len(pairs):
            raise PoisonMessageError("a map has the same key twice")
        return found


def _refuse_extension(code: int, data: bytes) -> Any:  # noqa: ARG001 - as msgpack calls it
    raise PoisonMessageError(f"MessagePack extension type {code} is not allowed")


_unpack: Callable[..., Any] = functools.partial(
    msgpack.unpackb, ext_hook=_refuse_extension, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0
)


def _refuse_constant(name: str) -> Any:
    raise PoisonMessageError(f"{name} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise PoisonMessageError("an integer has more than 64 bits", remedy="send large integers as strings")
    return value


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise PoisonMessageError("a number is too large")
    return value


def _percent_decode(value: str) -> str:
    """CloudEvents NATS binding: header values are percent-encoded UTF-8; a quoted value is unquoted first."""
    if len(value) > MAX_HEADER_LENGTH:
        raise PoisonMessageError(f"a ce- header is longer than {MAX_HEADER_LENGTH} characters")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError as error:
        raise PoisonMessageError("a ce- header is not UTF-8") from error


def _parse_time(value: Any) -> int:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise PoisonMessageError(f"time {str(value)[:40]!r} is not RFC 3339") from error
    if moment.tzinfo is None:
        raise PoisonMessageError(f"time {value!r} has no offset")
    return (moment - _EPOCH) // _MICROSECOND


def _too_large(what: str, size: int) -> PoisonMessageError:
    return PoisonMessageError(
        f"{what} takes {size} bytes, more than {MAX_BYTES}",
        remedy="keep the payload elsewhere and send a reference to it",
    )
