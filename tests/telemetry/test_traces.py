"""What a collector gets to see of a run, over the wire, from the processes that people run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from cuebook.actors.client import Client
from cuebook.events.connection import connect
from cuebook.events.errors import UnavailableError
from cuebook.telemetry.attributes import ALL
from tests.telemetry.collector import Collector, collector
from tests.telemetry.processes import Processes
from tests.waiting import eventually

START_S = 60.0

STORY = """
publish order.placed
  run order
    project
    step shop.reserve
      place shop
      execute shop.reserve
        ask the shelf
        complete shop.reserve
      project
    step shop.charge
      place shop *2
      execute shop.charge *2
        ask the bank *2
        complete shop.charge *2
      project
    step shop.ship
      place shop
      execute shop.ship
        complete shop.ship
      escalate
      project
    compensate
      undo shop.reserve
        place shop
        execute shop.reserve
          complete shop.reserve
        project
"""
"""Charged at the second attempt, not shipped, given up by a person, undone."""


def paths(tree: str) -> Counter[str]:
    """The paths of an indented tree, as the collector tells them."""
    found, above = Counter[str](), list[str]()
    for line in tree.strip().splitlines():
        name, _, times = line.strip().partition(" *")
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        found[" > ".join(above)] = int(times or 1)
    return found


async def play(client: Client, run_id: str, ends: str = "compensated") -> None:
    """A person gives the shipping up."""

    async def escalated() -> bool:
        history = await client.log.history(run_id)
        return any(item.subject.endswith(".escalated") for item in history)

    await eventually(escalated, within_s=START_S)
    step = next(n for n, item in (await client.state(run_id)).items.items() if item.status == "escalated")
    await client.resolve(run_id, step, action="abort")
    assert (await client.wait(run_id, timeout_s=START_S)).status == ends


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_run_is_one_tree_from_publish_to_projection(
    protocol: str, nats_url: str, database_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_DATABASE_URL": database_url}
    with collector(protocol) as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            await processes.serve("projections")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 3, within_s=START_S)
                status, _, error = await eventually_published(processes, '{"n": 7}')
                assert status == 0, error
                run_id = await eventually(lambda: find_run(client, "order"), within_s=START_S)
                await play(client, run_id)
                await eventually(lambda: found.paths() == paths(STORY), within_s=START_S)
            status, shown, _ = await processes.command("trace", run_id, "-o", "json")
    assert status == 0
    assert {span.trace_id for span in found.spans} == {json.loads(shown)["trace_id"]}
    check_the_story(found)
    same_tree_from_the_log(found, json.loads(shown)["spans"])


async def eventually_published(processes: Processes, data: str) -> tuple[int, str, str]:
    async def published() -> tuple[int, str, str] | None:
        done = await processes.command("events", "publish", "order.placed", data)
        return done if done[0] == 0 else None

    return await eventually(published, within_s=START_S) or (1, "", "")


async def find_run(client: Client, saga: str) -> str:
    scope = f"{client.log.subjects.space}.run.*.started"
    for item in await client.log.scope_history(scope):
        return item.subject.split(".")[2]
    return ""


def check_the_story(found: Collector) -> None:
    for span in found.spans:
        assert span.end >= span.begin > 0, span
        if not span.name.startswith("ask the"):  # which are the author's own
            assert set(span.attributes) <= ALL, span
            assert "secret" not in repr(span), "what a task is about stays in the log"
    services = {span.name.split()[0]: span.service for span in found.spans}
    assert services == {
        "publish": "cuebook-cli",
        **dict.fromkeys(("run", "step", "undo", "place", "compensate", "escalate"), "cuebook-orchestrator"),
        **dict.fromkeys(("execute", "complete", "ask"), "cuebook-agents"),
        "project": "cuebook-projections",
    }
    machines = {span.resource.get("host.name") for span in found.spans if span.name.startswith(("execute", "complete"))}
    assert len(machines) == 1, "Jaeger takes spans of an attempt for those of two machines, whose clocks differ"
    assert None not in machines
    assert not any("host.name" in span.resource for span in found.spans if span.name.startswith(("run", "step")))
    first, second = found.named("execute shop.charge")
    assert (first.error, second.error) == ("ConnectionError", "")
    assert [span.attributes["cuebook.attempt"] for span in (first, second)] == [1, 2]
    assert [link for span in found.named("place shop") for link in span.links] == [(first.trace_id, first.span_id)]
    (undo,), (reserve,) = found.named("undo shop.reserve"), found.named("step shop.reserve")
    assert undo.links == [(reserve.trace_id, reserve.span_id)]
    (escalate,) = found.named("escalate")
    assert escalate.attributes["cuebook.action"] == "abort"
    (run,) = found.named("run order")
    assert (run.error, run.attributes["cuebook.outcome"]) != ("", "completed")


def same_tree_from_the_log(found: Collector, shown: list[dict[str, str]]) -> None:
    """The terminal shows what was sent, but for what only its maker knows: its own spans, and the tables."""
    sent = {(span.name, span.span_id, span.parent_id) for span in found.spans if not span.name.startswith("ask the")}
    told = {(span["name"], span["span_id"], span["parent_id"] or "") for span in shown}
    assert {one for one in sent if one[0] != "project"} == told


async def test_a_header_from_outside_begins_the_trace_and_decides_who_is_sampled(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space}
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
                await eventually(lambda: asks(client, "sagas"), within_s=START_S)
                for n, flags in ((1, "00"), (2, "01")):
                    header = {"traceparent": f"00-{n:032x}-{n:016x}-{flags}"}
                    subject = f"{space}.event.order.placed"
                    await connection.publish(subject, json.dumps({"n": n}).encode(), headers=header)
                    await play(client, f"order-{n}")
                await eventually(lambda: found.named("run order") and found.named("ask the bank"), within_s=START_S)
    (run,) = found.named("run order")
    assert (run.trace_id, run.parent_id) == (f"{2:032x}", f"{2:016x}")
    assert {span.trace_id for span in found.spans} == {run.trace_id}
    assert found.named("ask the bank")


async def asks(client: Client, noun: str) -> bool:
    try:
        await client.ask(noun)
    except UnavailableError:
        return False
    return True


async def test_what_a_killed_agent_did_lies_under_an_attempt_that_was_lost(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space}
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            agents = await processes.serve("agents", "shop:Shop")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
                await client.submit_task("shop", {"n": 1}, handler="wait", run_id="w")
                await eventually(lambda: found.named("look out"), within_s=START_S)
                agents.kill()
                await processes.serve("agents", "shop:Shop")
                assert (await client.wait("w", timeout_s=START_S)).status == "completed"
                await eventually(lambda: found.paths() == paths(LOST), within_s=START_S)
    first, second = found.named("execute shop.wait")
    assert (first.error, first.service) == ("lost", "cuebook-orchestrator")
    assert (second.error, second.service) == ("", "cuebook-agents")


LOST = """
publish shop
  task shop.wait
    place shop *2
    execute shop.wait *2
      look out
      complete shop.wait
"""


async def test_what_is_sent_again_after_a_takeover_is_the_same_span(nats_url: str, space: str, tmp_path: Path) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space}
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            leader = await processes.serve("orchestrator", "shop:order")
            await eventually(lambda: processes.errors().count(" ready ") >= 1, within_s=START_S)
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            await eventually(lambda: processes.errors().count(" ready ") >= 3, within_s=START_S)
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await client.submit_run("order", {"n": 1}, run_id="r")
                await play(client, "r")
                await eventually(lambda: len(of_orchestrators(found)) == MADE_BY_ORCHESTRATORS, within_s=START_S)
                leader.kill()
                await eventually(lambda: set(of_orchestrators(found).values()) == {2}, within_s=START_S)
    ours = of_orchestrators(found)
    assert len(ours) == len({span.span_id for span in found.spans if span.service == "cuebook-orchestrator"})


MADE_BY_ORCHESTRATORS = 13
"""The spans of the story but for those of agents and tables; nobody else has one for the request here."""


def of_orchestrators(found: Collector) -> Counter[str]:
    """Each span that an orchestrator has sent, with how often it was."""
    return Counter(repr(span) for span in found.spans if span.service == "cuebook-orchestrator")


async def test_a_dead_collector_stops_nothing_and_the_log_says_what_was_lost(
    nats_url: str, space: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{unused_tcp_port}"
    async with Processes(tmp_path, env) as processes:
        services = [await processes.serve("orchestrator", "shop:order"), await processes.serve("agents", "shop:Shop")]
        connection = await connect(nats_url, name="test")
        async with connection, Client(connection, space, by="ann") as client:
            await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
            await client.submit_run("order", {"n": 1}, run_id="r")
            await play(client, "r")
        status, shown, _ = await processes.command("trace", "r", CUEBOOK_JAEGER_URL="http://jaeger:16686/")
        for service in services:
            service.terminate()
            assert await service.wait() == 0
    for kind in ("orchestrator", "agents"):
        assert "spans were lost" in processes.errors(kind)
    assert status == 0
    assert re.search(r"http://jaeger:16686/trace/[0-9a-f]{32}\n", shown)
    assert re.search(r"├─ execute shop.charge .*attempt 1, at i[0-9a-f]{10}, ConnectionError", shown)


async def test_a_run_that_goes_back_to_another_is_a_trace_of_its_own_with_a_link(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space}
    with collector("http/protobuf") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
                await client.submit_run("order", {"n": 1}, run_id="r")
                await play(client, "r")
                status, again, error = await processes.command("run", "retry", "r")
                assert status == 0, error
                await play(client, again.strip())
                await eventually(lambda: len(found.named("run order")) == 2, within_s=START_S)
                await eventually(lambda: len(found.named("publish order")) == 2, within_s=START_S)
                status, fork, error = await processes.command("run", "fork", "r/1", "-o", "json")
                assert status == 0, error
                await play(client, json.loads(fork)["run_id"], ends="failed")  # what it shares is not its own to undo
                await eventually(lambda: len(found.named("run order")) == 3, within_s=START_S)
    first, second, third = found.named("run order")
    assert len({first.trace_id, second.trace_id, third.trace_id}) == 3
    assert third.links == [(first.trace_id, first.span_id)]
    assert second.links == [(first.trace_id, first.span_id)]
    assert found.named("publish order")[1].links == [(first.trace_id, first.span_id)]
