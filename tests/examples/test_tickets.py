"""The demonstration's tickets take the ways they are said to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cuebook.examples.support.classifier import TrainedReader
from cuebook.examples.support.database import Database
from cuebook.examples.support.desk import FAULTS, REFUNDED_BY_HAND
from cuebook.examples.support.models import Ticket
from cuebook.examples.support.orders import find_order
from cuebook.examples.support.policy import APPROVAL_LIMIT_CENTS, plan_for
from cuebook.examples.support.tickets import DEMONSTRATIONS, Demonstration

ACTIONS = {
    "refunded": "refund",
    "approval": "refund",
    "compensated": "refund",
    "answered": "answer",
    "thanked": "thank",
    "escalated": "escalate",
}


@pytest.fixture(scope="module")
def reader() -> TrainedReader:
    return TrainedReader.train()


async def test_each_ticket_goes_its_way(reader: TrainedReader, database: Database) -> None:
    # desk.py pays every order; here it is enough that a payment is known.
    await database.fetch("update support.orders set payment_intent = 'pi_' || id")
    for demonstration in DEMONSTRATIONS:
        ticket = demonstration.ticket
        reading = await reader.read(ticket.text)
        order = await find_order(database, reading.order_id, attempt=9) if reading.order_id else None
        expected = "refund" if reading.order_id == REFUNDED_BY_HAND else ACTIONS[demonstration.ends]
        assert plan_for(ticket, reading, order).action == expected, demonstration
        above = order is not None and order.amount_cents > APPROVAL_LIMIT_CENTS
        assert above == (demonstration.ends == "approval"), demonstration


async def test_the_readings_are_safe_ones(reader: TrainedReader) -> None:
    sure = [demonstration for demonstration in DEMONSTRATIONS if "not sure" not in demonstration.shows]
    assert len(sure) == len(DEMONSTRATIONS) - 1
    assert min([(await reader.read(demonstration.ticket.text)).confidence for demonstration in sure]) > 0.8


def test_twenty_tickets_with_ids_of_their_own() -> None:
    assert len({demonstration.ticket.id for demonstration in DEMONSTRATIONS}) == 20


def test_there_is_a_ticket_for_each_thing_to_show() -> None:
    texts = " ".join(demonstration.ticket.text for demonstration in DEMONSTRATIONS)
    assert all(order_id in texts for order_id in (*FAULTS, REFUNDED_BY_HAND, "8815"))
    assert {demonstration.ends for demonstration in DEMONSTRATIONS} == set(ACTIONS)


def test_only_the_bounced_ticket_is_undone() -> None:
    def bounces(demonstration: Demonstration) -> bool:
        return (demonstration.ticket.email or "").startswith("bounce@")

    assert [d.ticket.id for d in DEMONSTRATIONS if bounces(d)] == [
        d.ticket.id for d in DEMONSTRATIONS if d.ends == "compensated"
    ]


def test_the_module_prints_the_tickets_ready_to_publish() -> None:
    command = [sys.executable, "-m", "cuebook.examples.support.tickets"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [Ticket.model_validate_json(line) for line in printed] == [d.ticket for d in DEMONSTRATIONS]
