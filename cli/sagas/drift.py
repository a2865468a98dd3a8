"""Whether the present code of a saga would have done what a recorded run did. Only the saga is called, in a fence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cuebook.actors.orchestrator.sagas import Drift, Execution, Raised, Returned, describe_request, error_of
from cuebook.actors.orchestrator.state import RunState
from cuebook.actors.orchestrator.watchdog import watched
from cuebook.actors.saga import Saga, Step
from cuebook.cli.sagas.fence import Fence

__all__ = ["check_run"]

_RAISED = frozenset({"failed", "compensating", "compensated"})
_NOT_BY_THE_SAGA = frozenset({"PoisonMessageError"})
"""The run ended because what the saga asked for could not be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Driven:
    """How far the recorded results took the saga's code."""

    outcome: Returned | Raised | Drift | None
    unrecorded: list[tuple[int, Any]]
    unheeded: Step[Any] | None


def check_run(saga: Saga[Any, Any], run: RunState, fence: Fence) -> dict[str, Any] | None:
    """Drive the saga by the run's recorded results; returns where it goes another way, or None.

    A run that goes on, or was cancelled, is compared as far as it went. One that ended must end in the same way.
    """
    fence.tried.clear()
    try:
        driven = _drive(saga, run, fence)
    except ValidationError as error:
        return _drift(run, None, {"input": run.input}, None, f"the input no longer fits the saga: {error}")
    if fence.tried:
        return _drift(run, None, None, {"fenced": list(fence.tried)}, "the saga reaches outside by itself")
    if isinstance(driven.outcome, Drift):
        drift = driven.outcome
        return _drift(run, drift.step, drift.recorded, drift.asked, drift.reason)
    if run.cancel_reason is not None or run.status in ("requested", "running", "stuck"):
        return None
    if run.error is not None and run.error.type in _NOT_BY_THE_SAGA:
        return None
    return _compare_end(run, driven)


def _drive(saga: Saga[Any, Any], run: RunState, fence: Fence) -> _Driven:
    watched(int)  # starts this thread's watchdog, which is a thread of ours and no deed of the saga's
    with fence:
        execution = Execution(saga, run)
        try:
            execution.advance(run)
            outcome = execution.outcome
            return _Driven(
                outcome=outcome,
                unrecorded=execution.unrecorded(run),
                unheeded=execution.unsettled(run) if isinstance(outcome, Returned) else None,
            )
        finally:
            execution.close()


def _compare_end(run: RunState, driven: _Driven) -> dict[str, Any] | None:
    outcome, unheeded = driven.outcome, driven.unheeded
    if run.status in _RAISED and not driven.unrecorded:
        # A step that failed without ever being awaited ends a run too.
        return None if unheeded is not None and unheeded.error is not None else _compare_error(run, outcome)
    if driven.unrecorded:
        n, request = driven.unrecorded[0]
        return _drift(run, n, None, describe_request(request), "the saga asks for more than it did")
    if run.status == "completed":
        if not isinstance(outcome, Returned):
            return _drift(run, None, {"result": run.result}, _ended(outcome), "the saga does not return")
        if outcome.result != run.result:
            return _drift(run, None, {"result": run.result}, _ended(outcome), "the saga returns something else")
    return None


def _compare_error(run: RunState, outcome: Any) -> dict[str, Any] | None:
    recorded = {"raises": run.error.type} if run.error is not None else None
    if not isinstance(outcome, Raised):
        return _drift(run, None, recorded, _ended(outcome), "the saga does not raise")
    if run.error is not None and error_of(outcome.error).type != run.error.type:
        return _drift(run, None, recorded, _ended(outcome), "the saga raises something else")
    return None


def _ended(outcome: Any) -> dict[str, Any] | None:
    match outcome:
        case Returned(result):
            return {"result": result}
        case Raised(error):
            return {"raises": type(error).__name__, "message": str(error)}
    return None


def _drift(run: RunState, step: int | None, recorded: Any, asked: Any, reason: str) -> dict[str, Any]:
    return {"run_id": run.run_id, "saga": run.saga, "version": run.version, "status": run.status, "step": step,
            "recorded": recorded, "asked": asked, "reason": reason}  # fmt: skip
