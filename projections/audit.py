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
from cuebook.projections.timeseries import Aggregate, History

__all__ = ["Audit", "add_months"]

_SQL = load_statements("audit.sql")
_DAY: Final = 86_400_000_000
_EVER: Final = -(2**63)
_REPLACED = "PostgreSQL cannot hold some of its characters; raw has the exact data"


class Audit(Projection):
    """Table audit: one row for each message. Rows are only ever added."""

    name = "audit"
    version = 1
    tables = _SQL["tables"]
    # By sequence, as it is searched and as a second writing of a row would be found; of both columns of the key each
    # compressed batch then knows the range. No column has few enough values for standing together to pay.
    histories = (History(table="audit", time="recorded_at", segment_by="", order_by="sequence DESC, recorded_at DESC"),)
    aggregates = (
        Aggregate(name="agent_actions", query=_SQL["agent_actions"], comments=_SQL["agent_actions_comments"]),
    )

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Add the batch."""
        kept_from = await add_months(tx, _SQL["add_months"], (item.recorded_at for item in batch))
        if kept_from > _EVER:
            batch = [item for item in batch if item.recorded_at >= kept_from]
        if batch:
            lines = [_line(item) if isinstance(item, Envelope) else _unreadable(item) for item in batch]
            await copy(tx, _SQL["copy"], lines)


async def add_months(tx: Transaction, statement: bytes, moments: Iterable[int]) -> int:
    """Make the partitions for some moments; gives the moment before which rows are not kept."""
    days = {moment // _DAY for moment in moments}
    months = sorted({datetime.fromtimestamp(day * 86_400, UTC).replace(day=1) for day in days})
    cursor = await tx.execute(statement, [months])
    found = await cursor.fetchone()
    return _EVER if found is None or found[0] is None else int(found[0])


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
