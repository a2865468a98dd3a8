"""Whether the demo came out as it should, counted from the log, Stripe's ledger and PostgreSQL independently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psycopg

from cuebook.cli.demo.story import Story, TicketStory
from cuebook.cli.output import counted

if TYPE_CHECKING:
    from cuebook.examples.support.tickets import Demonstration

__all__ = ["Ledger", "Tables", "read_ledger", "read_tables", "summary", "what_is_wrong"]

_ENDS_AS: Final = {"approval": "refunded"}
"""What becomes of a ticket once a person has said yes, by how its demonstration ends."""
_ORDER: Final = ("refunded", "answered", "thanked", "escalated", "compensated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What Stripe has on record. `refunds`: cents by id; `charged_again`: cents by the refund that they make up for."""

    refunds: Mapping[str, int]
    charged_again: Mapping[str, int]

    def since(self, before: Ledger) -> Ledger:
        """What has come since then."""
        return Ledger(
            refunds={key: cents for key, cents in self.refunds.items() if key not in before.refunds},
            charged_again={key: cents for key, cents in self.charged_again.items() if key not in before.charged_again},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Rows in PostgreSQL: the projections', and the tickets that the desk's own figures count.

    `applied`: the sequence up to which every projection has read the log.
    """

    applied: int = 0
    runs: Mapping[str, int] = field(default_factory=dict)
    tasks: int = 0
    agents: int = 0
    audit: int = 0
    feedback: int = 0


async def read_ledger(stripe_url: str, stripe_key: str) -> Ledger:
    """Read the stand-in's ledger over Stripe's own interface; it holds less than one page."""
    from cuebook.examples.support.refunds import Payments  # its packages are an extra

    payments = Payments(stripe_url, stripe_key)
    try:
        refunds = await payments.client.v1.refunds.list_async({"limit": 100})
        paid = await payments.client.v1.payment_intents.list_async({"limit": 100})
    finally:
        await payments.close()
    makes_up_for = {getattr(intent.metadata, "makes_up_for", None): intent.amount for intent in paid.data}
    return Ledger(
        refunds={refund.id: refund.amount for refund in refunds.data},
        charged_again={refund: amount for refund, amount in makes_up_for.items() if refund},
    )


async def read_tables(database_url: str, schema: str, until: int) -> Tables:
    """Count the rows; of the audit those up to sequence `until`. All 0 until the projections have made them."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)  # one moment for all counts
        await connection.execute("SELECT set_config('search_path', quote_ident(%s), false)", [schema])
        try:
            statuses = await connection.execute("SELECT status, count(*) FROM runs GROUP BY status")
            counted = await connection.execute(
                """
                SELECT (SELECT min(sequence) FROM checkpoints WHERE shown),
                       (SELECT count(*) FROM tasks),
                       (SELECT count(*) FROM agents),
                       (SELECT count(*) FROM audit WHERE sequence <= %s),
                       (SELECT count(*) FROM support.feedback)
                """,
                [until],
            )
        except psycopg.errors.UndefinedTable:
            return Tables()
        (applied, tasks, agents, audit, feedback) = (await counted.fetchall())[0]
        runs: dict[str, int] = dict(await statuses.fetchall())
    return Tables(applied=applied or 0, runs=runs, tasks=tasks, agents=agents, audit=audit, feedback=feedback)


def what_is_wrong(
    story: Story, demonstrations: Sequence[Demonstration], ledger: Ledger, tables: Tables, answerer: str
) -> list[str]:
    """Every difference between what should have happened and what is on record; empty when there is none."""
    return [
        *_wrong_tickets(story, demonstrations, answerer),
        *(f"rejected: {rejection}" for rejection in story.rejected),
        *_wrong_money(story, ledger),
        *_wrong_rows(story, tables),
    ]


def summary(story: Story, ledger: Ledger, tables: Tables, *, stream: str) -> list[tuple[str, str]]:
    """The figures for people: a heading and a line each."""
    tickets = story.tickets.values()
    outcomes = Counter(ticket.status for ticket in tickets)
    named = [name for name in _ORDER if name in outcomes] + sorted(set(outcomes) - set(_ORDER))
    retries = sum(ticket.retries for ticket in tickets)
    questions = sum(len(ticket.questions) for ticket in tickets)
    asked = f"{counted(questions, 'question')} to a person, answered by the demo" if questions else "nobody asked"
    charged = ledger.charged_again
    undone = f"; {len(charged)} undone, {_money(charged)} charged again" if charged else ""
    rows = f"{counted(sum(tables.runs.values()), 'run')}, {counted(tables.tasks, 'task')}"
    return [
        ("outcomes", ", ".join(f"{outcomes[name]} {name}" for name in named)),
        ("work", f"{counted(_tasks(story), 'task')}, {counted(retries, 'retry', 'retries')}, {asked}"),
        ("money", f"{counted(len(ledger.refunds), 'refund')} over {_money(ledger.refunds)} in Stripe's ledger{undone}"),
        ("tables", f"{rows}, {counted(tables.agents, 'agent')}, {counted(tables.audit, 'audit row')} in PostgreSQL"),
        ("log", f"{counted(story.events, 'event')} in stream {stream}, {len(story.rejected) or 'none'} rejected"),
    ]


def _wrong_tickets(story: Story, demonstrations: Sequence[Demonstration], answerer: str) -> Iterator[str]:
    for demonstration in demonstrations:
        ticket = story.tickets.get(demonstration.ticket.id)
        if ticket is None:
            yield f"{demonstration.ticket.id}: never opened"
            continue
        wanted = _ENDS_AS.get(demonstration.ends, demonstration.ends)
        if ticket.status != wanted:
            yield f"{ticket.id}: {ticket.status}, should be {wanted} ({demonstration.shows})"
        if ticket.retries < demonstration.retries:
            yield f"{ticket.id}: {ticket.retries} retries, should be {demonstration.retries} ({demonstration.shows})"
        answers = [step.by for step in ticket.questions]
        if answers != [answerer] * (demonstration.ends == "approval"):
            yield f"{ticket.id}: questions answered by {answers or 'nobody'} ({demonstration.shows})"


def _wrong_money(story: Story, ledger: Ledger) -> Iterator[str]:
    """Each refund is on both records once; those of compensated runs, and no others, are made up for in full."""
    tickets = list(story.tickets.values())
    on_the_log = {refund: ticket for ticket in tickets for refund in _refunds(ticket)}
    for refund in sorted(ledger.refunds.keys() ^ on_the_log.keys()):
        where, missing = ("Stripe", "the log") if refund in ledger.refunds else ("the log", "Stripe")
        yield f"refund {refund} is known to {where} but not to {missing}"
    undone = {refund: ledger.refunds.get(refund) for refund, one in on_the_log.items() if one.status == "compensated"}
    if undone != dict(ledger.charged_again):
        yield f"charged again: {dict(ledger.charged_again)}, should be {undone}"
    kept = sum(ledger.refunds.values()) - sum(ledger.charged_again.values())
    told = sum(ticket.run.result["refunded_cents"] for ticket in tickets if _completed(ticket) and ticket.run)
    if kept != told:
        yield f"Stripe gave back {kept} cents, the outcomes say {told}"


def _wrong_rows(story: Story, tables: Tables) -> Iterator[str]:
    tickets = story.tickets.values()
    statuses = Counter(ticket.run.status for ticket in tickets if ticket.run is not None)
    if statuses != dict(tables.runs):
        yield f"table runs has {dict(tables.runs)}, the log {dict(statuses)}"
    if tables.tasks != _tasks(story):
        yield f"table tasks has {tables.tasks} rows, the log {_tasks(story)} tasks"
    if tables.audit != story.events:
        yield f"table audit has {tables.audit} rows, the log {story.events} events"
    completed = sum(_completed(ticket) for ticket in tickets)
    if tables.feedback != completed:
        yield f"the desk's figures count {tables.feedback} tickets, {completed} completed"


def _completed(ticket: TicketStory) -> bool:
    return ticket.run is not None and ticket.run.status == "completed"


def _refunds(ticket: TicketStory) -> Iterator[str]:
    for task in ticket.tasks:
        if task.agent == "refund" and task.compensates is None and isinstance(task.output, dict):
            refund = task.output.get("id")  # Stripe's refusals have none
            if refund is not None:
                yield refund


def _tasks(story: Story) -> int:
    return sum(len(ticket.tasks) for ticket in story.tickets.values())


def _money(amounts: Mapping[Any, int]) -> str:
    return f"{sum(amounts.values()) / 100:,.2f} EUR"
