"""What live processes export is what the catalogue and the document say, and the numbers are those of the log."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cuebook.events.envelope import Envelope
from cuebook.telemetry.metric_names import ALL
from tests.monitoring.document import DOCUMENT, rewritten
from tests.monitoring.market import Market, market
from tests.waiting import eventually

WITHIN_S = 60.0
SERVICES = {
    "orchestrator": {"orchestrator"},
    "agents": {"agents"},
    "projections": {"projections"},
    "sealer": {"sealer"},
    "edge": {"edge", "agents"},
}
"""By process: whose metrics it exports."""
FROM_ELSEWHERE = {"target", "process", "python"}
ORDERS = 15
_OF_THE_ACCOUNT = {"cuebook_log_store_used_bytes", "cuebook_log_store_limit_bytes"}
"""Which the server tells on its monitoring port, and the tests' server has none."""


class Told:
    """Everything that one process exports."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.labels: dict[str, set[str]] = defaultdict(set)
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            self.types[name] = family.type
            for sample in family.samples:
                self.labels[name] |= set(sample.labels) - {"le"}
                labels = frozenset((key, value) for key, value in sample.labels.items() if value and key != "space")
                self.values[sample.name, labels] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """One value."""
        return self.values[name, frozenset(labels.items())]


def test_the_document_has_the_table_of_the_catalogue() -> None:
    text = DOCUMENT.read_text()
    assert rewritten(text) == text, "run 'just docs'"


async def test_processes_export_what_the_document_says(
    nats_url: str, database_url: str, space: str, tmp_path: Path
) -> None:
    async with market(nats_url, database_url, space, tmp_path) as stall:
        await stall.trade(ORDERS)
        await eventually(lambda: has_asked(stall, ORDERS // 5 + ORDERS // 7), within_s=WITHIN_S)
        await stall.decide(keep=1)
        await eventually(lambda: settled(stall, asked=1), within_s=WITHIN_S)
        for process, services in SERVICES.items():
            told = Told(await stall.metrics(process))
            ours = {name for name in told.types if name.partition("_")[0] not in FROM_ELSEWHERE}
            wanted = {one.exported: one for one in ALL if one.by in {*services, "every"}}
            assert ours == set(wanted) - _OF_THE_ACCOUNT, process
            for name in ours:
                assert (told.types[name], told.labels[name]) == (wanted[name].kind, {"space", *wanted[name].labels})
            assert {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= told.types.keys()
        await check_standby(stall)
        await check_numbers(stall)
        await check_waiting(stall)


async def has_asked(stall: Market, times: int) -> bool:
    return len(await stall.asked()) == times


async def settled(stall: Market, *, asked: int) -> bool:
    """Only those that a person is still asked about are open, and all that is in the log has been counted everywhere.

    What a person has just decided is in the log before the orchestrator has read it.
    """
    last = (await stall.client.log.verify()).last_sequence
    told, tables = Told(await stall.metrics("orchestrator")), Told(await stall.metrics("projections"))
    open_ = sum(value for (name, _), value in told.values.items() if name == "cuebook_runs_open")
    edge = Told(await stall.metrics("edge"))
    read = told("cuebook_log_last_sequence") == last and not told("cuebook_orchestrator_lag")
    positions = {value for (name, _), value in tables.values.items() if name == "cuebook_projection_position"}
    lag = sum(value for (name, _), value in tables.values.items() if name == "cuebook_projection_lag")
    forwarded = edge("cuebook_edge_events_forwarded_total") == ORDERS
    return open_ == len(await stall.asked()) == asked and read and positions == {last} and not lag and forwarded


async def check_standby(stall: Market) -> None:
    """It tells nothing about the space, and has counted nothing yet, so that sums count everything once.

    Its counters are there before it leads: the first thing that it counts is an increase then, such as an agent that
    died with the leader.
    """
    told = Told(await stall.metrics("standby"))
    assert (told("cuebook_orchestrator_leading"), told("cuebook_ready")) == (0, 1)
    leaders = [one for one in ALL if one.by == "orchestrator"]
    assert {one.exported for one in leaders if one.kind == "gauge"} & told.types.keys() == {
        "cuebook_orchestrator_leading",
        "cuebook_orchestrator_lag",
    }
    counters = {one.exported for one in leaders if one.kind == "counter"}
    counted = {key: value for key, value in told.values.items() if key[0] in counters}
    assert not any(counted.values())
    assert told("cuebook_agent_health_changes_total", agent="stall", health="lost") == 0
    assert told("cuebook_runs_total", saga="buy", outcome="failed") == 0
    assert Told(await stall.metrics("orchestrator"))("cuebook_orchestrator_leading") == 1


async def check_numbers(stall: Market) -> None:
    """Each is that of the log, and of the tables."""
    facts = [one async for one in stall.client.log.read() if isinstance(one, Envelope)]
    at_the_edge = {one.address.run_id for one in facts if one.address.agent == "kiosk"}
    counted: dict[str, int] = defaultdict(int)
    for one in facts:
        if one.address.run_id in at_the_edge:
            continue
        counted[f"{one.address.kind}.{one.address.fact}"] += 1
    told = Told(await stall.metrics("orchestrator"))
    agent = {"agent": "stall"}
    assert told("cuebook_runs_total", saga="buy", outcome="completed") == counted["run.completed"] > 0
    assert told("cuebook_runs_total", saga="vain", outcome="failed") == counted["run.failed"] == ORDERS // 10
    assert told("cuebook_runs_total", saga="buy", outcome="compensated") == counted["run.compensated"]
    assert told("cuebook_compensations_total", saga="buy") == counted["run.compensating"]
    assert told("cuebook_runs_started_total", saga="buy") == ORDERS
    assert told("cuebook_runs_total", outcome="completed", **agent) == ORDERS
    assert told("cuebook_run_duration_seconds_count", **agent) == ORDERS
    assert told("cuebook_tasks_total", outcome="completed", **agent) == counted["task.completed"]
    assert told("cuebook_task_placement_duration_seconds_count", **agent) == counted["task.assigned"]
    assert told("cuebook_task_retries_total", cause="failure", **agent) == counted["task.retried"] == (ORDERS + 1) // 2
    assert told("cuebook_escalations_total", kind="task", saga="buy", **agent) == counted["task.escalated"] > 0
    assert told("cuebook_escalations_total", kind="question", saga="buy") == ORDERS // 7
    assert told("cuebook_log_messages") == told("cuebook_log_last_sequence") == facts[-1].sequence
    assert told("cuebook_agent_instances", health="healthy", **agent) == 1
    assert (told("cuebook_agent_slots", **agent), told("cuebook_agent_slots_used", **agent)) == (8, 0)
    waiting = await stall.asked()
    assert sum(value for (name, _), value in told.values.items() if name == "cuebook_escalations_open") == len(waiting)
    handled = await eventually(lambda: handled_of(stall, counted["task.completed"]), within_s=WITHIN_S)
    assert handled is not None
    assert handled("cuebook_handler_duration_seconds_count", outcome="completed", **agent) == counted["task.completed"]
    assert handled("cuebook_handler_duration_seconds_count", outcome="failed", **agent) == counted["task.failed"]
    edge = Told(await stall.metrics("edge"))
    assert edge("cuebook_handler_duration_seconds_count", outcome="completed", agent="kiosk") == ORDERS
    assert (edge("cuebook_edge_linked"), edge("cuebook_edge_cut_time_seconds")) == (1, 0)
    assert (edge("cuebook_edge_answers_waiting"), edge("cuebook_edge_events_waiting")) == (0, 0)
    tables = Told(await stall.metrics("projections"))
    assert tables("cuebook_projection_position", projection="runs") == facts[-1].sequence
    sealed = await eventually(lambda: sealed_of(stall, facts[-1].sequence), within_s=WITHIN_S)
    assert sealed == facts[-1].sequence


async def handled_of(stall: Market, least: int) -> Told | None:
    """What the agents tell, once their last answers are in it."""
    told = Told(await stall.metrics("agents"))
    labels = frozenset({"outcome": "completed", "agent": "stall"}.items())
    return told if told.values.get(("cuebook_handler_duration_seconds_count", labels), 0) >= least else None


async def sealed_of(stall: Market, least: int) -> float:
    found = Told(await stall.metrics("sealer"))("cuebook_sealer_sealed")
    return found if found >= least else 0.0


async def check_waiting(stall: Market) -> None:
    """Tasks for an agent that nobody serves wait, by priority; any word may be the name of one."""
    for priority in (0, 0, 3, 100, -100):
        await stall.client.submit_task("nobody", {"n": 1}, priority=priority)

    async def depths() -> dict[str, float]:
        told = Told(await stall.metrics("orchestrator"))
        return {
            dict(labels)["priority"]: value
            for (name, labels), value in told.values.items()
            if name == "cuebook_queue_depth" and ("agent", "nobody") in labels
        }

    await eventually(lambda: is_equal(depths(), {"0": 2, "3": 1, ">9": 1, "<-9": 1}), within_s=WITHIN_S)


async def is_equal(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_an_agent_s_own_instruments_come_along(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from opentelemetry import metrics
from cuebook.telemetry.metrics import Metrics
told = Metrics("cuebook-agents", "cue")
told.install()
metrics.get_meter("desk").create_counter("desk.parcels", unit="{parcel}").add(3, {"size": "xl"})
asyncio.run(told.look())
sys.stdout.write(told.write("")[1].decode())
"""
    process = await asyncio.create_subprocess_exec(
        "python", "-c", program, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    output, _ = await process.communicate()
    assert 'desk_parcels_total{size="xl"} 3.0' in output.decode()
    assert 'cuebook_event_loop_delay_seconds_count{space="cue"}' in output.decode()


def test_no_metric_has_a_label_that_grows() -> None:
    few = {"agent", "saga", "health", "status", "outcome", "cause", "kind", "priority", "projection"}
    assert {label for one in ALL for label in one.labels} == few
    assert json.dumps([one.name for one in ALL if not re.fullmatch(r"cuebook(\.[a-z]+)+", one.name)]) == "[]"
    assert len({one.exported for one in ALL}) == len(ALL)
