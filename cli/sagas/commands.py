"""`cuebook saga`: hold the code of sagas against what was recorded of their runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.completion import complete_run
from cuebook.cli.exits import reported_errors
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

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Check sagas against the log.")


@app.callback()
def _saga() -> None:
    """One command would else stand for its group."""


@app.command()
def check(
    sagas: Annotated[list[str], typer.Argument(metavar="MODULE:SAGA...", help="Whose present code is checked.")],
    since: Since = "",
    run: Annotated[str, flag("--run", metavar="RUN", autocompletion=complete_run, help="Only this one.")] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Run the present code of sagas against every recorded run, finished and open; status 8 if one would differ.

    Nothing is executed but the sagas themselves, and what those would do to the outside is refused.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.sagas import checking
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(checking.check_sagas(target, sagas, since, output, run_id=run))
