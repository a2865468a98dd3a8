"""What an acknowledged event survives on the server we are connected to: asked, never guessed.

JetStream acknowledges before it syncs to disk unless `sync_interval: always`. The server tells its setting only to its
system account and to its monitoring port, and an answer counts only if it names the very server we are connected to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import nats.errors

from cuebook.events.connection import Connection

__all__ = ["find_varz", "is_development", "report_durability", "syncs_always"]

TIMEOUT_S: Final = 1.0
MONITOR_PORT: Final = 8222
"""Where a server's monitoring usually is; used when nobody says otherwise."""

logger = logging.getLogger(__name__)


async def report_durability(connection: Connection, monitor_url: str = "") -> None:
    """Log, once, whether acknowledged means on disk; if it cannot be found out, how to look."""
    match await syncs_always(connection, monitor_url):
        case True:
            logger.info("acknowledged means on disk: the server syncs always")
        case False if is_development(connection.server_info):
            logger.info("a server for development: an acknowledged event survives its crash, but not a power cut")
        case False:
            logger.warning(
                "acknowledged does not mean on disk: the server syncs lazily, so a power cut can lose the last events; "
                "set 'sync_interval: always', as nats/production.conf does"
            )
        case None:
            logger.warning(
                "cannot tell whether acknowledged means on disk: give --nats-monitor-url, or look for 'sync_always' "
                "under jetstream.config of the server's /varz"
            )


def is_development(info: Mapping[str, Any]) -> bool:
    """Whether `cuebook dev`, or a test, has started a server: lazy about the disk, alone, and meant so.

    `info`: what the server says of itself to whoever connects.
    """
    name, host = str(info.get("server_name", "")), str(info.get("host", ""))
    prefix, _, rest = name.partition("-")
    embedded = prefix == "cuebook" and len(rest) == 16
    member = info.get("cluster") == "cuebook" and prefix == "node" and rest.isdigit()
    return host.startswith("127.") and (embedded or member)


async def syncs_always(connection: Connection, monitor_url: str = "") -> bool | None:
    """Whether the server syncs before it acknowledges; None when it does not say.

    `monitor_url`: one or, of a cluster, several with commas; which of them is our server's is asked.
    """
    varz = await find_varz(connection, monitor_url)
    config = (varz or {}).get("jetstream", {}).get("config")
    return bool(config.get("sync_always", False)) if config else None


async def find_varz(connection: Connection, monitor_url: str = "") -> dict[str, Any] | None:
    """What the server that we are connected to tells operators; None when it tells us nothing. As `syncs_always`."""
    server_id = connection.server_info.get("server_id")
    if not server_id:
        return None
    answer = await _ask(connection, f"$SYS.REQ.SERVER.{server_id}.VARZ")  # only to the system account
    monitors = monitor_url.split(",") if monitor_url else _usual_monitors(connection)
    told = [answer.get("data") if answer else None, *[await asyncio.to_thread(_ask_monitor, url) for url in monitors]]
    return next((one for one in told if one and one.get("server_id") == server_id), None)


async def _ask(connection: Connection, subject: str) -> dict[str, Any] | None:
    try:
        answer = await connection.request(subject, b"", timeout=TIMEOUT_S)
        data = json.loads(answer.data)
    except (nats.errors.Error, TimeoutError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _ask_monitor(url: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/varz", timeout=TIMEOUT_S) as answer:  # noqa: S310 - an operator's URL
            varz: Any = json.load(answer)
    except (OSError, ValueError):
        return None
    return varz if isinstance(varz, dict) else None


def _usual_monitors(connection: Connection) -> list[str]:
    url = connection.connected_url
    host = url.hostname if url is not None else None
    return [f"http://{f'[{host}]' if ':' in host else host}:{MONITOR_PORT}"] if host else []
