"""Telling systemd how a service is: `READY=1`, `STATUS=`, `WATCHDOG=1`, `STOPPING=1`. Elsewhere nothing happens.

Source: sd_notify(3), sd_watchdog_enabled(3). The watchdog is fed by the event loop, so one that hangs is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

__all__ = ["feed_watchdog", "notify"]


def notify(*states: str) -> None:
    """Send states to the service manager that started us, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(states).encode(), address)


async def feed_watchdog() -> None:
    """Say twice per interval that the event loop turns, if the unit has `WatchdogSec=`; returns at once if not."""
    micros = os.environ.get("WATCHDOG_USEC", "")
    if not micros.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(micros) / 2_000_000)
