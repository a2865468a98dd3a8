"""The audit log: every message once, as it was."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cuebook.events.facts import MessageRejected, OutsideEvent, SagaServed, TaskProgressed
from tests.projections.story import START, Story
from tests.projections.tables import Tables


async def test_an_event_is_found_with_who_and_why(tables: Tables) -> None:
    story = Story()
    event = story.tell(
        story.subjects.event("ticket.opened"), OutsideEvent(data={"id": "t-17"}), source="desk", correlation_id="c1"
    )
    await tables.apply(story.items)
    assert await tables.row(
        "SELECT sequence, time, event_id, event_type, subject, kind, fact, run_id, n, agent, topic, source, "
        "correlation_id, causation_id, data, raw, reason FROM audit"
    ) == (
        1, datetime.fromtimestamp(START / 1_000_000, UTC), event.id, "event", "cue.event.ticket.opened", "event",
        "event", None, None, None, "ticket.opened", "desk", "c1", None, {"id": "t-17"}, None, None,
    )  # fmt: skip


async def test_the_parts_of_a_subject_have_columns(tables: Tables) -> None:
    story = Story()
    story.assign("r1", 3, instance="i7")
    story.ask_for("r2")
    story.register("mail", "i1")
    story.tell(story.subjects.progress("r1", 3), TaskProgressed(message="half way"))
    story.tell(story.subjects.rejected(2), MessageRejected(subject="x", reason="y"))
    story.tell(story.subjects.saga("support", "served"), SagaServed(on="ticket.opened", after=2))
    await tables.apply(story.items)
    assert await tables.rows("SELECT kind, fact, run_id, n, agent, instance FROM audit ORDER BY sequence") == [
        ("task", "assigned", "r1", 3, "refund", "i7"),
        ("run", "requested", "r2", None, "support", None),
        ("agent", "registered", None, None, "mail", "i1"),
        ("progress", "progress", "r1", 3, None, None),
        ("rejected", "rejected", None, 2, None, None),
        ("saga", "served", None, None, "support", None),
    ]
    assert await tables.rows("SELECT * FROM parked_events") == []


async def test_an_unreadable_message_is_kept_with_its_bytes_and_stops_nothing(tables: Tables) -> None:
    story = Story()
    story.receive(story.subjects.task("r1", 0, "completed"), b"\x94\x01\xff\0")
    story.receive("cue.no.such.subject", b"{}")
    story.request("r1")
    await tables.apply(story.items)
    rows = await tables.rows(
        "SELECT event_id, run_id, n, subject, raw, reason IS NOT NULL FROM audit ORDER BY sequence"
    )
    assert rows == [
        (None, "r1", 0, "cue.run.r1.task.0.completed", b"\x94\x01\xff\0", True),
        (None, None, None, "cue.no.such.subject", b"{}", True),
        ("e3", "r1", 0, "cue.run.r1.task.0.requested.refund", None, False),
    ]
    assert await tables.row("SELECT status FROM tasks") == ("waiting",)
    assert await tables.rows("SELECT * FROM parked_events") == []


async def test_data_that_jsonb_cannot_hold_is_shown_and_kept_exactly(tables: Tables) -> None:
    story = Story()
    story.tell(story.subjects.event("t"), OutsideEvent(data={"a\0": "b\0c", "\u2400": 1}))
    story.tell(story.subjects.event("t"), OutsideEvent(data={"fine": "\u2400 \\u0000"}))
    await tables.apply(story.items)
    rows = await tables.rows("SELECT data, raw, reason IS NOT NULL FROM audit ORDER BY sequence")
    assert rows == [
        ({"a\u2400": "b\u2400c", "\u2400": 1}, rb'{"a\u0000": "b\u0000c", "\u2400": 1}', True),
        ({"fine": "\u2400 \\u0000"}, None, False),
    ]


@pytest.mark.native
async def test_each_month_has_its_partition_whatever_the_clock_does(tables: Tables) -> None:
    story = Story()
    moments = [
        datetime(year, month, day, tzinfo=UTC) for year, month, day in [(2031, 1, 31), (2031, 2, 1), (1970, 1, 1)]
    ]
    for at in [*moments, moments[0]]:
        story.tell(story.subjects.event("t"), OutsideEvent(data=1), at=int(at.timestamp()) * 1_000_000)
    story.register()
    await tables.apply(story.items[:2], story.items[2:])
    query = """
        SELECT c.relname, c.reltuples IS NOT NULL FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE c.relkind = 'r' AND c.relname LIKE %s AND c.relnamespace = to_regnamespace(quote_ident(%s)) ORDER BY 1
    """
    names = await tables.rows(query, "audit%", f"cuebook_{tables.space}@audit_v1_g1")
    assert [name for name, _ in names] == ["audit_1970_01", "audit_2026_09", "audit_2031_01", "audit_2031_02"]
    names = await tables.rows(query, "agent_health%", f"cuebook_{tables.space}@agents_v1_g1")
    assert [name for name, _ in names] == ["agent_health_2026_09"]
    assert await tables.row("SELECT count(*) FROM audit") == (5,)
