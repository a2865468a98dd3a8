"""The services, wired: from names on the command line to something that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuebook.actors.agent import Agent
from cuebook.cli.durability import report_durability
from cuebook.cli.exits import InputError
from cuebook.cli.loading import load_agents, load_sagas
from cuebook.cli.options import DEFAULT_DRAIN_S
from cuebook.cli.serving.lifecycle import Running, Serving
from cuebook.cli.serving.limits import Limits, parse_bytes
from cuebook.cli.serving.metrics import (
    handling_of,
    tallies_of,
    watch_agents,
    watch_orchestrator,
    watch_projections,
    watch_sealer,
)
from cuebook.cli.serving.processes import process_age_s
from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.events.subjects import check_token
from cuebook.projections.timeseries import Timeseries

if TYPE_CHECKING:  # each service imports only what it runs
    from cuebook.actors.orchestrator.service import OrchestratorService
    from cuebook.actors.runtime import AgentHost
    from cuebook.projections.runner import RunnerStatus

__all__ = ["SealingPlan", "serve_agents", "serve_orchestrator", "serve_projections", "serve_sealer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingPlan:
    """What the sealer is told. `file` None: SPACE.checkpoints in the folder it was started in."""

    key: Path | None
    file: Path | None
    every: int
    every_s: float
    replicas: int


async def serve_agents(serving: Serving, specs: Sequence[str], slots: int | None, limits: Limits) -> None:
    """Serve one instance of each agent named, until told to stop. `slots`: None leaves each class its `concurrency`."""
    from cuebook.actors.runtime import AgentHost

    settings, space = serving.settings, _space(serving)
    drained = serving.supervised.without if serving.supervised is not None else frozenset[str]()
    agents = [agent for agent in load_agents(specs) if agent.name not in drained]
    slots_of_class = {agent: agent.concurrency for agent in agents}
    _give_slots(slots_of_class, slots)
    serving.say("starting")
    connection = await serving.connect("agents")
    if connection is None:
        return
    async with connection:
        if not await serving.stream(EventLog(connection, space, source="agents")):
            return
        await report_durability(connection, settings.monitor_url)
        handling = handling_of(serving.metrics)
        host = AgentHost(connection, space, agents, tracing=serving.tracing, handling=handling)
        watch_agents(serving.metrics, host, handling)
        facts = {"agents": ",".join(agent.name for agent in agents), "space": space}

        def reload(values: Mapping[str, str], changed: set[str]) -> None:
            nonlocal limits
            tasks = int(values.get("CUEBOOK_MAX_TASKS") or 0) if "CUEBOOK_MAX_TASKS" in changed else limits.tasks
            memory = values.get("CUEBOOK_MAX_MEMORY", "") if "CUEBOOK_MAX_MEMORY" in changed else str(limits.memory)
            drain_s = float(values.get("CUEBOOK_DRAIN_S") or DEFAULT_DRAIN_S)
            limits = Limits(tasks=tasks, memory=parse_bytes(memory))
            host.drain_s = drain_s if "CUEBOOK_DRAIN_S" in changed else host.drain_s
            if "CUEBOOK_SLOTS" in changed:
                _give_slots(slots_of_class, int(values["CUEBOOK_SLOTS"]) if values.get("CUEBOOK_SLOTS") else None)
                host.renew()

        running = Running(
            run=host.run(drain_s=settings.drain_s),
            stop=host.stop,
            ready=host.ready,
            facts=facts,
            status=lambda: "slots {slots}, in flight {in_flight}, lag {lag}, done {done}".format(**_figures(host)),
            figures=lambda: _figures(host),
            stuck=lambda: ", ".join(task for one in host.instances for task in one.stuck),
            spent=lambda: limits.reached(host.handled),
            reload=reload,
            reloadable=frozenset({"CUEBOOK_SLOTS", "CUEBOOK_MAX_TASKS", "CUEBOOK_MAX_MEMORY"}),
        )
        await serving.serve(running, connection)


async def serve_orchestrator(serving: Serving, specs: Sequence[str], replicas: int) -> None:
    """Serve the orchestrator with the sagas named, until told to stop."""
    from cuebook.actors.orchestrator.service import OrchestratorService

    settings, space = serving.settings, _space(serving)
    sagas = load_sagas(specs)
    connection = await serving.connect("orchestrator")
    if connection is None:
        return
    async with connection:
        tallies = tallies_of(serving.metrics)
        service = OrchestratorService(
            connection,
            space,
            sagas,
            replicas=replicas,
            age_s=process_age_s(),
            tracing=serving.tracing,
            tallies=tallies,
        )
        watch_orchestrator(serving.metrics, service, tallies, monitor_url=settings.monitor_url)
        if not await serving.stream(service.log, replicas=replicas):
            service.run().close()
            return
        await report_durability(connection, settings.monitor_url)
        facts = {"sagas": service.sagas.names(), "space": space}
        running = Running(
            run=service.run(),
            stop=service.stop,
            ready=service.in_place,
            facts=facts,
            status=lambda: _status_of_orchestrator(service),
        )
        await serving.serve(running, connection)


async def serve_projections(serving: Serving, database_url: str, timeseries: Timeseries) -> None:
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
        runner = Runner(log, database_url, tracing=serving.tracing, timeseries=timeseries)
        watch_projections(serving.metrics, runner, log, database_url)
        give_way()
        running = Running(
            run=runner.run(),
            stop=runner.drain,
            ready=runner.ready,
            facts={"space": space},
            status=lambda: _status_of_projections(runner.status()),
        )
        await serving.serve(running, connection)


async def serve_sealer(serving: Serving, plan: SealingPlan) -> None:
    """Seal the log, until told to stop."""
    from cuebook.ledger.notes import PrivateKey
    from cuebook.ledger.sealer import Sealer

    settings, space = serving.settings, _space(serving)
    if plan.key is None:
        raise InputError("the sealer needs a key", remedy="make one with 'cuebook audit key FILE', and say --key FILE")
    try:
        key, file = PrivateKey.load(plan.key), plan.file or Path(f"{space}.checkpoints")
    except ConfigurationError as error:
        raise InputError(str(error), remedy=error.remedy) from error  # no restart mends it
    connection = await serving.connect("sealer")
    if connection is None:
        return
    async with connection, EventLog(connection, space, source="sealer") as log:
        if not await serving.stream(log):
            return
        await report_durability(connection, settings.monitor_url)
        sealer = Sealer(log, key, file, every=plan.every, every_s=plan.every_s, replicas=plan.replicas)
        watch_sealer(serving.metrics, sealer, log)
        facts = {"origin": key.public.name, "file": str(file), "space": space}
        await serving.serve(Running(run=sealer.run(), stop=sealer.stop, ready=sealer.ready, facts=facts), connection)


def _give_slots(slots_of_class: Mapping[type[Agent], int], slots: int | None) -> None:
    if slots is not None and slots < 1:
        raise ConfigurationError("an agent needs at least one slot", remedy="correct CUEBOOK_SLOTS")
    for agent, own in slots_of_class.items():
        agent.concurrency = own if slots is None else slots


def _figures(host: AgentHost) -> dict[str, Any]:
    serving = [one for one in host.instances if not one.draining]
    return {
        "slots": sum(one.slots for one in serving),
        "in_flight": sum(one.in_flight for one in host.instances),
        "lag": sum(one.pending for one in serving),
        "done": host.handled,
        "drained": host.drained,
    }


def _status_of_orchestrator(service: OrchestratorService) -> str:
    instances = service.core.world.registry.instances.values()
    slots = sum(one.slots for one in instances if one.health == "healthy")
    in_flight = sum(len(one.tasks) for one in instances)
    role = "deciding" if service.deciding.is_set() else "standing by"
    return f"{role}, slots {slots}, in flight {in_flight}, lag {service.lag}, open runs {len(service.core.world.runs)}"


def _status_of_projections(status: RunnerStatus) -> str:
    parked = sum(status.parked.values())
    away = "" if status.database_available else ", PostgreSQL is away"
    return f"lag {status.backlog}" + (f", parked {parked}" if parked else "") + away


def _space(serving: Serving) -> str:
    return check_token(serving.settings.target.space, "space")
