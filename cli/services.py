"""The services, wired: from names on the command line to something that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuebook.cli.durability import report_durability
from cuebook.cli.loading import load_agents, load_sagas
from cuebook.cli.processes import process_age_s
from cuebook.cli.serving import Running, Serving
from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token

__all__ = ["SealingPlan", "serve_agents", "serve_orchestrator", "serve_projections", "serve_sealer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingPlan:
    """What the sealer is told. `file` None: SPACE.checkpoints in the folder it was started in."""

    key: Path | None
    file: Path | None
    every: int
    every_s: float
    replicas: int


async def serve_agents(serving: Serving, specs: Sequence[str]) -> None:
    """Serve one instance of each agent named, until told to stop."""
    from cuebook.actors.runtime import AgentHost

    settings, space = serving.settings, _space(serving)
    agents = load_agents(specs)
    connection = await serving.connect("agents")
    if connection is None:
        return
    async with connection:
        if not await serving.stream(EventLog(connection, space, source="agents")):
            return
        await report_durability(connection, settings.monitor_url)
        host = AgentHost(connection, space, agents)
        facts = {"agents": ",".join(agent.name for agent in agents), "space": space}
        run = host.run(drain_s=settings.drain_s)
        await serving.serve(Running(run=run, stop=host.stop, ready=host.ready, facts=facts), connection)


async def serve_orchestrator(serving: Serving, specs: Sequence[str], replicas: int) -> None:
    """Serve the orchestrator with the sagas named, until told to stop."""
    from cuebook.actors.orchestrator.service import OrchestratorService

    settings, space = serving.settings, _space(serving)
    sagas = load_sagas(specs)
    connection = await serving.connect("orchestrator")
    if connection is None:
        return
    async with connection:
        service = OrchestratorService(connection, space, sagas, replicas=replicas, age_s=process_age_s())
        if not await serving.stream(service.log, replicas=replicas):
            service.run().close()
            return
        await report_durability(connection, settings.monitor_url)
        facts = {"sagas": ",".join(saga.name for saga in sagas), "space": space}
        running = Running(run=service.run(), stop=service.stop, ready=service.in_place, facts=facts)
        await serving.serve(running, connection)


async def serve_projections(serving: Serving, database_url: str) -> None:
    """Keep the projections up to date, until told to stop."""
    from cuebook.projections.runner import Runner, give_way

    settings, space = serving.settings, _space(serving)
    if not database_url:
        raise ConfigurationError(
            "the projections need a PostgreSQL", remedy="set --database-url or CUEBOOK_DATABASE_URL"
        )
    connection = await serving.connect("projections")
    if connection is None:
        return
    async with connection, EventLog(connection, space, source="projections") as log:
        if not await serving.stream(log):
            return
        await report_durability(connection, settings.monitor_url)
        runner = Runner(log, database_url)
        give_way()
        running = Running(run=runner.run(), stop=runner.drain, ready=runner.ready, facts={"space": space})
        await serving.serve(running, connection)


async def serve_sealer(serving: Serving, plan: SealingPlan) -> None:
    """Seal the log, until told to stop."""
    from cuebook.ledger.notes import PrivateKey
    from cuebook.ledger.sealer import Sealer

    settings, space = serving.settings, _space(serving)
    if plan.key is None:
        raise ConfigurationError(
            "the sealer needs a key", remedy="make one with 'cuebook audit key FILE', and say --key FILE"
        )
    key, file = PrivateKey.load(plan.key), plan.file or Path(f"{space}.checkpoints")
    connection = await serving.connect("sealer")
    if connection is None:
        return
    async with connection, EventLog(connection, space, source="sealer") as log:
        if not await serving.stream(log):
            return
        await report_durability(connection, settings.monitor_url)
        sealer = Sealer(log, key, file, every=plan.every, every_s=plan.every_s, replicas=plan.replicas)
        facts = {"origin": key.public.name, "file": str(file), "space": space}
        await serving.serve(Running(run=sealer.run(), stop=sealer.stop, ready=sealer.ready, facts=facts), connection)


def _space(serving: Serving) -> str:
    return check_token(serving.settings.target.space, "space")
