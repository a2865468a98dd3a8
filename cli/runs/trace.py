"""`cuebook trace`: what a run did and how long each part took. Imports nothing heavy; see tracetree."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    NatsUrl,
    Output,
    OutputOption,
    RunId,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def trace(
    run: RunId,
    jaeger_url: Annotated[
        str,
        flag("--jaeger-url", envvar="CUEBOOK_JAEGER_URL", metavar="URL", help="Of Jaeger's pages; for the link."),
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show a run as a tree of spans with their times, from the log alone, and the link to Jaeger."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import tracetree
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(tracetree.show_trace(target, run, jaeger_url, output))
