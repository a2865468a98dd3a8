"""`cuebook replay`: read any run, subject or range of the log again; show it, fold it, check a saga, or send it on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cuebook.cli.completion import complete_run
from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.groups import Noun
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
from cuebook.cli.replay.diff_commands import diff

__all__ = ["app"]


class ShowByDefault(Noun):
    """`cuebook replay RUN` is `cuebook replay show RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer.core.TyperGroup."""
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ShowByDefault, add_completion=False, help="Read any part of the log again: show it, fold it, send it somewhere."
)


@app.command()
def show(
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
    """Read the log again, in order; nothing is done twice. The word 'show' may be left out.

    With --state it is folded: what a run was after each event, or what the whole space was at --to. With --check the
    present code of a saga is driven by recorded results; exit status 8 means that it asks for something else.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.replay import replaying
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        span = replaying.Span(run=run, filters=filter_ or [], first=from_, last=to, since=since)
        if check:
            run_command(replaying.check(target, span, check, output))
        elif state:
            run_command(replaying.fold(target, span, output))
        else:
            run_command(replaying.show(target, span, output))


@app.command()
def send(
    into: Annotated[
        str,
        flag("--into", metavar="WHERE", help="A space, nats://HOST:PORT/SPACE, a file *.jsonl, or - for stdout."),
    ],
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="These runs; without any, everything.", autocompletion=complete_run),
    ] = None,
    filter_: Annotated[
        list[str] | None, flag("--filter", metavar="SUBJECT", help="With * and >; may be repeated, and adds to RUN.")
    ] = None,
    type_: Annotated[
        list[str] | None, flag("--type", metavar="TYPE", help="Only such as task.failed or 'task.*'; may be repeated.")
    ] = None,
    from_: Annotated[str, flag("--from", metavar="SEQ|TIME", help="Begin at a sequence, an age or a time.")] = "",
    to: Annotated[str, flag("--to", metavar="SEQ|TIME", help="End there; default: the last event now.")] = "",
    since: Since = "",
    speed: Annotated[
        str, flag("--speed", metavar="max|Nx", help="1x: the original pace; 10x: ten times that; max: all at once.")
    ] = "max",
    live_effects: Annotated[
        bool, flag("--live-effects", help="Into a space that lives, where runs start and tasks run by what is sent.")
    ] = False,
    into_creds: Annotated[
        str, flag("--into-creds", metavar="FILE", help="Credentials file for the server that is sent to.")
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Send a part of the log to another space, another server, a file or stdout; run again, it goes on where it was.

    A space that does not exist is made as a recording, which no orchestrator and no agent drives: nothing that is sent
    there is done again. Only with --live-effects is it sent to a space that lives.
    """
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.replay import sending
        from cuebook.cli.replay.slices import Choice
        from cuebook.cli.session import run_command

        if from_ and since:
            raise InputError("--from and --since say both where to begin", remedy="say one of them")
        target = Target(nats_url=nats_url, creds=creds, space=space)
        interruption.resume = "the same command"
        choice = Choice(runs=run or [], filters=filter_ or [], types=type_ or [], first=from_ or since, last=to)
        order = sending.Order(choice=choice, into=into, creds=into_creds, speed=speed, live_effects=live_effects)
        run_command(sending.send(target, order, output, interruption))


app.command()(diff)
