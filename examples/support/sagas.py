"""What happens to a ticket, from its arrival to its outcome."""

from cuebook.actors import Approval, Run, hours, saga
from cuebook.examples.support.agents import Classifier, Escalations, Feedback, Orders, Refunds
from cuebook.examples.support.models import (
    Bounced,
    Case,
    Charge,
    Experience,
    Order,
    OrderQuery,
    Outcome,
    Queue,
    Reading,
    Refused,
    Resolution,
    Ticket,
)
from cuebook.examples.support.policy import APPROVAL_LIMIT_CENTS, answer, approval_question, money, plan_for

__all__ = ["support"]

_MONEY_FIRST = 7  # tasks on the way to a refund go before all others


@saga(on="ticket.opened", key="id")
async def support(run: Run, ticket: Ticket) -> Outcome:
    """Handle one ticket: read it, look the order up, then thank, answer, refund, or hand over to a person."""
    reading = await run.call(Classifier.classify, ticket)
    order = None
    if reading.order_id is not None:
        order = (await run.call(Orders.find, OrderQuery(order_id=reading.order_id), priority=_MONEY_FIRST)).order
    desk = _Desk(run, ticket, reading, order)
    plan = plan_for(ticket, reading, order)
    match plan.action:
        case "refund" if order is not None and order.payment_intent is not None:
            return await desk.refund(order, order.payment_intent)
        case "thank":
            return await desk.close("thanked", plan.reason, "Thank you", "Thank you for telling us, it made our day.")
        case "answer" if order is not None:
            body = f"Your order {order.id} ({order.item}) is {order.status}."
            return await desk.close("answered", plan.reason, f"Your order {order.id}", body)
    return await desk.hand_over(plan.reason)


class _Desk:
    """The ways a ticket can go on from its reading. No more state than the saga has itself."""

    def __init__(self, run: Run, ticket: Ticket, reading: Reading, order: Order | None) -> None:
        self.run, self.ticket, self.reading, self.order = run, ticket, reading, order

    async def refund(self, order: Order, payment_intent: str) -> Outcome:
        """Give the money back; above the limit a person is asked first. Undone if the customer cannot be told."""
        if order.amount_cents > APPROVAL_LIMIT_CENTS:
            case = Case(ticket=self.ticket, reading=self.reading, order=order, reason="a refund above the limit")
            approval = await self.run.ask_human(approval_question(case), Approval, timeout=hours(4))
            if not approval:
                raise self.run.abort(f"refund declined: {approval.note}" if approval.note else "refund declined")
        charge = Charge(
            order_id=order.id, payment_intent=payment_intent, amount_cents=order.amount_cents, currency=order.currency
        )
        refund = await self.run.call(Refunds.issue, charge, priority=_MONEY_FIRST)
        if isinstance(refund, Refused):
            return await self.hand_over("Stripe refused the refund", f"refund: {refund.refused}")
        amount = money(refund.amount_cents, refund.currency)
        return await self.close(
            "refunded",
            f"{refund.id} over {amount}",
            f"Your refund for order {order.id}",
            f"We have refunded {amount} for your order {order.id} ({order.item}). It takes up to ten days to arrive.",
            refunded_cents=refund.amount_cents,
        )

    async def hand_over(self, reason: str, *tried: str) -> Outcome:
        """File the case for people, and say so to the customer."""
        case = Case(ticket=self.ticket, reading=self.reading, order=self.order, reason=reason, tried=tried)
        escalation = await self.run.call(Escalations.file, case)
        body = f"A colleague takes care of your message and answers by {escalation.due_at:%d %B, %H:%M} UTC."
        return await self.close("escalated", reason, "We are on it", body, queue=escalation.queue)

    async def close(
        self,
        resolution: Resolution,
        reason: str,
        subject: str,
        body: str,
        *,
        refunded_cents: int = 0,
        queue: Queue | None = None,
    ) -> Outcome:
        """Tell the customer and count the ticket, both at once.

        A letter that bounces ends the run, and what was done is undone: nobody knows then whose address it was, and no
        money moves without its owner being told.
        """
        letter = answer(self.ticket, self.order, subject=subject, body=body)
        experience = Experience(
            ticket_id=self.ticket.id,
            text=self.ticket.text,
            intent=self.reading.intent,
            confidence=self.reading.confidence,
            resolution=resolution,
            refunded_cents=refunded_cents,
        )
        sent, _ = await self.run.gather(
            self.run.call(Feedback.reply, letter), self.run.call(Feedback.collect, experience)
        )
        if isinstance(sent, Bounced):
            raise self.run.abort(f"the answer to ticket {self.ticket.id} bounced")
        return Outcome(
            ticket_id=self.ticket.id, resolution=resolution, reason=reason, refunded_cents=refunded_cents, queue=queue
        )
