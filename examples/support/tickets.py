"""Twenty tickets that show the desk's ways, each with what must come of it.

python -m cuebook.examples.support.tickets     prints them as JSON, one a line, ready to publish
"""

from dataclasses import dataclass
from typing import Literal

from cuebook.examples.support.models import Resolution, Ticket

__all__ = ["DEMONSTRATIONS", "Demonstration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One ticket and its way.

    `ends`: the resolution, `approval` when a person decides, or `compensated`. `retries`: attempts that fail before.
    """

    ticket: Ticket
    ends: Resolution | Literal["approval", "compensated"]
    shows: str
    retries: int = 0


def _show(
    number: int,
    ends: Resolution | Literal["approval", "compensated"],
    shows: str,
    text: str,
    *,
    customer: int | None = None,
    email: str | None = None,
    retries: int = 0,
) -> Demonstration:
    handle = None if customer is None else f"cust-{customer:03d}"
    ticket = Ticket(id=f"t-{number:02d}", text=text, customer=handle, email=email)
    return Demonstration(ticket=ticket, ends=ends, shows=shows, retries=retries)


DEMONSTRATIONS = (
    _show(
        1, "refunded", "a plain refund",
        "The rain coat from order 8802 is not what I expected. I would like to return it and get my money back.",
        customer=2,
    ),
    _show(
        2, "answered", "a plain answer",
        "Hello, where is order 8803? The tracking number has shown nothing since Monday.",
        customer=3,
    ),
    _show(
        3, "refunded", "broken goods, from a channel that knows neither customer nor address",
        "my blender arrived broken, order 8812",
    ),
    _show(
        4, "thanked", "praise with a rating",
        "Thank you very much for the quick help, the new bowl set is lovely. 5/5, excellent service!",
        customer=18,
    ),
    _show(
        5, "escalated", "a complaint goes to people",
        "I have called three times and nobody helps me. Your service is terrible, I want to talk to a manager.",
        customer=9,
    ),
    _show(
        6, "refunded", "the order is held; the look-up succeeds at the third attempt",
        "The bread maker from order 8815 arrived with a dent and the motor doesn't work.",
        customer=15, retries=2,
    ),
    _show(
        7, "refunded", "Stripe answers 503 once; the second attempt succeeds",
        "Order 8806: the glass of the picture frame was broken when I opened the box.",
        customer=6, retries=1,
    ),
    _show(
        8, "refunded", "the refund is made but its answer lost; the second attempt refunds nothing more",
        "Please refund order 8807, I no longer need the lamp and would like my money back.",
        customer=7, retries=1,
    ),
    _show(
        9, "approval", "a refund above the limit asks a person",
        "I changed my mind about the espresso machine, order 8830. Please cancel and refund my payment.",
        customer=5,
    ),
    _show(
        10, "compensated", "the answer bounces after the refund; refund and feedback are undone",
        "The rucksack I received in order 8809 has a torn seam and a broken zip.",
        customer=9, email="bounce@example.com",
    ),
    _show(
        11, "escalated", "no order number to go by",
        "When will my parcel arrive? I ordered a week ago and have not received any tracking information.",
    ),
    _show(
        12, "escalated", "Stripe refuses: somebody refunded the charge by hand",
        "I'd like to return the books, order number 8816, and have the purchase price refunded.",
        customer=16,
    ),
    _show(
        13, "escalated", "the order is already cancelled",
        "Please refund my order #8829, the money was taken from my card.",
        customer=4,
    ),
    _show(
        14, "answered", "the order is held; the look-up succeeds at the second attempt",
        "Has order 8822 been shipped yet, and when will it be delivered?",
        customer=19, retries=1,
    ),
    _show(
        15, "escalated", "a complaint that presses: two hours instead of eight",
        "Nobody answers my emails about order 8821. This is unacceptable, next time you will hear from my lawyer.",
        customer=3,
    ),
    _show(
        16, "escalated", "the classifier is not sure: it has never seen the language",
        "Der Deckel von Bestellung 8838 schließt nicht.",
        customer=13,
    ),
    _show(
        17, "escalated", "the order belongs to somebody else",
        "The side table from order 8839 came with a scratched top and a missing screw.",
        customer=1,
    ),
    _show(
        18, "refunded", "a refund before the goods are sent",
        "Please cancel order 8804 and give me my money back, I ordered the wrong size by mistake.",
        customer=4,
    ),
    _show(
        19, "escalated", "no such order",
        "The kettle from order 9999 leaks and does not heat, it is defective.",
    ),
    _show(
        20, "thanked", "praise with a rating out of ten",
        "Great service and very friendly driver, I love the new lamp. 9/10, thanks!",
        customer=7,
    ),
)  # fmt: skip


if __name__ == "__main__":
    for demonstration in DEMONSTRATIONS:
        print(demonstration.ticket.model_dump_json(exclude_none=True))
