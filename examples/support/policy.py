"""The desk's rules, as pure functions: what to do with a ticket, and what to tell the customer.

The saga calls them directly. They read no clock and no state, so a replay decides the same.
"""

from dataclasses import dataclass
from typing import Literal

from cuebook.examples.support.models import Case, Letter, Order, Reading, Ticket

__all__ = ["APPROVAL_LIMIT_CENTS", "Plan", "answer", "approval_question", "hand_over", "money", "plan_for"]

APPROVAL_LIMIT_CENTS = 50_000
"""A person approves refunds above this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do next, and why in a few words."""

    action: Literal["refund", "answer", "thank", "escalate"]
    reason: str


def plan_for(ticket: Ticket, reading: Reading, order: Order | None) -> Plan:
    """Choose the way a ticket goes. Money moves only for a sure reading and a paid order of the same customer."""
    if reading.low_confidence:
        return Plan(action="escalate", reason="the classifier is not sure")
    match reading.intent:
        case "praise":
            return Plan(action="thank", reason="praise")
        case "complaint":
            return Plan(action="escalate", reason="the customer complains")
        case "order_status" if order is not None and _same_customer(ticket, order):
            return Plan(action="answer", reason=f"order is {order.status}")
        case "refund_request" | "damaged_item" if order is not None and _same_customer(ticket, order):
            return _plan_refund(order)
    if reading.order_id is None:
        return Plan(action="escalate", reason="no single order number in the text")
    if order is None:
        return Plan(action="escalate", reason=f"no order {reading.order_id}")
    return Plan(action="escalate", reason=f"order {order.id} belongs to another customer")


def answer(ticket: Ticket, order: Order | None, *, subject: str, body: str) -> Letter:
    """Address an answer: to the ticket's own address, else the one on the order, else the ticket's thread."""
    recipient = ticket.email or (order.email if order else None) or f"thread:{ticket.id}"
    return Letter(ticket_id=ticket.id, recipient=recipient, subject=subject, body=body)


def approval_question(case: Case) -> str:
    """Ask for a refund above the limit, with all that is needed to decide."""
    if case.order is None:
        raise ValueError(f"ticket {case.ticket.id} has no order to refund")
    amount = money(case.order.amount_cents, case.order.currency)
    return f"Refund {amount} for order {case.order.id}?\n\n{hand_over(case)}"


def hand_over(case: Case) -> str:
    """Summarise a case for the person who takes over: the same case gives the same text, whenever it is asked."""
    reading, order = case.reading, case.order
    sure = "not sure" if reading.low_confidence else "sure"
    lines = [
        f"Ticket {case.ticket.id}: {case.reason}.",
        f"Read as {reading.intent} ({reading.confidence:.0%}, {sure}, by {reading.read_by}).",
    ]
    if order is not None:
        amount = money(order.amount_cents, order.currency)
        lines.append(f"Order {order.id}: {order.item}, {amount}, {order.status}, customer {order.customer}.")
    elif reading.order_id is not None:
        lines.append(f"Order {reading.order_id}: not in the books.")
    else:
        lines.append("No order number found in the text.")
    lines += [f"Tried: {step}" for step in case.tried] or ["Tried: nothing yet."]
    lines.append(f"Customer wrote: {_excerpt(case.ticket.text)}")
    return "\n".join(lines)


def money(amount_cents: int, currency: str) -> str:
    """Write an amount for people: `129.00 EUR`."""
    return f"{amount_cents // 100}.{amount_cents % 100:02d} {currency.upper()}"


def _plan_refund(order: Order) -> Plan:
    if order.status in ("cancelled", "refunded"):
        return Plan(action="escalate", reason=f"order {order.id} is already {order.status}")
    if order.payment_intent is None:
        return Plan(action="escalate", reason=f"order {order.id} has no payment to give back")
    if order.status == "shipped":
        return Plan(action="escalate", reason=f"order {order.id} is on its way, the parcel has to be called back first")
    return Plan(action="refund", reason=f"order is {order.status}")


def _same_customer(ticket: Ticket, order: Order) -> bool:
    """A ticket without a customer comes from a channel that does not know one; the order number has to do there."""
    return ticket.customer is None or ticket.customer == order.customer


def _excerpt(text: str, max_chars: int = 280) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"
