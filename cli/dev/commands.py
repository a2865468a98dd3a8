"""`cuebook dev`: everything on one machine, for writing agents and sagas against. Imports nothing heavy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.options import DEFAULT_SPACE, Creds, DatabaseUrl, NatsUrl, Space, Target, flag

__all__ = ["app"]

app = typer.Typer(add_completion=False)

_DATA: Final = Path(".cuebook")
_NATS_PORT: Final = 4222
_POSTGRES_PORT: Final = 25432  # not 5432, where somebody's own is; always the same, so that exported URLs stay right


@app.command()
def dev(
    context: typer.Context,
    *,
    sagas: Annotated[
        list[str] | None, flag("--sagas", metavar="MODULE:SAGA", help="A saga to serve; may be repeated.")
    ] = None,
    agents: Annotated[
        list[str] | None, flag("--agents", metavar="MODULE:AGENT", help="An agent to run; may be repeated.")
    ] = None,
    example: Annotated[bool, flag("--example", help="Serve the support desk of the demo as well.")] = False,
    data_dir: Annotated[
        Path, flag("--data-dir", metavar="DIR", file_okay=False, help="Where the embedded servers keep their data.")
    ] = _DATA,
    nodes: Annotated[
        int,
        flag("--nodes", metavar="N", min=1, max=5, help="Embedded nats-servers: 3 are a cluster that bears a loss."),
    ] = 1,
    nats_port: Annotated[
        int, flag("--nats-port", metavar="N", min=0, max=65535, help="Of the embedded nats-server; 0: any free one.")
    ] = _NATS_PORT,
    postgres_port: Annotated[
        int, flag("--postgres-port", metavar="N", min=0, max=65535, help="Of the embedded PostgreSQL; 0: any free one.")
    ] = _POSTGRES_PORT,
    nats_url: NatsUrl = "",
    nats_creds: Creds = "",
    database_url: DatabaseUrl = "",
    space: Space = DEFAULT_SPACE,
    metrics: Annotated[
        str,
        flag(
            "--metrics",
            envvar="CUEBOOK_METRICS",
            metavar="HOST:PORT",
            help="Where the first process serves /metrics; the others have the ports after it.",
        ),
    ] = "",
) -> None:
    """Run servers, orchestrator, projections and your agents on this machine, until Ctrl-C.

    Starts a nats-server and a PostgreSQL of its own; where CUEBOOK_NATS_URL or CUEBOOK_DATABASE_URL says what to use,
    that is used and nothing started in its place. The orchestrator, the projections and each agent are processes of
    their own; these and the servers are started again when they die. Without --agents there are none yet: start yours
    in another terminal with 'cuebook serve agents', or look around with --example. The data stays, and is there again
    at the next start.
    """
    from cuebook.cli.dev.development import Development
    from cuebook.cli.interrupts import run_until_interrupted

    with reported_errors():
        _refuse_what_has_no_effect(context, nats_url=nats_url, database_url=database_url)
    development = Development(
        Target(nats_url=nats_url, creds=nats_creds, space=space),
        database_url=database_url,
        data_dir=data_dir,
        sagas=sagas or [],
        agents=agents or [],
        example=example,
        nodes=nodes,
        metrics=metrics,
    )
    with reported_errors(), contextlib.suppress(KeyboardInterrupt):
        development.check()
        run_until_interrupted(development.run(nats_port=nats_port or None, postgres_port=postgres_port or None))
    typer.echo("stopped")


def _refuse_what_has_no_effect(context: typer.Context, *, nats_url: str, database_url: str) -> None:
    """Raise InputError for an option of an embedded server where that server is not started."""
    said = {parameter.name: words for parameter in context.command.params if (words := _said(context, parameter))}
    nats, database = said.get("nats_url", ""), said.get("database_url", "")
    for names, urls in (
        (("nodes", "nats_port"), [nats] if nats_url else []),
        (("postgres_port",), [database] if database_url else []),
        (("data_dir",), [nats, database] if nats_url and database_url else []),
    ):
        for words in (said[name] for name in names if urls and name in said):
            instead = " and ".join(urls)
            raise InputError(
                f"{words} is for a server that 'cuebook dev' starts, and with {instead} it starts none",
                remedy=f"leave out {words}, or {instead}",
            )


def _said(context: typer.Context, parameter: Any) -> str:
    """The flag or the environment variable by which an option was given; empty when it was not."""
    match context.get_parameter_source(parameter.name):
        case None:
            return ""
        case source if source.name == "COMMANDLINE":
            return str(parameter.opts[0])
        case source if source.name == "ENVIRONMENT":
            return str(parameter.envvar)
    return ""
