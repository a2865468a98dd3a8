"""The registry of agent instances and the history of their health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    DrainRequested,
)
from cuebook.projections.audit import add_months
from cuebook.projections.database import Transaction
from cuebook.projections.projection import Batch, Item, Projection
from cuebook.projections.rows import (
    FALSE,
    NULL,
    TRUE,
    Merge,
    Row,
    array,
    copy,
    flag,
    integer,
    jsonb,
    moment,
    number,
    text,
)
from cuebook.projections.statements import load_statements
from cuebook.projections.timeseries import History

__all__ = ["Agents", "fold_instance"]

_SQL = load_statements("agents.sql")
_Key = tuple[str, str]


class Agents(Projection):
    """Tables agents, one row for each instance, and agent_health, one for each change of its health."""

    name = "agents"
    version = 1
    tables = _SQL["tables"]
    session = _SQL["session"]
    # By agent, as it is asked for; the rows of one agent are few, so all its instances stand together.
    histories = (
        History(
            table="agent_health", time="recorded_at", segment_by="agent", order_by="sequence DESC, recorded_at DESC"
        ),
    )

    _merge = Merge(_SQL["insert_agents"], _SQL["update_agents"])

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Fold the batch over the rows it touches, then write each of them once."""
        events = [item for item in batch if type(item) is Envelope and item.address.kind == "agent"]
        if not events:
            return
        rows = await _load(tx, {(event.address.agent, event.address.instance) for event in events})
        known = frozenset(rows)
        changed: dict[_Key, None] = {}
        health: list[tuple[int, str]] = []
        for envelope in events:
            key = (envelope.address.agent, envelope.address.instance)
            row = rows.get(key)
            before = NULL if row is None else row["health"]
            change = fold_instance(row, envelope)
            if change is None:
                continue
            row = rows.setdefault(key, {})
            row.update(change)
            changed[key] = None
            if row["health"] != before:
                row["changed_at"] = moment(envelope.recorded_at)
                health.append((envelope.recorded_at, _health_line(envelope, row, before)))
        await self._merge.write(
            tx,
            new=[rows[key] for key in changed if key not in known],
            changed=[rows[key] for key in changed if key in known],
        )
        if health:
            kept_from = await add_months(tx, _SQL["add_months"], (recorded_at for recorded_at, _ in health))
            await copy(tx, _SQL["insert_health"], [line for recorded_at, line in health if recorded_at >= kept_from])

    def history(self, item: Item) -> str:
        """All about one instance."""
        if type(item) is Envelope and item.address.kind == "agent":
            return item.subject.rpartition(".")[0] + ".>"
        return ""

    async def forget(self, item: Item, tx: Transaction) -> None:
        """Remove an instance and the history of its health."""
        if type(item) is Envelope and item.address.kind == "agent":
            keys = [item.address.agent, item.address.instance]
            await tx.execute(_SQL["forget_agent"], keys)
            await tx.execute(_SQL["forget_health"], keys)


def fold_instance(row: Row | None, envelope: Envelope) -> Row | None:
    """The columns that one event changes in the row of its instance, or None when it does not count.

    Pure and total. A registration opens the row; an instance that stopped never comes back under its name.
    """
    fold = _FOLDS.get(type(envelope.event))
    if fold is None or (row is None and fold is not _registered) or (row is not None and row["health"] == "stopped"):
        return None
    change = fold(row or {}, envelope.event)
    if change is None:
        return None
    if fold is _registered:
        change["registered_at"] = moment(envelope.recorded_at)
        if row is None:
            change |= {
                "agent": envelope.address.agent,
                "instance": envelope.address.instance,
                "wants_drain": FALSE,
                "first_sequence": str(envelope.sequence),
            }
    change["last_sequence"] = str(envelope.sequence)
    return change


def _registered(_row: Row, event: AgentRegistered) -> Row | None:
    return {
        "health": "healthy",
        "reason": "registered",
        "version": text(event.version),
        "description": text(event.description),
        "labels": jsonb(event.labels),
        "slots": integer(event.slots),
        "handlers": jsonb(event.handlers),
        "heartbeat_s": number(event.heartbeat_s),
        "recycle_after": integer(event.recycle_after),
        "host": text(event.host),
        "pid": integer(event.pid),
    }


def _suspected(row: Row, event: AgentSuspected) -> Row | None:
    if row["health"] not in ("healthy", "draining"):
        return None
    return {"health": "suspect", "reason": f"silent for {event.silent_s:.1f} s"}


def _lost(_row: Row, event: AgentLost) -> Row | None:
    return {"health": "lost", "reason": f"silent for {event.silent_s:.1f} s"}


def _recovered(row: Row, _event: AgentRecovered) -> Row | None:
    if row["health"] not in ("suspect", "lost"):
        return None
    return {"health": "draining" if row["wants_drain"] == TRUE else "healthy", "reason": "heard again"}


def _draining(row: Row, event: AgentDraining | DrainRequested) -> Row | None:
    change = {"wants_drain": TRUE, "reason": text(event.reason)}
    if row["health"] == "healthy":
        change["health"] = "draining"
    return change


def _stopped(_row: Row, event: AgentStopped) -> Row | None:
    return {"health": "stopped", "reason": text(event.reason), "handled": integer(event.handled)}


_Fold = Callable[[Row, Any], Row | None]
_FOLDS: Final[dict[type, _Fold]] = {
    AgentRegistered: _registered,
    AgentSuspected: _suspected,
    AgentLost: _lost,
    AgentRecovered: _recovered,
    DrainRequested: _draining,
    AgentDraining: _draining,
    AgentStopped: _stopped,
}


def _health_line(envelope: Envelope, row: Row, before: str) -> str:
    address = envelope.address
    return "\t".join((
        moment(envelope.recorded_at), str(envelope.sequence), address.agent, address.instance,
        row["health"], before, row["reason"], text(envelope.source),
    ))  # fmt: skip


async def _load(tx: Transaction, keys: set[_Key]) -> dict[_Key, Row]:
    cursor = await tx.execute(
        _SQL["load_agents"], [array(agent for agent, _ in keys), array(instance for _, instance in keys)]
    )
    return {
        (agent, instance): {"agent": agent, "instance": instance, "health": health, "wants_drain": flag(wants_drain)}
        for agent, instance, health, wants_drain in await cursor.fetchall()
    }
