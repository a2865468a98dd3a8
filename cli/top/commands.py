"""`cuebook top`: agents, queues and runs of a space, live."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    DatabaseUrl,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(add_completion=False)


class Sort(StrEnum):
    """What agents are sorted by; `frame.SORTS` has the same."""

    NAME = "name"
    LOAD = "load"
    TASKS = "tasks"
    FAILURES = "failures"
    WAITING = "waiting"


@app.command()
def top(
    once: Annotated[bool, flag("--once", help="Print one frame and end; so it does without a terminal.")] = False,
    interval_s: Annotated[float, flag("--interval-s", min=0.1, help="Seconds between frames.")] = 1.0,
    sort: Annotated[Sort, flag("--sort", help="How agents are sorted at first.")] = Sort.NAME,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Watch agents, queues, open runs and the newest endings, live from the log."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.top.opening import is_screen, show_top

        target = Target(nats_url=nats_url, creds=creds, space=space)
        alone = once or output.for_programs or not is_screen()
        run_command(show_top(target, database_url, output, once=alone, interval_s=interval_s, sort=sort.value))
