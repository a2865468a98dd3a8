"""The server has no room: nothing accepted is lost, work waits, and goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from cuebook.actors import Agent, handler
from cuebook.events.append import Appender
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import UnavailableError
from tests.actors.cast import Bank, Number, chain
from tests.actors.desk import Desk
from tests.actors.test_restarts import UNLUCKY, check_log, expected
from tests.events.server import plain_server
from tests.waiting import eventually

ROOM = "4MB"
BLOCK = os.urandom(64 * 1024)
RUNS = 30


class Patient(Agent):
    """Answers when it is told to."""

    name = "patient"
    concurrency = RUNS
    gate = asyncio.Event()

    @handler(timeout_s=60)
    async def wait(self, number: Number) -> Number:
        await type(self).gate.wait()
        return number


async def make_ballast(connection: Connection) -> None:
    await connection.jetstream().add_stream(name="BALLAST", subjects=["ballast"])


async def fill(connection: Connection) -> None:
    """Until the server refuses."""
    while "error" not in await put(connection, BLOCK):
        pass
    while "error" not in await put(connection, b"x"):  # the last gaps, too small for a block
        pass


async def put(connection: Connection, body: bytes) -> dict[str, object]:
    answer: dict[str, object] = json.loads((await connection.request("ballast", body, timeout=10)).data)
    return answer


async def test_work_waits_for_room_and_goes_on(
    space: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_errors: list[str],
) -> None:
    expected_errors.append("the log takes nothing more")
    caplog.set_level("INFO", "cuebook.events")
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    settings = f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: {ROOM} }}'
    async with (
        plain_server(tmp_path, settings) as url,
        Desk(url, space, sagas=[chain], agents=[Bank, Patient]) as desk,
    ):
        connection = await connect(url, name="ballast")
        await make_ballast(connection)
        for number in range(RUNS):
            await desk.client.submit_task("patient", {"n": number}, run_id=f"begun-{number}")
        [_, patient] = desk.crews[0].host.instances
        await eventually(lambda: patient.in_flight == RUNS)
        await fill(connection)
        Patient.gate.set()  # their answers find no room, nor do new runs
        runs = {f"chain-{n}": UNLUCKY if n % 5 == 0 else 100 + n for n in range(RUNS)}
        submitting = [
            asyncio.create_task(desk.client.submit_run("chain", {"n": n}, run_id=run_id)) for run_id, n in runs.items()
        ]
        await eventually(lambda: "the log takes nothing more" in caplog.text)
        full_at = (await desk.client.log.verify()).last_sequence
        with pytest.raises(UnavailableError) as refused:
            async with Appender(connection, first_after=desk.client.log.first_after, give_up_s=3.0) as appender:
                await appender.append(f"{space}.event.late", b"{}", event_id="late")
        assert "free space on its disk, or raise its max_file_store" in refused.value.remedy
        assert (await desk.client.log.verify()).last_sequence == full_at
        await connection.jetstream().purge_stream("BALLAST")
        assert await asyncio.gather(*submitting) == list(runs)
        for number in range(RUNS):
            outcome = await desk.client.wait(f"begun-{number}", timeout_s=60)
            assert (outcome.status, outcome.result) == ("completed", {"n": number})
        assert len(await desk.client.log.history("begun-0")) == 3
        outcomes = [await desk.client.wait(run_id, timeout_s=60) for run_id in runs]
        assert {one.run_id: (one.status, one.result) for one in outcomes} == {
            run_id: expected(n) for run_id, n in runs.items()
        }
        check_log(await desk.log())
        assert "the log takes events again" in caplog.text
        await connection.close()
