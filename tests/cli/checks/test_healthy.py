"""Where nothing is wrong, nothing is found: no false alarm, whatever the system has done and is doing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from cuebook.ledger.notes import PrivateKey
from tests.cli import desk
from tests.cli.checks.conftest import Doctor, Quick, System
from tests.cli.conftest import Cli
from tests.commands import Command
from tests.ledger.test_sealer import sealing
from tests.waiting import eventually


async def test_cuebook_dev_is_healthy_while_it_works_and_after(example: Command) -> None:
    env = example.exported()
    cli = Cli(env["CUEBOOK_NATS_URL"], "cue")
    for n in range(3):
        ticket = json.dumps({"id": f"doc-{n}", "text": "how do I get a refund for order 8812?"})
        await cli.ok("events", "publish", "ticket.opened", ticket, env=env)
        result = await cli.run("doctor", "-o", "json", env=env)
        told = json.loads(result.stdout)
        assert told["findings"] == []
        assert (result.exit_code, told["level"]) == (0, "ok")
    assert {one["area"] for one in told["areas"] if one["summary"]} == {one["area"] for one in told["areas"]}
    result = await cli.run("check", "all", env=env)
    assert result.exit_code == 0, result.stdout


async def test_a_space_with_everything_under_load_is_healthy(
    system: System, doctor: Doctor, database_url: str, tmp_path: Path
) -> None:
    doctor.database_url = database_url
    await system.orchestrator(desk.order)
    await system.orchestrator(desk.order, deciding=False)
    await system.agents(Quick, desk.Echo)
    runner = await system.projections(database_url)
    async with sealing(system.log, PrivateKey.generate("tests/healthy"), tmp_path / "seals"):
        enough = asyncio.Event()

        async def submit() -> None:
            while not enough.is_set():
                submits = [system.client.submit_task("quick", {"n": n}) for n in range(20)]
                await asyncio.gather(*(system.client.wait(run_id) for run_id in await asyncio.gather(*submits)))

        load = asyncio.create_task(submit())
        for _ in range(3):
            assert await doctor.finds() == {}
        enough.set()
        await load
        last = (await system.log.verify()).last_sequence
        await eventually(lambda: min(one.sequence for one in runner.status().positions.values()) >= last)
        assert await doctor.finds() == {}


async def test_without_a_database_and_with_work_that_waits_for_people_it_is_healthy(
    system: System, doctor: Doctor
) -> None:
    await system.orchestrator(desk.order)
    await system.agents(desk.Echo)
    for n in (15, 16, 17):
        await system.client.submit_run("order", {"n": n})
    await eventually(lambda: _asked(doctor))
    assert await doctor.finds() == {}


async def _asked(doctor: Doctor) -> bool:
    facts = await doctor.facts("escalations")
    return facts.overview is not None and any(one["count"] == 2 for one in facts.overview["escalations"])


async def test_a_new_space_that_nobody_has_used_lacks_only_its_orchestrator(system: System, doctor: Doctor) -> None:
    assert list(await doctor.finds()) == ["orchestrator.none"]
