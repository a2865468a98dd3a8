"""Names from the live system for shell completion. Quick or nothing: whoever presses Tab does not wait.

The NATS client alone takes longer to import than a person waits for a completion, so one question is asked over a bare
socket: INFO, CONNECT, a subscription, the question, its answer. Where that cannot work (TLS, a credentials file, no
orchestrator) there are no suggestions and nothing else happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

import typer

__all__ = ["ask_quickly", "complete_agent", "complete_run", "complete_saga", "complete_task"]

DEADLINE_S = 0.3
_SCHEME = "nats"


def complete_run(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Open runs, the newest first."""
    runs = _ask(ctx, "runs", "runs")
    return [(run["run_id"], f"{run['saga'] or run['agent']}, {run['status']}") for run in runs
            if run["run_id"].startswith(incomplete)]  # fmt: skip


def complete_task(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What waits for a person, then open runs."""
    waiting = [(one["id"], one["kind"]) for one in _ask(ctx, "escalations", "escalations")
               if one["id"].startswith(incomplete)]  # fmt: skip
    return waiting or complete_run(ctx, incomplete)


def complete_agent(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Agents; after a slash their instances."""
    instances = [one for one in _ask(ctx, "agents", "agents") if one["health"] != "stopped"]
    if "/" in incomplete:
        named = [(f"{one['agent']}/{one['instance']}", one["health"]) for one in instances]
    else:
        count: dict[str, int] = {}
        for one in instances:
            count[one["agent"]] = count.get(one["agent"], 0) + 1
        named = [(agent, f"{number} running") for agent, number in sorted(count.items())]
    return [(name, text) for name, text in named if name.startswith(incomplete)]


def complete_saga(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Sagas that the orchestrator serves."""
    sagas = _ask(ctx, "sagas", "sagas")
    return [(one["saga"], one["on"] and f"on {one['on']}") for one in sagas if one["saga"].startswith(incomplete)]


def _ask(ctx: typer.Context, noun: str, key: str) -> list[dict[str, Any]]:
    url = ctx.params.get("nats_url") or os.environ.get("CUEBOOK_NATS_URL") or "nats://127.0.0.1:4222"
    space = ctx.params.get("space") or os.environ.get("CUEBOOK_SPACE") or "cue"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a completion never fails
        found: list[dict[str, Any]] = ask_quickly(url, f"query.{space}.{noun}")[key]
        return found
    return []


def ask_quickly(url: str, subject: str) -> dict[str, Any]:
    """One NATS request over a socket of its own. Raises OSError, ValueError or LookupError when there is no answer."""
    parts = urlsplit(url.split(",", 1)[0])
    if parts.scheme != _SCHEME or not parts.hostname:
        raise ValueError("only plain connections are asked")
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    options: dict[str, Any] = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
    options |= {"lang": "python", "version": "0", "protocol": 1, "name": "cuebook completion"}
    if parts.username:
        options |= {"user": unquote(parts.username), "pass": unquote(parts.password or "")}
    with socket.create_connection((parts.hostname, parts.port or 4222), timeout=DEADLINE_S) as connection:
        connection.settimeout(DEADLINE_S)
        answers = connection.makefile("rb")
        answers.readline()  # INFO
        connection.sendall(
            f"CONNECT {json.dumps(options)}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} 0\r\n\r\nPING\r\n".encode()
        )
        while line := answers.readline():
            verb, *rest = line.split()
            if verb == b"MSG":
                found: dict[str, Any] = json.loads(answers.read(int(rest[-1])))
                return found
            if verb in (b"HMSG", b"-ERR"):  # nobody answers, or we may not ask
                break
    raise LookupError(subject)
