"""What is said about durability is what the server says about itself, or that it is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuebook.cli.durability import report_durability, syncs_always
from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.process import free_port
from cuebook.events.connection import connect
from tests.events.server import plain_server


@pytest.mark.parametrize("always", [True, False])
async def test_the_monitoring_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture, always: bool) -> None:
    caplog.set_level("INFO")
    async with nats_server(tmp_path, sync_always=always) as server:
        connection = await connect(server.url, name="tests")
        assert await syncs_always(connection, server.monitor_url) is always
        assert await syncs_always(connection, f"http://127.0.0.1:1,{server.monitor_url}") is always  # of a cluster
        await report_durability(connection, server.monitor_url)
        await connection.close()
    (record,) = [one for one in caplog.records if one.name == "cuebook.cli.durability"]
    assert record.levelname == "INFO"
    assert record.message.startswith("acknowledged means on disk" if always else "a server for development")


async def test_a_lazy_server_is_warned_of_that_nobody_has_started_to_try_things(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = free_port()
    async with plain_server(tmp_path, f'http: 127.0.0.1:{monitor}\njetstream {{ store_dir: "{tmp_path}" }}') as url:
        connection = await connect(url, name="tests")
        await report_durability(connection, f"http://127.0.0.1:{monitor}")
        await connection.close()
    (record,) = [one for one in caplog.records if one.name == "cuebook.cli.durability"]
    assert record.levelname == "WARNING"
    assert record.message.startswith("acknowledged does not mean on disk")


async def test_the_monitoring_of_another_server_does_not_count(
    tmp_path: Path, nats_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_server(tmp_path, sync_always=True) as other:
        connection = await connect(nats_url, name="tests")
        assert await syncs_always(connection, other.monitor_url) is None
        assert await syncs_always(connection, f"http://127.0.0.1:1,{other.monitor_url}") is None
        assert await syncs_always(connection, "nonsense") is None
        await report_durability(connection, other.monitor_url)
        await connection.close()
    assert "cannot tell" in caplog.text
    assert "sync_always" in caplog.text


async def test_the_system_account_is_told_without_monitoring(tmp_path: Path) -> None:
    settings = f"""
    jetstream {{ store_dir: "{tmp_path}", sync_interval: always }}
    accounts {{ SYS {{ users: [ {{ user: sys, password: sys }} ] }}, DESK {{ users: [ {{ user: a, password: a }} ] }} }}
    system_account: SYS
    """
    async with plain_server(tmp_path, settings) as url:
        for user, answer in (("sys", True), ("a", None)):
            connection = await connect(url.replace("//", f"//{user}:{user}@"), name="tests")
            assert await syncs_always(connection, "http://127.0.0.1:1") is answer
            await connection.close()
