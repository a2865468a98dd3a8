"""`cuebook run`: start work, see how it goes, end it, begin again. Imports nothing heavy; see listing and showing."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cuebook.cli.completion import complete_agent, complete_run, complete_saga
from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.inputs import parse_labels, read_json
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    At,
    By,
    Creds,
    DatabaseUrl,
    From,
    Limit,
    NatsUrl,
    Output,
    OutputOption,
    RunId,
    Since,
    Space,
    Target,
    To,
    flag,
)

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Start, list, show, follow, cancel, retry and fork runs.")


class RunStatus(StrEnum):
    """As in the projections. A standalone task is a run too."""

    REQUESTED = "requested"
    RUNNING = "running"
    COMPENSATING = "compensating"
    STUCK = "stuck"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATED = "compensated"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


@app.command("list")
def list_(
    status: Annotated[RunStatus | None, flag("--status", help="Only runs in this status.")] = None,
    saga: Annotated[
        str, flag("--saga", metavar="NAME", autocompletion=complete_saga, help="Only runs of this saga.")
    ] = "",
    since: Since = "",
    at: At = "",
    limit: Limit = 50,
    from_log: Annotated[bool, flag("--from-log", help="Fold the log even if a database is set.")] = False,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    database_url: DatabaseUrl = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """List runs, the newest first: from the projections if a database is set, else folded from the log.

    With --at as they were then, which only the log can tell.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import listing
        from cuebook.cli.session import run_command

        wanted = listing.Wanted(status=status.value if status else "", saga=saga, since=since, at=at, limit=limit)
        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(listing.list_runs(target, "" if from_log else database_url, wanted, output))


@app.command()
def show(
    run: RunId,
    at: At = "",
    since: Annotated[
        str, flag("--since", metavar="SEQ|TIME", help="Also what changed since then: a sequence, an age or a time.")
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show a run: its steps, their attempts and errors, why a task waits, and its history."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import showing
        from cuebook.cli.session import run_command

        run_command(showing.show_run(Target(nats_url=nats_url, creds=creds, space=space), run, at, since, output))


@app.command()
def diff(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run id; without one, all runs.", autocompletion=complete_run)
    ] = "",
    from_: From = "",
    to: To = "",
    limit: Annotated[int, flag("--limit", "-n", min=1, help="Without RUN: at most so many, the newest.")] = 50,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show what changed between two places in the log, field by field: of one run, or which runs did."""
    with reported_errors(as_json=output.for_programs):
        if not from_:
            raise InputError("--from is missing", remedy="say --from with a sequence, an age or a time")
        from cuebook.cli.runs import diffs
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        if run:
            run_command(diffs.diff_run(target, run, from_, to, output))
        else:
            run_command(diffs.diff_runs(target, from_, to, limit, output))


@app.command()
def debug(
    run: RunId,
    at: Annotated[str, flag("--at", metavar="SEQ|TIME", help="Begin there; default: at the first event.")] = "",
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Step through a run event by event in the terminal, forwards and back; one that goes on is followed."""
    with reported_errors():
        from cuebook.cli.runs import debugging
        from cuebook.cli.session import run_command

        run_command(debugging.debug_run(Target(nats_url=nats_url, creds=creds, space=space), run, at))


@app.command()
def tail(
    run: RunId,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Follow a run until it has ended or is stuck. The exit status says how it ended, as with 'run submit --wait'."""
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.runs import showing
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        interruption.resume = f"cuebook run tail {run}{target.hint}"
        raise typer.Exit(run_command(showing.tail_run(target, run, output)))


@app.command()
def submit(
    saga: Annotated[
        str,
        typer.Argument(metavar="SAGA", autocompletion=complete_saga, help="Name of the saga; left out with --agent."),
    ],
    input_: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="JSON, @FILE, or - for stdin.", show_default=False)
    ] = None,
    agent: Annotated[
        str,
        flag("--agent", metavar="NAME", autocompletion=complete_agent, help="Submit one task to it, without a saga."),
    ] = "",
    handler: Annotated[str, flag("--handler", metavar="NAME", help="Which one, if the agent has several.")] = "",
    run_id: Annotated[str, flag("--id", metavar="RUN", help="The run's id; one that exists is a conflict.")] = "",
    priority: Annotated[int, flag("--priority", min=-100, max=100, help="Of the task; higher goes first.")] = 0,
    affinity: Annotated[str, flag("--affinity", metavar="KEY", help="Tasks with one key prefer one instance.")] = "",
    label: Annotated[
        list[str] | None, flag("--label", metavar="KEY=VALUE", help="The instance must have it; may be repeated.")
    ] = None,
    task_timeout_s: Annotated[
        float | None, flag("--task-timeout-s", min=0.001, help="Of one attempt; default: the handler's own.")
    ] = None,
    wait: Annotated[bool, flag("--wait", help="Wait for the outcome and print it.")] = False,
    wait_s: Annotated[
        float | None, flag("--wait-s", min=0, help="Wait at most so many seconds; the run goes on after that.")
    ] = None,
    no_check: Annotated[bool, flag("--no-check", help="Ask nobody first: for what is not known yet.")] = False,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Start a run of a saga, or one task of an agent, and print its id."""
    with reported_errors(as_json=output.for_programs) as interruption:
        if (input_ is None) != bool(agent):
            usage = "run submit --agent AGENT INPUT" if agent else "run submit SAGA INPUT"
            raise InputError(f"{'SAGA' if agent else 'INPUT'} is {'one word too many' if agent else 'missing'}",
                             remedy=f"write 'cuebook {usage}'")  # fmt: skip
        if not agent and (handler or priority or affinity or label or task_timeout_s is not None):
            raise InputError(
                "--handler, --priority, --affinity, --label and --task-timeout-s are about a task",
                remedy="use them with --agent; a saga says them for each of its calls",
            )
        from cuebook.cli.runs import submitting
        from cuebook.cli.session import run_command

        work = submitting.Work(
            saga="" if agent else saga,
            agent=agent,
            input=read_json(saga if input_ is None else input_),
            handler=handler,
            run_id=run_id,
            priority=priority,
            affinity=affinity or None,
            labels=parse_labels(label or []),
            timeout_s=task_timeout_s,
        )
        target = Target(nats_url=nats_url, creds=creds, space=space)
        waiting = submitting.Waiting(wait=wait or wait_s is not None, at_most_s=wait_s, interruption=interruption)
        raise typer.Exit(run_command(submitting.submit(target, work, waiting, output, by=by, check=not no_check)))


@app.command()
def cancel(
    run: Annotated[
        str, typer.Argument(metavar="RUN[/N]", help="A run, or one task of it.", autocompletion=complete_run)
    ],
    reason: Annotated[str, flag("--reason", metavar="TEXT", help="Why; kept in the log.")] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Ask for the end of a run; what it did is undone. With RUN/N, of one task."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import submitting
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(submitting.cancel(target, run, reason, output, by=by))


@app.command()
def retry(
    run: RunId,
    note: Annotated[str, flag("--note", metavar="TEXT", help="Why; kept in the log.")] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Go on with a stuck run, or run an ended one again under a new id; prints the id of the run that goes on."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import submitting
        from cuebook.cli.session import run_command

        run_command(submitting.retry(Target(nats_url=nats_url, creds=creds, space=space), run, note, output, by=by))


@app.command()
def fork(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[/N]", help="A run; with /N up to the answer of step N.", autocompletion=complete_run
        ),
    ],
    at: Annotated[
        str, flag("--at", metavar="SEQ|TIME", help="Share the history up to a sequence, an age or a time.")
    ] = "",
    with_: Annotated[
        str, flag("--with", metavar="JSON", help="Other answers by step number; also @FILE, or - for stdin.")
    ] = "",
    run_id: Annotated[str, flag("--id", metavar="RUN", help="The new run's id; one that exists is refused.")] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Start a run that shares another's history up to a point, perhaps with other answers, and goes on live from there.

    Steps that had ended by then are not executed again, nor undone by the new run. Without a point it begins at the
    last of the changed answers. Prints the new run's id.
    """
    with reported_errors(as_json=output.for_programs):
        answers = read_json(with_, "--with") if with_ else {}
        from cuebook.cli.runs import forking
        from cuebook.cli.session import run_command

        wish = forking.Wish(name=run, at=at, answers=forking.parse_answers(answers), new_id=run_id)
        target = Target(nats_url=nats_url, creds=creds, space=space)
        raise typer.Exit(run_command(forking.fork_run(target, wish, output, by=by)))
