"""The command `cuebook`. Every noun is a module of its own, imported when it is used, so that `--help` is quick."""

from __future__ import annotations

import functools
import io
import os
import sys
from typing import Annotated, ClassVar

import typer

from cuebook.cli.groups import LazyGroup

__all__ = ["app", "main"]


class _Cuebook(LazyGroup):
    modules: ClassVar = {
        "dev": ("cuebook.cli.dev.commands", "Run everything on this machine, servers included."),
        "demo": ("cuebook.cli.demo.commands", "Watch the customer-support desk at work."),
        "doctor": ("cuebook.cli.diagnosis.doctor", "Say what is wrong, and what to do about it."),
        "check": ("cuebook.cli.diagnosis.check", "The same for monitoring: Nagios plugins, Prometheus."),
        "top": ("cuebook.cli.top.commands", "Watch agents, queues and runs, live."),
        "serve": ("cuebook.cli.serving.commands", "Run a part of cuebook as a process."),
        "units": ("cuebook.cli.units.commands", "Install, list, show and remove systemd units."),
        "run": ("cuebook.cli.runs.commands", "Start, list, show, follow, cancel, retry and fork runs."),
        "saga": ("cuebook.cli.sagas.commands", "Check sagas against the log."),
        "trace": ("cuebook.cli.runs.trace", "Show a run as a tree of spans, with the link to Jaeger."),
        "task": ("cuebook.cli.runs.task", "Show one task of a run."),
        "agent": ("cuebook.cli.agents.commands", "List, show and drain agents."),
        "escalation": ("cuebook.cli.runs.escalation", "See what waits for a person, and decide."),
        "projection": ("cuebook.cli.projections.commands", "See, rebuild and mend the tables in PostgreSQL."),
        "events": ("cuebook.cli.events.commands", "Read the log, follow it, publish to it, and know its types."),
        "replay": (
            "cuebook.cli.replay.commands",
            "Read any part of the log again: show it, fold it, send it somewhere.",
        ),
        "space": ("cuebook.cli.space.commands", "See how big a log is, and let it go on in a fresh stream."),
        "audit": ("cuebook.cli.audit.commands", "Search the audit log, verify it, prove what is in it."),
    }


app = typer.Typer(
    name="cuebook",
    cls=_Cuebook,
    help="Durable actors for AI agents on NATS JetStream.",
    epilog="Every flag has an environment variable: CUEBOOK_RUN_LIST_LIMIT is --limit of 'cuebook run list'.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    segments: Annotated[
        str,
        typer.Option(
            "--segments",
            envvar="CUEBOOK_SEGMENTS",
            metavar="DIR",
            help="Where segments of old history are looked for first.",
        ),
    ] = "",
) -> None:
    if segments:  # for whatever reads the log from here on, programs that are started included
        ctx.call_on_close(functools.partial(os.environ.update, CUEBOOK_SEGMENTS=os.environ.get("CUEBOOK_SEGMENTS", "")))
        os.environ["CUEBOOK_SEGMENTS"] = segments
    if version:
        from importlib import metadata

        typer.echo(metadata.version("cuebook"))
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """The entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show it all is no reason to fail
    app(prog_name="cuebook")


if __name__ == "__main__":
    main()
