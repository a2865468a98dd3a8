"""`cuebook serve`: each command is one process that runs until it is told to stop, as a unit file wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.logs import LogFormat, LogLevel
from cuebook.cli.options import (
    DEFAULT_DRAIN_S,
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    DatabaseUrl,
    MonitorUrl,
    NatsUrl,
    Space,
    Target,
    TimeseriesOption,
    flag,
    read_setting,
)
from cuebook.projections.timeseries import Timeseries

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Run a part of cuebook as a process.")

Slots = Annotated[
    int | None,
    flag("--slots", envvar="CUEBOOK_SLOTS", min=1, help="Tasks at once, in place of each class's concurrency."),
]
DrainS = Annotated[
    float,
    flag("--drain-s", envvar="CUEBOOK_DRAIN_S", min=0, help="Seconds to finish what is in flight when told to stop."),
]
WaitS = Annotated[
    float | None,
    flag("--wait-s", envvar="CUEBOOK_WAIT_S", min=0, help="Give up when NATS or the stream is missing for so long."),
]
LogFormatOption = Annotated[LogFormat, flag("--log-format", envvar="CUEBOOK_LOG_FORMAT", help="How log lines look.")]
LogLevelOption = Annotated[LogLevel, flag("--log-level", envvar="CUEBOOK_LOG_LEVEL", help="The least severe line.")]
MetricsOption = Annotated[
    str,
    flag("--metrics", envvar="CUEBOOK_METRICS", metavar="HOST:PORT", help="Where Prometheus may read /metrics."),
]

SettingsFilesOption = Annotated[
    list[Path] | None,
    flag(
        "--settings-files",
        envvar="CUEBOOK_SETTINGS_FILES",
        metavar="FILE",
        help="Environment files to read again on SIGHUP; may be repeated. In the variable with colons between.",
    ),
]


@app.command("agents")
def serve_agents(
    agents: Annotated[
        list[str], typer.Argument(envvar="CUEBOOK_AGENTS", metavar="MODULE:AGENT", help="Agent classes to serve.")
    ],
    slots: Slots = None,
    processes: Annotated[
        str,
        flag(
            "--processes",
            envvar="CUEBOOK_PROCESSES",
            metavar="N|auto",
            help="Supervise so many processes, each with an instance of every agent; auto: one a core.",
        ),
    ] = "",
    max_tasks: Annotated[
        int,
        flag("--max-tasks", envvar="CUEBOOK_MAX_TASKS", min=0, help="End for a fresh process after so many; 0: never."),
    ] = 0,
    max_memory: Annotated[
        str,
        flag("--max-memory", envvar="CUEBOOK_MAX_MEMORY", metavar="SIZE", help="The same with so much, such as 512M."),
    ] = "",
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    drain_s: DrainS = DEFAULT_DRAIN_S,
    wait_s: WaitS = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    monitor_url: MonitorUrl = "",
    metrics: MetricsOption = "",
    settings_files: SettingsFilesOption = None,
) -> None:
    """Serve one instance of each agent, in each process. Waits for NATS and for the orchestrator's stream."""
    from cuebook.cli.serving.lifecycle import Settings, run_service
    from cuebook.cli.serving.limits import Limits, parse_bytes
    from cuebook.cli.serving.supervised import is_supervised
    from cuebook.cli.units.settings_files import SettingsFiles

    with reported_errors():
        limits = Limits(tasks=max_tasks, memory=parse_bytes(max_memory))
    settings = Settings(
        target=Target(nats_url=nats_url, creds=creds, space=space),
        drain_s=drain_s,
        wait_s=wait_s,
        log_format=log_format,
        log_level=log_level,
        monitor_url=monitor_url,
        files=SettingsFiles(settings_files) if settings_files else None,
        metrics=metrics,
    )
    if processes and not is_supervised():
        from cuebook.cli.serving.supervising import run_group

        run_group(settings, processes)
    from cuebook.cli.serving import services

    run_service(settings, "agents", lambda serving: services.serve_agents(serving, agents, slots, limits))


@app.command("edge")
def serve_edge(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What this edge is called, such as shop-7.")],
    agents: Annotated[
        list[str] | None,
        typer.Argument(envvar="CUEBOOK_AGENTS", metavar="MODULE:AGENT", help="Agents; none to forward events only."),
    ] = None,
    edge_url: Annotated[
        str,
        flag(
            "--edge-url",
            envvar="CUEBOOK_EDGE_URL",
            metavar="URL|@FILE",
            callback=read_setting,
            help="The edge's own JetStream; --nats-url leads to the log, over the link.",
        ),
    ] = "",
    offline_s: Annotated[
        float,
        flag("--offline-s", envvar="CUEBOOK_OFFLINE_S", min=1, help="Cut off for longer, its tasks go to others."),
    ] = 1800.0,
    slots: Slots = None,
    ahead: Annotated[
        int | None,
        flag("--ahead", envvar="CUEBOOK_AHEAD", min=0, help="Tasks given in advance, in place of each class's."),
    ] = None,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    drain_s: DrainS = DEFAULT_DRAIN_S,
    wait_s: WaitS = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    monitor_url: MonitorUrl = "",
    metrics: MetricsOption = "",
    settings_files: SettingsFilesOption = None,
) -> None:
    """Serve agents behind a link that may be cut, and forward the events that are published there."""
    from cuebook.cli.serving.edge import EdgePlan, serve
    from cuebook.cli.serving.lifecycle import Settings, run_service
    from cuebook.cli.units.settings_files import SettingsFiles

    settings = Settings(
        target=Target(nats_url=nats_url, creds=creds, space=space),
        drain_s=drain_s,
        wait_s=wait_s,
        log_format=log_format,
        log_level=log_level,
        monitor_url=monitor_url,
        files=SettingsFiles(settings_files) if settings_files else None,
        metrics=metrics,
    )
    plan = EdgePlan(name=name, agents=agents or [], url=edge_url, offline_s=offline_s, slots=slots, ahead=ahead)
    run_service(settings, "edge", lambda serving: serve(serving, plan))


@app.command("orchestrator")
def serve_orchestrator(
    sagas: Annotated[
        list[str] | None,
        typer.Argument(envvar="CUEBOOK_SAGAS", metavar="MODULE:SAGA", help="Sagas; none for standalone tasks."),
    ] = None,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    replicas: Annotated[
        int, flag("--replicas", envvar="CUEBOOK_REPLICAS", min=1, max=5, help="Of the stream, when it is made.")
    ] = 1,
    drain_s: DrainS = DEFAULT_DRAIN_S,
    wait_s: WaitS = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    monitor_url: MonitorUrl = "",
    metrics: MetricsOption = "",
    settings_files: SettingsFilesOption = None,
) -> None:
    """Serve the space's orchestrator; a second one stands by. Makes the stream if it is not there."""
    from cuebook.cli.serving import services
    from cuebook.cli.serving.lifecycle import Settings, run_service
    from cuebook.cli.units.settings_files import SettingsFiles

    settings = Settings(
        target=Target(nats_url=nats_url, creds=creds, space=space),
        drain_s=drain_s,
        wait_s=wait_s,
        log_format=log_format,
        log_level=log_level,
        monitor_url=monitor_url,
        files=SettingsFiles(settings_files) if settings_files else None,
        metrics=metrics,
    )
    run_service(settings, "orchestrator", lambda serving: services.serve_orchestrator(serving, sagas or [], replicas))


@app.command("projections")
def serve_projections(
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
    timeseries: TimeseriesOption = Timeseries.AUTO,
    drain_s: DrainS = DEFAULT_DRAIN_S,
    wait_s: WaitS = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    monitor_url: MonitorUrl = "",
    metrics: MetricsOption = "",
    settings_files: SettingsFilesOption = None,
) -> None:
    """Keep the tables in PostgreSQL up to date. Waits for NATS, PostgreSQL and the stream."""
    from cuebook.cli.serving import services
    from cuebook.cli.serving.lifecycle import Settings, run_service
    from cuebook.cli.units.settings_files import SettingsFiles

    settings = Settings(
        target=Target(nats_url=nats_url, creds=creds, space=space),
        drain_s=drain_s,
        wait_s=wait_s,
        log_format=log_format,
        log_level=log_level,
        monitor_url=monitor_url,
        files=SettingsFiles(settings_files) if settings_files else None,
        metrics=metrics,
    )
    run_service(settings, "projections", lambda serving: services.serve_projections(serving, database_url, timeseries))


@app.command("sealer")
def serve_sealer(
    key: Annotated[
        Path | None,
        flag("--key", envvar="CUEBOOK_SEAL_KEY", metavar="FILE", help="The private key; see 'cuebook audit key'."),
    ] = None,
    file: Annotated[
        Path | None,
        flag(
            "--file",
            envvar="CUEBOOK_CHECKPOINTS",
            metavar="FILE",
            help="Where checkpoints are appended, best on another disk; default: SPACE.checkpoints.",
        ),
    ] = None,
    every: Annotated[int, flag("--every", metavar="N", min=1, help="A checkpoint after so many events.")] = 1_000,
    every_s: Annotated[float, flag("--every-s", metavar="S", min=0.01, help="Or after so many seconds.")] = 10.0,
    replicas: Annotated[int, flag("--replicas", min=1, max=5, help="Of the stream of seals, when it is made.")] = 1,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    drain_s: DrainS = DEFAULT_DRAIN_S,
    wait_s: WaitS = None,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_level: LogLevelOption = LogLevel.INFO,
    monitor_url: MonitorUrl = "",
    metrics: MetricsOption = "",
    settings_files: SettingsFilesOption = None,
) -> None:
    """Seal the log with signed checkpoints, in a stream of their own and in a file. Waits for NATS and the stream."""
    from cuebook.cli.serving import services
    from cuebook.cli.serving.lifecycle import Settings, run_service
    from cuebook.cli.units.settings_files import SettingsFiles

    settings = Settings(
        target=Target(nats_url=nats_url, creds=creds, space=space),
        drain_s=drain_s,
        wait_s=wait_s,
        log_format=log_format,
        log_level=log_level,
        monitor_url=monitor_url,
        files=SettingsFiles(settings_files) if settings_files else None,
        metrics=metrics,
    )
    plan = services.SealingPlan(key=key, file=file, every=every, every_s=every_s, replicas=replicas)
    run_service(settings, "sealer", lambda serving: services.serve_sealer(serving, plan))


@app.command("nats")
def serve_nats(
    config: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The server's configuration.")
    ],
    monitor_url: MonitorUrl = "",
) -> None:
    """Become a nats-server. Under systemd a small process beside it tells when it is ready and how it is."""
    from cuebook.cli.units.nats_attendant import become_nats_server

    with reported_errors():
        become_nats_server(config, monitor_url)
