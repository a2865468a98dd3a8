"""Embedded servers are kept running, and nobody who is to end waits for one that stays away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import psutil
import pytest

from cuebook.cli.dev import upkeep
from cuebook.cli.dev.upkeep import kept_up
from cuebook.cli.serving import children
from cuebook.cli.serving.children import running
from cuebook.embedded.nats_server import nats_server
from cuebook.events.errors import ConfigurationError
from tests.cli.serving.test_children import IS_DEAF, Output, python
from tests.waiting import eventually


async def test_a_killed_server_answers_again_where_it_was(tmp_path: Path) -> None:
    output = Output()
    async with nats_server(tmp_path) as server, kept_up([server], output.say):
        first = psutil.Process(server.pid)
        first.kill()
        await eventually(lambda: output.lines and output.lines[-1] == ("nats-server", "runs again"))
        client = await nats.connect(server.url, connect_timeout=30)
        await client.close()
        second = psutil.Process(server.pid)
        assert first != second
    assert not second.is_running()
    assert len(output.lines) == 2


async def test_a_drain_is_cut_short_when_a_server_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(children, "DRAIN_DEADLINE_S", 3600.0)
    monkeypatch.setattr(upkeep, "PATIENCE_S", 0.1)
    output = Output()
    async with (
        asyncio.timeout(60),
        nats_server(tmp_path) as server,
        kept_up([server], output.say) as kept,
        running([python(IS_DEAF)], output.say, lost=kept.lost),
    ):
        await eventually(lambda: output.count("up") == 2)
        psutil.Process(server.pid).kill()
        await eventually(lambda: any("ended by SIGKILL" in line for _, line in output.lines))
    assert ("one", "killed before it was done: what it needs is gone") in output.lines


async def test_a_server_that_came_back_cuts_no_drain_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PATIENCE_S", 0.0)
    monkeypatch.setattr(upkeep, "LAST_GRACE_S", 0.0)
    output = Output()
    async with nats_server(tmp_path) as server, kept_up([server], output.say) as kept:
        psutil.Process(server.pid).kill()
        await asyncio.wait_for(kept.lost(), 60)
        await eventually(lambda: output.count("runs again") == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kept.lost(), 0.1)


async def test_a_server_that_never_stays_up_ends_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.01)
    output = Output()

    async def killed_each_time() -> None:
        async with nats_server(tmp_path) as server, kept_up([server], output.say):
            for starts in range(children.QUICK_ENDS):
                await eventually(lambda starts=starts: output.count("runs again") == starts)  # type: ignore[misc]
                psutil.Process(server.pid).kill()
            await asyncio.Event().wait()

    with pytest.raises(ConfigurationError, match="nats-server ended by SIGKILL:\n"):
        await killed_each_time()
    assert output.count("runs again") == children.QUICK_ENDS - 1
