"""Single messages and short histories, without a consumer.

What decides something is asked of the stream's leader, by `STREAM.MSG.GET`: it has seen all that was acknowledged.
Histories come by direct get, in one round trip; on a replicated stream a follower that is behind may answer, and its
leader is asked whether there is more.
While a space is rolled the next stream, a mirror of some of the old one, answers for it too, and is not listened to.
Source: JetStream ADR-8, ADR-31; the batch form by measurement on server 2.15.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NamedTuple

import nats.errors

from cuebook.events.connection import Connection
from cuebook.events.envelope import to_datetime
from cuebook.events.errors import UnavailableError
from cuebook.events.jetstream import NO_MESSAGE, js_request

__all__ = ["StoredMessage", "end_of", "first_match", "last_match", "matches", "message_at", "sequence_before"]

BATCH = 256
TIMEOUT_S = 5.0
LAG_S = 5.0
"""A leader that is behind another replica catches up in less."""
LAG_POLL_S = 0.1
_OWN_HEADER = b"\r\nNats-Stream: "


class StoredMessage(NamedTuple):
    """What the stream holds at one sequence, in the order of `OnMessage`; `recorded_at` in microseconds since 1970."""

    subject: str
    body: bytes
    sequence: int
    recorded_at: int
    headers: bytes | None


class End(NamedTuple):
    """Where a stream ends by the word of its leader, and whether there are other replicas."""

    last: int
    replicated: bool


async def end_of(info: Callable[[], Awaitable[Any]], *, reached: int) -> End:
    """Where a stream ends. `info` asks for its STREAM.INFO; `reached`: a sequence that somebody has read already.

    Consumers deliver from their own replica, so the leader may be the last to have that: it is given `LAG_S`.
    """
    give_up = time.monotonic() + LAG_S
    while True:
        about = await info()
        end = End(int(about["state"]["last_seq"]), about["config"]["num_replicas"] > 1)
        if end.last >= reached or not end.replicated or time.monotonic() > give_up:
            return end
        await asyncio.sleep(LAG_POLL_S)


async def message_at(connection: Connection, stream: str, sequence: int) -> StoredMessage | None:
    """The message at a sequence. Raises UnavailableError, StreamMissingError, ConfigurationError."""
    return await _leader_get(connection, stream, {"seq": sequence})


async def first_match(connection: Connection, stream: str, subjects: str, after: int = 0) -> StoredMessage | None:
    """The first message under a subject filter after a sequence. Raises as `message_at`."""
    return await _leader_get(connection, stream, {"seq": after + 1, "next_by_subj": subjects})


async def last_match(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """The last message under a subject. Raises as `message_at`."""
    return await _leader_get(connection, stream, {"last_by_subj": subject})


async def matches(
    connection: Connection, stream: str, subjects: str, after: int = 0, *, replicated: bool = False
) -> list[StoredMessage]:
    """All messages under a subject filter after a sequence, in order. Raises as `message_at`."""
    found: list[StoredMessage] = []
    while True:
        batch, to_come = await _direct_get(connection, stream, subjects, after)
        found += batch
        if batch and not to_come and not replicated:
            return found
        after = batch[-1].sequence if batch else after
        if not to_come:  # the leader has to say that there is nothing more
            more = await first_match(connection, stream, subjects, after)
            if more is None:
                return found
            found.append(more)
            after = more.sequence


async def sequence_before(connection: Connection, stream: str, moment: int, *, replicated: bool = False) -> int:
    """The last sequence of a stream that comes before its first message of `moment` (microseconds since 1970) or later.

    0 when that is its very first. Raises as `message_at`. `replicated`: the replica that answers may lag, so the leader
    is asked, too.
    """
    config = {
        "deliver_policy": "by_start_time",
        "opt_start_time": to_datetime(moment).isoformat().replace("+00:00", "Z"),
        "ack_policy": "none",
        "max_deliver": 1,
        "mem_storage": True,
        "inactive_threshold": 5 * 10**9,
    }
    give_up = time.monotonic() + LAG_S
    while True:
        answer = await js_request(connection, f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        connection.post(f"$JS.API.CONSUMER.DELETE.{stream}.{answer['name']}", b"")
        found = int(answer["delivered"]["stream_seq"])
        following = await first_match(connection, stream, ">", found) if replicated else None
        if following is None or following.recorded_at >= moment or time.monotonic() > give_up:
            return found  # at last also where the clocks of two leaders differ, so that no order of times is right
        await asyncio.sleep(LAG_POLL_S)


async def _leader_get(connection: Connection, stream: str, request: dict[str, object]) -> StoredMessage | None:
    answer = await js_request(connection, f"STREAM.MSG.GET.{stream}", request, none_for={NO_MESSAGE})
    if answer is None:
        return None
    message = answer["message"]
    headers = b64decode(message["hdrs"]) if "hdrs" in message else None
    body = b64decode(message.get("data", ""))
    return StoredMessage(message["subject"], body, message["seq"], _microseconds(message["time"]), headers)


async def _direct_get(
    connection: Connection, stream: str, subjects: str, after: int
) -> tuple[list[StoredMessage], int]:
    """One batch, and how many messages are still to come; no batch where nobody answers who has the stream.

    A mirror answers as well, with what it has, and nobody can tell from "no messages" who has said it.
    """
    request = {"next_by_subj": subjects, "seq": after + 1, "batch": BATCH}
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found: list[StoredMessage] = []
    answered_by = {stream}

    def receive(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:  # noqa: ARG001
        block = headers or b""
        if ended.done():
            return
        if _OWN_HEADER in block:
            answered_by.add(_last_header(block, b"Nats-Stream"))
            sequence, recorded_at = int(_last_header(block, b"Nats-Sequence")), _last_header(block, b"Nats-Time-Stamp")
            stored_under = _last_header(block, b"Nats-Subject")
            found.append(StoredMessage(stored_under, payload, sequence, _microseconds(recorded_at), headers))
        elif block[9:12] == b"204":
            ended.set_result(int(_last_header(block, b"Nats-Num-Pending")))
        elif block[9:12] in (b"404", b"503"):
            ended.set_result(0)
        else:
            status = block[9:80].partition(b"\r\n")[0].decode("ascii", "replace")
            ended.set_exception(UnavailableError(f"direct get answered {status!r}"))

    inbox = connection.new_inbox()
    listener = await connection.listen(inbox, receive)
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        async with asyncio.timeout(TIMEOUT_S):
            to_come = await ended
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"direct get did not answer: {str(error) or type(error).__name__}") from error
    finally:
        await listener.close()
    return (found, to_come) if answered_by == {stream} else ([], 0)


def _last_header(block: bytes, name: bytes) -> str:
    """The server adds its headers after the author's, who may have written the same names."""
    _, _, rest = block.rpartition(b"\r\n%b: " % name)
    return rest.partition(b"\r\n")[0].decode("utf-8", "replace")


def _microseconds(stamp: str) -> int:
    """The server's RFC 3339 time with up to nine decimals, exactly."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))
