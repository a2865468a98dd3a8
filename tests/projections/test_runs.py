"""The tables runs and tasks, row by row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cuebook.events.facts import (
    Error,
    Event,
    Origin,
    RunCancelled,
    RunCancelRequested,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunForked,
    RunRejected,
    RunResumed,
    RunRetryRequested,
    RunStarted,
    RunStuck,
    TaskAborted,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskCopied,
    TaskEscalated,
    TaskFailed,
    TaskRejected,
    TaskRequested,
    TaskResolved,
    TaskRetried,
    TaskReverted,
)
from tests.projections.story import START, Story
from tests.projections.tables import Tables

ERROR = Error(type="Timeout", message="no answer")
FAILED = TaskFailed(error=ERROR, attempt=1)


def moment(sequence: int) -> datetime:
    return datetime.fromtimestamp(START / 1_000_000, UTC) + timedelta(seconds=sequence)


async def test_a_standalone_task_is_a_run_without_a_saga(tables: Tables) -> None:
    story = Story()
    story.request("r1", source="desk")
    story.assign("r1")
    story.complete("r1")
    await tables.apply(story.items)
    assert await tables.row(
        "SELECT saga, status, standalone, tasks, tasks_completed, tasks_failed, opened_by, opened_at, started_at, "
        "ended_at, first_sequence, last_sequence, correlation_id FROM runs"
    ) == (None, "completed", True, 1, 1, 0, "desk", moment(1), moment(2), moment(3), 1, 3, "e1")
    assert await tables.row(
        "SELECT agent, handler, status, attempt, instance, input, output, placement, requested_at, assigned_at, "
        "deadline, ended_at, ended_by, last_sequence FROM tasks"
    ) == (
        "refund", "issue", "completed", 1, "i1", {"order": 8812}, {"ok": True}, {"free": 3},
        moment(1), moment(2), moment(62), moment(3), "refund/i1", 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "task", "run"),
    [
        ([], "waiting", "requested"),
        ([FAILED], "waiting", "requested"),
        (["assign"], "assigned", "running"),
        (["assign", FAILED], "failed", "running"),
        (["assign", FAILED, TaskRetried(delay_s=5, reason="again")], "backoff", "running"),
        (["assign", FAILED, TaskRetried(delay_s=5), "assign"], "assigned", "running"),
        (["assign", TaskRetried(lost=True)], "backoff", "running"),
        (["assign", FAILED, TaskEscalated(reason="no more attempts")], "escalated", "running"),
        (["assign", FAILED, TaskEscalated(reason=""), TaskResolved(action="retry", by="eva")], "resolved", "running"),
        (["assign", TaskResolved(action="abort")], "assigned", "running"),
        (["assign", FAILED, TaskAborted(reason="gave up")], "aborted", "failed"),
        ([TaskCancelRequested(by="eva")], "waiting", "requested"),
        ([TaskCancelRequested(by="eva"), TaskCancelled(reason="eva")], "cancelled", "cancelled"),
        ([TaskRejected(reason="no such agent")], "rejected", "rejected"),
        (["assign", TaskCompleted(), FAILED, TaskCancelled(), "assign", "request"], "completed", "completed"),
    ],
)
async def test_the_status_follows_from_the_facts(tables: Tables, facts: list[Event | str], task: str, run: str) -> None:
    story = Story()
    story.request("r1")
    for fact in facts:
        match fact:
            case "assign":
                story.assign("r1")
            case "request":
                story.request("r1")
            case Event():
                story.task("r1", 0, fact)
    await tables.apply(story.items)
    assert await tables.row("SELECT t.status, r.status FROM tasks t JOIN runs r USING (run_id)") == (task, run)


async def test_a_task_keeps_what_happened_to_it(tables: Tables) -> None:
    story = Story()
    story.request("r1")
    story.assign("r1")
    story.task("r1", 0, FAILED)
    story.task("r1", 0, TaskRetried(delay_s=30, reason="attempt 1 of 2"))
    story.assign("r1", attempt=2, instance="i2")
    story.task("r1", 0, TaskFailed(error=ERROR, attempt=2, duration_s=1.5))
    story.task("r1", 0, TaskEscalated(reason="no more attempts", error=ERROR))
    story.task("r1", 0, TaskResolved(action="supply", output={"by": "hand"}, by="eva", note="called the bank"))
    story.task("r1", 0, TaskCompleted(output={"by": "hand"}, by="eva"))
    await tables.apply(story.items)
    assert await tables.row(
        "SELECT attempt, instance, error->>'type', reason, failed_at, due, escalated_at, resolution, resolved_at, "
        "resolved_by, note, ended_by, output FROM tasks"
    ) == (
        2, "i2", "Timeout", "no more attempts", moment(6), moment(34), moment(7), "supply", moment(8),
        "eva", "called the bank", "eva", {"by": "hand"},
    )  # fmt: skip


async def test_what_was_undone_too_late_is_told_after_the_end(tables: Tables) -> None:
    story = Story()
    story.request("r1")
    story.assign("r1")
    story.task("r1", 0, TaskCancelled(reason="eva", outcome_unknown=True))
    story.task("r1", 0, TaskReverted(output={"refund": "re_1"}, by="refund/i1", error=ERROR))
    await tables.apply(story.items[:3], story.items[3:])
    assert await tables.row(
        "SELECT t.status, t.outcome_unknown, t.reverted->'output', t.reverted->'error'->>'type', t.reverted_at, "
        "r.status, r.tasks_failed, r.ended_at FROM tasks t JOIN runs r USING (run_id)"
    ) == ("cancelled", True, {"refund": "re_1"}, "Timeout", moment(4), "cancelled", 1, moment(3))


async def test_a_compensation_names_what_it_undoes(tables: Tables) -> None:
    story = Story()
    story.ask_for("r1")
    story.run("r1", RunStarted(saga="support", version="3", input={"ticket": 17}, trigger=1))
    story.request("r1", 0)
    story.assign("r1", 0)
    story.complete("r1", 0)
    story.run("r1", RunCompensating(reason="refund declined", steps=[0]))
    undo = TaskRequested(
        handler="reverse", input={"input": 1, "output": 2}, compensates=0, priority=9, labels={"a": "b"}
    )
    story.tell(story.subjects.task("r1", 1, "requested", "refund"), undo)
    await tables.apply(story.items)
    assert await tables.row("SELECT compensates, priority, labels FROM tasks WHERE n = 1") == (0, 9, {"a": "b"})
    assert await tables.row("SELECT status, undo, tasks, tasks_completed, saga, version, trigger FROM runs") == (
        "compensating", [0], 2, 1, "support", "3", 1,
    )  # fmt: skip


STARTED = RunStarted(saga="support", input=1)
STUCK = RunStuck(reason="the code asks for something else", step=2, recorded="mail", asked="sms")


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ([], "requested"),
        ([STARTED], "running"),
        ([STARTED, RunCompleted(result=1)], "completed"),
        ([STARTED, RunFailed(error=ERROR)], "failed"),
        ([STARTED, RunCompensating(reason="x")], "compensating"),
        ([STARTED, RunCompensating(reason="x"), RunCompensated(reason="x")], "compensated"),
        ([STARTED, RunCancelRequested(by="eva")], "running"),
        ([STARTED, RunCancelRequested(by="eva"), RunCancelled(reason="eva")], "cancelled"),
        ([STARTED, STUCK], "stuck"),
        ([STARTED, STUCK, RunRetryRequested(by="eva")], "stuck"),
        ([STARTED, STUCK, RunRetryRequested(by="eva"), RunResumed()], "running"),
        ([STARTED, RunCompensating(reason="x"), STUCK, STUCK, RunResumed()], "compensating"),
        ([STARTED, STUCK, RunCompensating(reason="x")], "compensating"),
        ([STARTED, RunResumed()], "running"),
        ([RunRejected(reason="no such saga")], "rejected"),
        ([STARTED, RunCompleted(), RunFailed(error=ERROR), STUCK, STARTED, RunCancelled()], "completed"),
    ],
)
async def test_the_status_of_a_run_follows_from_its_own_facts(tables: Tables, facts: list[Event], status: str) -> None:
    story = Story()
    story.ask_for("r1")
    for fact in facts:
        story.run("r1", fact)
    await tables.apply(*[[item] for item in story.items])
    ended = status in {"completed", "failed", "compensated", "cancelled", "rejected"}
    assert await tables.row("SELECT status, ended_at IS NOT NULL, standalone FROM runs") == (status, ended, False)


async def test_a_stuck_run_shows_both_sides(tables: Tables) -> None:
    story = Story()
    story.ask_for("r1")
    story.run("r1", STARTED)
    story.run("r1", STUCK)
    await tables.apply(story.items)
    assert await tables.row("SELECT reason, stuck, stuck_from, stuck_at FROM runs") == (
        STUCK.reason, {"step": 2, "recorded": "mail", "asked": "sms"}, "running", moment(3),
    )  # fmt: skip


async def test_a_null_result_is_told_from_none_at_all(tables: Tables) -> None:
    story = Story()
    story.request("r1")
    await tables.apply(story.items)
    assert await tables.row("SELECT output IS NULL FROM tasks") == (True,)
    story.assign("r1")
    story.task("r1", 0, TaskCompleted(output=None, by="refund/i1"))
    await tables.apply(story.items[1:])
    assert await tables.row("SELECT output::text FROM tasks") == ("null",)


async def test_strays_about_tasks_make_no_rows(tables: Tables) -> None:
    story = Story()
    story.complete("r1")
    story.assign("r1")
    story.task("r1", 0, TaskCancelled())
    story.task("r1", 0, TaskRejected(reason="no such agent"))
    story.run("r1", RunCancelRequested(by="eva"))
    await tables.apply(story.items)
    assert await tables.rows("SELECT 1 FROM runs UNION ALL SELECT 1 FROM tasks") == []
    assert await tables.row("SELECT count(*) FROM audit") == (5,)


@pytest.mark.parametrize("opened_by", ["saga", "task"])
async def test_what_is_asked_of_a_run_that_is_over_makes_no_row(tables: Tables, opened_by: str) -> None:
    story = Story()
    if opened_by == "saga":
        story.ask_for("r1")
    else:
        story.request("r1")
        story.complete("r1")
    story.run("r1", RunCancelled())
    story.request("r1", 9)
    await tables.apply(story.items)
    assert await tables.rows("SELECT n FROM tasks WHERE n = 9") == []
    assert await tables.row("SELECT tasks FROM runs") == (0 if opened_by == "saga" else 1,)


async def test_an_end_shows_the_run_whose_request_nobody_could_read(tables: Tables) -> None:
    story = Story()
    story.receive(story.subjects.run("r1", "requested", "support"), b"\xff")
    story.run("r1", RunRejected(reason="malformed"))
    await tables.apply(story.items)
    assert await tables.row("SELECT run_id, status, reason, standalone FROM runs") == (
        "r1", "rejected", "malformed", False,
    )  # fmt: skip


async def test_run_facts_without_a_request_change_nothing_about_a_standalone_task(tables: Tables) -> None:
    story = Story()
    story.request("r1")
    story.run("r1", RunCompleted(result=1))
    story.run("r1", RunFailed(error=ERROR))
    story.run("r1", STARTED)
    story.run("r1", STUCK)
    story.assign("r1")
    await tables.apply(story.items)
    assert await tables.row("SELECT status, standalone, ended_at FROM runs") == ("running", True, None)


async def test_a_fork_tells_what_it_shares_from_what_it_did(tables: Tables) -> None:
    story, origin = Story(), Origin(run_id="r1", n=0, sequence=7, recorded_at=5)
    forked = RunForked(
        saga="support",
        fork_of="r1",
        at=9,
        copied=2,
        started_at=1,
        started_sequence=2,
        input={"ticket": 17},
        changed=[1],
    )
    copied = TaskCopied(origin=origin, status="completed", handler="issue", input={"order": 1}, output={"ok": True})
    story.run("f1", forked)
    story.tell(story.subjects.task("f1", 0, "copied", "refund"), copied)
    story.tell(story.subjects.task("f1", 1, "copied", "refund"), replace(copied, status="aborted", changed=True))
    story.run("f1", RunStarted(saga="support", version="3", input={"ticket": 17}, trigger=1))
    story.request("f1", 2)
    story.tell(story.subjects.task("f1", 3, "copied", "refund"), copied)  # too late to count
    story.tell(story.subjects.task("r2", 0, "copied", "refund"), copied)  # of a run that is no fork
    await tables.apply(story.items[:2], story.items[2:])
    assert await tables.row(
        "SELECT run_id, status, saga, version, fork_of, fork_at, tasks, tasks_completed, tasks_failed FROM runs"
    ) == ("f1", "running", "support", "3", "r1", 9, 3, 1, 1)
    assert await tables.rows(
        "SELECT n, agent, status, copied_from, changed, instance, output->>'ok' FROM tasks ORDER BY n"
    ) == [
        (0, "refund", "completed", "r1/0", False, None, "true"),
        (1, "refund", "aborted", "r1/0", True, None, "true"),
        (2, "refund", "waiting", None, False, None, None),
    ]
