"""One real nats-server and one real PostgreSQL for the whole session, each started when the first test asks for it.

Tests never collide on them: each has a `space` and a `database_url` of its own. A test that kills or restarts a server
starts its own, on its `tmp_path`. A server that cannot start fails the tests that need it; none is skipped.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from psycopg import sql

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.postgres import postgres
from cuebook.events.errors import ConfigurationError

_Server = TypeVar("_Server")

settings.register_profile(
    "cuebook", settings(), deadline=None
)  # how long an example takes says nothing on a busy machine
settings.load_profile("cuebook")


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
def _postgres_url(_portal: BlockingPortal, _server_data: Path) -> Iterator[str]:
    with _running(_portal, postgres(_server_data, durable=False)) as server:
        yield server.url


@pytest.fixture
def database_url(_postgres_url: str) -> Iterator[str]:
    """A new, empty database on the PostgreSQL that all tests share; dropped afterwards, whoever is still connected."""
    name = f"t{secrets.token_hex(4)}"
    with psycopg.connect(_postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield _postgres_url.rpartition("/")[0] + f"/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


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
