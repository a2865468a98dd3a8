"""`cuebook projection`: the tables in PostgreSQL, their state, and building them again. Imports nothing heavy."""

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
    DatabaseUrl,
    Limit,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    TimeseriesOption,
    flag,
)
from cuebook.projections.timeseries import Timeseries

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="See, rebuild and mend the tables in PostgreSQL.")

MOST_MONTHS = 12_000
"""The month that many before this one has to be one that a datetime holds."""

_NAMES = ("audit", "runs", "agents")


def _complete(incomplete: str) -> list[str]:
    return [name for name in _NAMES if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="NAME", help="A projection.", autocompletion=_complete)]
Sequence = Annotated[int, typer.Argument(metavar="SEQUENCE", min=1, help="Of the event in the log.")]


@app.command("list")
def list_(
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """List the generations of all projections: position, lag, version, health, parked events."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(status.show_all(target, database_url, output))


@app.command()
def show(
    name: Name,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Show one projection: its generations, their tables and sizes, and what is parked."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(status.show(target, database_url, name, output))


@app.command()
def rebuild(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Projections.", autocompletion=_complete)
    ] = None,
    all_: Annotated[bool, flag("--all", help="All projections; the log is read once.")] = False,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Build, compare, and drop it again; status 8 if it differs.")
    ] = False,
    samples: Annotated[
        int, flag("--differences", min=0, metavar="N", help="Show so many differing rows a table.")
    ] = 10,
    everything: Annotated[
        bool, flag("--with-dropped", help="Bring the months back that retention has dropped.")
    ] = False,
    trust_log: Annotated[
        bool, flag("--trust-log", help="Build from a log that is not the one the live tables were read from.")
    ] = False,
    timeseries: TimeseriesOption = Timeseries.AUTO,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Build tables again from event 1 beside those that are read, compare, and let them take their place.

    Nobody has to be stopped. Interrupted or killed, the same command goes on.
    """
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.projections import rebuilding
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        wanted = rebuilding.Wanted(
            names=names or [],
            all=all_,
            dry_run=dry_run,
            samples=samples,
            everything=everything,
            trust_log=trust_log,
            timeseries=timeseries,
        )
        interruption.resume = f"cuebook projection rebuild {wanted.words}{target.hint}"
        run_command(rebuilding.rebuild(target, database_url, wanted, output))


@app.command()
def rollback(
    name: Name,
    now: Annotated[
        bool, flag("--now", help="Show it at once, as it stands; the service brings it up to date afterwards.")
    ] = False,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Show the generation again that was shown before.

    It is brought up to date first; until then people read the present one.
    """
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.projections import rebuilding
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        interruption.resume = f"cuebook projection rollback {name}{' --now' if now else ''}{target.hint}"
        run_command(rebuilding.rollback(target, database_url, name, output, now=now))


@app.command()
def prune(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Projections; default: all.", autocompletion=_complete),
    ] = None,
    output: OutputOption = Output.TEXT,
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Drop generations that nobody reads or writes; there is no way back to them then."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        run_command(status.prune(space, database_url, names or [], output))


@app.command()
def parked(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A projection; default: all.", autocompletion=_complete)
    ] = "",
    all_: Annotated[
        bool, flag("--all", "-a", help="Also those that somebody left out, and of generations that are not read.")
    ] = False,
    limit: Limit = 50,
    output: OutputOption = Output.TEXT,
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """List events that a projection could not apply, and why; the others went on without them."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        run_command(status.show_parked(space, database_url, name, output, everything=all_, limit=limit))


@app.command()
def retry(
    name: Name,
    sequence: Sequence,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Apply a parked event now, as if it had been applied in its turn."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(status.retry(target, database_url, name, sequence, output))


@app.command()
def skip(
    name: Name,
    sequence: Sequence,
    by: By = "",
    output: OutputOption = Output.TEXT,
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Leave a parked event out for good, also in rebuilds that park it again. It stays in the log."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        run_command(status.skip(space, database_url, name, sequence, output, by=by))


@app.command()
def retention(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A projection; default: show all.", autocompletion=_complete)
    ] = "",
    months: Annotated[
        int | None,
        flag("--keep-months", min=1, max=MOST_MONTHS, metavar="N", help="Whole months before the present one."),
    ] = None,
    keep_all: Annotated[bool, flag("--keep-all", help="Drop no more; what is gone is gone until a rebuild.")] = False,
    by: By = "",
    output: OutputOption = Output.TEXT,
    space: Space = DEFAULT_SPACE,
    database_url: DatabaseUrl = "",
) -> None:
    """Say for how long tables partitioned by time (audit, agent_health) keep rows; older months are dropped whole."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.projections import status
        from cuebook.cli.session import run_command

        wanted = status.Retention(name=name, months=months, keep_all=keep_all, by=by)
        run_command(status.retention(space, database_url, wanted, output))
