"""The refund agent: gives money back through Stripe, and takes it again when the work around it comes undone."""

import stripe

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.examples.support.models import Charge, Refund, Refused
from cuebook.examples.support.settings import stripe_access

__all__ = ["Payments", "Refunds"]

_TIMEOUT_S = 20.0

# Wrong settings or a mistake of ours: a person has to look. All else, such as a lost connection, a 409 or a 5xx, is
# tried again under the same key.
_FINAL_ERRORS = (stripe.AuthenticationError, stripe.IdempotencyError, stripe.PermissionError)


class Refunds(Agent):
    """Gives money back through Stripe."""

    name = "refund"
    concurrency = 16

    async def start(self) -> None:
        """Open a client for the account that is set."""
        self.payments = Payments(*stripe_access())

    async def stop(self) -> None:
        """Close the client's connections."""
        await self.payments.close()

    @handler(timeout_s=30, retry=Retry(attempts=4, backoff_s=0.5, never=_FINAL_ERRORS))
    async def issue(self, charge: Charge, task: Task) -> Refund | Refused:
        """Refund one charge; safe to repeat, since Stripe gets the same idempotency key on every attempt.

        A no from Stripe, such as for a charge that is already refunded, is a result: the saga decides what follows.
        """
        await task.progress(f"refunding order {charge.order_id}")
        try:
            return await self.payments.refund(charge, idempotency_key=task.idempotency_key)
        except stripe.InvalidRequestError as error:
            return Refused(refused=error.user_message or "without a reason", code=error.code)

    @issue.compensation
    async def reverse(self, charge: Charge, refund: Refund | Refused, task: Task) -> None:
        """Take the money again: see `Payments.charge_again`. A declined card leaves the run to an operator."""
        if isinstance(refund, Refund):
            await self.payments.charge_again(charge, refund, idempotency_key=f"{task.idempotency_key}/charge-again")


class Payments:
    """The few things the desk asks of Stripe. Every change takes an idempotency key.

    The client's own retries are off: a failed attempt is the actor system's to repeat, where it is seen and counted.
    """

    def __init__(self, url: str, key: str) -> None:
        self._http = stripe.HTTPXClient(timeout=_TIMEOUT_S)
        self.client = stripe.StripeClient(
            key, base_addresses={"api": url}, http_client=self._http, max_network_retries=0
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def refund(self, charge: Charge, *, idempotency_key: str) -> Refund:
        """Give a charge back. The same key again returns the first refund and moves no more money.

        Raises:
            stripe.InvalidRequestError: Stripe refuses, for example because the charge is already refunded.
            stripe.IdempotencyError: the key was used for another charge or amount.
        """
        issued = await self.client.v1.refunds.create_async(
            {
                "payment_intent": charge.payment_intent,
                "amount": charge.amount_cents,
                "metadata": {"order_id": charge.order_id},
            },
            {"idempotency_key": idempotency_key},
        )
        return _refund(issued, charge.payment_intent)

    async def charge_again(self, charge: Charge, refund: Refund, *, idempotency_key: str) -> str:
        """Charge a refunded amount once more to the card that paid, and return the new payment intent's id.

        Stripe cannot undo a refund that has succeeded; the closest to it is a second payment, off session, with the
        customer's saved card. Refund and payment both stay on the customer's statement, and the payment names the
        refund it makes up for. The bank may decline it, and then a person has to settle the matter.
        Source: Stripe's API reference, "Cancel a refund": only refunds that still require action can be cancelled.

        Raises:
            stripe.CardError: the bank declines.
        """
        paid = await self.client.v1.payment_intents.retrieve_async(charge.payment_intent)
        payment = await self.client.v1.payment_intents.create_async(
            {
                "amount": refund.amount_cents,
                "currency": refund.currency,
                "customer": _id(paid.customer),
                "payment_method": _id(paid.payment_method),
                "confirm": True,
                "off_session": True,
                "metadata": {"order_id": charge.order_id, "makes_up_for": refund.id},
            },
            {"idempotency_key": idempotency_key},
        )
        return payment.id

    async def refunds_of(self, payment_intent: str) -> list[Refund]:
        """Return the ledger of one payment: its refunds, newest first, at most 100."""
        page = await self.client.v1.refunds.list_async({"payment_intent": payment_intent, "limit": 100})
        return [_refund(entry, payment_intent) for entry in page.data]


def _refund(issued: stripe.Refund, payment_intent: str) -> Refund:
    return Refund(
        id=issued.id,
        payment_intent=payment_intent,
        amount_cents=issued.amount,
        currency=issued.currency,
        status=issued.status or "pending",
    )


def _id(reference: object) -> str:
    """Return the id of something that Stripe gives as an id, or whole when expanded."""
    return reference if isinstance(reference, str) else str(getattr(reference, "id"))  # noqa: B009
