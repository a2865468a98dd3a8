"""Three NATS servers and three replicas: whichever dies in the middle of the work, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sized
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors import Task, handler
from cuebook.embedded.nats_cluster import NatsCluster, nats_cluster
from cuebook.events.connection import connect
from cuebook.events.errors import UnavailableError
from cuebook.events.jetstream import js_request
from tests.actors.cast import Bank, Number, chain, lines
from tests.actors.desk import Desk
from tests.actors.test_standby import check_single
from tests.waiting import eventually

ROUNDS = 4  # so that whoever leads the stream is among those that die


class Patient(Bank):
    """Has time for as long as the cluster is away: what is not answered in time is done again."""

    @handler(timeout_s=120)
    async def add(self, number: Number, task: Task) -> Number:
        added: Number = await super().add(number, task)
        return added

    @add.compensation
    async def take(self, number: Number, result: Number, task: Task) -> None:
        await super().take(number, result, task)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with nats_cluster(tmp_path / "nats") as running:
        yield running


async def test_each_node_may_die_while_runs_are_under_way(
    cluster: NatsCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAST_LEDGER", str(tmp_path / "ledger"))
    async with Desk(cluster.url, "cue", sagas=[chain], agents=[Patient], replicas=3) as desk:
        await desk.direct(standby=True)
        enough = asyncio.Event()
        wanted: dict[str, str] = {}

        async def submit() -> None:
            while not enough.is_set():
                n = len(wanted)
                wanted[f"run-{n}"] = "compensated" if n % 5 == 3 else "completed"
                await desk.client.submit_run("chain", {"n": 13 if n % 5 == 3 else 1}, run_id=f"run-{n}")
                await desk.client.submit_task("bank", {"n": n}, handler="add", run_id=f"task-{n}")

        async with asyncio.TaskGroup() as group:
            group.create_task(submit())
            for _ in range(ROUNDS):
                leader = await leader_of(cluster, "CUE")
                node = next(node for node in cluster.nodes if node.name == leader)
                await node.kill()
                await eventually(partial(has_more_than, wanted, len(wanted) + 10), within_s=60)
                await node.restart()
                await eventually(partial(is_whole, cluster, "CUE"), within_s=60)
            enough.set()
        wanted |= {f"task-{n}": "completed" for n in range(len(wanted))}
        outcomes = await asyncio.gather(*(desk.client.wait(run_id, timeout_s=60) for run_id in wanted))
        assert {one.run_id: one.status for one in outcomes} == wanted
        log = await desk.log()
        check_single(log)
        effects = Counter(tuple(line[:2]) for line in lines(tmp_path / "ledger"))
        assert set(effects.values()) == {1}
        await desk.stage.stop()  # saves a snapshot
        for bucket in ("KV_cue_leases", "OBJ_cue_snapshots"):
            info = await desk.client.log.connection.jetstream().stream_info(bucket)
            assert info.config.num_replicas == 3, bucket


def has_more_than(items: Sized, count: int) -> bool:
    return len(items) > count


async def leader_of(cluster: NatsCluster, stream: str) -> str:
    """The name of the node that leads a stream."""
    return str((await eventually(partial(_cluster_of, cluster, stream), within_s=60))["leader"])


async def is_whole(cluster: NatsCluster, stream: str) -> bool:
    """Whether every replica has everything."""
    replicas = (await _cluster_of(cluster, stream)).get("replicas", [])
    return len(replicas) == len(cluster.nodes) - 1 and all(
        one["current"] and not one.get("offline") for one in replicas
    )


async def _cluster_of(cluster: NatsCluster, stream: str) -> dict[str, Any]:
    """What the server says about the nodes of a stream; empty while none of them leads."""
    connection = await connect(cluster.url, name="tests")
    try:
        found: dict[str, Any] = (await js_request(connection, f"STREAM.INFO.{stream}", {}))["cluster"]
    except UnavailableError:  # nobody answers while there is no leader
        return {}
    finally:
        await connection.close()
    return found if found.get("leader") else {}
