"""One connection for one command: opened, checked against the space's stream, and closed again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar

from cuebook.actors.client import Client
from cuebook.cli.logs import configure_logs
from cuebook.cli.options import Target, login_name
from cuebook.cli.tracing import traced
from cuebook.events.connection import Connection, connect
from cuebook.events.generations import use_past_opener
from cuebook.events.past import Generation, Past
from cuebook.events.stream import refuse_recording

__all__ = ["reading_segments", "run_command", "session"]

_T = TypeVar("_T")


def run_command(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine; warnings of ours go to stderr."""
    configure_logs("warning", "text")
    return asyncio.run(main)


def reading_segments(connection: Connection) -> Connection:
    """Let what is read over a connection come from segments where a stream was dropped; see `SegmentOpener`."""
    directory = os.environ.get("CUEBOOK_SEGMENTS", "")

    async def opened(connection: Connection, space: str, about: Generation) -> Past:
        from cuebook.ledger.segments.opening import SegmentOpener  # only where something was dropped

        return await SegmentOpener(directory)(connection, space, about)

    use_past_opener(connection, opened)
    return connection


@asynccontextmanager
async def session(target: Target, *, by: str | None = None, follows: bool = False) -> AsyncIterator[Client]:
    """A client of the space, whose stream is there. `follows`: a lost connection is re-established.

    `by` names who is going to write, empty: the login name; to a recording nobody may. Raises UnavailableError,
    ConfigurationError; StreamMissingError for a space that nobody has made.
    """
    connection = await connect(target.nats_url, name="cuebook cli", retry=follows, **target.client_options)
    reading_segments(connection)
    try:
        with traced("cuebook-cli") if by is not None else nullcontext():  # who only reads has nothing to tell
            async with Client(connection, target.space, by=by or login_name()) as client:
                facts = await client.log.verify()
                if by is not None:
                    refuse_recording(facts)
                yield client
    finally:
        await connection.close()
