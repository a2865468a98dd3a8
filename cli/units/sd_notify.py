"""Telling systemd how a service is: `READY=1`, `STATUS=`, `WATCHDOG=1`, `STOPPING=1`. Elsewhere nothing happens.

The watchdog is fed by the event loop, so one that hangs is noticed, and only while the work moves, so a mailbox that
is stuck is noticed too. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["keep_posted", "notify", "watchdog_s"]

LOOK_EVERY_S: Final = 1.0

logger = logging.getLogger(__name__)


def notify(*states: str) -> None:
    """Send states to the service manager that started us, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(states).encode(), address)


def watchdog_s() -> float | None:
    """The seconds within which systemd wants to hear from its unit (`WatchdogSec=`); None when it does not."""
    micros = os.environ.get("WATCHDOG_USEC", "")
    return int(micros) / 1_000_000 if micros.isdigit() and int(micros) else None


async def keep_posted(status: Callable[[], str], stuck: Callable[[], str]) -> None:
    """Keep `STATUS=` up to date, and feed the watchdog while `stuck` names nothing that hangs. Until cancelled."""
    limit_s = watchdog_s()
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        limit_s = None
    every_s = LOOK_EVERY_S if limit_s is None else min(LOOK_EVERY_S, limit_s / 2)
    said = blamed = ""
    while True:
        hanging = stuck()
        if hanging and not blamed:
            logger.error("stuck: nothing moves, and what is in flight is over its time", extra={"stuck": hanging})
        blamed = hanging
        now = f"stuck: {hanging}" if hanging else status()
        if now != said:
            notify(f"STATUS={now}")
            said = now
        if limit_s is not None and not hanging:
            notify("WATCHDOG=1")
        await asyncio.sleep(every_s)
