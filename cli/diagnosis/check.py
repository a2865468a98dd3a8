"""`cuebook check`: what `cuebook doctor` looks at, for monitoring."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cuebook.cli.exits import PluginExit, reported_errors
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    DatabaseUrl,
    MonitorUrl,
    NatsUrl,
    Space,
    Target,
    flag,
)
from cuebook.events.errors import CuebookError

__all__ = ["app"]

app = typer.Typer(add_completion=False)


class Format(StrEnum):
    """Who reads it."""

    NAGIOS = "nagios"
    PROMETHEUS = "prometheus"


@app.command()
def check(
    checks: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECK...",
            help="log, clocks, orchestrator, agents, runs, escalations, projections, seals; or all.",
        ),
    ],
    format_: Annotated[
        Format, flag("--format", help="nagios: a plugin's line and status; prometheus: a textfile.")
    ] = Format.NAGIOS,
    warning: Annotated[
        list[str] | None,
        flag("--warning", "-w", metavar="[MEASURE=]NUMBER", help="From where on; may be repeated."),
    ] = None,
    critical: Annotated[
        list[str] | None,
        flag("--critical", "-c", metavar="[MEASURE=]NUMBER", help="The same."),
    ] = None,
    timeout_s: Annotated[float, flag("--timeout-s", min=0.1, help="How long each may take to answer.")] = 3.0,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
    monitor_url: MonitorUrl = "",
) -> None:
    """Check one thing or several, and end like a monitoring plugin: 0 ok, 1 warning, 2 critical, 3 unknown."""
    with reported_errors():
        from cuebook.cli.diagnosis.examination import check as look
        from cuebook.cli.diagnosis.examination import find_areas, find_limits
        from cuebook.cli.diagnosis.probe import Sources
        from cuebook.cli.session import run_command

        try:
            areas = find_areas(checks)
            sources = Sources(
                target=Target(nats_url=nats_url, creds=creds, space=space),
                database_url=database_url,
                monitor_url=monitor_url,
                timeout_s=timeout_s,
                areas=areas,
            )
            limits = find_limits(areas, warning or [], critical or [])
            status = run_command(look(sources, limits, prometheus=format_ is Format.PROMETHEUS))
        except CuebookError as error:  # for a plugin, whatever keeps it from looking is "unknown"
            typer.echo(f"CUEBOOK UNKNOWN - {error}" + (f" [{error.remedy}]" if error.remedy else ""))
            status = PluginExit.UNKNOWN
    raise typer.Exit(status)
