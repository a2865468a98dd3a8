"""Sets the shop up: tables, orders, and their payments in Stripe.

    python -m cuebook.examples.support.desk     with CUEBOOK_DATABASE_URL, CUEBOOK_STRIPE_URL and STRIPE_API_KEY

Safe to run again, also after one of the two servers lost everything: what is there stays, what is missing is made.
"""

import asyncio
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import httpx
import stripe

from cuebook.examples.support.database import Database
from cuebook.examples.support.models import Charge
from cuebook.examples.support.refunds import Payments
from cuebook.examples.support.settings import DEFAULT_STRIPE_KEY, database_url, stripe_access

__all__ = ["FAULTS", "REFUNDED_BY_HAND", "Prepared", "create_tables", "prepare"]

FAULTS: dict[str, Literal["unavailable", "lost_response"]] = {"8806": "unavailable", "8807": "lost_response"}
"""Orders whose next refund goes wrong once, on the stand-in; see stripe_standin.py."""

REFUNDED_BY_HAND = "8816"
"""An order that is refunded in Stripe without the shop's books saying so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` found and made."""

    orders: int
    payments_made: int


async def prepare(database: str, stripe_url: str, stripe_key: str = DEFAULT_STRIPE_KEY) -> Prepared:
    """Create the tables, the orders, and a payment in Stripe for each; return how many there are and were made."""
    payments = Payments(stripe_url, stripe_key)
    try:
        async with Database(database) as shop:
            await create_tables(shop)
            made = await _pay_orders(shop, payments)
            await _refund_by_hand(shop, payments)
            if stripe_url != stripe.DEFAULT_API_BASE:
                await _stage_faults(shop, stripe_url, stripe_key)
            orders = await shop.fetch("select count(*) as orders from support.orders")
            return Prepared(orders=orders[0]["orders"], payments_made=made)
    finally:
        await payments.close()


async def create_tables(shop: Database) -> None:
    """Create the tables and the forty orders, still without payments."""
    for script in ("schema.sql", "seed.sql"):
        await shop.run_script((files(__package__) / script).read_bytes())


async def _pay_orders(shop: Database, payments: Payments) -> int:
    """Make the payments that Stripe does not know; each under a key of its own, so a repeat makes no second one."""
    made = 0
    for order in await shop.fetch("select * from support.orders order by id"):
        if await _is_known(payments, order["payment_intent"]):
            continue
        customer, card = await _customer(payments, order["customer"], order["email"])
        paid = await payments.client.v1.payment_intents.create_async(
            {
                "amount": order["amount_cents"],
                "currency": order["currency"],
                "customer": customer,
                "payment_method": card,
                "confirm": True,
                "off_session": True,
                "metadata": {"order_id": order["id"]},
                "expand": ["latest_charge"],
            },
            {"idempotency_key": f"support/order/{order['id']}"},
        )
        await shop.fetch(
            """
            update support.orders
            set stripe_customer = %(customer)s, payment_intent = %(payment_intent)s, charge = %(charge)s
            where id = %(id)s
            """,
            id=order["id"],
            customer=customer,
            payment_intent=paid.id,
            charge=paid.latest_charge.id if isinstance(paid.latest_charge, stripe.Charge) else paid.latest_charge,
        )
        made += 1
    return made


async def _is_known(payments: Payments, payment_intent: str | None) -> bool:
    if payment_intent is None:
        return False
    try:
        await payments.client.v1.payment_intents.retrieve_async(payment_intent)
    except stripe.InvalidRequestError:  # a stand-in forgets with its process
        return False
    return True


async def _customer(payments: Payments, handle: str, email: str) -> tuple[str, str]:
    """Return the customer and the saved card, the same ones for the same handle."""
    customer = await payments.client.v1.customers.create_async(
        {"email": email, "description": handle}, {"idempotency_key": f"support/customer/{handle}"}
    )
    card = await payments.client.v1.payment_methods.attach_async(
        "pm_card_visa", {"customer": customer.id}, {"idempotency_key": f"support/card/{handle}"}
    )
    return customer.id, card.id


async def _refund_by_hand(shop: Database, payments: Payments) -> None:
    rows = await shop.fetch("select * from support.orders where id = %(id)s", id=REFUNDED_BY_HAND)
    charge = Charge.model_validate(rows[0] | {"order_id": REFUNDED_BY_HAND})
    try:
        if not await payments.refunds_of(charge.payment_intent):
            await payments.refund(charge, idempotency_key=f"support/by-hand/{REFUNDED_BY_HAND}")
    except stripe.InvalidRequestError:  # by somebody who prepares at the same time, with another key
        if not await payments.refunds_of(charge.payment_intent):
            raise


async def _stage_faults(shop: Database, stripe_url: str, stripe_key: str) -> None:
    headers = {"Authorization": f"Bearer {stripe_key}"}
    async with httpx.AsyncClient(base_url=stripe_url, headers=headers) as stand_in:
        for order_id, kind in FAULTS.items():
            rows = await shop.fetch("select payment_intent from support.orders where id = %(id)s", id=order_id)
            fault = {"payment_intent": rows[0]["payment_intent"], "kind": kind, "times": 1}
            (await stand_in.post("/_standin/faults", json=fault)).raise_for_status()


if __name__ == "__main__":
    prepared = asyncio.run(prepare(database_url(), *stripe_access()))
    print(f"{prepared.orders} orders, {prepared.payments_made} payments made")
