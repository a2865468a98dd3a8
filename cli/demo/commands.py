"""`cuebook demo`: the support desk at work on twenty tickets, on real servers and processes. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.exits import Exit, reported_errors
from cuebook.cli.options import flag

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    *,
    tickets: Annotated[
        int, flag("--tickets", metavar="N", min=1, max=10_000, help="How many tickets are opened.")
    ] = 20,
    plain: Annotated[bool, flag("--plain", help="Lines instead of a table, as when piped.")] = False,
    keep: Annotated[bool, flag("--keep", help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Show the whole system at work: a support desk with five agents handles twenty tickets.

    Starts a nats-server, a PostgreSQL, a stand-in for Stripe, the orchestrator, the projections and five agents, each
    a process of its own, with data in a temporary folder. Nothing of it is left at the end. Exits with 0 only if every
    ticket, every refund and every table came out as expected.
    """
    from cuebook.cli.demo.performance import Performance
    from cuebook.cli.interrupts import run_until_interrupted

    performance = Performance(tickets, plain=plain, keep=keep)
    with reported_errors():
        wrong = run_until_interrupted(performance.run())
        if wrong:
            raise typer.Exit(Exit.FAILURE)
