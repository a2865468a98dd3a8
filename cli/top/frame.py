"""A frame of `cuebook top` as cells of tables, for the screen and for plain text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuebook.cli.moments import span
from cuebook.cli.output import line, section

__all__ = [
    "SORTS",
    "agent_cells",
    "ending_cells",
    "instance_cells",
    "print_frame",
    "queue_cells",
    "run_cells",
    "status_words",
]

_BAR: Final = 8
_KEYS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "name": lambda one: one["agent"],
    "load": lambda one: (-(one["in_flight"] or 0) / max(one["slots"], 1), one["agent"]),
    "tasks": lambda one: (-one["tasks_s"], one["agent"]),
    "failures": lambda one: (-one["failures_s"], one["agent"]),
    "waiting": lambda one: (-one["waiting"], -(one["oldest_s"] or 0), one["agent"]),
}
SORTS: Final = tuple(_KEYS)
"""What agents can be sorted by."""


def agent_cells(frame: dict[str, Any], sort: str) -> list[list[str]]:
    """A row for each agent."""
    return [
        [
            one["agent"],
            str(one["instances"]),
            one["health"],
            f"{'?' if one['in_flight'] is None else one['in_flight']}/{one['slots']}",
            _bar(one["in_flight"], one["slots"]),
            f"{one['tasks_s']:.1f}",
            f"{one['failures_s']:.1f}",
            str(one["waiting"]),
            span(one["oldest_s"]) if one["oldest_s"] is not None else "",
        ]
        for one in sorted(frame["agents"], key=_KEYS[sort])
    ]


def instance_cells(frame: dict[str, Any]) -> list[list[str]]:
    """A row for each instance, with as many cells as one for an agent."""
    return [
        [
            one["agent"],
            one["instance"],
            one["health"],
            f"{'?' if one['in_flight'] is None else one['in_flight']}/{one['slots']}",
            _bar(one["in_flight"], one["slots"]),
            one["version"],
            f"{one['host']}:{one['pid']}",
            str(one["since"] or "")[:19].replace("T", " "),
            "",
        ]
        for one in frame["instances"]
    ]


def _bar(used: int | None, slots: int) -> str:
    if used is None or not slots:
        return ""
    full = min(round(_BAR * used / slots), _BAR)
    full = max(full, 1) if used else 0
    return "█" * full + "░" * (_BAR - full)


def run_cells(frame: dict[str, Any]) -> list[list[str]]:
    """Open runs by what they are of and state, then what waits for a person."""
    runs = sorted(frame["runs"], key=lambda one: (-one["count"], one["saga"], one["agent"], one["status"]))
    rows = [[f"{one['count']:,}", one["saga"] or one["agent"], one["status"]] for one in runs]
    names = {"task": "escalated tasks", "question": "questions", "stuck": "stuck runs"}
    waiting = [
        [f"{one['count']:,}", f"{names[one['kind']]} for a person", f"oldest {span(one['oldest_s'])}"]
        for one in frame["escalations"]
    ]
    return waiting + rows


def queue_cells(frame: dict[str, Any]) -> list[list[str]]:
    """Tasks that wait for an instance, the oldest first."""
    return [
        [one["agent"], str(one["priority"]), f"{one['waiting']:,}", span(one["oldest_s"]), one["reason"]]
        for one in frame["queues"]
    ]


def ending_cells(frame: dict[str, Any]) -> list[list[str]]:
    """The newest endings of runs."""
    return [[str(one["at"])[11:19], one["status"], one["run_id"], one["of"]] for one in frame["endings"]]


def status_words(frame: dict[str, Any]) -> str:
    """One line about everything."""
    runs = sum(one["count"] for one in frame["runs"])
    waiting = sum(one["waiting"] for one in frame["queues"])
    people = sum(one["count"] for one in frame["escalations"])
    words = [f"{runs:,} runs open", f"{waiting:,} tasks waiting", f"{people:,} for a person"]
    if frame["open_from"] != "orchestrator":
        words.append(f"open runs as told by {frame['open_from']}")
    if frame["projections"]:
        lag = max(one["lag"] for one in frame["projections"])
        bad = [one["projection"] for one in frame["projections"] if one["health"] != "healthy"]
        words.append(f"tables {lag:,} behind" + (f", not well: {', '.join(bad)}" if bad else ""))
    elif frame["projections"] is not None:
        words.append("tables do not answer")
    return " · ".join(words)


def print_frame(frame: dict[str, Any], sort: str) -> None:
    """Print a frame as plain tables."""
    log = frame["log"]
    line(
        f"space {frame['space']} · event {log['sequence']} · {log['events_s']:.1f} events/s · "
        f"{log['tasks_s']:.1f} tasks/s · {log['failures_s']:.1f} failures/s"
    )
    line(status_words(frame))
    columns = ["AGENT", "INST", "HEALTH", "BUSY", "TASKS/S", "FAILED/S", "WAITING", "OLDEST"]
    section("agents", columns, [row[:4] + row[5:] for row in agent_cells(frame, sort)])
    section("open runs", ["COUNT", "OF", "STATE"], run_cells(frame))
    section("waiting", ["AGENT", "PRIORITY", "TASKS", "OLDEST", "WHY"], queue_cells(frame))
    section("newest endings", ["AT (UTC)", "HOW", "RUN", "OF"], ending_cells(frame)[:10])
