"""The ways a ticket can go, driven by hand: what the saga asks for, given these answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cuebook.actors import Approval, Run, RunAbortedError, StepExpiredError
from cuebook.actors.saga import Ask, Call, Step
from cuebook.events.errors import CuebookError
from cuebook.examples.support.models import (
    Bounced,
    Escalation,
    FeedbackTotals,
    Found,
    Order,
    Outcome,
    Reading,
    Refund,
    Refused,
    SentLetter,
    Ticket,
)
from cuebook.examples.support.sagas import support

TICKET = Ticket(id="t-1", text="my blender arrived broken, order 8812")
READING = Reading(intent="damaged_item", confidence=0.9, order_id="8812", read_by="trained classifier")
ORDER = Order(
    id="8812",
    customer="cust-012",
    email="cust-012@example.com",
    item="Blender",
    amount_cents=8990,
    currency="eur",
    status="delivered",
    payment_intent="pi_1",
    charge="ch_1",
)
REFUND = Refund(id="re_1", payment_intent="pi_1", amount_cents=8990, currency="eur", status="succeeded")
CASE = Escalation(id=1, queue="payments", due_at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC), summary="s")
SENT = SentLetter(id=1, recipient="cust-012@example.com")

PLAIN_ANSWERS: dict[str, Any] = {
    "classifier.classify": READING,
    "orders.find": Found(order=ORDER),
    "refund.issue": REFUND,
    "escalation.file": CASE,
    "feedback.reply": SENT,
    "feedback.collect": FeedbackTotals(intents=()),
    "human": Approval(approved=True),
}


class Walk:
    """One run of the saga with the given answers. `asked`: what it asked for, in order."""

    def __init__(self, ticket: Ticket = TICKET, **answers: Any) -> None:
        self.answers = PLAIN_ANSWERS | {name.replace("__", "."): answer for name, answer in answers.items()}
        self.run = Run("support-t-1", datetime(2026, 3, 1, tzinfo=UTC))
        self._coroutine = support(self.run, ticket)

    def to_the_end(self) -> Outcome:
        try:
            while True:
                step: Step[Any] = self._coroutine.send(None)
                answer = self.answers[_name(step)]
                if isinstance(answer, CuebookError):
                    step.fail(answer)
                else:
                    step.settle(answer.model_dump(mode="json"))
        except StopIteration as stop:
            return Outcome.model_validate(stop.value)

    @property
    def asked(self) -> list[str]:
        return [_name(step) for step in self.run.steps]

    def input(self, name: str) -> Any:
        [step] = [step for step in self.run.steps if _name(step) == name]
        assert isinstance(step.request, Call)
        return step.request.input


def _name(step: Step[Any]) -> str:
    return f"{step.request.agent}.{step.request.handler}" if isinstance(step.request, Call) else "human"


def with_order(**changes: Any) -> Found:
    return Found(order=ORDER.model_copy(update=changes))


def with_reading(**changes: Any) -> Reading:
    return READING.model_copy(update=changes)


END = ["feedback.reply", "feedback.collect"]


def test_broken_goods_are_refunded_in_full() -> None:
    walk = Walk()
    outcome = walk.to_the_end()
    assert walk.asked == ["classifier.classify", "orders.find", "refund.issue", *END]
    assert (outcome.resolution, outcome.refunded_cents) == ("refunded", 8990)
    assert walk.input("refund.issue") == {
        "order_id": "8812", "payment_intent": "pi_1", "amount_cents": 8990, "currency": "eur"
    }  # fmt: skip
    assert "89.90 EUR" in walk.input("feedback.reply")["body"]
    assert walk.input("feedback.collect")["refunded_cents"] == 8990


def test_the_way_to_a_refund_has_priority() -> None:
    walk = Walk()
    walk.to_the_end()
    urgent = [_name(step) for step in walk.run.steps if isinstance(step.request, Call) and step.request.priority > 0]
    assert urgent == ["orders.find", "refund.issue"]


def test_what_moves_money_or_tells_people_can_be_undone() -> None:
    refunded, escalated = Walk(), Walk(refund__issue=Refused(refused="no"))
    refunded.to_the_end()
    escalated.to_the_end()
    steps = [*refunded.run.steps, *escalated.run.steps]
    undoable = {_name(step) for step in steps if isinstance(step.request, Call) and step.request.compensation}
    assert undoable == {"refund.issue", "escalation.file", "feedback.reply", "feedback.collect"}


def test_above_the_limit_a_person_is_asked_before_money_moves() -> None:
    walk = Walk(orders__find=with_order(amount_cents=50_001))
    assert walk.to_the_end().resolution == "refunded"
    assert walk.asked == ["classifier.classify", "orders.find", "human", "refund.issue", *END]
    request = walk.run.steps[2].request
    assert isinstance(request, Ask)
    assert request.question.startswith("Refund 500.01 EUR for order 8812?")
    assert request.timeout_s == 4 * 3600


def test_at_the_limit_nobody_is_asked() -> None:
    walk = Walk(orders__find=with_order(amount_cents=50_000))
    walk.to_the_end()
    assert "human" not in walk.asked


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Approval(approved=False, note="not this one"), RunAbortedError),
        (StepExpiredError("nobody answered"), StepExpiredError),
    ],
)
def test_without_approval_no_money_moves(answer: Any, error: type[Exception]) -> None:
    walk = Walk(orders__find=with_order(amount_cents=50_001), human=answer)
    with pytest.raises(error):
        walk.to_the_end()
    assert walk.asked == ["classifier.classify", "orders.find", "human"]


def test_a_refund_that_stripe_refuses_goes_to_people() -> None:
    walk = Walk(refund__issue=Refused(refused="Charge has already been refunded.", code="charge_already_refunded"))
    outcome = walk.to_the_end()
    assert (outcome.resolution, outcome.queue, outcome.refunded_cents) == ("escalated", "payments", 0)
    assert walk.asked == ["classifier.classify", "orders.find", "refund.issue", "escalation.file", *END]
    assert walk.input("escalation.file")["tried"] == ["refund: Charge has already been refunded."]


def test_a_bounced_answer_undoes_the_run() -> None:
    walk = Walk(feedback__reply=Bounced(bounced="bounce@example.com"))
    with pytest.raises(RunAbortedError, match="bounced"):
        walk.to_the_end()
    assert "refund.issue" in walk.asked


def test_without_an_order_number_no_order_is_looked_up() -> None:
    walk = Walk(classifier__classify=with_reading(order_id=None))
    assert walk.to_the_end().resolution == "escalated"
    assert walk.asked == ["classifier.classify", "escalation.file", *END]


def test_an_unknown_order_goes_to_people() -> None:
    walk = Walk(orders__find=Found(order=None))
    assert walk.to_the_end().reason == "no order 8812"


@pytest.mark.parametrize(
    ("reading", "resolution", "asked"),
    [
        (with_reading(intent="praise", order_id=None), "thanked", []),
        (with_reading(intent="order_status"), "answered", ["orders.find"]),
        (with_reading(intent="complaint", order_id=None), "escalated", ["escalation.file"]),
        (with_reading(confidence=0.3), "escalated", ["orders.find", "escalation.file"]),
    ],
)
def test_the_reading_leads_the_way(reading: Reading, resolution: str, asked: list[str]) -> None:
    walk = Walk(classifier__classify=reading)
    assert walk.to_the_end().resolution == resolution
    assert walk.asked == ["classifier.classify", *asked, *END]


def test_the_customer_is_told_until_when_a_person_answers() -> None:
    walk = Walk(classifier__classify=with_reading(intent="complaint"))
    walk.to_the_end()
    assert "01 March, 12:30 UTC" in walk.input("feedback.reply")["body"]


@pytest.mark.parametrize("changes", [{}, {"refund__issue": Refused(refused="no")}])
def test_the_same_answers_lead_to_the_same_requests(changes: dict[str, Any]) -> None:
    def walked() -> list[Any]:
        walk = Walk(**changes)
        walk.to_the_end()
        return [step.request for step in walk.run.steps]

    assert walked() == walked()


def test_a_ticket_has_one_run() -> None:
    ticket = TICKET.model_dump()
    assert support.run_id(ticket, "event-1") == support.run_id(ticket, "event-2") == "support-t-1"
