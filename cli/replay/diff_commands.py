"""`cuebook replay diff`: what an agent would answer now to what it was asked before."""

from __future__ import annotations

from typing import Annotated

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

__all__ = ["diff"]


def diff(
    agent: Annotated[str, flag("--agent", metavar="MODULE:AGENT", help="The agent whose handlers are run again.")],
    handler: Annotated[
        list[str] | None, flag("--handler", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    sample: Annotated[int, flag("--sample", min=1, help="Recorded tasks to take.")] = 200,
    seed: Annotated[int, flag("--seed", help="Which ones; the same seed takes the same.")] = 0,
    since: Since = "",
    ignore: Annotated[
        list[str] | None, flag("--ignore", metavar="FIELD", help="Changes there do not count; may be repeated.")
    ] = None,
    fake: Annotated[
        str,
        flag("--fake", metavar="MODULE:NAME", help="Makes the agent with its effects stubbed; see docs/what-if.md."),
    ] = "",
    live_effects: Annotated[
        bool, flag("--live-effects", help="Run handlers as they are: what they do outside is done again.")
    ] = False,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Run an agent's handlers again on recorded inputs and compare the answers; status 8 if one differs.

    How to find out what a new prompt or model would have done. Nothing is written to the log. Handlers that are not
    marked as pure need a fake.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.agents import diff
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        wish = diff.Wish(
            agent=agent,
            handlers=handler or [],
            sample=sample,
            seed=seed,
            since=since,
            ignored=ignore or [],
            fake=fake,
            live=live_effects,
        )
        run_command(diff.diff_agent(target, wish, output))
