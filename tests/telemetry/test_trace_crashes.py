"""What a collector gets to see where processes are killed, stand still, or are asked to say nothing."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import psycopg
from psycopg import sql

from cuebook.actors.client import Client
from cuebook.events.connection import connect
from cuebook.projections.database import schema_name
from tests.telemetry.collector import Collector, collector
from tests.telemetry.processes import Processes
from tests.telemetry.test_traces import START_S, paths
from tests.waiting import eventually

LATE = """
publish shop
  task shop.late
    place shop *2
    execute shop.late *2
      complete shop.late
"""


async def test_the_answer_of_an_agent_that_was_given_up_is_no_part_of_the_trace(
    nats_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space}
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            zombie = await processes.serve("agents", "shop:Shop")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 2, within_s=START_S)
                await client.submit_task("shop", {"n": 1}, handler="late", run_id="w")
                await eventually((tmp_path / "begun").exists, within_s=START_S)
                zombie.send_signal(signal.SIGSTOP)
                await processes.serve("agents", "shop:Shop")
                outcome = await client.wait("w", timeout_s=START_S)
                (tmp_path / "gate").touch()
                zombie.send_signal(signal.SIGCONT)
                await eventually(lambda: "answer not needed any more" in processes.errors(), within_s=START_S)
                zombie.terminate()
                assert await zombie.wait() == 0  # and with that it has sent all that it ever will
                await eventually(lambda: found.paths() == paths(LATE), within_s=START_S)
    assert outcome.result == {"n": 2}, "the second attempt's"
    first, second = found.named("execute shop.late")
    assert (first.error, first.service) == ("lost", "cuebook-orchestrator")
    assert (second.error, second.service) == ("", "cuebook-agents")
    assert found.named("complete shop.late")[0].parent_id == second.span_id


async def test_what_is_projected_again_after_a_crash_is_shown_once(
    nats_url: str, database_url: str, space: str, tmp_path: Path
) -> None:
    """Killed when one projection had committed and another had not, so that the batch is read a second time."""
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_DATABASE_URL": database_url}
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            victim = await processes.serve("projections")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 3, within_s=START_S)
                await finish(client, "before")
                await eventually(lambda: projected(found, "before"), within_s=START_S)
                async with await psycopg.AsyncConnection.connect(database_url) as locking:
                    victim.send_signal(signal.SIGSTOP)
                    first = (await client.log.verify()).last_sequence + 1
                    await finish(client, "between")
                    await lock_runs(locking, space)
                    victim.send_signal(signal.SIGCONT)
                    await eventually(lambda: has_committed(database_url, space, "audit", first), within_s=START_S)
                    assert not await has_committed(database_url, space, "runs", first)
                    victim.kill()
                    await victim.wait()
                assert not projected(found, "between"), "it was not in all tables"
                await processes.serve("projections")
                await eventually(lambda: projected(found, "between"), within_s=START_S)
                await finish(client, "after")
                await eventually(lambda: projected(found, "after"), within_s=START_S)
    assert [span.name for span in found.spans if span.name == "project again"] == []
    assert Counter(span.attributes["cuebook.run.id"] for span in found.named("project")) == {
        "before": 1,
        "between": 1,
        "after": 1,
    }
    assert [span.links for span in found.named("project")] == [[], [], []]


async def finish(client: Client, run_id: str) -> None:
    await client.submit_task("shop", {"n": 1}, handler="reserve", run_id=run_id)
    assert (await client.wait(run_id, timeout_s=START_S)).status == "completed"


def projected(found: Collector, run_id: str) -> bool:
    return any(span.attributes["cuebook.run.id"] == run_id for span in found.named("project"))


async def lock_runs(connection: psycopg.AsyncConnection, space: str) -> None:
    """Until the connection is closed, nobody writes the projection of runs."""
    found = await connection.execute(
        "SELECT schemaname FROM pg_tables WHERE tablename = 'runs' AND starts_with(schemaname, %s)",
        [schema_name(space)],
    )
    for (schema,) in await found.fetchall():
        await connection.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(schema, "runs"))
        )


async def has_committed(database_url: str, space: str, projection: str, sequence: int) -> bool:
    checkpoints = sql.Identifier(schema_name(space), "checkpoints")
    query = sql.SQL("SELECT max(sequence) FROM {} WHERE projection = %s").format(checkpoints)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute(query, [projection])).fetchone()
    return row is not None and (row[0] or 0) >= sequence


def are_whole(found: Collector) -> bool:
    """Whether of each trace that has begun to come all spans are there."""
    return set(Counter(span.trace_id for span in found.spans).values()) == {7}


async def test_every_process_decides_alike_about_runs_that_nobody_has_decided_about(
    nats_url: str, database_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_DATABASE_URL": database_url}
    env |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    count = 40
    with collector("grpc") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            services = [
                await processes.serve("orchestrator", "shop:order"),
                await processes.serve("agents", "shop:Shop"),
                await processes.serve("projections"),
            ]
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 3, within_s=START_S)
                await asyncio.gather(*(finish(client, f"r{number}") for number in range(count)))
                last = (await client.log.verify()).last_sequence
                await eventually(lambda: has_committed(database_url, space, "runs", last), within_s=START_S)
                await eventually(lambda: are_whole(found), within_s=START_S)
            for service in reversed(services):
                service.terminate()
                assert await service.wait() == 0  # and with that it has sent what it had
    traces = Counter(span.trace_id for span in found.spans)
    assert 0 < len(traces) < count, "some are traced, some are not"
    for name in ("publish shop", "task shop.reserve", "execute shop.reserve", "complete shop.reserve",
                 "ask the shelf", "project"):  # fmt: skip
        assert {span.trace_id for span in found.named(name)} == set(traces), name
    assert set(traces.values()) == {7}, "six and 'place'"


async def test_a_run_whose_beginner_wants_no_trace_has_none_in_the_tables_either(
    nats_url: str, database_url: str, space: str, tmp_path: Path
) -> None:
    env = {"CUEBOOK_NATS_URL": nats_url, "CUEBOOK_SPACE": space, "CUEBOOK_DATABASE_URL": database_url}
    with collector("http/protobuf") as found:
        async with Processes(tmp_path, env | found.environment) as processes:
            await processes.serve("orchestrator", "shop:order")
            await processes.serve("agents", "shop:Shop")
            await processes.serve("projections")
            connection = await connect(nats_url, name="test")
            async with connection, Client(connection, space, by="ann") as client:
                await eventually(lambda: processes.errors().count(" ready ") >= 3, within_s=START_S)
                for n, flags in ((1, "00"), (2, "02"), (3, "01")):
                    header = {"traceparent": f"00-{n:032x}-{n:016x}-{flags}"}
                    subject = client.log.subjects.task(f"r{n}", 0, "requested", "shop")
                    request = b'{"handler": "reserve", "input": {"n": 1}}'
                    await connection.publish(subject, request, headers=header)
                    assert (await wait(client, f"r{n}")) == "completed"
                await eventually(lambda: projected(found, "r3"), within_s=START_S)
    assert {span.trace_id for span in found.spans} == {f"{3:032x}"}
    (project,) = found.named("project")
    assert project.attributes["messaging.batch.message_count"] == 1, "though others were committed with it"


async def wait(client: Client, run_id: str) -> str:
    async def known() -> bool:
        return bool(await client.log.history(run_id))

    await eventually(known, within_s=START_S)
    return (await client.wait(run_id, timeout_s=START_S)).status
