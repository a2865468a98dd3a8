"""`cuebook doctor`: what is wrong with a space, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    DatabaseUrl,
    MonitorUrl,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def doctor(
    timeout_s: Annotated[float, flag("--timeout-s", min=0.1, help="How long each may take to answer.")] = 3.0,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
    monitor_url: MonitorUrl = "",
) -> None:
    """Say what is wrong with servers, log, processes, runs and tables, with what to do about each.

    Ends with 0 when nothing is wrong, 1 with warnings, 2 when something is critical.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.checks.areas import AREAS
        from cuebook.cli.diagnosis.examination import examine
        from cuebook.cli.diagnosis.probe import Sources
        from cuebook.cli.session import run_command

        sources = Sources(
            target=Target(nats_url=nats_url, creds=creds, space=space),
            database_url=database_url,
            monitor_url=monitor_url,
            timeout_s=timeout_s,
            areas=AREAS,
        )
        status = run_command(examine(sources, output))
    raise typer.Exit(status)
