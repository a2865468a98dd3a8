"""What follows a failed attempt. Pure: the jitter comes from the task's own id, so all orchestrators decide alike."""

from __future__ import annotations

import zlib

from cuebook.actors.orchestrator.state import TaskState
from cuebook.events.facts import Event, RetryPolicy, TaskEscalated, TaskRetried

__all__ = ["MAX_LOSSES", "after_failure", "after_loss"]

MAX_LOSSES = 5
"""Instances that may die under one task before a person looks at it: it may be what kills them."""

MAX_PAUSE_S = 86_400.0


def after_failure(task: TaskState, policy: RetryPolicy) -> Event:
    """Another attempt with a pause, or a person."""
    error = task.error
    assert error is not None, "a failed task has an error"
    attempts, backoff_s = policy.attempts, policy.backoff_s
    rules = {rule.error: rule for rule in policy.rules}
    for name in error.classes or [error.type]:
        if rule := rules.get(name):
            attempts = rule.attempts
            backoff_s = policy.backoff_s if rule.backoff_s is None else rule.backoff_s
            break
    if not error.retryable:
        return TaskEscalated(reason=f"{error.type} is not worth another attempt", error=error)
    if task.failures >= attempts:
        return TaskEscalated(reason=f"failed {task.failures} of {attempts} attempts", error=error)
    delay_s = _pause(backoff_s, policy.factor, task.failures, policy.max_s)
    delay_s *= 1 + min(1.0, max(0.0, policy.jitter)) * _spread(task)
    return TaskRetried(delay_s=round(delay_s, 3), reason=f"attempt {task.attempt} failed: {error.type}")


def after_loss(task: TaskState) -> Event:
    """The instance died or fell silent."""
    if task.losses + 1 >= MAX_LOSSES:
        return TaskEscalated(reason=f"{task.losses + 1} instances were lost while they had this task")
    return TaskRetried(reason=f"instance {task.instance} was lost", lost=True)


def _pause(backoff_s: float, factor: float, failures: int, max_s: float) -> float:
    """Whatever the numbers: they may come from anybody, and one that is none loses every comparison."""
    longest = min(MAX_PAUSE_S, max(0.0, max_s))
    try:
        return min(longest, max(0.0, backoff_s) * max(1.0, factor) ** (failures - 1))
    except OverflowError:
        return longest


def _spread(task: TaskState) -> float:
    """From -1 to 1, the same for the same attempt everywhere."""
    return zlib.crc32(f"{task.run_id}/{task.n}/{task.attempt}".encode()) / 0x7FFFFFFF - 1
