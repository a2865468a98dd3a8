"""A nats-server as a systemd unit: the server is the main process, and one beside it tells systemd how it is.

nats-server does not speak systemd's protocol. So the process that the unit starts becomes the server itself, which
gets signals straight, and leaves behind a small one that asks its monitoring port and dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from cuebook.cli.exits import InputError
from cuebook.cli.units.sd_notify import notify, watchdog_s
from cuebook.embedded.nats_server import server_program
from cuebook.embedded.process import dies_with_this_thread

__all__ = ["attend", "become_nats_server"]

VARIABLES: Final = (
    "CUEBOOK_EDGE_NAME",
    "CUEBOOK_EDGE_PASSWORD",
    "CUEBOOK_HUB_URL",
    "CUEBOOK_LEAF_LISTEN",
    "CUEBOOK_LEAF_PASSWORD",
)
"""Of leaf.conf and hub.conf, all of them text."""
MONITOR_URL: Final = "http://127.0.0.1:8222"
POLL_S: Final = 0.05
LOOK_EVERY_S: Final = 2.0
TIMEOUT_S: Final = 5.0
ROOM_BYTES: Final = 16 * 1024 * 1024
"""So much must be free before a server that could not write is started again."""


def become_nats_server(config: Path, monitor_url: str) -> None:
    """Replace this process by the server; never returns. Raises ConfigurationError when the program is missing."""
    program = server_program()
    _fill_in_variables()
    if os.environ.get("NOTIFY_SOCKET"):
        end_with_server = dies_with_this_thread(signal.SIGKILL)
        sys.stdout.flush()
        if os.fork() == 0:
            if end_with_server is not None:
                end_with_server()
            attend(monitor_url or MONITOR_URL)
    os.execv(program, [program, "--config", str(config)])  # noqa: S606 - an argument list, no shell


def _fill_in_variables() -> None:
    """Make what a configuration takes from variables fit: a value is text, in quotes, and `@FILE` is what that says.

    nats-server reads them as it reads its file, where 7 is a number and 5m a time; an empty file is as if there were
    no such variable. Raises InputError for a file that cannot be read.
    """
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{name} is to be read from a file: {error}", remedy=f"correct {name}") from error
        if value and not value.startswith('"'):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)


def attend(monitor_url: str) -> None:
    """Tell systemd when the server is ready, then how it is, for as long as it answers; without end."""
    while (_ask(monitor_url, "healthz?js-server-only=true") or {}).get("status") != "ok":
        time.sleep(POLL_S)
    every_s = min(LOOK_EVERY_S, (watchdog_s() or LOOK_EVERY_S) / 2)
    ready, full = ["READY=1"], ""
    while True:
        told = _ask(monitor_url, "varz")
        if told is not None:  # a sick server that answers is not mended by a restart; one that does not answer may be
            store = Path(str((told.get("jetstream") or {}).get("config", {}).get("store_dir") or "/"))
            wrong = _write_error(monitor_url)
            if wrong and not full:
                _say(f"error: {wrong}; nothing more is stored, nothing stored is lost: make room in {store}")
            if wrong and _free_bytes(store) >= ROOM_BYTES:
                _end_server(f"there is room in {store} again; the server starts anew, since it tries only then")
                wrong = ""
            full = wrong
            status = f"cannot write, make room in {store}: {wrong}" if wrong else _status(told)
            notify(*ready, "WATCHDOG=1", f"STATUS={status}")
            ready = []
        time.sleep(every_s)


def _write_error(monitor_url: str) -> str:
    """What keeps a stream from being written, in the server's words; empty for nothing.

    After such an error nats-server writes that stream no more until it is started again, whatever room there is.
    Source: measured on 2.15.1 with a full disk; `/healthz` says so, with status 503.
    """
    try:
        with urllib.request.urlopen(f"{monitor_url.rstrip('/')}/healthz", timeout=TIMEOUT_S):  # noqa: S310 - as below
            return ""
    except urllib.error.HTTPError as error:
        with error:
            try:
                told = str(json.load(error).get("error", ""))
            except (OSError, ValueError, AttributeError):
                return ""
        return told if "write error" in told else ""
    except (OSError, ValueError):
        return ""


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _end_server(why: str) -> None:
    """End the server in good order; systemd starts it again."""
    _say(why)
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getppid(), signal.SIGTERM)


def _say(text: str) -> None:
    sys.stderr.write(f"cuebook: {text}\n")
    sys.stderr.flush()


def _status(varz: dict[str, Any]) -> str:
    jetstream = varz.get("jetstream") or {}
    stats, config = jetstream.get("stats") or {}, jetstream.get("config") or {}
    synced = "acknowledged means on disk" if config.get("sync_always") else "acknowledged does not mean on disk"
    megabytes = int(stats.get("storage", 0)) / 1e6
    slow = varz.get("slow_consumers", 0)
    told = f"connections {varz.get('connections', 0)}, log {megabytes:.1f} MB, slow consumers {slow}, {synced}"
    leaf, linked = varz.get("leaf") or {}, int(varz.get("leafnodes") or 0)
    if leaf.get("remotes"):
        return f"{told}, {'linked to the hub' if linked else 'cut off from the hub'}"
    return f"{told}, edges {linked}" if leaf.get("port") else told


def _ask(monitor_url: str, path: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"{monitor_url.rstrip('/')}/{path}", timeout=TIMEOUT_S) as answer:  # noqa: S310 - an operator's URL
            told: Any = json.load(answer)
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
