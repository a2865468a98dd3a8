"""The flags that several commands share, each with its environment variable. Imports nothing heavy."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cuebook.cli.completion import complete_agent, complete_run, complete_task
from cuebook.cli.exits import InputError
from cuebook.events.errors import InvalidTokenError
from cuebook.events.subjects import check_token
from cuebook.projections.timeseries import Timeseries

__all__ = [
    "AgentName",
    "At",
    "By",
    "Creds",
    "DatabaseUrl",
    "From",
    "Limit",
    "MonitorUrl",
    "NatsUrl",
    "Output",
    "OutputOption",
    "RunId",
    "Segments",
    "Since",
    "Space",
    "Target",
    "TaskId",
    "TimeseriesOption",
    "To",
    "check_space",
    "flag",
    "login_name",
]

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
DEFAULT_SPACE = "cue"
DEFAULT_DRAIN_S = 30.0


class Output(StrEnum):
    """How a command writes to stdout."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"

    @property
    def for_programs(self) -> bool:
        """Errors are JSON too, and nothing is said beside the answer."""
        return self is not Output.TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The space to talk to."""

    nats_url: str = DEFAULT_NATS_URL
    creds: str = ""
    space: str = DEFAULT_SPACE

    @property
    def hint(self) -> str:
        """The flags that a command in a hint needs beside what the environment says; no passwords."""
        flags = ""
        if self.space != os.environ.get("CUEBOOK_SPACE", DEFAULT_SPACE):
            flags += f" --space {self.space}"
        named = os.environ.get("CUEBOOK_NATS_URL", DEFAULT_NATS_URL)
        if self.nats_url != named and "@" not in self.nats_url and not named.startswith("@"):
            flags += f" --nats-url {self.nats_url}"
        return flags

    @property
    def client_options(self) -> dict[str, Any]:
        """What the NATS client takes beside the URL. Raises InputError for a credentials file that is not there."""
        if not self.creds:
            return {}
        if not Path(self.creds).is_file():
            raise InputError(f"there is no credentials file {self.creds!r}", remedy="correct --nats-creds")
        if not Path(self.creds).stat().st_size:  # a unit's credential that nobody has filled in
            return {}
        return {"user_credentials": self.creds}


def read_setting(context: Any, parameter: Any, value: str) -> str:
    """A setting that may be a secret: `@FILE` stands for what the file says; an empty file is as if nothing was said.

    Raises BadParameter for a file that cannot be read.
    """
    if not value.startswith("@"):
        return value
    try:
        text = Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        named = max(parameter.opts, key=len)
        raise typer.BadParameter(f"{named} is to be read from {value[1:]!r}: {error}") from error
    return text or str(parameter.get_default(context) or "")


def flag(*names: str, **options: Any) -> Any:
    """An option of one command. An environment variable made from the names of command and flag is not in its help."""
    return typer.Option(*names, show_envvar="envvar" in options, **options)


def check_space(context: typer.Context, space: str) -> str:
    """The space of a command line. Raises BadParameter for a name that none can have."""
    try:
        return space if context.resilient_parsing else check_token(space, "space")
    except InvalidTokenError as error:
        raise typer.BadParameter(f"{error}; {error.remedy}") from error


def login_name() -> str:
    """Who sits here, as the log will name the person."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        return "cli"


NatsUrl = Annotated[
    str,
    flag(
        "--nats-url",
        envvar="CUEBOOK_NATS_URL",
        metavar="URL|@FILE",
        callback=read_setting,
        help="NATS; several servers with commas.",
    ),
]
Creds = Annotated[
    str, flag("--nats-creds", envvar="CUEBOOK_NATS_CREDS", metavar="FILE", help="Credentials file for NATS.")
]
Space = Annotated[
    str,
    flag("--space", envvar="CUEBOOK_SPACE", metavar="NAME", callback=check_space, help="The space to work in."),
]
Segments = Annotated[
    str,
    flag(
        "--segments",
        envvar="CUEBOOK_SEGMENTS",
        metavar="DIR",
        help="Segments of old history; default: the object store.",
    ),
]
DatabaseUrl = Annotated[
    str,
    flag(
        "--database-url",
        envvar="CUEBOOK_DATABASE_URL",
        metavar="URL|@FILE",
        callback=read_setting,
        help="PostgreSQL with the projections.",
    ),
]
TimeseriesOption = Annotated[
    Timeseries,
    flag(
        "--timeseries",
        envvar="CUEBOOK_TIMESERIES",
        help="Of what to make tables that grow with time; auto: of hypertables where TimescaleDB is there.",
    ),
]
MonitorUrl = Annotated[
    str,
    flag(
        "--nats-monitor-url",
        envvar="CUEBOOK_NATS_MONITOR_URL",
        metavar="URL",
        help="The server's monitoring, to see how it syncs; default: port 8222 of its host.",
    ),
]
OutputOption = Annotated[
    Output, flag("--output", "-o", envvar="CUEBOOK_OUTPUT", help="json: one value; jsonl: one object a line.")
]
By = Annotated[str, flag("--by", envvar="CUEBOOK_BY", metavar="NAME", help="Who says so; default: the login name.")]
Since = Annotated[str, flag("--since", metavar="AGE|TIME", help="Such as 90s, 1h30m, 2d, or 2026-01-31T12:00Z.")]
At = Annotated[str, flag("--at", metavar="SEQ|TIME", help="As it was then: a sequence, an age or a time.")]
From = Annotated[str, flag("--from", metavar="SEQ|TIME", help="A sequence, an age or a time.")]
To = Annotated[str, flag("--to", metavar="SEQ|TIME", help="The same; default: the last event now.")]
Limit = Annotated[int, flag("--limit", "-n", min=1, help="At most so many, the newest.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run id.", autocompletion=complete_run)]
TaskId = Annotated[
    str, typer.Argument(metavar="RUN/N", help="A task; RUN alone means its task 0.", autocompletion=complete_task)
]
AgentName = Annotated[
    str,
    typer.Argument(
        metavar="AGENT[/INSTANCE]", help="An agent, or one of its instances.", autocompletion=complete_agent
    ),
]
