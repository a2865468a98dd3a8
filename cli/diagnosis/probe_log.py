"""What the log alone tells: of a stream with whatever settings, and with nobody to ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cuebook.actors.orchestrator.overview import Tally
from cuebook.cli.checks.facts import Forwarding
from cuebook.cli.directory import Directory
from cuebook.cli.history.runfold import RunFold
from cuebook.cli.history.views import Item
from cuebook.cli.moments import now
from cuebook.events.envelope import Envelope
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog

__all__ = ["count_from_log", "find_forwarding", "fold_agents"]

LOOK_BACK = 200_000
"""Events; about two seconds of reading."""


async def fold_agents(log: EventLog) -> Directory:
    """As `directory.fold_agents`, and also from a stream that has other settings than it must have."""
    directory = Directory()
    async with aclosing(_read(log, log.subjects.all_agents)) as items:
        async for item in items:
            if isinstance(item, Envelope):
                directory.registry.apply(item)
    return directory


async def count_from_log(log: EventLog) -> dict[str, Any]:
    """What an orchestrator would say is open, as far as the newest events tell."""
    fold = RunFold(0)
    filters = (log.subjects.all_runs, log.subjects.all_rejected)
    async with aclosing(_read(log, *filters, look_back=LOOK_BACK)) as items:
        async for item in items:
            fold.apply(item)
    tally = Tally(fold.open.values(), now())
    return {"at": now(), "unserved": [], **tally.view(lambda _: "no orchestrator decides", lambda _: False)}


async def find_forwarding(log: EventLog) -> dict[str, list[Forwarding]]:
    """What the newest events tell of edges that forward: see `Facts.forwarding`."""
    found: dict[str, list[Forwarding]] = {}
    async with aclosing(_read(log, log.subjects.event("cuebook.edge") + ".*", look_back=LOOK_BACK)) as items:
        async for item in items:
            match item.event.data if isinstance(item, Envelope) and isinstance(item.event, OutsideEvent) else None:
                case {"edge": str(edge), "stream": str(name)}:
                    stream, those = name.partition("+")[0], found.setdefault(edge, [])
                    if not those or those[-1].stream != stream:
                        those.append(Forwarding(stream, item.recorded_at))
    return found


async def _read(log: EventLog, *filters: str, look_back: int | None = None) -> AsyncGenerator[Item]:
    until = (await log.chain.look())["state"]["last_seq"]
    if not until:
        return
    after = max(until - look_back, 0) if look_back is not None else 0
    async with aclosing(log.batches(after=after, until=until, filters=filters)) as batches:
        async for batch in batches:
            for subject, body, sequence, recorded_ns, headers in batch:
                yield log.decode(subject, body, sequence, recorded_ns // 1000, headers)
