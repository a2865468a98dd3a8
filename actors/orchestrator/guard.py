"""Whether a request was stored as the first message of its run, by the word of the server that took it."""

from __future__ import annotations

import re

from cuebook.events.envelope import Envelope
from cuebook.events.log import Unreadable

__all__ = ["is_guarded"]

_NAME = b"Nats-Expected-Last-Subject-Sequence:"
_FIRST = b"\r\nNats-Expected-Last-Subject-Sequence: 0\r\n"
_LOOKED = re.compile(rb"\r\nCuebook-Generation: ([0-9]{1,9})\r\n")
_SCOPE = b"\r\nNats-Expected-Last-Subject-Sequence-Subject: %b.run.%b.>\r\n"


def is_guarded(item: Envelope | Unreadable, headers: bytes | None, generation: int) -> bool:
    """Whether the server has taken it only because nothing else was stored under its run. `headers`: the raw block.

    `generation`: that of the log which the item is in. The server knows only what is in that, so from the second one on
    the author must say that it has looked through those before.
    """
    if headers is None or not isinstance(item, Envelope) or item.address.fact not in ("requested", "started", "forked"):
        return False
    space = item.subject.partition(".")[0].encode()
    scope = _SCOPE % (space, item.address.run_id.encode())
    if generation > 1 and ((found := _LOOKED.search(headers)) is None or int(found[1]) < generation):
        return False
    return _FIRST in headers and headers.count(_NAME) == 1 and scope in headers
