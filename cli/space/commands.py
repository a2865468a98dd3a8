"""`cuebook space`: the log of a space, its generations, and going on in a fresh one. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    By,
    Creds,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    flag,
)
from cuebook.cli.space.history_commands import archive, drop, segments_app

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="See how big a log is, and let it go on in a fresh stream.")


@app.command("list")
def list_(output: OutputOption = Output.TEXT, nats_url: NatsUrl = DEFAULT_NATS_URL, creds: Creds = "") -> None:
    """List the spaces on a server, with their current streams."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.space import rolling

        run_command(rolling.show_spaces(Target(nats_url=nats_url, creds=creds, space=DEFAULT_SPACE), output))


@app.command()
def show(
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show the generations of a space's log: their streams, sequences, and what they take."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.space import rolling

        run_command(rolling.show_space(Target(nats_url=nats_url, creds=creds, space=space), output))


@app.command()
def roll(
    dry_run: Annotated[bool, flag("--dry-run", help="Only say what would be carried over.")] = False,
    abort: Annotated[bool, flag("--abort", help="Undo a roll that was begun and has not come to its end.")] = False,
    by: By = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Let the log go on in a fresh stream, with what is open carried over; the old stream stays readable.

    Nothing has to be stopped: what is written meanwhile waits for about a second. Interrupted in that second, it is
    undone; said again after it was killed, it goes on where it was.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.interrupts import run_until_interrupted
        from cuebook.cli.logs import configure_logs
        from cuebook.cli.space import rolling

        configure_logs("warning", "text")
        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_until_interrupted(rolling.roll(target, by, output, dry_run=dry_run, abort=abort))


app.command()(archive)
app.add_typer(segments_app, name="segments")
app.command()(drop)
