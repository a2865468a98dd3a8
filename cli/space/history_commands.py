"""The commands of `cuebook space` that are about old history. Imports nothing heavy."""

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
    NatsUrl,
    Output,
    OutputOption,
    Segments,
    Space,
    Target,
    flag,
)

__all__ = ["archive", "drop", "segments_app"]

segments_app = typer.Typer(cls=Noun, add_completion=False, help="Segments of old history: list and verify them.")

PublicKeyOption = Annotated[
    str, flag("--key", envvar="CUEBOOK_AUDIT_KEY", metavar="FILE|KEY", help="The public key of the log's sealer.")
]


def archive(
    generation: Annotated[
        int | None, flag("--generation", metavar="N", min=1, help="Up to the end of this one; default: all that ended.")
    ] = None,
    before: Annotated[str, flag("--before", metavar="SEQ|TIME", help="Everything before that.")] = "",
    to: Annotated[
        str, flag("--to", metavar="DIR", help="A directory; default: --segments, else the bucket SPACE_segments.")
    ] = "",
    key: Annotated[
        Path | None,
        flag("--key", metavar="FILE", dir_okay=False, help="The private key that signs what no sealer has sealed."),
    ] = None,
    unsigned: Annotated[bool, flag("--unsigned", help="Write segments that nothing proves yet.")] = False,
    events: Annotated[int, flag("--events", min=1, max=100_000, help="In a segment, at most.")] = 100_000,
    replicas: Annotated[
        int, flag("--replicas", min=0, max=5, help="Of the bucket that is made; 0: as many as the log has.")
    ] = 0,
    segments: Segments = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Write old history to segments, with what proves them. What is there already stays; goes on when interrupted.

    Nothing is removed from the log: that is 'cuebook space drop'.
    """
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.session import run_command
        from cuebook.cli.space import segments as work

        target = Target(nats_url=nats_url, creds=creds, space=space)
        wanted = work.Wanted(
            generation=generation,
            before=before,
            to=to or segments,
            key=key,
            unsigned=unsigned,
            events=events,
            replicas=replicas,
        )
        run_command(work.archive(target, wanted, output, interruption))


@segments_app.command("list")
def list_(
    segments: Segments = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """List the segments of a space: their sequences, sizes, times, and the checkpoints that cover them."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.space import segments as work

        run_command(work.list_segments(Target(nats_url=nats_url, creds=creds, space=space), segments, output))


@segments_app.command()
def verify(
    which: Annotated[
        str, typer.Argument(metavar="[SEQ|SEGMENT]", help="Only the one with this sequence, or of this name.")
    ] = "",
    key: PublicKeyOption = "",
    segments: Segments = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Read segments through and hold them against the key: names what is missing or altered, with status 8.

    Status 1 when they are unaltered but not signed. Offline: 'cuebook audit verify DIR'.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.space import segments as work

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(work.verify_segments(target, which, segments, key, output))


def drop(
    generation: Annotated[int, typer.Argument(metavar="GENERATION", min=1, help="Its number: 'cuebook space show'.")],
    yes: Annotated[str, flag("--yes", metavar="SPACE", help="The space's name, since this cannot be undone.")] = "",
    key: PublicKeyOption = "",
    unsigned: Annotated[bool, flag("--unsigned", help="Though nobody has signed the segments.")] = False,
    segments: Segments = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Remove the stream of a generation that has ended, once all of it is in segments, where it stays readable.

    The segments are verified and compared with the stream, message by message, before anything is removed.
    """
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.session import run_command
        from cuebook.cli.space import segments as work

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(work.drop(target, generation, yes, segments, key, output, unsigned=unsigned))
