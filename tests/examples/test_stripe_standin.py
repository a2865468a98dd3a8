"""The stand-in is asked over HTTP, as a process of its own, with and without Stripe's client library."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import stripe

from cuebook.examples.support.models import Charge
from cuebook.examples.support.refunds import Payments

# stripe hands httpx an encoded body the old way: harmless, and not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
async def http(stripe_url: str, stripe_key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {stripe_key}"}
    async with httpx.AsyncClient(base_url=stripe_url, headers=headers) as client:
        yield client


@pytest.fixture
async def charge(payments: Payments) -> Charge:
    """A new customer's payment of 50.00."""
    return await pay(payments)


async def pay(payments: Payments, card: str = "pm_card_visa") -> Charge:
    customer = await payments.client.v1.customers.create_async({"description": "cust-900"})
    saved = await payments.client.v1.payment_methods.attach_async(card, {"customer": customer.id})
    paid = await payments.client.v1.payment_intents.create_async(
        {
            "amount": 5000,
            "currency": "eur",
            "customer": customer.id,
            "payment_method": saved.id,
            "confirm": True,
            "off_session": True,
        }
    )
    return Charge(order_id="8812", payment_intent=paid.id, amount_cents=5000, currency="eur")


def test_the_process_names_its_address(stripe_url: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", stripe_url)


async def test_the_same_key_gives_the_first_answer_again(http: httpx.AsyncClient, charge: Charge) -> None:
    request: dict[str, Any] = {
        "data": {"payment_intent": charge.payment_intent, "amount": "5000"},
        "headers": {"Idempotency-Key": "k-1"},
    }
    first = await http.post("/v1/refunds", **request)
    again = await http.post("/v1/refunds", **request)
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_repeating_a_refund_under_its_key_refunds_once(payments: Payments, charge: Charge) -> None:
    refunds = [await payments.refund(charge, idempotency_key="k-1") for _ in range(5)]
    assert len({refund.id for refund in refunds}) == 1
    assert await payments.refunds_of(charge.payment_intent) == refunds[:1]


async def test_at_once_under_one_key_refunds_once(payments: Payments, charge: Charge) -> None:
    tries = [payments.refund(charge, idempotency_key="k-1") for _ in range(10)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    assert all(getattr(answer, "http_status", 409) == 409 for answer in done if isinstance(answer, BaseException))
    assert len(await payments.refunds_of(charge.payment_intent)) == 1


async def test_the_same_key_with_other_parameters_is_refused(payments: Payments, charge: Charge) -> None:
    await payments.refund(charge, idempotency_key="k-1")
    with pytest.raises(stripe.IdempotencyError) as caught:
        await payments.refund(charge.model_copy(update={"amount_cents": 100}), idempotency_key="k-1")
    assert caught.value.http_status == 400
    assert len(await payments.refunds_of(charge.payment_intent)) == 1


async def test_the_same_key_for_another_endpoint_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    await http.post("/v1/customers", data={"description": "cust-900"}, headers=headers)
    answer = await http.post("/v1/products", data={"description": "cust-900"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "idempotency_error")


async def test_keys_belong_to_an_api_key(stripe_url: str, payments: Payments, charge: Charge) -> None:
    half = charge.model_copy(update={"amount_cents": 2500})
    other = Payments(stripe_url, "sk_test_somebody_else")
    await payments.refund(half, idempotency_key="k-1")
    await other.refund(half, idempotency_key="k-1")
    await other.close()
    assert len(await payments.refunds_of(charge.payment_intent)) == 2


async def test_a_refused_request_leaves_its_key_free(http: httpx.AsyncClient, charge: Charge) -> None:
    headers = {"Idempotency-Key": "k-1"}
    wrong = {"payment_intent": charge.payment_intent, "amount": "many"}
    right = {"payment_intent": charge.payment_intent, "amount": "100"}
    assert (await http.post("/v1/refunds", data=wrong, headers=headers)).status_code == 400
    assert (await http.post("/v1/refunds", data=right, headers=headers)).status_code == 200


async def test_a_request_without_api_key_leaves_its_key_free(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1", "Authorization": ""}
    assert (await http.post("/v1/customers", headers=headers)).status_code == 401
    assert (await http.post("/v1/customers", headers={"Idempotency-Key": "k-1"})).status_code == 200


async def test_a_declined_card_is_remembered(payments: Payments) -> None:
    customer = await payments.client.v1.customers.create_async({"description": "cust-900"})
    card = await payments.client.v1.payment_methods.attach_async(
        "pm_card_chargeCustomerFail", {"customer": customer.id}
    )
    answers = []
    for _ in range(2):
        with pytest.raises(stripe.CardError) as caught:
            await payments.client.v1.payment_intents.create_async(
                {
                    "amount": 5000,
                    "currency": "eur",
                    "customer": customer.id,
                    "payment_method": card.id,
                    "confirm": True,
                    "off_session": True,
                },
                {"idempotency_key": "k-1"},
            )
        answers.append(caught.value.http_body)
    assert answers[0] == answers[1]


async def test_a_key_has_at_most_255_characters(http: httpx.AsyncClient) -> None:
    long, longer = {"Idempotency-Key": "k" * 255}, {"Idempotency-Key": "k" * 256}
    assert (await http.post("/v1/customers", headers=long)).status_code == 200
    assert (await http.post("/v1/customers", headers=longer)).status_code == 400


async def test_without_a_key_each_request_counts(payments: Payments, http: httpx.AsyncClient, charge: Charge) -> None:
    for _ in range(2):
        await http.post("/v1/refunds", data={"payment_intent": charge.payment_intent, "amount": "100"})
    assert len(await payments.refunds_of(charge.payment_intent)) == 2


async def test_a_charge_is_refunded_in_full_only_once(payments: Payments, charge: Charge) -> None:
    await payments.refund(charge, idempotency_key="k-1")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await payments.refund(charge, idempotency_key="k-2")
    assert caught.value.code == "charge_already_refunded"


async def test_no_refund_exceeds_what_is_left(payments: Payments, http: httpx.AsyncClient, charge: Charge) -> None:
    await payments.refund(charge.model_copy(update={"amount_cents": 3000}), idempotency_key="k-1")
    with pytest.raises(stripe.InvalidRequestError, match="greater than"):
        await payments.refund(charge.model_copy(update={"amount_cents": 2001}), idempotency_key="k-2")
    by_charge = await payments.client.v1.payment_intents.retrieve_async(
        charge.payment_intent, {"expand": ["latest_charge"]}
    )
    assert isinstance(by_charge.latest_charge, stripe.Charge)
    answer = await http.post("/v1/refunds", data={"charge": by_charge.latest_charge.id, "amount": "2001"})
    assert answer.status_code == 400
    await payments.refund(charge.model_copy(update={"amount_cents": 2000}), idempotency_key="k-3")


async def test_an_unavailable_moment_moves_no_money(
    payments: Payments, http: httpx.AsyncClient, charge: Charge
) -> None:
    await http.post(
        "/_standin/faults", json={"payment_intent": charge.payment_intent, "kind": "unavailable", "times": 2}
    )
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            await payments.refund(charge, idempotency_key="k-1")
        assert caught.value.http_status == 503
    assert await payments.refunds_of(charge.payment_intent) == []
    refund = await payments.refund(charge, idempotency_key="k-1")
    assert await payments.refunds_of(charge.payment_intent) == [refund]


async def test_a_lost_response_is_found_under_its_key(
    payments: Payments, http: httpx.AsyncClient, charge: Charge
) -> None:
    await http.post(
        "/_standin/faults", json={"payment_intent": charge.payment_intent, "kind": "lost_response", "times": 1}
    )
    with pytest.raises(stripe.APIConnectionError):
        await payments.refund(charge, idempotency_key="k-1")
    [made] = await payments.refunds_of(charge.payment_intent)
    assert await payments.refund(charge, idempotency_key="k-1") == made
    assert await payments.refunds_of(charge.payment_intent) == [made]
