"""`cuebook space archive|segments` where a node is down, a manifest is damaged or what was said makes no sense."""

from __future__ import annotations

from pathlib import Path

from cuebook.embedded.nats_cluster import nats_cluster
from cuebook.events.connection import connect
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.cli.conftest import Cli
from tests.ledger.filling import fill
from tests.waiting import eventually


async def test_the_bucket_is_as_safe_as_the_log_unless_something_else_is_said(tmp_path: Path) -> None:
    """Else the only copy of what is dropped later would be on one node of three."""
    async with nats_cluster(tmp_path / "nats") as cluster:
        connection = await connect(cluster.url, name="tests")
        cli = Cli(cluster.url, "cue")
        async with EventLog(connection, "cue", source="tests") as log:
            await log.ensure(replicas=3)
            await fill(log, 300)
            await cli.ok("space", "archive", "--before", "301", "--unsigned")
            info = await js_request(connection, "STREAM.INFO.OBJ_cue_segments", {})
            assert info["config"]["num_replicas"] == 3
            await next(node for node in cluster.nodes if node.name == info["cluster"]["leader"]).kill()

            async def is_read() -> bool:
                return (await cli.run("space", "segments", "verify")).exit_code == 0

            await eventually(is_read, within_s=60)
        await connection.close()


async def test_a_damaged_manifest_is_named_also_where_its_segment_is_asked_for(
    cli: Cli, log: EventLog, tmp_path: Path
) -> None:
    await fill(log, 30)
    folder = tmp_path / "old"
    words = ("space", "archive", "--before", "31", "--unsigned", "--events", "10", "--to", str(folder))
    await cli.ok(*words)
    manifest = sorted(folder.glob("*.json"))[1]
    manifest.write_bytes(manifest.read_bytes().replace(b'"count":10', b'"count":11'))
    for data in (manifest, manifest.with_suffix(".gz")):
        said = await cli.fails(8, "audit", "verify", str(data))
        assert f"{manifest.name} was altered" in said
    name = manifest.stem
    assert "was altered" in await cli.fails(8, "space", "segments", "verify", name, "--segments", str(folder))
    assert "was altered" in await cli.fails(8, "space", "segments", "verify", "15", "--segments", str(folder))
    assert (await cli.json("space", "segments", "verify", "1", "--segments", str(folder)))["count"] == 10


async def test_a_number_of_other_digits_is_no_sequence(cli: Cli, log: EventLog, tmp_path: Path) -> None:
    await fill(log, 10)
    folder = str(tmp_path / "old")
    await cli.ok("space", "archive", "--before", "11", "--unsigned", "--to", folder)
    assert "no segment" in await cli.fails(
        3, "space", "segments", "verify", "\N{SUPERSCRIPT TWO}", "--segments", folder
    )
