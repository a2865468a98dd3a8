"""`cuebook audit`: who did what, when and why; and the proof that nobody has changed it since."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cuebook.cli.exits import reported_errors
from cuebook.cli.groups import Noun
from cuebook.cli.options import (
    DEFAULT_NATS_URL,
    DEFAULT_SPACE,
    Creds,
    DatabaseUrl,
    Limit,
    NatsUrl,
    Output,
    OutputOption,
    Since,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Search the audit log, verify it, prove what is in it.")

PublicKeyOption = Annotated[
    str, flag("--key", envvar="CUEBOOK_AUDIT_KEY", metavar="FILE|KEY", help="The public key of the log's sealer.")
]
Checkpoints = Annotated[
    list[Path] | None,
    flag("--checkpoint", metavar="FILE", dir_okay=False, help="Signed checkpoints; may be repeated."),
]
ExportFile = Annotated[
    str, flag("--export", metavar="FILE", help="Read this export instead of the log; needs --checkpoint and --key.")
]


@app.command()
def search(
    who: Annotated[str, flag("--who", metavar="NAME", help="A program, an agent, an instance or a person.")] = "",
    what: Annotated[str, flag("--what", metavar="TYPE", help="Such as task.failed or 'run.*'.")] = "",
    since: Since = "",
    until: Annotated[str, flag("--until", metavar="AGE|TIME", help="Recorded before that.")] = "",
    why: Annotated[str, flag("--why", metavar="EVENT_ID", help="What this event caused.")] = "",
    correlation: Annotated[
        str, flag("--correlation", metavar="EVENT_ID", help="All of the conversation that this event began.")
    ] = "",
    event: Annotated[str, flag("--event", metavar="EVENT_ID", help="The event with this id.")] = "",
    run: Annotated[str, flag("--run", metavar="RUN", help="About this run.")] = "",
    subject: Annotated[str, flag("--subject", metavar="SUBJECT", help="With * and >, with the space in front.")] = "",
    contains: Annotated[str, flag("--contains", metavar="JSON", help="Data that the event's own must hold.")] = "",
    text: Annotated[str, flag("--text", metavar="TEXT", help="Anywhere in the data, whatever the case.")] = "",
    oldest: Annotated[bool, flag("--oldest", help="The oldest first.")] = False,
    limit: Limit = 50,
    output: OutputOption = Output.TEXT,
    database_url: DatabaseUrl = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Find events by who, what, when, why or conversation, in PostgreSQL. All that is said must match."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.audit import searching
        from cuebook.cli.session import run_command

        wanted = searching.Wanted(
            who=who,
            what=what,
            since=since,
            until=until,
            why=why,
            correlation=correlation,
            event=event,
            run=run,
            subject=subject,
            contains=contains,
            text=text,
            oldest=oldest,
            limit=limit,
        )
        run_command(searching.search(space, database_url, wanted, output))


@app.command()
def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; the public key goes to FILE.pub.")],
    name: Annotated[
        str, flag("--name", metavar="NAME", help="Of the log, best as example.com/log; default: host and space.")
    ] = "",
    output: OutputOption = Output.TEXT,
    space: Space = DEFAULT_SPACE,
) -> None:
    """Make the key that seals a log, readable by you alone, and print the public one that others verify with."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli import keys

        keys.make_key(file, name, space, output)


@app.command()
def verify(
    export: Annotated[
        str,
        typer.Argument(
            metavar="EXPORT|DIR",
            help="A file of 'cuebook events export', - is stdin; or segments: DIR or one of their files.",
        ),
    ],
    public_key: PublicKeyOption = "",
    checkpoint: Checkpoints = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Hold an export against signed checkpoints, offline: name every gap and every message that was altered.

    Exit status 8 when anything is wrong. Without --key and --checkpoint only the file's own sums are checked, which who
    altered the file may have altered too.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.audit import verifying

        verifying.verify_export(export, public_key, checkpoint or [], output)


@app.command()
def prove(
    event: Annotated[str, typer.Argument(metavar="SEQ|EVENT_ID", help="Where it stands, or its id.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to; default: SEQUENCE.tlog-proof, - is stdout.")
    ] = "",
    export: ExportFile = "",
    public_key: PublicKeyOption = "",
    checkpoint: Checkpoints = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Write a proof that an event is in the sealed log, which anybody can check with the public key alone."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.audit import proving
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        evidence = proving.Evidence(export=export, key=public_key, checkpoints=checkpoint or [])
        run_command(proving.prove(target, event, file, evidence, output))


@app.command()
def grown(
    old: Annotated[int, typer.Argument(metavar="OLD", min=1, help="Size of a checkpoint.")],
    new: Annotated[int, typer.Argument(metavar="NEW", min=0, help="Size of a later one; default: the newest.")] = 0,
    file: Annotated[str, flag("--to", metavar="FILE", help="Where to; - is stdout.")] = "",
    export: ExportFile = "",
    public_key: PublicKeyOption = "",
    checkpoint: Checkpoints = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Write a proof that the log of one checkpoint only grew into that of a later one."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.audit import proving
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        evidence = proving.Evidence(export=export, key=public_key, checkpoints=checkpoint or [])
        run_command(proving.prove_growth(target, old, new, file, evidence, output))


@app.command("check-proof")
def check_proof(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A proof; - is stdin.")],
    public_key: PublicKeyOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a proof, offline, and say what it proves. Exit status 8 when it proves nothing."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.audit import verifying

        verifying.check(file, public_key, output)


@app.command()
def checkpoints(
    last: Annotated[bool, flag("--last", help="Only the newest.")] = False,
    public_key: PublicKeyOption = "",
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Print the signed checkpoints of a log, as the sealer's file has them; with --key only if that signed them."""
    with reported_errors():
        from cuebook.cli.audit import proving
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(proving.print_checkpoints(target, public_key, last=last))
