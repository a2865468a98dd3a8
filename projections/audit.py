"""The audit log: every message of the stream once, whoever wrote it and whether or not it can be read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from cuebook.events.envelope import Envelope
from cuebook.events.errors import CuebookError
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Address, Subjects
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Batch, Projection
from cuebook.projections.rows import NULL, copy, exact_json, is_plain, jsonb, moment, text
from cuebook.projections.statements import load_statements

__all__ = ["Audit", "months_of"]

_SQL = load_statements("audit.sql")
_DAY: Final = 86_400_000_000
_REPLACED = "PostgreSQL cannot hold some of its characters; raw has the exact data"


class Audit(Projection):
    """Table audit: one row for each message. Rows are only ever added."""

    name = "audit"
    version = 1
    tables = _SQL["tables"]

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Add the batch."""
        await tx.execute(_SQL["add_months"], [months_of(item.recorded_at for item in batch)])
        await copy(
            tx, _SQL["copy"], [_line(item) if isinstance(item, Envelope) else _unreadable(item) for item in batch]
        )


def months_of(moments: Iterable[int]) -> list[datetime]:
    """A moment in each month that occurs, for the partitions."""
    days = {moment // _DAY for moment in moments}
    return sorted({datetime.fromtimestamp(day * 86_400, UTC).replace(day=1) for day in days})


def _line(envelope: Envelope) -> str:
    kind, fact, run_id, n, agent, instance, topic = envelope.address
    event_id, event_type, source = envelope.id, envelope.event_type, envelope.source
    correlation_id, causation_id, traceparent = envelope.correlation_id, envelope.causation_id, envelope.traceparent
    # One look at all that authors write freely is much cheaper than six. The parts of a subject are tokens.
    if not is_plain(event_id + event_type + source + correlation_id + causation_id + traceparent):
        event_id, event_type, source = text(event_id), text(event_type), text(source)
        correlation_id, causation_id, traceparent = text(correlation_id), text(causation_id), text(traceparent)
    data = NULL if envelope.data is None else jsonb(envelope.data)
    raw = reason = NULL
    if ("\u2400" in data or "\ufffd" in data) and (exact := exact_json(envelope.data)):
        raw, reason = rf"\\x{exact.hex()}", _REPLACED
    return (
        f"{envelope.sequence}\t{moment(envelope.recorded_at)}\t{moment(envelope.time)}\t{event_id}\t{event_type}\t"
        f"{envelope.subject}\t{kind}\t{fact}\t{run_id or NULL}\t{NULL if n < 0 else n}\t"
        f"{agent or NULL}\t{instance or NULL}\t{topic or NULL}\t{source}\t{correlation_id}\t"
        f"{causation_id or NULL}\t{traceparent or NULL}\t{data}\t{raw}\t{reason}"
    )


def _unreadable(item: Unreadable) -> str:
    """What its subject says is kept, so that a broken message is found under its run or agent."""
    address = _address(item.subject)
    kind, fact, run_id, n, agent, instance, topic = address or (NULL, NULL, "", -1, "", "", "")
    values = [
        str(item.sequence), moment(item.recorded_at), NULL, NULL, NULL, text(item.subject), kind, fact, run_id or NULL,
        NULL if n < 0 else str(n), agent or NULL, instance or NULL, topic or NULL,
        NULL, NULL, NULL, NULL, NULL, rf"\\x{item.body.hex()}", text(item.reason),
    ]  # fmt: skip
    return "\t".join(values)


def _address(subject: str) -> Address | None:
    try:
        return Subjects(subject.partition(".")[0]).parse(subject)
    except CuebookError:
        return None
