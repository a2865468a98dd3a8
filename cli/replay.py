"""`cuebook replay`: read any run, subject or range of the log again; show it, fold it, or check a saga against it."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.completion import complete_run
from cuebook.cli.exits import reported_errors
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    NatsUrl,
    Output,
    OutputOption,
    Since,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def replay(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run id; without one, everything.", autocompletion=complete_run)
    ] = "",
    filter_: Annotated[
        list[str] | None, flag("--filter", metavar="SUBJECT", help="With * and >; may be repeated.")
    ] = None,
    from_: Annotated[str, flag("--from", metavar="SEQ|TIME", help="Begin at a sequence, an age or a time.")] = "",
    to: Annotated[str, flag("--to", metavar="SEQ|TIME", help="End there; default: the last event now.")] = "",
    since: Since = "",
    state: Annotated[
        bool, flag("--state", help="Fold: the run after each event, or without RUN the whole space at --to.")
    ] = False,
    check: Annotated[
        list[str] | None,
        flag("--check", metavar="MODULE:SAGA", help="Run its present code against what was recorded; may be repeated."),
    ] = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Read the log again, in order; nothing is done twice.

    With --state it is folded: what a run was after each event, or what the whole space was at --to. With --check the
    present code of a saga is driven by recorded results; exit status 8 means that it asks for something else.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli import replaying
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        span = replaying.Span(run=run, filters=filter_ or [], first=from_, last=to, since=since)
        if check:
            run_command(replaying.check(target, span, check, output))
        elif state:
            run_command(replaying.fold(target, span, output))
        else:
            run_command(replaying.show(target, span, output))
