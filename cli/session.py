"""One connection for one command: opened, checked against the space's stream, and closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar

from cuebook.actors.client import Client
from cuebook.cli.logs import configure_logs
from cuebook.cli.options import Target, login_name
from cuebook.cli.tracing import traced
from cuebook.events.connection import connect
from cuebook.events.stream import refuse_recording

__all__ = ["run_command", "session"]

_T = TypeVar("_T")


def run_command(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine; warnings of ours go to stderr."""
    configure_logs("warning", "text")
    return asyncio.run(main)


@asynccontextmanager
async def session(target: Target, *, by: str | None = None, follows: bool = False) -> AsyncIterator[Client]:
    """A client of the space, whose stream is there. `follows`: a lost connection is re-established.

    `by` names who is going to write, empty: the login name; to a recording nobody may. Raises UnavailableError,
    ConfigurationError; StreamMissingError for a space that nobody has made.
    """
    connection = await connect(target.nats_url, name="cuebook cli", retry=follows, **target.client_options)
    try:
        with traced("cuebook-cli") if by is not None else nullcontext():  # who only reads has nothing to tell
            async with Client(connection, target.space, by=by or login_name()) as client:
                facts = await client.log.verify()
                if by is not None:
                    refuse_recording(facts)
                yield client
    finally:
        await connection.close()
