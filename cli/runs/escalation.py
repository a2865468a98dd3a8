"""`cuebook escalation`: what waits for a person, and the person's word."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cuebook.cli.completion import complete_task
from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.inputs import read_json
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

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="See what waits for a person, and decide.")


class Kind(StrEnum):
    """What waits: a task whose attempts failed, a question of a saga, or a run that cannot go on."""

    TASK = "task"
    QUESTION = "question"
    STUCK = "stuck"


@app.command("list")
def list_(
    kind: Annotated[Kind | None, flag("--kind", help="Only these.")] = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """List escalated tasks, open questions and stuck runs, with how to decide about each."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.runs import escalations
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(escalations.list_escalations(target, kind.value if kind else "", output))


@app.command()
def resolve(
    escalation: Annotated[
        str,
        typer.Argument(metavar="RUN/N", help="As listed; a stuck run is just RUN.", autocompletion=complete_task),
    ],
    result: Annotated[
        str | None, flag("--result", metavar="JSON", help="Escalated task: this is its result. Also @FILE or -.")
    ] = None,
    retry: Annotated[bool, flag("--retry", help="Escalated task or stuck run: try again.")] = False,
    abort: Annotated[bool, flag("--abort", help="Give the task up; a stuck run is ended and undone.")] = False,
    answer: Annotated[
        str | None, flag("--answer", metavar="JSON", help="Question: the answer. Also @FILE or -.")
    ] = None,
    approve: Annotated[bool, flag("--approve", help="Question that wants an approval: yes.")] = False,
    deny: Annotated[bool, flag("--deny", help="Question that wants an approval: no.")] = False,
    note: Annotated[str, flag("--note", metavar="TEXT", help="Why; kept in the log.")] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Decide: exactly one of --result, --retry, --abort, --answer, --approve and --deny."""
    with reported_errors(as_json=output.for_programs):
        decisions: dict[str, Any] = {
            "result": result, "retry": retry, "abort": abort, "answer": answer, "approve": approve, "deny": deny
        }  # fmt: skip
        chosen = [name for name, value in decisions.items() if value is not None and value is not False]
        if len(chosen) != 1:
            said = " and ".join(f"--{name}" for name in chosen)
            raise InputError(
                f"{said} cannot be meant together" if said else "no decision is said",
                remedy="say one of --result, --retry, --abort, --answer, --approve and --deny",
            )
        from cuebook.cli.runs import escalations
        from cuebook.cli.session import run_command

        value = read_json(decisions[chosen[0]], f"--{chosen[0]}") if chosen[0] in ("result", "answer") else None
        decision = escalations.Decision(kind=chosen[0], value=value, note=note)
        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(escalations.resolve(target, escalation, decision, output, by=by))
