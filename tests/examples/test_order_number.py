from __future__ import annotations

import pytest

from cuebook.examples.support.order_number import order_number


@pytest.mark.parametrize(
    "text",
    [
        "my blender arrived broken, order 8812",
        "Order number: 8812.",
        "order no. 8812, please hurry",
        "ORDER #8812!",
        "ORD-8812",
        "#8812",
        "invoice 8812 is wrong",
        "hello, i want refund for 8812 thx",
        "8812",
        "I paid 129.00 on 3 March 2026 for 8812",
        "order 8812 from 2025",
        "Order 8812. I say it again: order 8812.",
        "order 8812, call me on 0171 555 4432",
        "I want my 1500 euros back for order 8812",
    ],
)
def test_the_order_number_is_found(text: str) -> None:
    assert order_number(text) == "8812"


@pytest.mark.parametrize(
    "text",
    [
        "where is my parcel?",
        "I paid 129.00 and 1200 euros",
        "it cost $1500 or € 1400 or 1300 pounds",
        "bought in 2024",
        "call me on 0171 555 4432",
        "call 0171-555-4432",
        "the 100-night trial",
        "my postcode is AB1234",
        "a 1.2345 litre pot",
        "1234567890 is my IBAN",
    ],
)
def test_other_numbers_are_no_order_number(text: str) -> None:
    assert order_number(text) is None


@pytest.mark.parametrize("text", ["orders 8812 and order 8813", "8812 or 8813, I don't know which"])
def test_two_different_numbers_are_nobodys_guess(text: str) -> None:
    assert order_number(text) is None
