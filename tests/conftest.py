"""One real nats-server and one real PostgreSQL for the whole session, each started when the first test asks for it.

Tests never collide on them: each has a `space` and a `database_url` of its own. A test that kills or restarts a server
starts its own, on its `tmp_path`. A server that cannot start fails the tests that need it; none is skipped.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from psycopg import sql

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.errors import ConfigurationError
from cuebook.projections.timeseries import Timeseries
from tests.commands import Command, started

URL_OF_TIMESCALE: Final = "CUEBOOK_TEST_TIMESCALE_URL"
PROGRAMS_OF_TIMESCALE: Final = "CUEBOOK_TEST_TIMESCALE_BIN"
WITH_TIMESCALE: Final = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": "16",
    "max_worker_processes": "32",
}

TEARDOWN_S: Final = 120.0

_Server = TypeVar("_Server")
_OUR_STDERR: Final = pytest.StashKey[int]()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; and what we start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "cuebook", settings(), deadline=None
)  # how long an example takes says nothing on a busy machine
settings.load_profile("cuebook")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_OUR_STDERR] = os.dup(2)  # while a test runs this is pytest's
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Failures(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """End the process and say where it stood, rather than wait for ever: pytest-timeout leaves out who has failed."""
    faulthandler.dump_traceback_later(TEARDOWN_S, exit=True, file=item.config.stash[_OUR_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Failures:
    """Says what has failed when it fails: who ends a run that hangs sees no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid} failed ({report.when})", red=True)
            for line in report.longreprtext.splitlines():
                if line.startswith("E "):
                    terminal.write_line(line)


@pytest.fixture(scope="session")
def _portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread of its own, which outlives the loop of each test."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="session")
def _server_data() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cuebook-tests-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def nats_url(_portal: BlockingPortal, _server_data: Path) -> Iterator[str]:
    """The nats-server that all tests share."""
    with _running(_portal, nats_server(_server_data)) as server:
        yield server.url


@pytest.fixture(scope="session")
def timeseries() -> Timeseries:
    """What histories are made of where nobody says it: hypertables on the server of `just test-timescale`."""
    return Timeseries.TIMESCALE if {URL_OF_TIMESCALE, PROGRAMS_OF_TIMESCALE} & os.environ.keys() else Timeseries.NATIVE


@pytest.fixture(scope="session")
def _postgres_url(_portal: BlockingPortal, _server_data: Path) -> Iterator[str]:
    if url := os.environ.get(URL_OF_TIMESCALE):
        yield url
        return
    options: dict[str, Any] = {}
    if programs := os.environ.get(PROGRAMS_OF_TIMESCALE):
        options = {"programs": Path(programs), "settings": WITH_TIMESCALE}
    with _running(_portal, postgres(_server_data, durable=False, **options)) as server:
        yield server.url


@pytest.fixture
def database_url(_postgres_url: str) -> Iterator[str]:
    """A new, empty database on the PostgreSQL that all tests share; dropped afterwards, whoever is still connected."""
    name = f"t{secrets.token_hex(4)}"
    with psycopg.connect(_postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield _postgres_url.rpartition("/")[0] + f"/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A `cuebook demo` on a terminal, from beginning to end, with servers set that it must leave alone."""
    foreign = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1", "CUEBOOK_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    with started("demo", cwd=tmp_path_factory.mktemp("demo"), terminal=True, env=foreign) as demo:
        demo.end()
    return demo


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A `cuebook dev --example`, shared by all that looks at the support desk from outside."""
    ports = ("--nats-port", "0", "--postgres-port", "0")
    with started("dev", "--example", *ports, cwd=tmp_path_factory.mktemp("dev")) as dev:
        dev.line("Ctrl-C stops everything")
        yield dev
        dev.process.terminate()
        dev.end()


@pytest.fixture
def space() -> str:
    """A space that no other test uses."""
    return f"t{secrets.token_hex(4)}"


@contextlib.contextmanager
def _running(portal: BlockingPortal, server: AbstractAsyncContextManager[_Server]) -> Iterator[_Server]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(portal.wrap_async_context_manager(server))
        except ConfigurationError as error:
            pytest.fail(f"{error}\n{error.remedy}", pytrace=False)
        yield running
