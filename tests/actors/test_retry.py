"""What follows a failed attempt or a lost instance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cuebook.actors import Retry
from cuebook.actors.agent import class_names
from cuebook.actors.attempt import error_of
from cuebook.actors.orchestrator.retry import MAX_LOSSES, MAX_PAUSE_S, after_failure, after_loss
from cuebook.actors.orchestrator.state import TaskState, span_us
from cuebook.events.codec import encode
from cuebook.events.facts import Error, RetryPolicy, RetryRule, TaskEscalated, TaskFailed, TaskRetried

POLICY = RetryPolicy(attempts=4, backoff_s=1.0, factor=2.0, max_s=60.0, jitter=0.0)
ANY_NUMBER = st.floats(allow_nan=True, allow_infinity=True)


def failed(failures: int = 1, *, run_id: str = "r1", attempt: int = 0, **error: Any) -> TaskState:
    task = TaskState(run_id, 0)
    task.status, task.failures, task.attempt = "failed", failures, attempt or failures
    task.error = Error(**{"type": "ValueError", "message": "no", **error})
    return task


def pause(task: TaskState, policy: RetryPolicy) -> float:
    decision = after_failure(task, policy)
    assert isinstance(decision, TaskRetried)
    return decision.delay_s


def test_pauses_grow_by_the_factor_up_to_the_longest() -> None:
    policy = replace(POLICY, attempts=100, max_s=5.0)
    assert [pause(failed(n), policy) for n in (1, 2, 3, 4, 50)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    retried = after_failure(failed(2, type="KeyError"), POLICY)
    assert retried == TaskRetried(delay_s=2.0, reason="attempt 2 failed: KeyError")


def test_after_the_last_attempt_a_person_is_asked() -> None:
    assert isinstance(after_failure(failed(3), POLICY), TaskRetried)
    escalated = after_failure(failed(4), POLICY)
    assert isinstance(escalated, TaskEscalated)
    assert escalated.reason == "failed 4 of 4 attempts"
    assert escalated.error is not None
    assert escalated.error.message == "no"
    assert isinstance(after_failure(failed(1), replace(POLICY, attempts=1)), TaskEscalated)


def test_an_error_that_is_not_worth_it_escalates_whatever_the_rules_say() -> None:
    policy = replace(POLICY, rules=[RetryRule(error="ValueError", attempts=50)])
    escalated = after_failure(failed(1, retryable=False), policy)
    assert isinstance(escalated, TaskEscalated)
    assert escalated.reason == "ValueError is not worth another attempt"


def test_the_most_specific_class_counts() -> None:
    rules = [
        RetryRule(error="Exception", attempts=9, backoff_s=9.0),
        RetryRule(error="LookupError", attempts=2),
        RetryRule(error="KeyError", attempts=3, backoff_s=7.0),
    ]
    policy = replace(POLICY, rules=rules)
    assert pause(failed(1, classes=["KeyError", "LookupError", "Exception"]), policy) == 7.0
    assert pause(failed(1, classes=["IndexError", "LookupError", "Exception"]), policy) == 1.0
    assert isinstance(after_failure(failed(2, classes=["IndexError", "LookupError"]), policy), TaskEscalated)
    assert pause(failed(1, classes=["OSError", "Exception"]), policy) == 9.0
    assert pause(failed(1, type="KeyError"), policy) == 7.0  # another author's agent names its type only
    assert pause(failed(1, type="Strange"), policy) == 1.0


def test_classes_are_named_from_the_most_specific_on() -> None:
    class _OwnError(KeyError): ...

    assert class_names(_OwnError) == ["OwnError", "KeyError", "LookupError", "Exception"]
    assert class_names(SystemExit) == ["SystemExit"]


@given(
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0, 1000),
    st.floats(1, 10),
    st.floats(0, 1000),
    st.integers(1, 1000),
)
def test_jitter_is_the_same_everywhere_and_stays_within_its_bounds(
    failures: int, jitter: float, backoff_s: float, factor: float, max_s: float, attempt: int
) -> None:
    policy = RetryPolicy(attempts=100, backoff_s=backoff_s, factor=factor, max_s=max_s, jitter=jitter)
    delay_s = pause(failed(failures, attempt=attempt), policy)
    assert delay_s == pause(failed(failures, attempt=attempt), policy)
    plain_s = pause(failed(failures, attempt=attempt), replace(policy, jitter=0.0))
    assert plain_s <= max_s + 0.001
    assert plain_s * (1 - jitter) - 0.01 <= delay_s <= plain_s * (1 + jitter) + 0.01


def test_jitter_spreads_tasks_and_attempts_over_the_whole_width() -> None:
    policy = replace(POLICY, attempts=1000, factor=1.0, jitter=0.5)
    tasks = [pause(failed(1, run_id=f"r{n}"), policy) for n in range(300)]
    attempts = [pause(failed(n), policy) for n in range(1, 300)]
    for delays in (tasks, attempts):
        assert min(delays) < 0.6
        assert max(delays) > 1.4
        assert len(set(delays)) > 200


@example(9, math.nan, 2.0, 60.0, 0.0, 1)
@example(9, 1.0, math.nan, 60.0, 0.0, 1)
@example(9, 1.0, 2.0, math.nan, 0.0, 1)
@example(9, 1.0, 2.0, 60.0, math.nan, 1)
@example(9, 0.0, math.inf, math.inf, 0.0, 2)
@given(
    st.integers(-10, 10_000),
    ANY_NUMBER,
    ANY_NUMBER,
    ANY_NUMBER,
    ANY_NUMBER,
    st.integers(1, 10_000),
)
def test_no_policy_whatever_its_numbers_makes_a_pause_that_is_none(
    attempts: int, backoff_s: float, factor: float, max_s: float, jitter: float, failures: int
) -> None:
    policy = RetryPolicy(attempts=attempts, backoff_s=backoff_s, factor=factor, max_s=max_s, jitter=jitter)
    decision = after_failure(failed(failures), policy)
    if isinstance(decision, TaskRetried):
        assert 0 <= decision.delay_s <= 2 * MAX_PAUSE_S
        assert span_us(decision.delay_s) >= 0
    else:
        assert failures >= attempts


def test_a_lost_instance_costs_no_attempt_until_it_looks_as_if_the_task_kills_them() -> None:
    task = failed(0)
    task.instance = "i7"
    for losses in range(MAX_LOSSES - 1):
        task.losses = losses
        assert after_loss(task) == TaskRetried(reason="instance i7 was lost", lost=True)
    task.losses = MAX_LOSSES - 1
    escalated = after_loss(task)
    assert isinstance(escalated, TaskEscalated)
    assert escalated.reason == f"{MAX_LOSSES} instances were lost while they had this task"


@given(ANY_NUMBER)
def test_a_span_is_never_negative_nor_longer_than_a_life(seconds: float) -> None:
    assert 0 <= span_us(seconds) <= 10**15


def test_a_policy_as_data_says_what_was_written() -> None:
    policy = Retry(
        attempts=5, backoff_s=2.0, never=(KeyError,), on={OSError: Retry(attempts=9, backoff_s=math.pi)}
    ).policy()
    assert policy == RetryPolicy(
        attempts=5,
        backoff_s=2.0,
        rules=[RetryRule(error="KeyError", attempts=1), RetryRule(error="OSError", attempts=9, backoff_s=math.pi)],
    )
    assert isinstance(after_failure(failed(1, classes=["KeyError"]), policy), TaskEscalated)


@pytest.mark.parametrize("failures", [1, 2, 30])
def test_a_factor_that_overflows_gives_the_longest_pause(failures: int) -> None:
    policy = replace(POLICY, attempts=100, factor=1e300, max_s=30.0)
    assert pause(failed(failures), policy) == (1.0 if failures == 1 else 30.0)


def test_an_error_with_half_a_surrogate_pair_in_its_text_is_still_that_error() -> None:
    error = error_of(ValueError("no file '\udcff'"))  # as names of files have them
    assert (error.type, error.message, error.retryable) == ("ValueError", "no file '?'", True)
    encode(TaskFailed(error=error, attempt=1), event_id="e", source="tests", now=0)
