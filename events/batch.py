"""Several events at once: the server stores all of them, one after another with nothing between, or none.

One guard stands on the first: nothing but what its author has read may be under the scope. Nothing here carries a
`Nats-Msg-Id`, since a batch sent again meets its own first attempt under that guard. For rare writes that belong
together: on one node each batch costs milliseconds. Source: JetStream ADR-50; err_codes by nats-server `errors.json`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import nats.errors

from cuebook.events.connection import Connection
from cuebook.events.errors import CommandRejectedError, ConcurrencyConflictError, UnavailableError
from cuebook.events.jetstream import CONFLICTS, FULL, IN_THE_AIR, NO_ROOM, passes

__all__ = ["MAX_BATCH", "Member", "append_batch"]

MAX_BATCH = 1_000
"""Messages that the server takes in one batch (err_code 10199 for more)."""
ANSWER_S = 5.0
BACK_OFF_S = 0.2
GIVE_UP_S = 30.0
_INCOMPLETE = frozenset({10176, 10210})
"""A part of it was lost on the way, or too many batches are open: the same may be sent again."""
_LONGEST_SUBJECT = 3_968
"""In bytes. With where to answer, the server takes a line of 4,096 (`max_control_line`), and leaves who sends more."""
_UNSENDABLE = (nats.errors.BadHeaderError, nats.errors.BadSubjectError, nats.errors.MaxPayloadError)


class Member(NamedTuple):
    """One event of a batch, encoded. `headers`: those of a message that is passed on, none of them the server's own."""

    subject: str
    body: bytes
    event_id: str
    headers: Mapping[str, str] = MappingProxyType({})


FirstAfter = Callable[[str, int], Awaitable[tuple[int, str] | None]]


async def append_batch(
    connection: Connection,
    members: Sequence[Member],
    *,
    scope: str,
    expected: int,
    first_after: FirstAfter,
    generation: int = 1,
    give_up_s: float | None = None,
) -> int:
    """Append all members or none; returns the sequence of the last one. `first_after`, `generation`: see Appender.

    The first member stands under `scope`, whose last message must have the sequence `expected` (0: there is none).
    Raises ConcurrencyConflictError, CommandRejectedError, and UnavailableError when the outcome is unknown `give_up_s`
    after the beginning.
    """
    assert 0 < len(members) <= MAX_BATCH, "a batch is cut by whoever knows where"
    give_up, lost = time.monotonic() + (GIVE_UP_S if give_up_s is None else give_up_s), False
    while True:
        answer = await _send(connection, members, scope, expected, generation)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        conflicts, lost = error.get("err_code") in CONFLICTS, lost or bool(error.get("silent"))
        lost = lost or error.get("err_code") == IN_THE_AIR  # so nobody can say yet who was first
        if conflicts and not lost:
            raise ConcurrencyConflictError(scope, expected)
        if conflicts or error.get("silent"):  # perhaps by an attempt of ours
            found = await first_after(scope, expected)
            if found is not None and found[1] == members[0].event_id:
                return found[0] + len(members) - 1
            if found is not None:
                raise ConcurrencyConflictError(scope, expected)
        elif error.get("err_code") not in _INCOMPLETE and not passes(error):
            raise CommandRejectedError(f"the server refused {len(members)} events under {scope}: {error}")
        if time.monotonic() > give_up:
            raise UnavailableError(
                f"{len(members)} events under {scope} were not acknowledged: {error}",
                remedy=NO_ROOM if error.get("err_code") in FULL else "",
            )
        await asyncio.sleep(BACK_OFF_S)


async def _send(
    connection: Connection, members: Sequence[Member], scope: str, expected: int, generation: int
) -> dict[str, Any]:
    """One attempt. What is not answered comes as an error called silent.

    Raises CommandRejectedError for a member that the client library does not let through.
    """
    batch = os.urandom(12).hex()
    guard = {
        "Nats-Expected-Last-Subject-Sequence": str(expected),
        "Nats-Expected-Last-Subject-Sequence-Subject": scope,
        **({"Cuebook-Generation": str(generation)} if generation > 1 and not expected else {}),
    }
    try:
        for number, member in enumerate(members, 1):
            if len(member.subject.encode()) > _LONGEST_SUBJECT:
                raise nats.errors.BadSubjectError
            headers = {
                **member.headers,
                "Nats-Batch-Id": batch,
                "Nats-Batch-Sequence": str(number),
                **(guard if number == 1 else {}),
            }
            if number < len(members):
                await connection.publish(member.subject, member.body, headers=headers)
                continue
            headers["Nats-Batch-Commit"] = "1"
            answer = await connection.request(member.subject, member.body, timeout=ANSWER_S, headers=headers)
            content: dict[str, Any] = json.loads(answer.data) if answer.data else {"error": {"silent": True}}
            return content
    except (*_UNSENDABLE, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        raise CommandRejectedError(
            f"event {member.event_id[:80]!r} under {member.subject[:80]!r} cannot be sent: {reason}"
        ) from error
    except nats.errors.NoRespondersError:  # so nobody has stored it
        return {"error": {"code": 503, "description": "no stream listens; is the space being rolled?"}}
    except (nats.errors.Error, TimeoutError) as error:
        return {"error": {"silent": True, "description": str(error) or type(error).__name__}}
    raise AssertionError("the last member is answered")
