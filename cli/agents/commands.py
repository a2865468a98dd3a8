"""`cuebook agent`: who is there, what they can do, and how to take one out of service."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cuebook.cli.completion import complete_agent
from cuebook.cli.exits import InputError, reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    AgentName,
    At,
    By,
    Creds,
    From,
    NatsUrl,
    Output,
    OutputOption,
    Space,
    Target,
    To,
    flag,
)

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="List, show and drain agents.")


class Health(StrEnum):
    """Of an instance, as the orchestrator sees it."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    LOST = "lost"
    DRAINING = "draining"
    STOPPED = "stopped"


@app.command("list")
def list_(
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="Only instances of this agent.", autocompletion=complete_agent)
    ] = "",
    health: Annotated[Health | None, flag("--health", help="Only instances of this health.")] = None,
    all_: Annotated[bool, flag("--all", "-a", help="Also those that have stopped.")] = False,
    at: At = "",
    since: Annotated[
        str, flag("--since", metavar="SEQ|TIME", help="Only instances of which the log says something since then.")
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """List agent instances: health, free slots, labels. With --at as they were then, folded from the log."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.agents import roster
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        stopped = all_ or health is Health.STOPPED
        wanted = roster.Wanted(agent=agent, health=health.value if health else "", stopped=stopped)
        run_command(roster.list_agents(target, wanted, roster.When(at=at, since=since), output))


@app.command()
def show(
    agent: AgentName,
    at: At = "",
    since: Annotated[
        str, flag("--since", metavar="SEQ|TIME", help="Also what changed since then: a sequence, an age or a time.")
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show an agent: its handlers with timeouts, retries and schemas, and its instances."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.agents import roster
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(roster.show_agent(target, agent, roster.When(at=at, since=since), output))


@app.command()
def diff(
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT[/INSTANCE]", help="Only this one; without it, all.", autocompletion=complete_agent
        ),
    ] = "",
    from_: From = "",
    to: To = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show what changed of agents and their instances between two places in the log, field by field."""
    with reported_errors(as_json=output.for_programs):
        if not from_:
            raise InputError("--from is missing", remedy="say --from with a sequence, an age or a time")
        from cuebook.cli.runs import diffs
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(diffs.diff_agents(target, agent, from_, to, output))


@app.command()
def drain(
    agent: AgentName,
    reason: Annotated[str, flag("--reason", metavar="TEXT", help="Why; kept in the log.")] = "",
    wait: Annotated[bool, flag("--wait", help="Wait until it has stopped.")] = False,
    wait_s: Annotated[float | None, flag("--wait-s", min=0, help="Wait at most so many seconds.")] = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Ask instances to finish what they have and stop: all of an agent, or one."""
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.agents import roster
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        interruption.resume = f"cuebook agent list{target.hint}"
        waiting = roster.Waiting(wait=wait or wait_s is not None, at_most_s=wait_s)
        run_command(roster.drain(target, agent, reason, waiting, output, by=by))
