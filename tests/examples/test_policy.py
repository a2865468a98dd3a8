from __future__ import annotations

from typing import Any

import pytest

from cuebook.examples.support.escalations import route
from cuebook.examples.support.models import Case, Order, Reading, Ticket
from cuebook.examples.support.policy import answer, approval_question, hand_over, money, plan_for

TICKET = Ticket(id="t-1", text="my blender\n arrived broken, order 8812")


def reading(intent: Any = "damaged_item", confidence: float = 0.9, order_id: str | None = "8812") -> Reading:
    return Reading(intent=intent, confidence=confidence, order_id=order_id, read_by="trained classifier")


def order(**changes: Any) -> Order:
    known = {
        "id": "8812",
        "customer": "cust-012",
        "email": "cust-012@example.com",
        "item": "Blender",
        "amount_cents": 8990,
        "currency": "eur",
        "status": "delivered",
        "payment_intent": "pi_1",
        "charge": "ch_1",
    }
    return Order.model_validate(known | changes)


@pytest.mark.parametrize("intent", ["refund_request", "damaged_item"])
@pytest.mark.parametrize("status", ["processing", "delivered"])
def test_money_goes_back_for_a_paid_order(intent: str, status: str) -> None:
    assert plan_for(TICKET, reading(intent), order(status=status)).action == "refund"


@pytest.mark.parametrize(
    "changes", [{"status": "shipped"}, {"status": "cancelled"}, {"status": "refunded"}, {"payment_intent": None}]
)
def test_an_order_that_cannot_be_refunded_goes_to_people(changes: dict[str, Any]) -> None:
    assert plan_for(TICKET, reading(), order(**changes)).action == "escalate"


@pytest.mark.parametrize("intent", ["refund_request", "damaged_item", "order_status"])
def test_nobody_learns_or_gets_anything_about_somebody_elses_order(intent: str) -> None:
    ticket = TICKET.model_copy(update={"customer": "cust-001"})
    plan = plan_for(ticket, reading(intent), order())
    assert (plan.action, plan.reason) == ("escalate", "order 8812 belongs to another customer")


@pytest.mark.parametrize("intent", ["refund_request", "damaged_item", "order_status", "praise", "complaint"])
def test_a_reading_that_is_not_sure_goes_to_people(intent: str) -> None:
    assert plan_for(TICKET, reading(intent, confidence=0.44), order()).action == "escalate"


@pytest.mark.parametrize(
    ("intent", "action"), [("praise", "thank"), ("complaint", "escalate"), ("order_status", "answer")]
)
def test_the_intent_leads_the_way(intent: str, action: str) -> None:
    assert plan_for(TICKET, reading(intent), order()).action == action


def test_a_ticket_without_a_known_order_goes_to_people() -> None:
    assert plan_for(TICKET, reading(order_id=None), None).reason == "no single order number in the text"
    assert plan_for(TICKET, reading(), None).reason == "no order 8812"


def test_the_hand_over_says_all_there_is_to_know() -> None:
    case = Case(ticket=TICKET, reading=reading(), order=order(), reason="Stripe refused", tried=("refund: no",))
    assert hand_over(case) == (
        "Ticket t-1: Stripe refused.\n"
        "Read as damaged_item (90%, sure, by trained classifier).\n"
        "Order 8812: Blender, 89.90 EUR, delivered, customer cust-012.\n"
        "Tried: refund: no\n"
        "Customer wrote: my blender arrived broken, order 8812"
    )


def test_the_hand_over_of_an_unknown_order_says_so() -> None:
    bare = Case(ticket=TICKET, reading=reading(confidence=0.1, order_id=None), reason="the classifier is not sure")
    assert "not sure, by" in hand_over(bare)
    assert "No order number found in the text.\nTried: nothing yet." in hand_over(bare)
    assert "Order 8812: not in the books." in hand_over(bare.model_copy(update={"reading": reading()}))


def test_a_long_ticket_is_cut_in_the_hand_over() -> None:
    case = Case(ticket=Ticket(id="t-1", text="x" * 10_000), reading=reading(), reason="r")
    assert len(hand_over(case)) < 600
    assert hand_over(case).endswith("x…")


def test_the_question_for_approval_names_the_amount() -> None:
    case = Case(ticket=TICKET, reading=reading(), order=order(amount_cents=129_900), reason="a refund above the limit")
    assert approval_question(case).startswith("Refund 1299.00 EUR for order 8812?\n\nTicket t-1: a refund above")


@pytest.mark.parametrize(
    ("email", "known", "recipient"),
    [
        ("a@example.com", True, "a@example.com"),
        (None, True, "cust-012@example.com"),
        (None, False, "thread:t-1"),
    ],
)
def test_an_answer_finds_its_way(email: str | None, known: bool, recipient: str) -> None:
    ticket = TICKET.model_copy(update={"email": email})
    assert answer(ticket, order() if known else None, subject="s", body="b").recipient == recipient


@pytest.mark.parametrize(("cents", "text"), [(5, "0.05 EUR"), (129_900, "1299.00 EUR"), (1999, "19.99 EUR")])
def test_money_is_written_without_rounding(cents: int, text: str) -> None:
    assert money(cents, "eur") == text


@pytest.mark.parametrize(
    ("text", "intent", "amount_cents", "queue", "hours"),
    [
        ("nobody answers me", "complaint", None, "complaints", 8),
        ("nobody answers me, my lawyer will", "complaint", None, "complaints", 2),
        ("refund it", "refund_request", 8990, "payments", 12),
        ("refund it", "refund_request", 50_001, "payments", 4),
        ("refund it or see me in court", "refund_request", 8990, "payments", 4),
        ("where is it?", "order_status", 8990, "logistics", 24),
        ("where is it?", "order_status", None, "triage", 24),
    ],
)
def test_a_case_is_routed_by_what_it_is(
    text: str, intent: str, amount_cents: int | None, queue: str, hours: int
) -> None:
    known = None if amount_cents is None else order(amount_cents=amount_cents)
    case = Case(ticket=Ticket(id="t-1", text=text), reading=reading(intent), order=known, reason="r")
    assert route(case) == (queue, hours)
