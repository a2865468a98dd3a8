"""The agents' work on a real PostgreSQL and against the Stripe stand-in, without the actors around it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import stripe

from cuebook.events.errors import ConfigurationError
from cuebook.examples.support.database import Database
from cuebook.examples.support.desk import FAULTS, REFUNDED_BY_HAND, prepare
from cuebook.examples.support.escalations import file_case, withdraw_case
from cuebook.examples.support.feedback import correct_letter, post_letter, rating_in, record, retract, totals
from cuebook.examples.support.models import Bounced, Case, Experience, Letter, Reading, Refund, SentLetter, Ticket
from cuebook.examples.support.orders import OrderBusyError, Orders, find_order
from cuebook.examples.support.settings import database_url, stripe_access

from .conftest import Shop

# stripe hands httpx an encoded body the old way: harmless, and not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CASE = Case(
    ticket=Ticket(id="t-1", text="nobody answers me"),
    reading=Reading(intent="complaint", confidence=0.9, read_by="trained classifier"),
    reason="the customer complains",
)
LETTER = Letter(ticket_id="t-1", recipient="cust-012@example.com", subject="Your refund", body="It is on its way.")


async def count(database: Database, table: str) -> int:
    rows = await database.fetch(f"select count(*) as rows from support.{table}")
    return int(rows[0]["rows"])


# --- setting up


async def test_every_order_is_paid_for_in_stripe(shop: Shop) -> None:
    orders = await shop.database.fetch("select * from support.orders order by id")
    assert len(orders) == 40
    for order in orders:
        paid = await shop.payments.client.v1.payment_intents.retrieve_async(order["payment_intent"])
        assert (paid.status, paid.amount, paid.currency) == ("succeeded", order["amount_cents"], order["currency"])
        assert order["charge"].startswith("ch_")


async def test_a_customer_with_two_orders_is_one_in_stripe(shop: Shop) -> None:
    rows = await shop.database.fetch("select stripe_customer from support.orders where customer = 'cust-001'")
    assert len(rows) == 2
    assert len({row["stripe_customer"] for row in rows}) == 1


async def test_preparing_again_changes_nothing(shop: Shop) -> None:
    before = await shop.database.fetch("select * from support.orders order by id")
    again = await prepare(shop.database_url, shop.stripe_url, shop.stripe_key)
    assert (again.orders, again.payments_made) == (40, 0)
    assert await shop.database.fetch("select * from support.orders order by id") == before
    by_hand = await shop.charge(REFUNDED_BY_HAND)
    assert len(await shop.payments.refunds_of(by_hand.payment_intent)) == 1


async def test_payments_that_stripe_forgot_are_made_again(shop: Shop) -> None:
    await shop.database.fetch("update support.orders set payment_intent = 'pi_gone' where id = '8812'")
    again = await prepare(shop.database_url, shop.stripe_url, f"{shop.stripe_key}2")
    assert again.payments_made == 1
    paid = await shop.payments.client.v1.payment_intents.retrieve_async((await shop.charge("8812")).payment_intent)
    assert paid.status == "succeeded"


async def test_two_can_prepare_at_once(database_url: str, stripe_url: str, stripe_key: str) -> None:
    first, second = await asyncio.gather(
        prepare(database_url, stripe_url, stripe_key), prepare(database_url, stripe_url, f"{stripe_key}2")
    )
    assert first.orders == second.orders == 40


# --- orders


async def test_an_order_is_found_with_its_payment(shop: Shop) -> None:
    order = await find_order(shop.database, "8812", attempt=1)
    assert order is not None
    assert (order.customer, order.amount_cents, order.currency, order.status) == ("cust-012", 8990, "eur", "delivered")
    assert order.payment_intent is not None
    assert order.payment_intent.startswith("pi_")


async def test_an_unknown_order_is_none(database: Database) -> None:
    assert await find_order(database, "9999", attempt=1) is None


async def test_a_held_order_is_found_in_the_end(database: Database) -> None:
    for attempt in (1, 2):
        with pytest.raises(OrderBusyError, match="8815"):
            await find_order(database, "8815", attempt=attempt)
    assert await find_order(database, "8815", attempt=3) is not None


async def test_one_order_is_held_until_a_person_says_retry(database: Database) -> None:
    attempts = Orders.find.retry.attempts
    with pytest.raises(OrderBusyError):
        await find_order(database, "8835", attempt=attempts)
    assert await find_order(database, "8835", attempt=attempts + 1) is not None


async def test_a_lost_connection_is_noticed_and_mended(database: Database, database_url: str) -> None:
    await find_order(database, "8812", attempt=1)
    async with Database(database_url) as other:
        await other.fetch(
            "select pg_terminate_backend(pid, 30000) from pg_stat_activity where pid <> pg_backend_pid()"
            " and datname = current_database()"
        )
    with pytest.raises(psycopg.OperationalError):
        await find_order(database, "8812", attempt=1)
    assert await find_order(database, "8812", attempt=2) is not None


async def test_many_look_ups_share_one_connection(database: Database) -> None:
    numbers = [str(number) for number in range(8823, 8841)]
    found = await asyncio.gather(*(find_order(database, number, attempt=9) for number in numbers))
    assert [order.id if order else None for order in found] == numbers


# --- refunds


async def test_stripe_being_unavailable_once_costs_one_attempt(shop: Shop) -> None:
    charge = await shop.charge("8806")
    assert FAULTS["8806"] == "unavailable"
    with pytest.raises(stripe.APIError):
        await shop.payments.refund(charge, idempotency_key="run/3")
    refund = await shop.payments.refund(charge, idempotency_key="run/3")
    assert await shop.payments.refunds_of(charge.payment_intent) == [refund]


async def test_a_lost_answer_refunds_once(shop: Shop) -> None:
    charge = await shop.charge("8807")
    assert FAULTS["8807"] == "lost_response"
    with pytest.raises(stripe.APIConnectionError):
        await shop.payments.refund(charge, idempotency_key="run/3")
    refund = await shop.payments.refund(charge, idempotency_key="run/3")
    assert await shop.payments.refunds_of(charge.payment_intent) == [refund]


async def test_a_charge_refunded_by_hand_is_refused(shop: Shop) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await shop.payments.refund(await shop.charge(REFUNDED_BY_HAND), idempotency_key="run/3")
    assert caught.value.code == "charge_already_refunded"


async def test_undoing_a_refund_charges_the_same_card_once(shop: Shop) -> None:
    charge = await shop.charge("8812")
    refund = await shop.payments.refund(charge, idempotency_key="run/3")
    ids = [await shop.payments.charge_again(charge, refund, idempotency_key="run/5/charge-again") for _ in range(3)]
    assert len(set(ids)) == 1
    intents = shop.payments.client.v1.payment_intents
    first, again = await intents.retrieve_async(charge.payment_intent), await intents.retrieve_async(ids[0])
    assert (again.status, again.amount) == ("succeeded", 8990)
    assert (again.customer, again.payment_method) == (first.customer, first.payment_method)
    assert again.metadata is not None
    assert again.metadata["makes_up_for"] == refund.id


async def test_a_declined_card_keeps_the_refund_from_being_undone(shop: Shop) -> None:
    client = shop.payments.client.v1
    customer = await client.customers.create_async({"description": "cust-900"})
    card = await client.payment_methods.attach_async("pm_card_chargeCustomerFail", {"customer": customer.id})
    unpaid = await client.payment_intents.create_async(
        {"amount": 8990, "currency": "eur", "customer": customer.id, "payment_method": card.id}
    )
    charge = (await shop.charge("8812")).model_copy(update={"payment_intent": unpaid.id})
    refund = Refund(id="re_1", payment_intent=unpaid.id, amount_cents=8990, currency="eur", status="succeeded")
    with pytest.raises(stripe.CardError):
        await shop.payments.charge_again(charge, refund, idempotency_key="run/5/charge-again")


# --- escalations


async def test_a_case_is_filed_with_queue_and_due_time(database: Database) -> None:
    filed = await file_case(database, CASE, key="run/3")
    assert filed.queue == "complaints"
    assert abs(filed.due_at - datetime.now(UTC) - timedelta(hours=8)) < timedelta(minutes=1)
    assert filed.summary.startswith("Ticket t-1: the customer complains.")


async def test_a_case_is_filed_once_and_keeps_its_due_time(database: Database) -> None:
    first = await file_case(database, CASE, key="run/3")
    again = await file_case(database, CASE, key="run/3")
    assert again == first
    assert await count(database, "escalations") == 1


async def test_a_withdrawn_case_stays_on_record(database: Database) -> None:
    filed = await file_case(database, CASE, key="run/3")
    for _ in range(2):
        await withdraw_case(database, filed.id)
    rows = await database.fetch("select status from support.escalations")
    assert rows == [{"status": "withdrawn"}]


# --- feedback


def experience(ticket_id: str, **changes: Any) -> Experience:
    plain = {"ticket_id": ticket_id, "text": "fine", "intent": "praise", "confidence": 0.8, "resolution": "thanked"}
    return Experience.model_validate(plain | changes)


async def test_figures_add_up_per_intent(database: Database) -> None:
    await record(database, experience("t-1", text="Great! 5/5", confidence=0.9), key="run-1/4")
    await record(database, experience("t-2", text="Good, 4 stars", confidence=0.7), key="run-2/4")
    refunded: dict[str, Any] = {"intent": "damaged_item", "resolution": "refunded", "refunded_cents": 8990}
    await record(database, experience("t-3", **refunded), key="run-3/4")
    await record(database, experience("t-4", intent="damaged_item", resolution="escalated"), key="run-4/4")
    damaged, praise = (await totals(database)).intents
    assert (damaged.intent, damaged.tickets, damaged.refunded_cents, damaged.escalated) == ("damaged_item", 2, 8990, 1)
    assert damaged.mean_rating is None
    assert (praise.intent, praise.tickets, praise.refunded_cents, praise.escalated) == ("praise", 2, 0, 0)
    assert praise.mean_confidence == pytest.approx(0.8)
    assert praise.mean_rating == pytest.approx(0.9)


async def test_a_ticket_counts_once(database: Database) -> None:
    for _ in range(3):
        await record(database, experience("t-1"), key="run-1/4")
    assert (await totals(database)).intents[0].tickets == 1


async def test_a_retracted_ticket_does_not_count(database: Database) -> None:
    await record(database, experience("t-1"), key="run-1/4")
    for _ in range(2):
        await retract(database, "t-1")
    assert (await totals(database)).intents == ()


async def test_no_feedback_means_no_figures(database: Database) -> None:
    assert (await totals(database)).intents == ()


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Great! 5/5", 1.0),
        ("10/10 would buy again", 1.0),
        ("9 out of 10", 0.9),
        ("four stars from me", 0.8),
        ("zero stars if i could", 0.0),
        ("a 3-star product", 0.6),
        ("7/5 would be too much", None),
        ("delivered on 3/10/2026 at 5", None),
        ("fine", None),
    ],
)
def test_a_rating_is_read_from_the_text(text: str, rating: float | None) -> None:
    assert rating_in(text) == (None if rating is None else pytest.approx(rating))


# --- letters


async def test_a_letter_is_posted_once(database: Database) -> None:
    first = await post_letter(database, LETTER, key="run/5")
    assert await post_letter(database, LETTER, key="run/5") == first
    assert await count(database, "letters") == 1


async def test_a_letter_to_a_dead_address_bounces(database: Database) -> None:
    letter = LETTER.model_copy(update={"recipient": "bounce@example.com"})
    assert await post_letter(database, letter, key="run/5") == Bounced(bounced="bounce@example.com")
    assert await count(database, "letters") == 0


async def test_a_letter_is_corrected_by_another_one(database: Database) -> None:
    first = await post_letter(database, LETTER, key="run/5")
    second = await correct_letter(database, LETTER, key="run/7")
    assert isinstance(first, SentLetter)
    assert isinstance(second, SentLetter)
    assert first.id != second.id
    rows = await database.fetch("select subject from support.letters order by id")
    assert [row["subject"] for row in rows] == ["Your refund", "Correction: Your refund"]


# --- settings


def test_a_live_stripe_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_live_1")
    with pytest.raises(ConfigurationError, match="test keys"):
        stripe_access()


def test_without_settings_stripe_is_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)
    monkeypatch.delenv("CUEBOOK_STRIPE_URL", raising=False)
    url, key = stripe_access()
    assert url == "http://127.0.0.1:8420"
    assert key.startswith("sk_test_")


def test_a_missing_database_is_a_matter_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUEBOOK_DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="no database"):
        database_url()
