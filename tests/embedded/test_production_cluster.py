"""The configuration for three nodes: complete in the documents, and real servers run by it as the documents say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from typer.testing import CliRunner

from cuebook.cli.main import app
from cuebook.embedded.nats_server import server_program
from cuebook.embedded.process import ServerProcess, exclusive, free_port
from cuebook.events.connection import connect
from cuebook.events.errors import AccessDeniedError, ConfigurationError, CuebookError
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog
from cuebook.events.stream import stream_config
from cuebook.events.subjects import Subjects

ROOT = Path(__file__).parents[2]
CLUSTER, ALONE = ROOT / "nats/production-cluster.conf", ROOT / "nats/production.conf"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SECRET_HASH = "$2b$04$XQFMDgrtEQfDp.b/uEuI6.Mcnqfh7C8EoWiWxkU/T4b.qlBfRToTe"
"""Of `secret`, as cheap as bcrypt can be."""
NODES = "abc"

T = TypeVar("T")


def settings(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each setting of a configuration: its block, its name and its value."""
    blocks: list[str] = []
    for raw in path.read_text().splitlines():
        line = raw.partition("#")[0].strip()
        if line.endswith("{"):
            blocks.append(line[:-1].strip())
        elif line == "}":
            blocks.pop()
        elif line:
            name, _, value = line.partition(":")
            yield ".".join(blocks), name.strip(), value.strip()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    text = OPERATIONS.partition(f"### {heading}\n")[2]
    table = re.search(r"^\|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_every_setting_of_the_server_is_in_the_table_with_a_reason_and_no_other_is() -> None:
    cells = rows("Every setting of the server, and why")
    assert all(len(one) == 3 and len(one[2]) > 10 for one in cells)
    named = {name for one in cells for name in re.findall(r"`([a-z_]+)`", one[0])}
    blocks = {block.rpartition(".")[2] for block, _, _ in settings(CLUSTER)} - {""}
    assert named == {name for _, name, _ in settings(CLUSTER)} | blocks


def test_every_setting_of_the_stream_is_in_the_table_and_no_other_is() -> None:
    cells = rows("Every setting of the stream, and why")
    named = {name for one in cells for name in re.findall(r"`([a-z_]+)`", one[0])}
    assert named == set(stream_config(Subjects("cue"), 3))


def test_one_node_and_three_agree_on_what_both_have() -> None:
    alone = {(block, name): value for block, name, value in settings(ALONE)}
    cluster = {(block, name): value for block, name, value in settings(CLUSTER)}
    differ = {name for _, name in alone if alone[_, name] != cluster.get((_, name))}
    assert differ == {"host", "max_file_store"}  # the addresses of the machine, and its disk


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with what the documents' own commands make of nodes on this machine."""
    folder = tmp_path / "authority"
    folder.mkdir()
    script = re.search(r"   openssl req -x509.*?\n   done\n", OPERATIONS, re.DOTALL)
    assert script
    text = re.sub(r"10\.0\.0\.\d", "127.0.0.1", script[0])
    subprocess.run(["bash", "-euc", text], cwd=folder, check=True, capture_output=True)
    return folder


@contextlib.asynccontextmanager
async def cluster(tmp_path: Path, authority: Path) -> AsyncIterator[tuple[list[ServerProcess], list[int]]]:
    """Three nodes with what `units install` writes; they differ in their ports, since they are on one machine."""
    ports, meeting = [free_port() for _ in NODES], [free_port() for _ in NODES]
    nodes: list[ServerProcess] = []
    async with contextlib.AsyncExitStack() as stack:
        for name, port, route in zip(NODES, ports, meeting, strict=True):
            folder = tmp_path / name
            environment = installed(folder, name)
            routes = ", ".join(f'"tls://127.0.0.1:{one}"' for one in meeting)
            environment |= {
                "CUEBOOK_NATS_CLUSTER": f'"127.0.0.1:{route}"',
                "CUEBOOK_NATS_ROUTES": f"[{routes}]",
                "CUEBOOK_NATS_STORE": str(folder / "store"),
                "CUEBOOK_NATS_CERT": str(authority / f"{name}.pem"),
                "CUEBOOK_NATS_KEY": str(authority / f"{name}.key"),
                "CUEBOOK_NATS_CA": str(authority / "nats-ca.pem"),
                "CUEBOOK_NATS_PASSWORD": f'"{SECRET_HASH}"',
            }
            node = ServerProcess(name, log=folder / "log", stop_signal=signal.SIGTERM)
            lock = await stack.enter_async_context(exclusive(folder / "lock"))
            config = folder / "etc/cuebook/nats.conf"
            ports_of_tests = ["--port", str(port), "--http_port", str(free_port())]
            await node.start(
                [server_program(), "--config", config, *ports_of_tests], env={**os.environ, **environment}, lock=lock
            )
            stack.push_async_callback(node.stop)
            nodes.append(node)
        yield nodes, ports


def installed(folder: Path, name: str) -> dict[str, str]:
    """Install on a machine below a folder; the variables of its nats.env, as systemd reads them."""
    addresses = ",".join(f"{one}=127.0.0.1" for one in NODES)
    words = ["units", "install", "--root", str(folder), "--program", "/opt/cuebook/bin/cuebook"]
    result = CliRunner().invoke(app, [*words, "--nats-cluster", addresses, "--nats-node", name])
    assert result.exit_code == 0, result.output
    lines = (folder / "etc/cuebook/nats.env").read_text().splitlines()
    assert "\nCUEBOOK_REPLICAS=3" in (folder / "etc/cuebook/orchestrator.env").read_text()
    return dict("".join(shlex.split(line)).partition("=")[::2] for line in lines if line and not line.startswith("#"))


async def test_three_nodes_by_the_documents_keep_the_log_when_one_goes(
    tmp_path: Path, authority: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "nats-ca.pem"))  # as update-ca-certificates does for all
    async with cluster(tmp_path, authority) as (nodes, ports):
        url = ",".join(f"tls://cuebook:secret@127.0.0.1:{port}" for port in ports)
        connection = await persist(lambda: connect(url, name="tests"))
        async with connection, EventLog(connection, space, source="tests") as log:
            facts = await persist(lambda: log.ensure(replicas=3))
            assert facts.replicas == 3
            subject = log.subjects.event("ping")
            await log.append(subject, OutsideEvent(data=1))
            await nodes[1].kill()
            await persist(lambda: log.append(subject, OutsideEvent(data=2)))
            assert (await persist(log.verify)).messages >= 2
        with pytest.raises(AccessDeniedError):
            await connect(f"tls://cuebook:wrong@127.0.0.1:{ports[0]}", name="tests")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ConfigurationError, match=r"no TLS with .* certificate verify failed"):
            await connect(f"tls://cuebook:secret@127.0.0.1:{ports[0]}", name="tests")


async def persist(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again while the nodes find each other, or elect anew."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await attempt()
            except CuebookError as error:
                if isinstance(error, AccessDeniedError):
                    raise
