"""One call of the JetStream API, with its refusals sorted by what the caller does next."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

import nats.errors

from cuebook.events.connection import Connection
from cuebook.events.errors import AccessDeniedError, ConfigurationError, StreamMissingError, UnavailableError

__all__ = [
    "CONFLICTS", "FULL", "IN_THE_AIR", "NAME_IN_USE", "NO_MESSAGE", "NO_ROOM", "NO_STREAM", "WRONG_SEQUENCE",
    "js_request", "passes",
]  # fmt: skip

NO_MESSAGE: Final = 10037
"""No message with that sequence or subject; so a bucket says that it has no such key."""
NAME_IN_USE: Final = 10058
"""A stream of that name is there, with another configuration than the one to be created."""
NO_STREAM: Final = 10059
WRONG_SEQUENCE: Final = 10071
"""Another last sequence of the subject than was expected. The description ends with it."""
IN_THE_AIR: Final = 10164
"""The same of a replicated stream: something of that subject is on its way to the replicas, so nobody can say yet."""
CONFLICTS: Final = frozenset({10070, WRONG_SEQUENCE, IN_THE_AIR})
"""10070: another last message id, which only copies expect."""
FULL: Final = frozenset({10002, 10023, 10047, 10077})
"""No room: of the account, of the server's disk or its `max_file_store`, of the stream."""
NO_ROOM: Final = (
    "the server has no room: free space on its disk, or raise its max_file_store; what was accepted is safe"
)

_PASSING = frozenset({10002, 10158})
"""Refusals with code 400 all the same. Limits of the account, which an operator can mend; an earlier sending of ours
that is still on its way to the log."""
_SETTINGS = frozenset({10039, 10052, 10074, 10076})
"""Refusals with code 500 or 503 that no retry mends: JetStream off (account, server), replicas without a cluster, a
stream's configuration that makes no sense to the server."""
_TOO_FEW_PEERS = 10005
"""A refusal with code 400 that mends itself when the other nodes of the cluster are back."""


def passes(error: Mapping[str, Any]) -> bool:
    """Whether the server refuses a message for what it is like just now: the same may be taken later."""
    code = error.get("code", 500)
    return code == 429 or code >= 500 or error.get("err_code") in _PASSING


async def js_request(
    connection: Connection,
    subject: str,
    request: dict[str, Any],
    timeout_s: float = 5.0,
    *,
    none_for: Collection[int] = (),
) -> Any:
    """Ask `$JS.API.<subject>` and give the answer; None where it is a refusal with an err_code in `none_for`.

    Raises UnavailableError, StreamMissingError, or ConfigurationError with the server's own words. Source: nats-server
    `errors.json`.
    """
    try:
        answer = await connection.request(f"$JS.API.{subject}", json.dumps(request).encode(), timeout=timeout_s)
    except (nats.errors.Error, TimeoutError) as error:
        if connection.is_refused(f"$JS.API.{subject}"):
            raise AccessDeniedError(
                f"the server does not let this user publish to $JS.API.{subject}",
                remedy="let the user publish to '$JS.API.>' in nats.conf, or use other credentials",
            ) from error
        raise UnavailableError(f"JetStream did not answer {subject}: {str(error) or type(error).__name__}") from error
    content = json.loads(answer.data)
    failure = content.get("error")
    if failure is None:
        return content
    code, err_code = failure.get("code", 500), failure.get("err_code", 0)
    if err_code in none_for:
        return None
    message = f"JetStream refused {subject}: {failure.get('description')} (err_code {err_code})"
    if ((code == 429 or code >= 500) and err_code not in _SETTINGS) or err_code == _TOO_FEW_PEERS:
        raise UnavailableError(message)
    if err_code == NO_STREAM:
        raise StreamMissingError(message)
    raise ConfigurationError(message)
