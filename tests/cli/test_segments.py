"""`cuebook space archive|segments|drop`: old history leaves the server, and every command still finds it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import msgpack
import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.cli.runs.debugging import read_steps
from cuebook.cli.session import reading_segments
from cuebook.events.connection import connect
from cuebook.events.jetstream import NO_STREAM, js_request
from cuebook.events.log import EventLog
from cuebook.ledger.notes import PrivateKey
from cuebook.ledger.sealer import Sealer
from cuebook.projections.runner import Runner
from tests.cli import desk
from tests.cli.conftest import Cli, Start
from tests.ledger.filling import fill
from tests.projections.tables import Tables
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def keys(key: PrivateKey, tmp_path: Path) -> Path:
    key.save(tmp_path / "seal.key")
    return tmp_path / "seal.key.pub"


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey("example.com/cue", b"\x07" * 32)


@pytest.fixture
async def rolled(cli: Cli, agents: AgentHost, client: Client, key: PrivateKey, tmp_path: Path) -> EventLog:
    """Runs that have ended and one that is open, then a roll, then another run; all of it sealed."""
    for n in range(4):
        await cli.ok("run", "submit", "order", json.dumps({"n": n}), "--id", f"old{n}", "--wait")
    await cli.ok("events", "publish", "parcel.lost", '{"p": 1}')
    await cli.ok("run", "submit", "--agent", "nobody", "1", "--no-check", "--id", "open1")
    await seal(client.log, key, tmp_path)
    await cli.ok("space", "roll")
    await cli.ok("run", "submit", "order", '{"n": 9}', "--id", "new1", "--wait")
    await seal(client.log, key, tmp_path)
    return client.log


async def seal(log: EventLog, key: PrivateKey, folder: Path) -> None:
    """Have everything sealed."""
    sealer = Sealer(log, key, folder / "checkpoints", every_s=0.05)
    running = asyncio.create_task(sealer.run())
    last = (await log.verify()).last_sequence
    await eventually(lambda: sealer.sealed >= last or running.done())
    sealer.stop()
    await running


async def first_generation(log: EventLog) -> Any:
    return (await log.verify()).earlier[0]


async def readings(cli: Cli, keys: Path, tmp_path: Path, name: str, last: int) -> dict[str, Any]:
    """What every command that reads old history says, of all up to a sequence."""
    old = await cli.json("run", "show", "old1")
    sequences = [one["sequence"] for one in await cli.json("replay", "old1")]
    said: dict[str, Any] = {
        "show": old,
        "event": await cli.json("events", "show", str(sequences[1])),
        "first": await cli.json("events", "show", "1"),
        "tail": [one for one in await cli.json("events", "tail", "--from", "1") if one["sequence"] <= last],
        "run": await cli.json("events", "tail", "--run", "old1", "--from", "1"),
        "since": await cli.json("events", "tail", "--since", "1d", "--type", "run.completed"),
        "topic": await cli.json("events", "tail", "--topic", "parcel.>", "--from", "1"),
        "task": await cli.json("task", "show", "old1/0"),
        "replay": await cli.json("replay", "old1"),
        "state": await cli.json("replay", "old1", "--state"),
        "space at": await cli.json("replay", "--state", "--to", str(sequences[-1])),
        "at": await cli.json("run", "show", "old1", "--at", str(sequences[2])),
        "agents at": await cli.json("agent", "list", "--at", str(sequences[-1])),
        "diff": (await cli.run("run", "diff", "old1", "--from", str(sequences[1]), "--to", str(sequences[-1]))).stdout,
        "trace": await cli.ok("trace", "old1"),
        "check": await cli.json("saga", "check", "tests.cli.desk:order"),
    }
    for form in ("jsonl", "parquet"):
        await cli.ok("events", "export", str(tmp_path / f"{name}.{form}"), "--to", str(last))
        said[form] = (tmp_path / f"{name}.{form}").read_bytes()
    proof = tmp_path / f"{name}.proof"
    await cli.ok("audit", "prove", str(sequences[0]), str(proof))
    said["proof"] = proof.read_text()
    checkpoints = str(tmp_path / "checkpoints")
    small = Path(checkpoints).read_text().split("\n")[1]
    await cli.ok("audit", "grown", small, "--to", str(proof))
    said["grown"] = proof.read_text()
    said["verified"] = await cli.json(
        "audit", "verify", str(tmp_path / f"{name}.jsonl"), "--key", str(keys), "--checkpoint", checkpoints
    )
    return said


@pytest.mark.parametrize("where", ["bucket", "directory"])
async def test_a_dropped_generation_reads_as_before(
    cli: Cli, rolled: EventLog, keys: Path, tmp_path: Path, where: str
) -> None:
    folder = str(tmp_path / "old")
    if where == "directory":
        cli.env["CUEBOOK_SEGMENTS"] = folder
    reading_segments(rolled.connection)
    about = await first_generation(rolled)
    last = (await rolled.verify()).last_sequence
    before = await readings(cli, keys, tmp_path, "before", last)
    told = await cli.json("space", "archive", "--events", "7")
    assert (told["last"], told["unsigned"], told["events"]) == (about.last, 0, about.last)
    verified = await cli.json("space", "segments", "verify", "--key", str(keys))
    assert (verified["sound"], verified["whole"], verified["sealed"]) == (True, True, True)
    listed = await cli.json("space", "segments", "list")
    assert [one["first"] for one in listed] == list(range(1, about.last + 1, 7))
    dropped = await cli.json("space", "drop", "1", "--yes", rolled.subjects.space, "--key", str(keys))
    assert dropped["stream"] == about.stream
    gone = await js_request(rolled.connection, f"STREAM.INFO.{about.stream}", {}, none_for={NO_STREAM})
    assert gone is None
    steps = await read_steps(rolled, "old1")
    assert [item.sequence for item in steps.items] == [one["sequence"] for one in before["replay"]]
    doctor = await cli.run("doctor", "-o", "json")
    assert about.stream + " " not in doctor.stdout + doctor.stderr
    assert "not on the server" not in doctor.stdout + doctor.stderr
    after = await readings(cli, keys, tmp_path, "after", last)
    for name, value in before.items():
        assert after[name] == value, name


async def test_a_run_id_of_a_dropped_generation_is_still_taken(cli: Cli, rolled: EventLog, keys: Path) -> None:
    await cli.ok("space", "archive")
    await cli.ok("space", "drop", "1", "--yes", rolled.subjects.space, "--key", str(keys))
    last = (await rolled.verify()).last_sequence
    for given in ('{"n": 1}', '{"n": 2}'):
        assert "run old1 exists already" in await cli.fails(7, "run", "submit", "order", given, "--id", "old1")
    assert (await rolled.verify()).last_sequence == last


async def test_the_orchestrator_refuses_a_run_id_of_a_dropped_generation_and_waits_for_its_segments(
    cli: Cli, rolled: EventLog, keys: Path, orchestrator: OrchestratorService, space: str, tmp_path: Path
) -> None:
    reading_segments(orchestrator.log.connection)
    folder = tmp_path / "old"
    await cli.ok("space", "archive", "--to", str(folder))
    await cli.ok("space", "drop", "1", "--yes", space, "--key", str(keys), "--segments", str(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    await rolled.connection.request(f"{space}.run.old1.requested.order", b'{"n": 8}', timeout=30)
    await cli.ok("run", "submit", "order", '{"n": 6}', "--wait", env={"CUEBOOK_SEGMENTS": str(moved)})
    new = str((await first_generation(rolled)).last + 1)
    assert await cli.json("events", "tail", "--filter", "rejected.>", "--from", new) == []
    moved.rename(folder)

    async def refused() -> bool:
        return bool(await cli.json("events", "tail", "--filter", "rejected.>", "--from", new))

    await eventually(refused, within_s=60)


async def test_without_snapshot_and_tables_the_same_state_comes_from_segments_and_stream(
    cli: Cli,
    rolled: EventLog,
    keys: Path,
    orchestrator: OrchestratorService,
    nats_url: str,
    database_url: str,
    space: str,
) -> None:
    tables = Tables(database_url, space)
    before = await projected(nats_url, tables)
    last = (await rolled.verify()).last_sequence
    await eventually(lambda: orchestrator.core.world.position.sequence >= last)
    await cli.ok("space", "archive", "--events", "10")
    await cli.ok("space", "drop", "1", "--yes", space, "--key", str(keys))
    await orchestrator._save_snapshot()
    await rolled.connection.jetstream(timeout=30).delete_object_store(f"{space}_snapshots")
    await tables.drop()
    assert await projected(nats_url, tables) == before
    await cli.ok("projection", "rebuild", "--all", "--dry-run", "--database-url", database_url)  # 8 if any row differs
    connection = reading_segments(await connect(nats_url, name="tests standby"))
    async with connection:
        standby = OrchestratorService(connection, space, [desk.order, desk.doomed, desk.twice])
        running = asyncio.create_task(standby.run())
        await asyncio.wait([running, asyncio.ensure_future(standby.caught_up.wait())], return_when="FIRST_COMPLETED")
        await eventually(lambda: standby.core.world.position == orchestrator.core.world.position)
        live, folded = orchestrator.core.world.dump(), standby.core.world.dump()
        standby.stop()
        await running
    assert msgpack.packb(folded) == msgpack.packb(live)
    assert "open1" in {run["run_id"] for run in folded["runs"]}
    await cli.ok("run", "cancel", "open1")
    await cli.ok("run", "submit", "order", '{"n": 5}', "--id", "new2", "--wait")


async def projected(nats_url: str, tables: Tables) -> dict[str, str]:
    """What the projections make of the whole log."""
    connection = reading_segments(await connect(nats_url, name="tests projections"))
    async with connection, EventLog(connection, tables.space, source="projections") as log:
        last = (await log.verify()).last_sequence
        runner = Runner(log, tables.url)
        running = asyncio.create_task(runner.run())

        await eventually(
            lambda: running.done() or {one.sequence for one in runner.status().positions.values()} == {last}
        )
        runner.drain()
        await running
    return await tables.dump()


async def test_generations_are_dropped_one_after_the_other(
    cli: Cli, rolled: EventLog, keys: Path, key: PrivateKey, tmp_path: Path, space: str
) -> None:
    said = {f"old{n}": await cli.json("run", "show", f"old{n}") for n in range(4)}
    said["new1"] = await cli.json("run", "show", "new1")
    tail = await cli.json("events", "tail", "--from", "1")
    await cli.ok("space", "roll")
    await cli.ok("run", "submit", "order", '{"n": 3}', "--id", "newer1", "--wait")
    reading_segments(rolled.connection)
    await seal(rolled, key, tmp_path)
    await cli.ok("space", "archive")
    drop = ("space", "drop", "--yes", space, "--key", str(keys))
    assert "drop that one first: cuebook space drop 1" in await cli.fails(1, *drop, "2")
    await cli.ok(*drop, "1")
    await cli.ok(*drop, "2")
    shown = await cli.json("space", "show")
    assert [one["state"] for one in shown["generations"]] == ["in segments", "in segments", "current"]
    assert {name: await cli.json("run", "show", name) for name in said} == said
    assert (await cli.json("events", "tail", "--from", "1"))[: len(tail)] == tail
    await cli.ok("run", "fork", "old1/0", "--id", "fork1")
    await cli.ok("run", "cancel", "open1")
    await seal(rolled, key, tmp_path)
    copy = tmp_path / "copy"
    await cli.ok("space", "archive", "--to", str(copy))
    told = await cli.json("audit", "verify", str(copy), "--key", str(keys))
    assert (told["sound"], told["sealed"], told["whole"]) == (True, True, True)
    assert told["last"] == shown["generations"][1]["last"]


async def test_what_reads_while_a_stream_is_dropped_goes_on(cli: Cli, rolled: EventLog, keys: Path, space: str) -> None:
    reading_segments(rolled.connection)
    first = await rolled.at(1)
    await cli.ok("space", "archive")
    await cli.ok("space", "drop", "1", "--yes", space, "--key", str(keys))
    assert await rolled.at(1) == first


COMES_NO_FURTHER = """
import asyncio
import os
from cuebook.ledger.segments.store import DirectoryStore

put = DirectoryStore.put

async def put_some(self, name, data):
    while len(list(self.path.glob("*.json"))) >= int(os.environ["SEGMENTS"]):
        await asyncio.sleep(0.01)
    await put(self, name, data)

DirectoryStore.put = put_some
"""
"""In a process: no segment is complete after the first so many."""


async def test_archiving_that_was_killed_goes_on(cli: Cli, log: EventLog, start: Start, tmp_path: Path) -> None:
    await fill(log, 3_000)
    folder, words = tmp_path / "killed", ("space", "archive", "--before", "3001", "--unsigned", "--events", "100")
    async with start(*words, "--to", str(folder), first=COMES_NO_FURTHER, SEGMENTS="3") as program:
        await eventually(lambda: len(list(folder.glob("*.json"))) == 3, within_s=60)
        program.send(signal.SIGKILL)
        await program.ends()
    assert (await cli.json("space", "segments", "verify", "--segments", str(folder)))["sound"]
    async with start(*words, "--to", str(folder), first=COMES_NO_FURTHER, SEGMENTS="6") as program:
        await eventually(lambda: len(list(folder.glob("*.json"))) == 6, within_s=60)
        program.send(signal.SIGINT)
        assert await program.ends() == 9
        assert (
            f"go on with: cuebook space archive --before 3001 --to {folder} --events 100 --unsigned" in program.errors
        )
    await cli.ok(*words, "--to", str(folder))
    await cli.ok(*words, "--to", str(tmp_path / "at once"))
    names = sorted(path.name for path in (tmp_path / "at once").glob("0*"))
    assert len(names) == 90
    assert names == sorted(path.name for path in folder.glob("0*"))
    assert all((folder / name).read_bytes() == (tmp_path / "at once" / name).read_bytes() for name in names)
    assert not list(folder.glob("*.part"))


async def test_offline_a_segment_and_a_directory_are_verified_with_the_key_alone(
    cli: Cli, rolled: EventLog, keys: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    await cli.ok("space", "archive", "--to", str(folder), "--events", "10")
    nowhere = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    checkpoints = str(tmp_path / "checkpoints")
    told = await cli.json("audit", "verify", str(folder), "--key", str(keys), "--checkpoint", checkpoints, env=nowhere)
    assert (told["sound"], told["sealed"], told["whole"]) == (True, True, True)
    one = sorted(folder.glob("*.gz"))[1]
    told = await cli.json("audit", "verify", str(one), "--key", str(keys), env=nowhere)
    assert (told["sound"], told["sealed"], told["first"], told["count"]) == (True, True, 11, 10)
    data = bytearray(one.read_bytes())
    data[40] ^= 1
    one.write_bytes(data)
    said = await cli.fails(8, "audit", "verify", str(folder), "--key", str(keys), env=nowhere)
    assert "altered: sequences 11 to 20" in said
    one.unlink()
    said = await cli.fails(8, "audit", "verify", str(folder), "--key", str(keys), env=nowhere)
    assert f"{one.name} is not in" in said
    for path in folder.glob("000000000011*"):
        path.unlink()
    assert "missing: sequences 11 to 20" in await cli.fails(8, "space", "segments", "verify", "--segments", str(folder))


async def test_nothing_is_dropped_that_is_not_in_verified_segments(
    cli: Cli, rolled: EventLog, keys: Path, tmp_path: Path, space: str
) -> None:
    about = await first_generation(rolled)
    folder = tmp_path / "old"
    cli.env["CUEBOOK_SEGMENTS"] = str(folder)
    drop = ("space", "drop", "1", "--yes", space, "--key", str(keys))
    assert "cannot be read" in await cli.fails(1, *drop)
    await cli.ok("space", "archive", "--before", "12", "--events", "5")
    assert f"sequences 12 to {about.last} of generation 1 are in no segment" in await cli.fails(1, *drop)
    await cli.ok("space", "archive", "--events", "5")
    one = sorted(folder.glob("*.gz"))[1]
    whole = one.read_bytes()
    one.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "nothing was removed" in await cli.fails(8, *drop)
    one.write_bytes(whole)
    assert f"say --yes {space}" in await cli.fails(2, "space", "drop", "1", "--key", str(keys))
    assert "names another space" in await cli.fails(2, "space", "drop", "1", "--yes", "other", "--key", str(keys))
    assert "--unsigned" in await cli.fails(2, "space", "drop", "1", "--yes", space)
    assert "is the current one" in await cli.fails(1, "space", "drop", "2", "--yes", space, "--key", str(keys))
    assert "has no generation 7" in await cli.fails(3, "space", "drop", "7", "--yes", space, "--key", str(keys))
    assert (await rolled.at(1)) is not None
    assert await js_request(rolled.connection, f"STREAM.INFO.{about.stream}", {}) is not None
    await cli.ok(*drop)
    assert "was dropped before" in await cli.fails(3, *drop)


async def test_who_has_no_access_to_the_segments_is_told_what_to_set(
    cli: Cli, rolled: EventLog, keys: Path, tmp_path: Path, space: str
) -> None:
    about = await first_generation(rolled)
    folder = tmp_path / "old"
    await cli.ok("space", "archive", "--to", str(folder))
    await cli.ok("space", "drop", "1", "--yes", space, "--key", str(keys), "--segments", str(folder))
    assert (await cli.json("run", "show", "old1"))["run_id"] == "old1"
    moved = folder.rename(tmp_path / "elsewhere")
    said = await cli.fails(5, "events", "show", "1")
    assert f"sequences 1 to {about.last} of space '{space}' are only in segments, in directory {folder} on host" in said
    assert "--segments DIR, or CUEBOOK_SEGMENTS" in said
    assert (await cli.json("--segments", str(moved), "events", "show", "1"))["sequence"] == 1
    last = (await rolled.verify()).last_sequence
    assert (await cli.json("events", "tail", "--from", str(about.last + 1)))[-1]["sequence"] == last


async def test_without_a_sealer_one_is_told_how_segments_are_proved(
    cli: Cli, log: EventLog, key: PrivateKey, keys: Path, tmp_path: Path
) -> None:
    await fill(log, 50)
    archive = ("space", "archive", "--before", "51", "--to", str(tmp_path / "old"))
    assert "was ever sealed" in await cli.fails(2, *archive)
    result = await cli.run(*archive, "--unsigned")
    assert result.exit_code == 0
    assert "warning: 1 segments are not signed" in result.stderr
    verify = ("space", "segments", "verify", "--segments", str(tmp_path / "old"), "--key", str(keys))
    assert "not signed" in await cli.fails(1, *verify)
    assert "unsigned" in await cli.ok("space", "segments", "list", "--segments", str(tmp_path / "old"))
    told = await cli.json(*archive, "--key", str(tmp_path / "seal.key"))
    assert (told["written"], told["proved"], told["unsigned"]) == (0, 1, 0)
    assert (await cli.json(*verify))["sealed"]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["archive"], 2, "was never rolled"),
        (["archive", "--generation", "1"], 2, "still grows"),
        (["archive", "--generation", "4"], 3, "no generation 4"),
        (["archive", "--before", "99999"], 2, "in the future"),
        (["archive", "--before", "1"], 2, "nothing was recorded before 1"),
        (["archive", "--before", "5", "--generation", "1"], 2, "say one of them"),
        (["segments", "list"], 3, "there are no segments in bucket"),
        (["segments", "verify"], 3, "there are no segments in bucket"),
        (["segments", "list", "--segments", "/no/such/folder"], 1, "cannot be read"),
    ],
)
async def test_what_cannot_be_meant_is_refused_in_a_sentence(
    cli: Cli, log: EventLog, words: list[str], status: int, says: str
) -> None:
    await fill(log, 20)
    said = await cli.fails(status, "space", *words)
    assert says in said
    assert said.startswith("error: ")
    assert "\nfix: " in said
