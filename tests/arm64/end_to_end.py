"""One saga from beginning to end on a real server, for `check_arm64.py`: run by an emulated Python. No pytest here."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cuebook.embedded.nats_server import CONFIGURATIONS, server_program
from cuebook.embedded.process import free_port
from tests.actors.cast import Bank, chain
from tests.actors.desk import Desk


async def listens(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.2)
            else:
                writer.close()
                return


async def main(qemu: str, machine: Path) -> None:
    assert platform.machine() == "aarch64", platform.machine()
    program = next((machine / "site").rglob("bin/nats-server"), None) or Path(server_program())
    port, folder = free_port(), tempfile.mkdtemp()
    env = {**os.environ, "CUEBOOK_NATS_PORT": str(port), "CUEBOOK_NATS_MONITOR": f"127.0.0.1:{free_port()}"}
    env |= {"CUEBOOK_NATS_STORE": folder, "CUEBOOK_NATS_SYNC": "2m"}
    server = subprocess.Popen([qemu, program, "--config", CONFIGURATIONS / "development.conf"], env=env)
    try:
        await listens(port)
        async with Desk(f"nats://127.0.0.1:{port}", "cue", sagas=[chain], agents=[Bank]) as desk:
            for n, status in ((1, "completed"), (13, "compensated")):
                await desk.client.submit_run("chain", {"n": n}, run_id=f"chain-{n}")
                outcome = await desk.client.wait(f"chain-{n}", timeout_s=120)
                assert outcome.status == status, outcome
            print(f"{platform.machine()}: {len(await desk.log())} events, both runs ended as they should")
    finally:
        server.terminate()
        server.wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
