"""`cuebook events`: the log itself. Every message, who wrote it and when, readable or not."""

from __future__ import annotations

from typing import Annotated

import typer

from cuebook.cli.completion import complete_run
from cuebook.cli.exits import reported_errors
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
    Since,
    Space,
    Target,
    flag,
)

__all__ = ["app"]

app = typer.Typer(cls=Noun, add_completion=False, help="Read the log, follow it, publish to it, and know its types.")
schema_app = typer.Typer(cls=Noun, add_completion=False, help="Schemas of event types.")
app.add_typer(schema_app, name="schema")

_Sagas = Annotated[
    list[str] | None,
    flag("--saga", metavar="MODULE:SAGA", help="Also the outside events that it listens to; may be repeated."),
]


@app.command()
def tail(
    follow: Annotated[bool, flag("--follow", "-f", help="Go on with what is to come.")] = False,
    limit: Annotated[
        int | None, flag("--limit", "-n", min=0, help="The newest so many; default: 20, or all of a range.")
    ] = None,
    since: Since = "",
    from_: Annotated[str, flag("--from", metavar="SEQ|TIME", help="Begin at a sequence, an age or a time.")] = "",
    filter_: Annotated[
        list[str] | None, flag("--filter", metavar="SUBJECT", help="With * and >; may be repeated.")
    ] = None,
    topic: Annotated[
        list[str] | None, flag("--topic", metavar="TOPIC", help="Outside events on it; may be repeated.")
    ] = None,
    type_: Annotated[
        list[str] | None, flag("--type", metavar="TYPE", help="Such as task.failed or 'task.*'; may be repeated.")
    ] = None,
    run: Annotated[
        list[str] | None,
        flag("--run", metavar="RUN", autocompletion=complete_run, help="Of this run; may be repeated."),
    ] = None,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Print the newest events, and with -f those to come. --filter, --topic and --run add up; --type narrows."""
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.events import log_reading
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        chosen = log_reading.Chosen(filters=filter_ or [], topics=topic or [], types=type_ or [], runs=run or [])
        reach = log_reading.Reach(first=from_, since=since, limit=limit)
        run_command(log_reading.tail(target, chosen, reach, output, interruption, follow=follow))


@app.command()
def show(
    event: Annotated[str, typer.Argument(metavar="SEQ|EVENT_ID", help="Where it stands, or its id.")],
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Show one message with all that the log knows about it. An id is looked for from the end of the log backwards."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.events import log_reading
        from cuebook.cli.session import run_command

        run_command(log_reading.show(Target(nats_url=nats_url, creds=creds, space=space), event, output))


@app.command()
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - is stdout. Ending in .parquet: Parquet.")],
    filter_: Annotated[
        list[str] | None, flag("--filter", metavar="SUBJECT", help="With * and >; may be repeated.")
    ] = None,
    topic: Annotated[
        list[str] | None, flag("--topic", metavar="TOPIC", help="Outside events on it; may be repeated.")
    ] = None,
    run: Annotated[
        list[str] | None,
        flag("--run", metavar="RUN", autocompletion=complete_run, help="Of this run; may be repeated."),
    ] = None,
    from_: Annotated[str, flag("--from", metavar="SEQ|TIME", help="Begin at a sequence, an age or a time.")] = "",
    to: Annotated[str, flag("--to", metavar="SEQ|TIME", help="End there; default: the last event now.")] = "",
    since: Since = "",
    format_: Annotated[str, flag("--format", metavar="jsonl|parquet", help="Default: what the file's name says.")] = "",
    bare: Annotated[bool, flag("--bare", help="Leave out the bodies as JSON; their bytes are there anyway.")] = False,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Write the log, or a part of it, to a file that can be verified, queried and imported, byte for byte."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.events import exporting
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        part = exporting.Part(
            filters=filter_ or [], topics=topic or [], runs=run or [], first=from_, last=to, since=since
        )
        run_command(exporting.export(target, part, file, format_, output, view=not bare))


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export, in JSONL or Parquet.")],
    reroot: Annotated[
        bool, flag("--reroot", help="The export is of another space: exchange its name in all subjects.")
    ] = False,
    live_effects: Annotated[
        bool, flag("--live-effects", help="Make a living space of it, in which open work is done.")
    ] = False,
    replicas: Annotated[int, flag("--replicas", min=1, max=5, help="Of the stream that is made.")] = 1,
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
) -> None:
    """Fill a new space from an export, to be read only: nothing in it is ever done again. Goes on when interrupted."""
    with reported_errors(as_json=output.for_programs) as interruption:
        from cuebook.cli.events import exporting
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(
            exporting.import_(
                target, file, output, interruption, reroot=reroot, live_effects=live_effects, replicas=replicas
            )
        )


@app.command()
def publish(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Such as ticket.opened.")],
    data: Annotated[str, typer.Argument(metavar="JSON", help="The event's data; @FILE reads a file, - reads stdin.")],
    event_id: Annotated[
        str, flag("--id", metavar="EVENT_ID", help="Stored once in two minutes, however often it is sent.")
    ] = "",
    output: OutputOption = Output.TEXT,
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    creds: Creds = "",
    space: Space = DEFAULT_SPACE,
    by: By = "",
) -> None:
    """Publish an outside event, which may start runs; prints its stream sequence."""
    with reported_errors(as_json=output.for_programs):
        value = read_json(data, "what is to be published")
        from cuebook.cli.events import log_reading
        from cuebook.cli.session import run_command

        target = Target(nats_url=nats_url, creds=creds, space=space)
        run_command(log_reading.publish(target, topic, value, event_id, output, by=by))


@app.command()
def types(saga: _Sagas = None, output: OutputOption = Output.TEXT) -> None:
    """List the types of events that this release writes, their fields, and the older versions that it reads."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.events import event_types

        event_types.list_types(saga or [], output)


@schema_app.command("show")
def show_schema(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Such as task.completed.v1, or task.completed.")],
    saga: _Sagas = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a type's schema, and the way from an older version to the newest."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.events import event_types

        event_types.show_schema(type_, saga or [], output)


@schema_app.command("check")
def check_schemas(
    saga: _Sagas = None,
    file: Annotated[str, flag("--file", metavar="FILE", help="Where the schemas of outside events are kept.")] = "",
    write: Annotated[bool, flag("--write", help="Record new types and new fields that may be left out.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check that no released type was edited where it should have been versioned; status 8 if one was."""
    with reported_errors(as_json=output.for_programs):
        from cuebook.cli.events import event_types

        event_types.check_schemas(saga or [], file, output, write=write)
