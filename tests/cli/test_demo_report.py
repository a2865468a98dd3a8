"""The demo's judgement: nothing to say where all records agree, and the difference named where they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.cli.demo.report import Ledger, Tables, summary, what_is_wrong
from cuebook.cli.demo.story import Story, TicketStory
from cuebook.examples.support.models import Ticket
from cuebook.examples.support.tickets import Demonstration

ANSWERER = "the demo"
LEDGER = Ledger(refunds={"re_1": 5000, "re_2": 7990, "re_3": 129900}, charged_again={"re_2": 7990})
TABLES = Tables(applied=40, runs={"completed": 3, "compensated": 1}, tasks=6, agents=2, audit=40, feedback=3)


def demonstration(id_: str, ends: Any, *, retries: int = 0) -> Demonstration:
    return Demonstration(ticket=Ticket(id=id_, text="x"), ends=ends, shows="something", retries=retries)


DEMONSTRATIONS = [
    demonstration("t-1", "refunded", retries=2),
    demonstration("t-2", "compensated"),
    demonstration("t-3", "approval"),
    demonstration("t-4", "answered"),
]


def refund(n: int, refund_id: str, *, compensates: int | None = None) -> TaskState:
    task = TaskState("run", n)
    task.agent, task.status, task.output, task.compensates = "refund", "completed", {"id": refund_id}, compensates
    return task


def ticket(id_: str, status: str, result: Any, *items: TaskState | StepState, retries: int = 0) -> TicketStory:
    run = RunState(f"support-{id_}")
    run.status, run.result = status, result
    run.items = {item.n: item for item in items}
    return TicketStory(id=id_, text="x", opened_at=0, run=run, retries=retries)


@pytest.fixture
def story() -> Story:
    question, other = StepState("run", 0), TaskState("run", 0)
    question.status, question.type, question.by = "answered", "ask", ANSWERER
    other.agent, other.status = "feedback", "completed"
    refused = TaskState("run", 1)
    refused.agent, refused.status, refused.output = "refund", "completed", {"refused": "no"}
    tickets = [
        ticket("t-1", "completed", {"resolution": "refunded", "refunded_cents": 5000}, refund(0, "re_1"), retries=2),
        ticket("t-2", "compensated", None, refund(0, "re_2"), refund(1, "re_2", compensates=0)),
        ticket("t-3", "completed", {"resolution": "refunded", "refunded_cents": 129900}, question, refund(1, "re_3")),
        ticket("t-4", "completed", {"resolution": "answered", "refunded_cents": 0}, other, refused),
    ]
    story = Story(ANSWERER)
    story.tickets = {one.id: one for one in tickets}
    story.events = story.sequence = 40
    return story


def wrong(story: Story, ledger: Ledger = LEDGER, tables: Tables = TABLES) -> list[str]:
    return what_is_wrong(story, DEMONSTRATIONS, ledger, tables, ANSWERER)


def test_nothing_is_wrong_where_all_records_agree(story: Story) -> None:
    assert wrong(story) == []


def test_the_summary_counts_what_is_on_record(story: Story) -> None:
    assert dict(summary(story, LEDGER, TABLES, stream="CUE")) == {
        "outcomes": "2 refunded, 1 answered, 1 compensated",
        "work": "6 tasks, 2 retries, 1 question to a person, answered by the demo",
        "money": "3 refunds over 1,428.90 EUR in Stripe's ledger; 1 undone, 79.90 EUR charged again",
        "tables": "4 runs, 6 tasks, 2 agents, 40 audit rows in PostgreSQL",
        "log": "40 events in stream CUE, none rejected",
    }


def test_an_outcome_that_should_be_another_is_named(story: Story) -> None:
    assert story.tickets["t-4"].run is not None
    story.tickets["t-4"].run.status = "running"
    assert wrong(story)[0] == "t-4: running, should be answered (something)"


def test_a_ticket_that_was_never_opened_is_named(story: Story) -> None:
    del story.tickets["t-4"]
    assert wrong(story)[0] == "t-4: never opened"


def test_a_failure_that_did_not_happen_is_named(story: Story) -> None:
    story.tickets["t-1"].retries = 1
    assert wrong(story) == ["t-1: 1 retries, should be 2 (something)"]


def test_a_question_that_nobody_answered_is_named(story: Story) -> None:
    story.tickets["t-3"].questions[0].by = ""
    assert wrong(story) == ["t-3: questions answered by [''] (something)"]


def test_a_rejected_message_is_named(story: Story) -> None:
    story.rejected.append("cue.event.ticket.opened: the body is no JSON")
    assert wrong(story) == ["rejected: cue.event.ticket.opened: the body is no JSON"]


def test_a_refund_made_twice_is_named(story: Story) -> None:
    twice = replace(LEDGER, refunds={**LEDGER.refunds, "re_4": 5000})
    assert wrong(story, twice) == [
        "refund re_4 is known to Stripe but not to the log",
        "Stripe gave back 139900 cents, the outcomes say 134900",
    ]


def test_a_refund_that_stripe_does_not_know_is_named(story: Story) -> None:
    lost = replace(LEDGER, refunds={"re_2": 7990, "re_3": 129900})
    assert wrong(story, lost)[0] == "refund re_1 is known to the log but not to Stripe"


def test_a_refund_that_was_not_undone_is_named(story: Story) -> None:
    assert wrong(story, replace(LEDGER, charged_again={})) == [
        "charged again: {}, should be {'re_2': 7990}",
        "Stripe gave back 142890 cents, the outcomes say 134900",
    ]


def test_tables_that_differ_from_the_log_are_named(story: Story) -> None:
    tables = Tables(applied=40, runs={"completed": 4}, tasks=5, agents=2, audit=39, feedback=4)
    assert wrong(story, tables=tables) == [
        "table runs has {'completed': 4}, the log {'completed': 3, 'compensated': 1}",
        "table tasks has 5 rows, the log 6 tasks",
        "table audit has 39 rows, the log 40 events",
        "the desk's figures count 4 tickets, 3 completed",
    ]
