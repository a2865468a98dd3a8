"""How an orchestrator is, for metrics. A standby tells about itself only: what is open is told by the one that decides.

So a sum over all orchestrators counts everything once, and that nobody leads shows as an absence. What a standby would
count is there as 0 already: else an agent that died with the leader, the first that it counts, were no increase.
"""

from __future__ import annotations

import asyncio

from cuebook.actors.orchestrator.census import Census
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.orchestrator.tallies import Tallies
from cuebook.events.errors import CuebookError
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import Sample

__all__ = ["observe"]

LOG_WITHIN_S = 1.0


async def observe(service: OrchestratorService, tallies: Tallies) -> list[Sample]:
    """Look at everything once."""
    leading = service.deciding.is_set()
    tallies.expect(service.core.world.registry.teams, service.core.world.listening.names)
    found = [
        Sample(names.LEADING, (), int(leading)),
        Sample(names.LAG, (), service.lag),
        *tallies.samples(),
    ]
    if leading:
        found += await Census(service.now(), tallies.agents, tallies.sagas).take(service.core)
        found += await _log(service)
    return found


async def _log(service: OrchestratorService) -> list[Sample]:
    """What the server says about the stream; nothing when it does not answer."""
    try:
        async with asyncio.timeout(LOG_WITHIN_S):
            facts = await service.log.verify()
    except (CuebookError, TimeoutError):
        return []
    return [
        Sample(names.LOG_MESSAGES, (), facts.messages),
        Sample(names.LOG_SIZE, (), facts.bytes),
        Sample(names.LOG_SUBJECTS, (), facts.subjects),
        Sample(names.LOG_LAST, (), facts.last_sequence),
        Sample(names.LOG_CONSUMERS, (), facts.consumers),
    ]
