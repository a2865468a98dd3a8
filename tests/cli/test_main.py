"""The command `cuebook` as a whole: quick to start, clear about mistakes, plain where nobody looks."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cuebook.actors.client import Client
from cuebook.cli.groups import LazyGroup
from cuebook.cli.main import app
from tests.cli.conftest import Cli, command
from tests.events.server import plain_server

HEAVY = ("nats", "pydantic", "psycopg", "rich", "cuebook.events", "cuebook.actors", "cuebook.projections")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from cuebook.cli.main import app\ntry: app(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    loaded = shown.splitlines()[-1].split()
    light = {"cuebook.events", "cuebook.events.errors"}  # the latter for reporting, the former for being its package
    assert [name for name in loaded if name.startswith(HEAVY) and name not in light] == []


def commands() -> Iterator[tuple[list[str], Any]]:
    """Every command with its words."""
    root: Any = typer.main.get_command(app)
    assert isinstance(root, LazyGroup)
    for name in root.modules:
        yield from _commands([name], root.load(name))


def _commands(words: list[str], one: Any) -> Iterator[tuple[list[str], Any]]:
    if not hasattr(one, "commands"):
        yield words, one
    for verb, inner in getattr(one, "commands", {}).items():
        yield from _commands([*words, verb], inner)


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_every_flag_has_help_and_an_environment_variable() -> None:
    for words, one in commands():
        for parameter in one.params:
            assert parameter.help, f"{parameter.name} of {' '.join(words)}"
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.envvar.startswith("CUEBOOK_"), parameter.name


async def test_a_flag_may_come_from_the_environment(cli: Cli, client: Client) -> None:
    for n in range(3):
        await client.publish("a", n)
    for env in ({"CUEBOOK_EVENTS_TAIL_LIMIT": "1"}, {"CUEBOOK_EVENTS_TAIL_FROM": "3"}):
        assert [row["data"] for row in await cli.json("events", "tail", env=env)] == [2]
    assert json.loads(await cli.ok("events", "tail", "-n", "1", env={"CUEBOOK_OUTPUT": "jsonl"}))["data"] == 2


@pytest.mark.parametrize(
    ("words", "complaint", "fix"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?", "see 'cuebook --help'"),
        (["run"], "'cuebook run' needs a command: list, show, diff", "see 'cuebook run --help'"),
        (["run", "lst"], "No such command 'lst'. Did you mean 'list'?", "see 'cuebook run --help'"),
        (["run", "list", "--limt", "3"], "No such option: --limt", "see 'cuebook run list --help'"),
        (["run", "list", "--limit", "x"], "Invalid value for '--limit'", "see 'cuebook run list --help'"),
        (["run", "show"], "Missing argument", "see 'cuebook run show --help'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_a_wrong_command_line_is_reported_as_any_error(
    cli: Cli, words: list[str], complaint: str, fix: str
) -> None:
    result = await cli.run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {complaint}")
    assert result.stderr.endswith(f"fix: {fix}\n")
    for how in (["-o", "json"], ["-ojsonl"], ["--output=json"]):
        report = json.loads((await cli.run(*words, *how)).stderr)
        assert report["error"]
        assert report["fix"].startswith("see 'cuebook")


async def test_the_root_says_what_there_is(cli: Cli) -> None:
    assert "escalation" in await cli.ok()
    assert (await cli.ok("--version")).strip() == metadata.version("cuebook")


async def test_a_server_that_is_not_there_or_refuses(cli: Cli, tmp_path: Any) -> None:
    assert "no NATS server answers" in await cli.fails(5, "run", "list", "--nats-url", "nats://127.0.0.1:1")
    assert "is no URL" in await cli.fails(1, "run", "list", "--nats-url", "nats://127.0.0.1:port")
    report = await cli.fails(2, "run", "list", "--nats-creds", str(tmp_path / "none.creds"), "-o", "json")
    assert "there is no credentials file" in json.loads(report)["error"]
    settings = f'jetstream {{ store_dir: "{tmp_path}" }}\nauthorization {{ user: ann, password: secret }}'
    async with plain_server(tmp_path, settings) as url:
        refusal = await cli.fails(4, "run", "list", "--nats-url", url)
        assert "check the credentials" in refusal
        wrong = await cli.fails(4, "run", "list", "--nats-url", url.replace("//", "//ann:guess@"))
        assert "guess" not in wrong
        await cli.fails(3, "run", "list", "--nats-url", url.replace("//", "//ann:secret@"))  # in, but no stream yet


@pytest.mark.parametrize(("url", "status"), [("postgresql://127.0.0.1:1/x", 5), ("nonsense", 1)])
async def test_a_database_that_is_not_there(cli: Cli, url: str, status: int) -> None:
    assert "--from-log does without" in await cli.fails(status, "run", "list", "--database-url", url)


async def on_a_terminal(cli: Cli, *words: str, **env: str) -> str:
    """What a command prints where stdout is a terminal."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment = {**inherited, **cli.env, "TERM": "xterm", "COLUMNS": "160", **env}
    process = await asyncio.create_subprocess_exec(
        *command(words), stdin=theirs, stdout=theirs, stderr=asyncio.subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    chunks = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                return
            if not chunk:
                return
            chunks.append(chunk)

    await asyncio.to_thread(read)
    await process.wait()
    os.close(ours)
    return b"".join(chunks).decode()


async def test_colour_is_for_terminals_only(cli: Cli, client: Client) -> None:
    await cli.ok("run", "submit", "--agent", "echo", "1", "--no-check", "--id", "e1")
    assert "\x1b[" in await on_a_terminal(cli, "run", "list")
    assert "\x1b[" not in await on_a_terminal(cli, "run", "list", NO_COLOR="1")
    assert "\x1b[" not in await on_a_terminal(cli, "run", "list", "-o", "json")
    assert "\x1b[" not in await cli.ok("run", "list")


async def test_ids_are_whole_on_a_narrow_terminal(cli: Cli, client: Client) -> None:
    run_id = "an-id-that-somebody-wants-to-copy-from-a-terminal-of-eighty"
    await cli.ok("run", "submit", "--agent", "echo", "1", "--no-check", "--id", run_id)
    shown = await on_a_terminal(cli, "run", "list", COLUMNS="80", NO_COLOR="1")
    assert run_id in shown
    styled = await on_a_terminal(cli, "run", "list", COLUMNS="80")
    assert run_id in styled
    assert "requested" in styled
    assert "WHY" not in styled  # nothing is in it, and there is no room


async def test_reading_stdin_never_waits_for_a_person(cli: Cli, client: Client) -> None:
    shown = await on_a_terminal(cli, "events", "publish", "a", "-")
    assert shown == ""
    assert (await client.log.verify()).last_sequence == 0


@pytest.mark.parametrize(
    "words", ["run list", "projection list", "serve agents x:Y", "events publish a.b {}", "trace r"]
)
async def test_a_space_that_none_can_be_called_is_a_mistake_on_the_command_line(cli: Cli, words: str) -> None:
    assert "space 'a.b' cannot be part of a subject" in await cli.fails(2, *words.split(), "--space", "a.b")
