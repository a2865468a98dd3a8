"""Recorded histories: exact messages of a real log, and what they folded to when they were recorded.

A folder for each release. In it, for each history, `NAME.jsonl.gz`: first a line about the recording, then one for each
message, and `NAME.fold.json.gz`: what all of it means, as plain data. `types.json`: the event types of that release.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState, fold_run
from cuebook.actors.orchestrator.world import World
from cuebook.events.catalogue import to_data
from cuebook.events.connection import Connection
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog
from cuebook.events.subjects import Subjects
from cuebook.projections.agents import fold_instance
from cuebook.projections.projection import Item
from cuebook.projections.rows import NULL, Row, moment
from cuebook.projections.runs import fold_batch

__all__ = ["FOLDER", "History", "Message", "capture", "fold", "releases", "stored"]

FOLDER = Path(__file__).parent
_RUN = (
    "saga", "version", "reason", "input", "result", "error", "retry_of", "correlation_id", "cause", "trigger", "undo",
    "stuck", "stuck_from", "cancel_reason", "retry_requested", "started_at", "ended_at", "last_sequence",
)  # fmt: skip
_TASK = (
    "status", "agent", "handler", "instance", "input", "output", "priority", "attempt", "failures", "losses",
    "affinity", "labels", "compensation", "compensates", "requested_at", "assigned_at", "free_at", "ended_at", "error",
    "cancel_reason", "in_doubt", "last_sequence",
)  # fmt: skip
_STEP = (
    "status", "type", "topic", "match", "question", "schema", "context", "value", "by", "due", "taken", "refused",
    "opened_at", "ended_at", "last_sequence",
)  # fmt: skip
_INSTANCE = (
    "health", "version", "labels", "slots", "host", "pid", "recycle_after", "heartbeat_s", "wants_drain", "reason",
    "registered_at", "changed_at", "last_sequence",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One stored message, to the byte. `recorded_at`: microseconds since 1970; `headers`: the raw block."""

    subject: str
    sequence: int
    recorded_at: int
    headers: bytes | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A recorded log. `about`: what can be seen in it."""

    release: str
    name: str
    space: str
    about: str
    messages: Sequence[Message]

    def items(self) -> list[Item]:
        """The messages as this release reads them."""
        log = EventLog(Connection(), self.space, source="")  # decoding needs no connection
        return [log.decode(one.subject, one.body, one.sequence, one.recorded_at, one.headers) for one in self.messages]

    @property
    def folded(self) -> Any:
        """What it meant when it was recorded."""
        return json.loads(gzip.decompress(self._path("fold.json.gz").read_bytes()))

    def save(self) -> int:
        """Write it and what it means now; returns the size in bytes."""
        head = {"format": 1, "space": self.space, "about": self.about}
        lines = [head, *map(_line, self.messages)]
        self._path("").parent.mkdir(exist_ok=True)
        self._write("jsonl.gz", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._write("fold.json.gz", json.dumps(fold(self), ensure_ascii=False, indent=1) + "\n")
        return sum(self._path(kind).stat().st_size for kind in ("jsonl.gz", "fold.json.gz"))

    def _path(self, kind: str) -> Path:
        return FOLDER / self.release / f"{self.name}.{kind}"

    def _write(self, kind: str, text: str) -> None:
        self._path(kind).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def releases() -> list[str]:
    """The releases that have histories, such as `v0.1`, the oldest first."""
    found = [path.name for path in FOLDER.glob("v*") if path.is_dir()]
    return sorted(found, key=lambda name: tuple(map(int, name[1:].split("."))))


def stored(release: str) -> Iterator[History]:
    """The histories of a release."""
    for path in sorted((FOLDER / release).glob("*.jsonl.gz")):
        head, *lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert head["format"] == 1
        name = path.name.removesuffix(".jsonl.gz")
        messages = tuple(map(_message, lines))
        yield History(release=release, name=name, space=head["space"], about=head["about"], messages=messages)


def _line(one: Message) -> dict[str, Any]:
    return {
        "subject": one.subject,
        "sequence": one.sequence,
        "recorded_at": one.recorded_at,
        "headers": one.headers.decode("latin-1") if one.headers is not None else None,
        "body": base64.b64encode(one.body).decode(),
    }


def _message(line: dict[str, Any]) -> Message:
    headers = line.pop("headers")
    return Message(
        body=base64.b64decode(line.pop("body"), validate=True),
        headers=headers.encode("latin-1") if headers is not None else None,
        **line,
    )


async def capture(log: EventLog) -> list[Message]:
    """Every message that a log holds now."""
    last = (await log.verify()).last_sequence
    messages: list[Message] = []
    complete = asyncio.Event()

    def take(subject: str, body: bytes, sequence: int, recorded_at: int, headers: bytes | None) -> None:
        if sequence <= last:
            messages.append(
                Message(subject=subject, sequence=sequence, recorded_at=recorded_at, headers=headers, body=body)
            )
        if sequence >= last:
            complete.set()

    async with log.feed(take):
        await complete.wait()
    return messages


# --- what a history means --------------------------------------------------------------------------------------------


def fold(history: History) -> dict[str, Any]:
    """The state of everything after a history, as plain data of names that stay."""
    items = history.items()
    world = World(Subjects(history.space), {})
    for item, message in zip(items, history.messages, strict=True):
        world.fold(item, guarded=is_guarded(item, message.headers, 1))
    known = [item for item in items if isinstance(item, Envelope) and item.address.kind in ("run", "task", "step")]
    run_ids = dict.fromkeys(item.address.run_id for item in known)
    runs = {run_id: run_view(fold_run(run_id, items)) for run_id in run_ids}
    return {
        "types": [item.event_type if isinstance(item, Envelope) else None for item in items],
        "data": [item.data if isinstance(item, Envelope) else None for item in items],
        "runs": runs,
        "open": {run_id: run_view(run) for run_id, run in world.runs.items()},
        "refused": sorted(world.refusals),
        "agents": {
            f"{one.agent}/{one.instance}": _view(one, _INSTANCE)
            | {
                "handlers": {
                    name: to_data(spec) for name, spec in (one.variant.handlers if one.variant else {}).items()
                }
            }
            for one in world.registry.instances.values()
        },
        "tables": tables(items),
    }


def run_view(run: RunState) -> dict[str, Any]:
    """A run with its tasks and steps."""
    return {
        "outcome": run.outcome(),
        **_view(run, _RUN),
        "items": {
            str(n): {"kind": item.kind, **_view(item, _TASK if isinstance(item, TaskState) else _STEP)}
            for n, item in sorted(run.items.items())
        },
    }


def _view(state: RunState | TaskState | StepState | Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: _plain(getattr(state, name)) for name in names}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_data(value)
    return list(value) if isinstance(value, tuple) else value


def tables(items: Sequence[Item]) -> dict[str, dict[str, Row]]:
    """The rows of the projections, by table and key, as they are handed to PostgreSQL."""
    runs: dict[str, Row] = {}
    tasks: dict[tuple[str, int], Row] = {}
    about_runs = [item for item in items if isinstance(item, Envelope) and item.address.kind in ("run", "task")]
    fold_batch(about_runs, runs, tasks)
    agents: dict[str, Row] = {}
    for item in items:
        if isinstance(item, Envelope) and item.address.kind == "agent":
            key = f"{item.address.agent}/{item.address.instance}"
            row = agents.get(key)
            change = fold_instance(row, item)
            if change is not None:
                before = row["health"] if row is not None else NULL
                row = agents.setdefault(key, {})
                row.update(change)
                if row["health"] != before:
                    row["changed_at"] = moment(item.recorded_at)
    return {"runs": runs, "tasks": {f"{run_id}/{n}": row for (run_id, n), row in tasks.items()}, "agents": agents}
