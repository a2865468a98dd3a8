"""The escalation agent: hands a case to people, with a summary, a queue and a time by which somebody must answer."""

import re

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.examples.support.database import Database
from cuebook.examples.support.models import Case, Escalation, Queue
from cuebook.examples.support.policy import APPROVAL_LIMIT_CENTS, hand_over
from cuebook.examples.support.settings import database_url

__all__ = ["Escalations", "file_case", "route", "withdraw_case"]

_PRESSING = re.compile(
    r"\b(lawyer|solicitor|court|chargeback|ombudsman|regulator|press|authorities|data protection|legal)\b",
    re.IGNORECASE,
)


class Escalations(Agent):
    """Files cases for people to take over."""

    name = "escalation"

    async def start(self) -> None:
        """Take the address; the connection opens with the first case."""
        self.database = Database(database_url())

    async def stop(self) -> None:
        """Close the connection."""
        await self.database.close()

    @handler(timeout_s=10, retry=Retry(attempts=5, backoff_s=0.2))
    async def file(self, case: Case, task: Task) -> Escalation:
        """File one case; a repeated attempt finds the case that the first one filed."""
        return await file_case(self.database, case, key=task.idempotency_key)

    @file.compensation
    async def withdraw(self, case: Case, escalation: Escalation, task: Task) -> None:  # noqa: ARG002 - the shape of every compensation
        """Take the case out of its queue. It stays on record as withdrawn."""
        await withdraw_case(self.database, escalation.id)


def route(case: Case) -> tuple[Queue, int]:
    """Choose the queue, and the hours within which somebody must answer."""
    pressing = _PRESSING.search(case.ticket.text) is not None
    if case.reading.intent == "complaint":
        return "complaints", 2 if pressing else 8
    if case.order is None or case.reading.low_confidence:
        return "triage", 4 if pressing else 24
    if case.reading.intent == "order_status":
        return "logistics", 24
    large = case.order.amount_cents > APPROVAL_LIMIT_CENTS
    return "payments", 4 if pressing or large else 12


async def file_case(database: Database, case: Case, *, key: str) -> Escalation:
    """Put a case in its queue once per key; asked again, return the case as first filed, due time and all."""
    queue, hours = route(case)
    rows = await database.fetch(
        """
        insert into support.escalations (key, ticket_id, queue, due_at, summary)
        values (%(key)s, %(ticket_id)s, %(queue)s, now() + make_interval(hours => %(hours)s), %(summary)s)
        on conflict (key) do update set key = excluded.key  -- changes nothing, but lets the row be returned
        returning id, queue, due_at, summary
        """,
        key=key,
        ticket_id=case.ticket.id,
        queue=queue,
        hours=hours,
        summary=hand_over(case),
    )
    return Escalation.model_validate(rows[0])


async def withdraw_case(database: Database, escalation_id: int) -> None:
    """Mark a case withdrawn; doing so twice is doing so once."""
    await database.fetch("update support.escalations set status = 'withdrawn' where id = %(id)s", id=escalation_id)
