"""Opening the viewer on a run of the log."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import aclosing

from cuebook.cli.exits import InputError
from cuebook.cli.history.points import find_place
from cuebook.cli.options import Target
from cuebook.cli.runs.showing import find_run
from cuebook.cli.runs.stepping import Steps
from cuebook.cli.session import session
from cuebook.events.log import EventLog

__all__ = ["debug_run", "read_steps"]


async def debug_run(target: Target, run_id: str, at: str) -> None:
    """Show a run until the person leaves. Raises InputError without a terminal, NotFoundError, UnavailableError."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise InputError(
            "the viewer needs a terminal",
            remedy=f"'cuebook replay {run_id} --state' prints every event with the state after it",
        )
    from cuebook.cli.runs.debugger import Debugger  # the only thing that needs textual

    logging.getLogger().handlers[:] = [logging.NullHandler()]  # lines of a log would be written across the screen
    async with session(target, follows=True) as client:
        log = client.log
        steps = await read_steps(log, run_id)
        news = log.follow(after=steps.items[-1].sequence, filters=_filters(log, run_id))
        viewer = Debugger(steps, news, lambda: log.connection.is_connected)
        if at:
            place = await find_place(log, at)
            viewer.begin_at = sum(item.sequence <= place.sequence for item in steps.items)
        await viewer.run_async()
    if viewer.failure is not None:
        raise viewer.failure


async def read_steps(log: EventLog, run_id: str) -> Steps:
    """All events of a run so far, with the progress of its tasks. Raises NotFoundError."""
    _, history = await find_run(log, run_id)
    steps = Steps(run_id)
    async with aclosing(log.read(after=history[0].sequence - 1, filters=_filters(log, run_id))) as items:
        async for item in items:
            steps.add(item)
    return steps


def _filters(log: EventLog, run_id: str) -> list[str]:
    return [log.subjects.everything_of(run_id), log.subjects.progress_of(run_id)]
