"""Runs as plain data and back, for snapshots: what is folded, without what stands at its default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic import TypeAdapter

from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.events.catalogue import to_data
from cuebook.events.facts import Error, Origin, RetryPolicy, RunForked, RunStuck, TaskResolved

__all__ = ["dump_run", "load_run"]

_BESIDE = frozenset({"kind", "pending", "queued", "gone", "takers", "winding", "verified"})
_FOLDED: dict[type, dict[str, Any]] = {
    cls: {name: getattr(cls, name) for name in cls.__annotations__ if name not in _BESIDE}
    for cls in (TaskState, StepState, RunState)
}
"""What is saved of each, with the defaults."""
_LOADERS: dict[str, Callable[[Any], Any]] = {
    "error": TypeAdapter(Error).validate_python,
    "retry": TypeAdapter(RetryPolicy).validate_python,
    "resolution": TypeAdapter(TaskResolved).validate_python,
    "stuck": TypeAdapter(RunStuck).validate_python,
    "forked": TypeAdapter(RunForked).validate_python,
    "origin": TypeAdapter(Origin).validate_python,
    "refused": tuple,
}
_TYPED: Final = _LOADERS.keys() - {"refused"}


def dump_run(run: RunState) -> dict[str, Any]:
    """A run as plain data, for a snapshot."""
    data = _dump(run)
    data["run_id"] = run.run_id
    data["items"] = [[item.kind, n, _dump(item)] for n, item in run.items.items()]
    return data


def load_run(data: dict[str, Any]) -> RunState:
    """The inverse of `dump_run`."""
    run = RunState(data["run_id"])
    for kind, n, fields in data["items"]:
        item = run.items[n] = (TaskState if kind == "task" else StepState)(run.run_id, n)
        _load(item, fields)
    _load(run, {name: value for name, value in data.items() if name not in ("run_id", "items")})
    return run


def _dump(state: TaskState | StepState | RunState) -> dict[str, Any]:
    defaults = _FOLDED[type(state)]  # what was never set stands on the class only
    data = {name: value for name, value in vars(state).items() if value is not defaults.get(name, value)}
    for name in _TYPED & data.keys():
        data[name] = to_data(data[name])
    return data


def _load(state: TaskState | StepState | RunState, data: dict[str, Any]) -> None:
    for name, value in data.items():
        loader = _LOADERS.get(name)
        setattr(state, name, loader(value) if loader and value is not None else value)
