"""Bytes to envelopes and back.

Native body: a MessagePack array `[1, key_id, signature, inner]`, where `inner` is a packed map with the keys `id`, `type`,
`time` (microseconds since 1970), `source`, `correlation`, `causation`, `traceparent` and `data`; absent keys mean empty.
A body that is not such an array is read as JSON: a CloudEvent in structured mode (NATS binding 1.0.3, or a JSON object
with `specversion`), in binary mode (`ce-` headers), or plain data. So any NATS client can take part.

Limits come before anything else: 256 KiB, nesting of 16, no extension types, no duplicate keys, finite numbers.
"""

from __future__ import annotations

import json
import math
import time
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

import msgpack

from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError, UnknownEventError
from cuebook.events.facts import Event, event_type_of, parse_event, to_data
from cuebook.events.subjects import Address, Subjects

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_ID_LENGTH", "decode", "encode", "pack_data", "parse_headers", "unpack_data"]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_ID_LENGTH = 128

_VERSION = 1
_NATIVE_FIRST_BYTE = 0x94  # a MessagePack array of four
_pack = msgpack.Packer(autoreset=True).pack


def _refuse_extension(code: int, data: bytes) -> Any:
    raise PoisonMessageError(f"MessagePack extension type {code} is not allowed")


def unpack_data(data: bytes) -> Any:
    """Unpack MessagePack under the limits. Raises PoisonMessageError."""
    try:
        return msgpack.unpackb(data, strict_map_key=True, ext_hook=_refuse_extension)
    except PoisonMessageError:
        raise
    except Exception as error:  # msgpack raises ValueError, its own classes, UnicodeDecodeError and RecursionError
        raise PoisonMessageError(f"malformed MessagePack: {error or type(error).__name__}") from error


def pack_data(data: Any) -> bytes:
    """Pack plain data. Raises PoisonMessageError for what MessagePack cannot hold."""
    try:
        return _pack(data)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError) as error:
        raise PoisonMessageError(f"cannot be packed: {error}", remedy="use only JSON types") from error


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
) -> bytes:
    """Encode an event. `correlation_id` defaults to the event's own id: it begins a conversation.

    Raises PoisonMessageError when the body would exceed 256 KiB or holds something that is not plain data.
    """
    inner = {
        "id": event_id,
        "type": event_type or event.event_type,
        "time": time.time_ns() // 1000 if now is None else now,
        "source": source,
        "correlation": correlation_id or event_id,
        "data": to_data(event),
    }
    if causation_id:
        inner["causation"] = causation_id
    if traceparent:
        inner["traceparent"] = traceparent
    body = pack_data([_VERSION, "", b"", pack_data(inner)])
    if len(body) > MAX_BYTES:
        raise PoisonMessageError(
            f"{inner['type']} takes {len(body)} bytes, more than {MAX_BYTES}",
            remedy="keep the payload elsewhere and send a reference to it",
        )
    return body


def decode(
    subjects: Subjects, subject: str, body: bytes, *, sequence: int, recorded_at: int, headers: bytes | None = None
) -> Envelope:
    """Decode one stored message. Raises PoisonMessageError, or UnknownEventError for a type of a newer release."""
    address = subjects.parse(subject)
    if len(body) > MAX_BYTES:
        raise PoisonMessageError(
            f"{len(body)} bytes are more than {MAX_BYTES}",
            remedy="keep the payload elsewhere and send a reference to it",
        )
    if body and body[0] == _NATIVE_FIRST_BYTE:
        return _decode_native(address, subject, body, sequence, recorded_at)
    return _decode_foreign(address, subject, body, sequence, recorded_at, parse_headers(headers))


def _decode_native(address: Address, subject: str, body: bytes, sequence: int, recorded_at: int) -> Envelope:
    outer = unpack_data(body)
    version, key_id, signature, packed = outer
    if version != _VERSION:
        raise UnknownEventError(f"envelope version {version!r} is not known", remedy="read it with a newer release")
    if type(packed) is not bytes or type(key_id) is not str or type(signature) is not bytes:
        raise PoisonMessageError("the envelope is not [version, key id, signature, packed map]")
    inner = unpack_data(packed)
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
        and 0 < len(event_id) <= MAX_ID_LENGTH
        and len(correlation_id) <= MAX_ID_LENGTH
    ):
        raise PoisonMessageError("an envelope field is missing or of the wrong type", remedy="see docs/wire-format.md")
    _check_depth(data)
    return Envelope(
        id=event_id,
        event_type=event_type,
        time=moment,
        source=source,
        correlation_id=correlation_id or event_id,
        causation_id=causation_id,
        traceparent=traceparent,
        data=data,
        event=parse_event(address, event_type, data),
        address=address,
        subject=subject,
        sequence=sequence,
        recorded_at=recorded_at,
        key_id=key_id,
        signature=signature,
    )


def _decode_foreign(
    address: Address, subject: str, body: bytes, sequence: int, recorded_at: int, headers: dict[str, str]
) -> Envelope:
    """Plain JSON or a CloudEvent. Without an id of its own the event is named by its place in the log."""
    content = _parse_json(body) if body else {}
    event_id = headers.get("nats-msg-id", "")
    source, moment, event_type, correlation_id = "outside", recorded_at, "", headers.get("cue-correlation-id", "")
    traceparent, causation_id = headers.get("traceparent", ""), headers.get("cue-causation-id", "")
    data = content
    attributes: dict[str, Any] | None = None
    if "ce-specversion" in headers:
        attributes = {name[3:]: _percent_decode(value) for name, value in headers.items() if name.startswith("ce-")}
    elif headers.get("content-type", "").lower().startswith("application/cloudevents") or (
        type(content) is dict and "specversion" in content and "type" in content
    ):
        if type(content) is not dict:
            raise PoisonMessageError("a structured CloudEvent must be a JSON object")
        attributes, data = content, content.get("data")
    if attributes is not None:
        for name in ("specversion", "id", "source", "type"):
            if type(attributes.get(name)) is not str or not attributes[name]:
                raise PoisonMessageError(f"the CloudEvent has no attribute {name!r}")
        event_id, source = attributes["id"], attributes["source"]
        if address.kind == "event":
            event_type = attributes["type"]
        moment = _parse_time(attributes["time"]) if "time" in attributes else recorded_at
        correlation_id = str(attributes.get("correlationid", correlation_id))
        causation_id = str(attributes.get("causationid", causation_id))
        traceparent = str(attributes.get("traceparent", traceparent))
    if not event_id:
        event_id = f"seq-{sequence}"
    if len(event_id) > MAX_ID_LENGTH or len(correlation_id) > MAX_ID_LENGTH:
        raise PoisonMessageError(f"an id is longer than {MAX_ID_LENGTH} characters")
    _check_depth(data)
    event_type = event_type or event_type_of(address)
    return Envelope(
        id=event_id,
        event_type=event_type,
        time=moment,
        source=source,
        correlation_id=correlation_id or event_id,
        causation_id=causation_id,
        traceparent=traceparent,
        data=data,
        event=parse_event(address, event_type, data),
        address=address,
        subject=subject,
        sequence=sequence,
        recorded_at=recorded_at,
    )


def parse_headers(headers: bytes | None) -> dict[str, str]:
    """A NATS header block as a dict with lower-case names. Of duplicates the first counts, as on the server."""
    found: dict[str, str] = {}
    if headers:
        for line in headers.split(b"\r\n")[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                found.setdefault(
                    name.strip().decode("ascii", "replace").lower(), value.strip().decode("utf-8", "replace")
                )
    return found


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for item in level:
            if type(item) is dict:
                deeper += [value for value in item.values() if type(value) in _CONTAINERS]
            elif type(item) is list:
                deeper += [value for value in item if type(value) in _CONTAINERS]
        if not deeper:
            return
        level = deeper
    raise PoisonMessageError(f"the data is nested deeper than {MAX_DEPTH}")


_CONTAINERS = frozenset({dict, list})


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except PoisonMessageError:
        raise
    except (ValueError, RecursionError) as error:
        raise PoisonMessageError(
            f"the body is neither an envelope nor JSON: {error or type(error).__name__}",
            remedy="send a JSON object, a CloudEvent or an envelope; see docs/wire-format.md",
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PoisonMessageError("a JSON object has the same key twice")
    return found


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
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"')
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PoisonMessageError("a ce- header is not UTF-8") from error


def _parse_time(value: Any) -> int:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise PoisonMessageError(f"time {value!r} is not RFC 3339") from error
    if moment.tzinfo is None:
        raise PoisonMessageError(f"time {value!r} has no offset")
    return int(moment.timestamp() * 1_000_000)
