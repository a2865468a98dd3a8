"""`cuebook dev` keeps its own servers running, and refuses what is said about servers that it does not start."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from cuebook.actors.client import Client
from cuebook.embedded.process import LOOPBACK
from cuebook.events.connection import connect
from cuebook.events.errors import UnavailableError
from cuebook.projections import queries
from tests.cli import desk
from tests.commands import DEADLINE_S, Command, started
from tests.waiting import eventually

ANY_PORTS = ("--nats-port", "0", "--postgres-port", "0")
SERVED = ("--sagas", "mydesk:twice", "--agents", "mydesk:Echo")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copy(desk.__file__, tmp_path / "mydesk.py")
    return tmp_path


def servers(dev: Command, name: str) -> list[psutil.Process]:
    """The embedded servers of that name, without the processes that they have started themselves."""
    return [one for one in psutil.Process(dev.process.pid).children() if one.name() == name]


@contextlib.contextmanager
def another_has_the_port_of(killed: psutil.Process, url: str) -> Iterator[None]:
    """Kill a server and take its port, while nobody starts it again: its parent is held meanwhile."""
    dev, port = killed.parent(), urlsplit(url).port
    assert dev is not None
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dev.suspend()
        try:
            killed.kill()
            take(taken, port)
        finally:
            dev.resume()
        yield


def take(listener: socket.socket, port: int | None) -> None:
    """Listen on a port as soon as it is free."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError:
            assert time.monotonic() < deadline
        else:
            return


async def completed(urls: Mapping[str, str], number: int) -> str:
    """Submit a run and wait until it is completed; its id."""
    connection = await connect(urls["CUEBOOK_NATS_URL"], name="test")
    async with connection, Client(connection, "cue") as client:
        run_id = await client.submit_run("twice", {"n": number})
        assert (await client.wait(run_id, timeout_s=DEADLINE_S)).result == {"n": number + 2}
        return run_id


async def completed_if_answered(urls: Mapping[str, str]) -> str:
    """The same, or nothing while a cluster elects anew and does not answer."""
    try:
        return await completed(urls, 1)
    except UnavailableError:
        return ""


async def in_the_table(urls: Mapping[str, str], *run_ids: str) -> None:
    """Wait until the table of runs shows these as completed."""

    async def there() -> bool:
        async with queries.reading(urls["CUEBOOK_DATABASE_URL"], "cue") as connection:
            found = await queries.list_runs(connection, status="completed")
        return set(run_ids) <= {record.run_id for record in found}

    await eventually(there, within_s=60)


async def test_who_is_told_that_all_is_ready_finds_the_tables(workplace: Path) -> None:
    with started("dev", *ANY_PORTS, cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        async with queries.reading(dev.exported()["CUEBOOK_DATABASE_URL"], "cue") as connection:
            found = await queries.list_projections(connection, last_sequence=0)
        assert {one.projection for one in found if one.shown} == {"agents", "audit", "runs"}
        dev.interrupt()
        assert dev.end() == 0


@pytest.mark.parametrize("name", ["nats-server", "postgres"])
async def test_a_killed_server_is_started_again_and_the_work_goes_on(workplace: Path, name: str) -> None:
    with started("dev", *ANY_PORTS, *SERVED, cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        urls = dev.exported()
        before = await completed(urls, 1)
        (killed,) = servers(dev, name)
        killed.kill()
        said = dev.line(rf"{name} +\| ended by SIGKILL; starts again in 0.25 s; its log: ")
        assert Path(said.rpartition("its log: ")[2]).is_file()
        dev.line(rf"{name} +\| runs again")
        after = await completed(urls, 5)
        await in_the_table(urls, before, after)
        dev.interrupt()
        assert dev.end() == 0
    assert dev.still_running() == []


async def test_a_killed_node_of_a_cluster_is_started_again(workplace: Path) -> None:
    with started("dev", "--nodes", "3", *ANY_PORTS, *SERVED, cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        urls, run_ids = dev.exported(), list[str]()
        for killed in servers(dev, "nats-server"):
            (node,) = [word for word in killed.cmdline() if word.startswith("node-")]
            killed.kill()
            dev.line(rf"nats-server {node} +\| ended by SIGKILL; starts again in 0.25 s; its log: .*/{node}/")
            dev.line(rf"nats-server {node} +\| runs again")
            run_ids.append(await eventually(lambda: completed_if_answered(urls), within_s=DEADLINE_S / 2))
        await in_the_table(urls, *run_ids)
        assert len(servers(dev, "nats-server")) == 3
        dev.interrupt()
        assert dev.end() == 0
    assert dev.still_running() == []


@pytest.mark.parametrize(("name", "variable"), [("nats-server", "NATS"), ("postgres", "DATABASE")])
def test_a_server_that_cannot_be_started_again_ends_dev_with_its_last_words(
    workplace: Path, name: str, variable: str
) -> None:
    with started("dev", *ANY_PORTS, *SERVED, cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        url = dev.exported()[f"CUEBOOK_{variable}_URL"]
        (killed,) = servers(dev, name)
        with another_has_the_port_of(killed, url):
            dev.line(rf"{name} +\| ended by SIGKILL; starts again in 0.25 s")
            dev.line(rf"{name} +\| ended with status 1; starts again in 0.5 s")
            dev.line(rf"error: {name} ended with status 1:")
            dev.line("ddress already in use")
            assert dev.end() == 1
    assert dev.still_running() == []


def test_ctrl_c_while_a_server_is_down_does_not_wait_for_it(workplace: Path) -> None:
    with started("dev", *ANY_PORTS, *SERVED, cwd=workplace) as dev:
        dev.line("Ctrl-C stops everything")
        (killed,) = servers(dev, "nats-server")
        with another_has_the_port_of(killed, dev.exported()["CUEBOOK_NATS_URL"]):
            dev.line(r"nats-server +\| ended with status 1; starts again in 0.5 s")
            dev.interrupt()
            dev.end()
    assert not any("not stopped in good order" in line for line in dev.lines)
    assert dev.still_running() == []


@pytest.mark.parametrize(
    ("words", "variables", "option"),
    [
        (["--nodes", "3"], ["CUEBOOK_NATS_URL"], "--nodes"),
        (["--nats-port", "0"], ["CUEBOOK_NATS_URL"], "--nats-port"),
        (["--postgres-port", "0"], ["CUEBOOK_DATABASE_URL"], "--postgres-port"),
        (["--data-dir", "data"], ["CUEBOOK_NATS_URL", "CUEBOOK_DATABASE_URL"], "--data-dir"),
    ],
)
def test_an_option_of_a_server_that_is_not_started_is_refused(
    tmp_path: Path, words: list[str], variables: list[str], option: str
) -> None:
    with started("dev", *words, cwd=tmp_path, env=dict.fromkeys(variables, "nats://127.0.0.1:1")) as dev:
        assert dev.end() == 2
    named = " and ".join(variables)
    assert dev.lines == [
        f"error: {option} is for a server that 'cuebook dev' starts, and with {named} it starts none",
        f"fix: leave out {option}, or {named}",
    ]
    assert dev.left_behind == []


def test_an_option_set_by_its_variable_is_refused_by_that_name(tmp_path: Path) -> None:
    env = {"CUEBOOK_DEV_NODES": "3"}
    with started("dev", "--nats-url", "nats://127.0.0.1:1", cwd=tmp_path, env=env) as dev:
        assert dev.end() == 2
    assert dev.lines[0].startswith(
        "error: CUEBOOK_DEV_NODES is for a server that 'cuebook dev' starts, and with --nats-url "
    )
