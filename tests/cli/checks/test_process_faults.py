"""Faults of orchestrators, agents, runs and people, each made to happen by real processes on a real server."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import Any

import pytest

from cuebook.cli.checks.facts import Clock
from cuebook.cli.checks.finding import Level, Limits
from cuebook.cli.diagnosis import probe
from cuebook.cli.diagnosis.probe_log import fold_agents
from cuebook.cli.directory import Directory
from cuebook.events.facts import AgentStopped, DrainRequested, HandlerSpec, RunStuck
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.cli import desk
from tests.cli.checks.conftest import Doctor, Quick, System, wrong
from tests.cli.conftest import Start, reaches, wait_for_a_person
from tests.waiting import eventually

HOUR_US = 3_600 * 10**6
ORCHESTRATOR = ("orchestrator",)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is there answers here, if only the machine lets it."""
    monkeypatch.setattr(probe, "ANSWERS_WITHIN_S", 20.0)


# --- orchestrators ---------------------------------------------------------------------------------------------------


async def test_no_orchestrator_and_what_is_open_is_told_from_the_log(system: System, doctor: Doctor) -> None:
    await system.client.submit_task("quick", {"n": 1}, run_id="t1")
    facts = await doctor.facts()
    assert wrong({one.code: one for one in doctor.findings(facts)}) == ["orchestrator.none"]
    assert facts.overview is not None
    assert [one["oldest"] for one in facts.overview["queues"]] == ["t1/0"]
    await system.orchestrator()
    await doctor.agrees([], *ORCHESTRATOR)


async def test_two_orchestrators_that_both_believe_to_decide(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    second = await system.orchestrator(deciding=False)
    await doctor.agrees([], *ORCHESTRATOR)
    second.deciding.set()
    found = await doctor.agrees(["orchestrator.two"], *ORCHESTRATOR)
    assert found["orchestrator.two"].level is Level.CRITICAL


async def test_runs_of_a_saga_that_nobody_serves(system: System, doctor: Doctor) -> None:
    service = await system.orchestrator(desk.order)
    await system.agents(desk.Echo)
    await system.client.submit_run("order", {"n": 17}, run_id="o17")
    await reaches(system.client, "o17", items=2)
    await doctor.agrees([], *ORCHESTRATOR)
    service.stop()
    await system.orchestrator()
    found = await doctor.until("orchestrator.saga_unserved", *ORCHESTRATOR)
    assert (found.about, "o17" in found.message) == ("order", True)
    assert "no orchestrator serves saga 'order'" in found.message


async def test_a_lease_without_an_end_and_one_of_somebody_who_does_not_answer(system: System, doctor: Doctor) -> None:
    bucket = f"KV_{doctor.space}_leases"
    service = await system.orchestrator()
    await system.change(bucket, max_age=0)
    found = await doctor.agrees(["orchestrator.lease_of_the_dead"], *ORCHESTRATOR)
    assert bucket in found["orchestrator.lease_of_the_dead"].remedy
    await system.change(bucket, max_age=3 * 10**9)
    service.name = "nobody"
    assert "nobody" not in (await doctor.facts(*ORCHESTRATOR)).failures
    held = await doctor.until("orchestrator.lease_held", *ORCHESTRATOR)
    assert "orchestrator-" in held.message


async def test_an_orchestrator_that_is_behind_or_saves_no_snapshots(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    await system.client.submit_task("quick", {"n": 1})
    doctor.limits = {"orchestrator.snapshot": Limits(1, None)}
    await doctor.agrees(["orchestrator.snapshot_old"], *ORCHESTRATOR)
    doctor.limits = {}
    facts = await doctor.facts_when_well(*ORCHESTRATOR)
    assert facts.log_info is not None
    facts.log_info["state"]["last_seq"] += 2_000
    assert [one.code for one in doctor.findings(facts, *ORCHESTRATOR)] == ["orchestrator.behind"]
    facts = await doctor.facts_when_well(*ORCHESTRATOR)
    assert facts.orchestrators is not None
    facts.orchestrators.append({**facts.orchestrators[0], "deciding": False, "release": "0.0.1"})
    assert [one.code for one in doctor.findings(facts, *ORCHESTRATOR)] == ["orchestrator.releases"]


# --- agents ----------------------------------------------------------------------------------------------------------


async def test_an_agent_that_is_stopped_by_a_signal_is_suspect_then_lost_and_fine_when_it_goes_on(
    system: System, doctor: Doctor, start: Start
) -> None:
    await system.orchestrator()
    async with start("serve", "agents", "mydesk:Patient") as program:
        await program.says("ready")
        await doctor.agrees([], "agents")
        program.send(signal.SIGSTOP)
        try:
            silent = await doctor.until("agents.lost", "agents")
            assert f"process {program.process.pid}" in silent.remedy
            found = await doctor.agrees(["agents.gone", "agents.lost"], "agents")
            assert found["agents.gone"].level is Level.CRITICAL
        finally:
            program.send(signal.SIGCONT)
        await doctor.agrees([], "agents")
        program.process.kill()
        await doctor.until("agents.lost", "agents")
    facts = await doctor.facts("agents")
    for limits, level in ((Limits(2, 3), None), (Limits(1, 2), Level.WARNING), (Limits(None, 1), Level.CRITICAL)):
        doctor.limits = {"agents.lost": limits}
        levels = {one.code: one.level for one in doctor.findings(facts, "agents")}
        assert levels.get("agents.lost") is level
    facts.now += 2 * HOUR_US
    assert [one.code for one in doctor.findings(facts, "agents")] == ["agents.gone"]


async def test_an_agent_that_is_suspect_and_not_heard(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    await system.register("ghost", "g1", heartbeat_s=0.5, offline_for_s=600)  # suspect for as long, and not lost
    assert "ghost/g1" in (await doctor.until("agents.suspect", "agents")).message


async def test_what_strangers_say_where_agents_and_orchestrators_are_heard_is_passed_over(
    system: System, doctor: Doctor, caplog: pytest.LogCaptureFixture
) -> None:
    doctor.timeout_s = 20
    await system.orchestrator()
    await system.agents(Quick)
    subjects, stranger = system.log.subjects, await system.connection()
    said = [b"", b"hello", b"[1]", b"\xff", b'{"time": "noon", "release": 7}']

    async def answer(message: Any) -> None:
        for body in said:
            await message.respond(body)

    async def talk() -> None:
        while True:
            for body in said:
                await stranger.publish(subjects.heartbeat("ghost", "g1"), body)
            await stranger.flush()

    await stranger.subscribe(subjects.query("orchestrators"), cb=answer)
    talking = asyncio.ensure_future(talk())
    try:
        facts = await doctor.facts()
    finally:
        talking.cancel()
    assert ("ghost", "g1") in (facts.beats or {})
    assert facts.failures == {}
    assert "orchestrator.none" not in {one.code for one in doctor.findings(facts)}
    assert "callback raised" not in caplog.text


async def test_an_agent_that_nobody_misses_since_no_orchestrator_decides(system: System, doctor: Doctor) -> None:
    await system.register("ghost", "g1", heartbeat_s=0.05, pid=4711, host="elsewhere")
    found = await doctor.agrees(["agents.silent"], "agents")
    assert "process 4711 on elsewhere" in found["agents.silent"].remedy
    await system.register("calm", "c1", heartbeat_s=60)  # nobody listens that long
    assert {one.about for one in doctor.findings(await doctor.facts("agents"), "agents")} == {"ghost/g1"}


async def test_who_leaves_while_the_doctor_listens_is_not_missed(
    system: System, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await system.register("quick", "q1", heartbeat_s=0.05)

    async def fold(log: EventLog) -> Directory:
        known = await fold_agents(log)
        if known.registry.instances["quick", "q1"].health != "stopped":
            await system.log.append(system.log.subjects.agent("quick", "q1", "stopped"), AgentStopped())
        return known

    monkeypatch.setattr(probe, "fold_agents", fold)
    assert wrong(await doctor.finds("agents")) == []


async def test_an_instance_whose_consumer_is_gone_or_unheard_or_full(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    host = await system.agents(Quick)
    stream, name = doctor.space.upper(), f"quick__{host.instances[0].id}"

    async def has_consumer() -> bool:
        facts = await doctor.facts("agents", "orchestrator")
        assert facts.nats is not None
        return name in {one["name"] for one in facts.nats.consumers or []}

    await eventually(has_consumer)
    facts = await doctor.facts_when_well("agents", "orchestrator")
    assert facts.nats is not None
    assert facts.nats.consumers is not None
    next(one for one in facts.nats.consumers if one["name"] == name)["num_pending"] = 150
    assert [one.code for one in doctor.findings(facts, "agents")] == ["agents.stalled"]
    await js_request(system.log.connection, f"CONSUMER.DELETE.{stream}.{name}", {})
    found = await doctor.until("agents.no_inbox", "agents", "orchestrator")
    assert (found.about, found.level) == (f"quick/{host.instances[0].id}", Level.CRITICAL)
    await system.register("ghost", "g1", heartbeat_s=60)
    assert "ghost/g1" in (await doctor.until("agents.unheard", "agents", "orchestrator")).message


async def test_an_agent_that_drains_for_ever(system: System, doctor: Doctor) -> None:
    await system.register("ghost", "g1", heartbeat_s=0.05)
    await system.log.append(system.log.subjects.agent("ghost", "g1", "drain_requested"), DrainRequested(reason="x"))
    facts = await doctor.facts("agents")
    assert "agents.draining" not in {one.code for one in doctor.findings(facts, "agents")}
    facts.now += HOUR_US
    assert "agents.draining" in {one.code for one in doctor.findings(facts, "agents")}


async def test_versions_that_differ_are_an_upgrade_at_first_and_a_finding_later(system: System, doctor: Doctor) -> None:
    await system.agents(Quick)
    text = HandlerSpec(input_schema={"type": "string"})
    await system.register("quick", "other", version="2", handlers={"add": text}, heartbeat_s=0.1)
    facts = await doctor.facts("agents")
    assert facts.beats is not None
    own = next(iter(facts.beats))
    facts.beats["quick", "other"] = facts.beats[own]
    assert doctor.findings(facts, "agents") == []
    facts.now += 2 * HOUR_US
    [found] = doctor.findings(facts, "agents")
    assert (found.code, "version 2" in found.message) == ("agents.versions", True)
    facts.beats["quick", "other"] = facts.beats[own]._replace(release="0.0.1")
    assert [one.code for one in doctor.findings(facts, "agents")] == ["agents.versions", "agents.releases"]


# --- clocks ----------------------------------------------------------------------------------------------------------


async def test_every_clock_that_is_off_is_found(system: System, doctor: Doctor, database_url: str) -> None:
    doctor.database_url = database_url
    await system.orchestrator()
    await system.agents(Quick)
    facts = await doctor.facts_when_well("clocks")
    assert facts.nats is not None
    assert facts.nats.clock is not None
    assert facts.database is not None
    assert facts.orchestrators is not None
    assert facts.beats is not None
    [key] = facts.beats
    agent = facts.beats[key]
    facts.beats[key] = agent._replace(ahead_s=90.0)
    [found] = doctor.findings(facts, "clocks")
    assert (found.about, found.level) == ("/".join(key), Level.CRITICAL)
    assert found.message.endswith("s ahead of that of the NATS server")
    facts.beats[key] = agent._replace(ahead_s=-2.0)  # it may just have been read late
    assert doctor.findings(facts, "clocks") == []
    facts.beats[key] = agent._replace(ahead_s=-20.0)
    assert [one.about for one in doctor.findings(facts, "clocks")] == ["/".join(key)]
    facts.beats[key] = agent
    facts.database = replace(facts.database, clock=Clock(-5.0, 0.001))
    facts.orchestrators[0]["ahead_s"] = 7.0
    found_ = {one.about: one.level for one in doctor.findings(facts, "clocks")}
    assert found_ == {"PostgreSQL": Level.WARNING, facts.orchestrators[0]["name"]: Level.WARNING}
    facts = await doctor.facts_when_well("clocks")
    assert facts.nats is not None
    assert facts.nats.clock is not None
    facts.nats.clock = facts.nats.clock._replace(ahead_s=3_600.0)  # then everybody else is wrong
    assert len(doctor.findings(facts, "clocks")) == 4
    facts.nats.clock = Clock(2.0, 5.0)  # an answer that took ten seconds tells nothing
    assert doctor.findings(facts, "clocks") == []


# --- runs and people -------------------------------------------------------------------------------------------------


async def test_a_run_that_is_stuck(system: System, doctor: Doctor) -> None:
    await system.orchestrator(desk.order)
    await system.agents(desk.Echo)
    await system.client.submit_run("order", {"n": 17}, run_id="o17")
    await reaches(system.client, "o17", items=2)
    await doctor.agrees([], "runs")
    await system.log.append(system.log.subjects.run("o17", "stuck"), RunStuck(reason="it differs"))
    found = await doctor.until("runs.stuck", "runs")
    assert (found.about, "cuebook run retry o17" in found.remedy) == ("o17", True)


async def test_tasks_that_nobody_can_take(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    await system.register("ghost", "g1")
    await system.log.append(system.log.subjects.agent("ghost", "g1", "stopped"), AgentStopped())
    host = await system.agents(Quick)
    await system.client.submit_task("ghost", {"n": 1}, run_id="t1")
    await system.client.submit_task("quick", {"n": 1}, run_id="t2", labels={"zone": "b"})
    await _wait(doctor, "t1/0", "t2/0")
    facts = await doctor.facts_when_well("runs")
    assert facts.overview is not None
    facts.overview["at"] += 120 * 10**6
    found = {one.about: one for one in doctor.findings(facts, "runs")}
    assert {one.code for one in found.values()} == {"runs.stranded"}
    assert "no instance of agent 'ghost' is running" in found["t1/0"].message
    assert "none of the 1 healthy instances of 'quick' has the labels zone=b" in found["t2/0"].message
    assert host.instances


async def test_tasks_that_wait_long_for_a_slot(system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    await system.register("busy", "b1", heartbeat_s=60)
    await system.client.submit_task("busy", {"n": 1}, run_id="t1")
    await reaches(system.client, "t1", attempt=1)
    await system.client.submit_task("busy", {"n": 2}, run_id="t2")
    await _wait(doctor, "t2/0")
    facts = await doctor.facts_when_well("runs")
    assert facts.overview is not None
    facts.overview["at"] += 1_000 * 10**6
    [found] = doctor.findings(facts, "runs")
    assert (found.code, found.about) == ("runs.waiting", "t2/0")
    assert "all 1 slots of 1 instances of 'busy' are taken" in found.message


async def test_what_waits_long_for_a_person(system: System, doctor: Doctor) -> None:
    await system.orchestrator(desk.order)
    await system.agents(desk.Echo)
    await system.client.submit_run("order", {"n": 15}, run_id="o15")
    await reaches(system.client, "o15", items=2)
    await wait_for_a_person(system.client, "o15/1")
    facts = await doctor.facts_when_well("escalations")
    assert facts.overview is not None
    facts.overview["at"] += 5 * HOUR_US
    [found] = doctor.findings(facts, "escalations")
    assert (found.code, "cuebook escalation show o15/1" in found.remedy) == ("escalations.old", True)


async def _wait(doctor: Doctor, *names: str) -> None:
    """Until each of these is the first of a queue, and no others are."""

    async def there() -> bool:
        facts = await doctor.facts("runs")
        return facts.overview is not None and {one["oldest"] for one in facts.overview["queues"]} == set(names)

    await eventually(there)
