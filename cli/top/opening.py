"""Opening the screen of `cuebook top`, or printing one frame of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from cuebook.cli.options import Output, Target
from cuebook.cli.output import show_one
from cuebook.cli.session import session
from cuebook.cli.top.frame import print_frame
from cuebook.cli.top.watching import Watch

__all__ = ["is_screen", "show_top"]


def is_screen() -> bool:
    """Whether there is a terminal to draw on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


async def show_top(
    target: Target, database_url: str, output: Output, *, once: bool, interval_s: float, sort: str
) -> None:
    """Show the space until the person leaves; `once`: print one frame. Raises UnavailableError, StreamMissingError."""
    async with session(target, follows=not once) as client:
        watch = Watch(client, database_url)
        await watch.begin()
        if once:
            frame = watch.board.frame(watch.now)
            show_one(output, frame, lambda: print_frame(frame, sort))
            return
        from cuebook.cli.top.screen import Top  # the only thing that needs textual

        logging.getLogger().handlers[:] = [logging.NullHandler()]  # lines of a log would be written across the screen
        connection = client.log.connection
        app = Top(
            lambda: watch.board.frame(watch.now),
            watch.run,
            connected=lambda: connection.is_connected,
            interval_s=interval_s,
        )
        app.sort = sort
        for number in (signal.SIGTERM, signal.SIGHUP):  # else the terminal stays as the screen has left it
            asyncio.get_running_loop().add_signal_handler(number, app.exit)
        await app.run_async()
    if app.failure is not None:
        raise app.failure
