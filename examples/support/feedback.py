"""The feedback agent: answers the customer, records how each ticket went, and keeps the running figures."""

import re

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.examples.support.database import Database
from cuebook.examples.support.models import Bounced, Experience, FeedbackTotals, IntentTotals, Letter, SentLetter
from cuebook.examples.support.settings import database_url

__all__ = ["Feedback", "correct_letter", "post_letter", "rating_in", "record", "retract", "totals"]

_OUT_OF = re.compile(r"(?<![/\d.,])(\d{1,2}) ?(?:/|out of) ?(5|10)\b(?![/.,]\d)")
_STARS = re.compile(r"\b(zero|one|two|three|four|five|[0-5])[ -]stars?\b", re.IGNORECASE)
_STAR_WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


class Feedback(Agent):
    """Answers customers and learns how the desk is doing."""

    name = "feedback"

    async def start(self) -> None:
        """Take the address; the connection opens with the first task."""
        self.database = Database(database_url())

    async def stop(self) -> None:
        """Close the connection."""
        await self.database.close()

    @handler(timeout_s=10, retry=Retry(attempts=5, backoff_s=0.2))
    async def collect(self, experience: Experience, task: Task) -> FeedbackTotals:
        """Record how one ticket went; return the figures with it counted in."""
        await record(self.database, experience, key=task.idempotency_key)
        return await totals(self.database)

    @collect.compensation
    async def forget(self, experience: Experience, counted: FeedbackTotals, task: Task) -> None:  # noqa: ARG002 - the shape of every compensation
        """Take the ticket out of the figures: what it tells did not happen."""
        await retract(self.database, experience.ticket_id)

    @handler(timeout_s=10, retry=Retry(attempts=5, backoff_s=0.2))
    async def reply(self, letter: Letter, task: Task) -> SentLetter | Bounced:
        """Post one answer to the customer. A dead address is a result: the saga decides what to make of it."""
        return await post_letter(self.database, letter, key=task.idempotency_key)

    @reply.compensation
    async def correct(self, letter: Letter, sent: SentLetter | Bounced, task: Task) -> None:
        """Post a correction: a letter that is out cannot be called back."""
        if isinstance(sent, SentLetter):
            await correct_letter(self.database, letter, key=task.idempotency_key)


def rating_in(text: str) -> float | None:
    """Return the rating a customer wrote, as 0 to 1: `4/5` is 0.8, `five stars` is 1.0. None without one."""
    if match := _OUT_OF.search(text):
        given, best = int(match[1]), int(match[2])
        return given / best if given <= best else None
    if match := _STARS.search(text):
        word = match[1].lower()
        return (_STAR_WORDS[word] if word in _STAR_WORDS else int(word)) / 5
    return None


async def record(database: Database, experience: Experience, *, key: str) -> None:
    """Write one ticket into the figures, once per key."""
    await database.fetch(
        """
        insert into support.feedback (key, ticket_id, intent, confidence, resolution, refunded_cents, rating)
        values (%(key)s, %(ticket_id)s, %(intent)s, %(confidence)s, %(resolution)s, %(refunded_cents)s, %(rating)s)
        on conflict (key) do nothing
        """,
        key=key,
        rating=rating_in(experience.text),
        **experience.model_dump(exclude={"text"}),
    )


async def retract(database: Database, ticket_id: str) -> None:
    """Take a ticket out of the figures; doing so twice is doing so once."""
    await database.fetch("delete from support.feedback where ticket_id = %(ticket_id)s", ticket_id=ticket_id)


async def totals(database: Database) -> FeedbackTotals:
    """Return the figures of every intent seen so far, ordered by intent."""
    rows = await database.fetch(
        """
        select intent, count(*) as tickets, sum(refunded_cents) as refunded_cents,
               avg(confidence) as mean_confidence, count(*) filter (where resolution = 'escalated') as escalated,
               avg(rating) as mean_rating
        from support.feedback group by intent order by intent
        """
    )
    return FeedbackTotals(intents=tuple(IntentTotals.model_validate(row) for row in rows))


async def post_letter(database: Database, letter: Letter, *, key: str) -> SentLetter | Bounced:
    """Put a letter in the out tray, once per key.

    Addresses whose mailbox is `bounce` take no mail, so that a demonstration can have one that fails.
    """
    if letter.recipient.startswith("bounce@"):
        return Bounced(bounced=letter.recipient)
    rows = await database.fetch(
        """
        insert into support.letters (key, ticket_id, recipient, subject, body)
        values (%(key)s, %(ticket_id)s, %(recipient)s, %(subject)s, %(body)s)
        on conflict (key) do update set key = excluded.key  -- changes nothing, but lets the row be returned
        returning id, recipient
        """,
        key=key,
        **letter.model_dump(),
    )
    return SentLetter.model_validate(rows[0])


async def correct_letter(database: Database, letter: Letter, *, key: str) -> SentLetter | Bounced:
    """Post the news that an earlier letter no longer holds, once per key."""
    correction = letter.model_copy(
        update={
            "subject": f"Correction: {letter.subject}",
            "body": "Please disregard our last message: what it announces was undone. A colleague will write to you.",
        }
    )
    return await post_letter(database, correction, key=key)
