"""`cuebook audit`: verifying, proving and searching, as an operator, an auditor and a third party do it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.ledger.notes import PrivateKey, read_notes
from tests.cli.conftest import Cli, Start, reaches
from tests.commands import started
from tests.ledger.test_sealer import sealing as ledger_sealing
from tests.projections.tables import Tables
from tests.waiting import eventually


class Sealed:
    """A log with two runs and all of it sealed; the folder with key, checkpoints and an export."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last = folder, last
        self.key, self.public = str(folder / "seal.key"), str(folder / "seal.key.pub")
        self.checkpoints, self.export = str(folder / "cue.checkpoints"), str(folder / "all.jsonl")

    @property
    def with_checkpoints(self) -> tuple[str, ...]:
        return ("--key", self.public, "--checkpoint", self.checkpoints)


@contextlib.asynccontextmanager
async def sealing(start: Start, sealed: Sealed, last: int) -> AsyncIterator[Any]:
    words = ("--key", sealed.key, "--file", sealed.checkpoints, "--every", "4", "--every-s", "0.05")
    async with start("serve", "sealer", *words) as program:
        await program.says("ready origin=example.com/desk")
        await eventually(lambda: f"\n{last}\n" in Path(sealed.checkpoints).read_text(), within_s=60)
        yield program


@pytest.fixture
async def sealed(cli: Cli, agents: AgentHost, log: EventLog, start: Start, tmp_path: Path) -> Sealed:
    for n, run_id in ((1, "o1"), (13, "o13")):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", run_id, "--wait")
    found = Sealed(tmp_path, (await log.verify()).last_sequence)
    printed = await cli.ok("audit", "key", found.key, "--name", "example.com/desk")
    assert printed == Path(found.public).read_text()
    with_rest = found.last - found.last % 4
    key, file = PrivateKey.load(Path(found.key)), Path(found.checkpoints)
    async with ledger_sealing(log, key, file, every=4, every_s=1000) as sealer:  # these are at multiples alone
        await eventually(lambda: sealer.sealed == with_rest)
    async with sealing(start, found, found.last) as program:
        program.send(signal.SIGTERM)
        assert await program.ends() == 0
    await cli.ok("events", "export", found.export)
    return found


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
async def test_an_export_is_verified_with_nothing_but_key_and_checkpoints(
    cli: Cli, sealed: Sealed, name: str, tmp_path: Path
) -> None:
    export = str(tmp_path / f"again.{name}")
    await cli.ok("events", "export", export)
    offline = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    report = await cli.json("audit", "verify", export, *sealed.with_checkpoints, env=offline)
    assert (report["sound"], report["sealed_to"], report["count"]) == (True, sealed.last, sealed.last)
    assert report["checkpoints"][:2] == [4, 8]
    if name == "jsonl":
        piped = Path(export).read_text()
        assert report == await cli.json("audit", "verify", "-", *sealed.with_checkpoints, stdin=piped)
    said = await cli.ok("audit", "verify", export, *sealed.with_checkpoints, env=offline)
    assert "unaltered" in said
    assert f"up to sequence {sealed.last}" in said


async def test_an_altered_export_is_named_and_ends_with_status_8(cli: Cli, sealed: Sealed) -> None:
    lines = Path(sealed.export).read_bytes().splitlines(keepends=True)
    line = lines[5]
    lines[5] = line.replace(b'"body":"', b'"body":"A', 1)
    forged = sealed.folder / "forged.jsonl"
    forged.write_bytes(b"".join(lines))
    said = await cli.fails(8, "audit", "verify", str(forged), *sealed.with_checkpoints)
    assert "altered: sequence 5: its sum does not fit (line 6)" in said
    # With its sum corrected, and that of the whole: only the checkpoints tell.
    start = lines[5][: -len(b',"sum":"' + b"0" * 64 + b'"}\n')].replace(b'"body":"A', b'"body":"', 1)
    time = json.loads(line)["recorded_ns"]
    start = start.replace(time.encode(), str(int(time) + 1).encode())
    lines[5] = start + b',"sum":"' + hashlib.sha256(start).hexdigest().encode() + b'"}\n'
    end = json.loads(lines[-1])
    whole = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    tail = lines[-1].replace(end["sha256"].encode(), whole.encode())
    tail = tail[: -len(b',"sum":"' + b"0" * 64 + b'"}\n')]
    lines[-1] = tail + b',"sum":"' + hashlib.sha256(tail).hexdigest().encode() + b'"}\n'
    forged.write_bytes(b"".join(lines))
    report = json.loads((await cli.run("audit", "verify", str(forged), *sealed.with_checkpoints, "-o", "json")).stdout)
    assert not report["sound"]
    assert (report["findings"][0]["first"], report["findings"][0]["last"]) == (5, 8)


async def test_what_cannot_be_held_against_a_checkpoint_says_so(cli: Cli, sealed: Sealed, tmp_path: Path) -> None:
    part = str(tmp_path / "part.jsonl")
    await cli.ok("events", "export", part, "--run", "o13", "--run", "o1")
    said = await cli.fails(1, "audit", "verify", part, *sealed.with_checkpoints)
    assert "could not be held against a checkpoint: it leaves messages out" in said
    assert "not looked at" in await cli.ok("audit", "verify", part)
    await cli.ok("events", "export", str(tmp_path / "range.jsonl"), "--from", "6", "--to", "14")
    report = await cli.json("audit", "verify", str(tmp_path / "range.jsonl"), *sealed.with_checkpoints)
    assert report["checkpoints"] == [8, 12]
    assert "say --checkpoint" in await cli.fails(2, "audit", "verify", part, "--key", sealed.public)
    assert "without the public key" in await cli.fails(2, "audit", "verify", part, "--checkpoint", sealed.checkpoints)
    other = str(tmp_path / "other.key")
    await cli.ok("audit", "key", other, "--name", "example.com/desk")
    said = await cli.fails(8, "audit", "verify", part, "--key", f"{other}.pub", "--checkpoint", sealed.checkpoints)
    assert "has not signed" in said
    assert "holds no checkpoint" in await cli.fails(
        2, "audit", "verify", part, "--key", sealed.public, "--checkpoint", sealed.public
    )


async def test_an_event_is_proved_to_a_third_party(cli: Cli, sealed: Sealed, tmp_path: Path) -> None:
    event = (await cli.json("replay", "o13"))[2]
    proof = str(tmp_path / "x.tlog-proof")
    told = await cli.json("audit", "prove", event["id"], proof)
    assert told["sequence"] == event["sequence"]
    checked = await cli.json("audit", "check-proof", proof, "--key", sealed.public)
    assert (checked["proves"], checked["sequence"], checked["subject"]) == (
        "inclusion", event["sequence"], event["subject"],
    )  # fmt: skip
    assert checked["view"]["id"] == event["id"]
    offline = str(tmp_path / "y.tlog-proof")
    words = ("--export", sealed.export, *sealed.with_checkpoints)
    await cli.ok(
        "audit", "prove", str(event["sequence"]), offline, *words, env={"CUEBOOK_NATS_URL": "nats://nowhere:1"}
    )
    assert Path(offline).read_bytes() == Path(proof).read_bytes()
    await cli.ok("audit", "prove", event["id"], offline, *words)
    assert Path(offline).read_bytes() == Path(proof).read_bytes()
    assert by_hand(Path(proof).read_text()) == event["sequence"]
    changed = bytearray(Path(proof).read_bytes())
    for place in range(0, len(changed), 7):
        changed[place] ^= 1
        Path(proof).write_bytes(changed)
        result = await cli.run("audit", "check-proof", proof, "--key", sealed.public)
        assert result.exit_code in (2, 8), (place, result.stdout)
        changed[place] ^= 1


def by_hand(text: str) -> int:
    """What docs/audit.md says a third party does, except for the signature."""
    head, _, note = text.partition("\n\n")
    _, extra, index, *path = head.split("\n")
    data = base64.b64decode(extra.removeprefix("extra "))
    node, last = int(index.removeprefix("index ")), int(note.split("\n")[1]) - 1
    root = hashlib.sha256(b"\0" + data).digest()
    for step in map(base64.b64decode, path):
        if node % 2 or node == last:
            root = hashlib.sha256(b"\1" + step + root).digest()
            while node % 2 == 0 and node:
                node, last = node // 2, last // 2
        else:
            root = hashlib.sha256(b"\1" + root + step).digest()
        node, last = node // 2, last // 2
    assert last == 0
    assert base64.b64encode(root).decode() == note.split("\n")[2]
    return int.from_bytes(data[16:24], "big")


async def test_a_log_is_proved_to_have_only_grown(cli: Cli, sealed: Sealed, tmp_path: Path) -> None:
    proof = str(tmp_path / "x.consistency-proof")
    await cli.ok("audit", "grown", "4", "12", "--to", proof)
    checked = await cli.json("audit", "check-proof", proof, "--key", sealed.public)
    assert (checked["proves"], checked["checkpoint"], checked["grew_to"]) == ("consistency", 4, 12)
    await cli.ok("audit", "grown", "8", "--to", proof, "--export", sealed.export, *sealed.with_checkpoints)
    assert (await cli.json("audit", "check-proof", proof, "--key", sealed.public))["grew_to"] == sealed.last
    text = Path(proof).read_text().split("\n")
    Path(proof).write_text("\n".join([text[0], text[2], text[1], *text[3:]]))
    assert "does not lead from" in await cli.fails(8, "audit", "check-proof", proof, "--key", sealed.public)
    assert "no checkpoint of 5 messages" in await cli.fails(3, "audit", "grown", "5", "--to", proof)
    assert "smaller one first" in await cli.fails(2, "audit", "grown", "12", "4", "--to", proof)


async def test_what_is_not_sealed_or_not_there_cannot_be_proved(cli: Cli, sealed: Sealed, log: EventLog) -> None:
    await cli.ok("events", "publish", "parcel.lost", "{}")
    last = (await log.verify()).last_sequence
    assert "in no checkpoint yet" in await cli.fails(3, "audit", "prove", str(last), "-")
    assert "no message at sequence" in await cli.fails(3, "audit", "prove", str(last + 1), "-")
    assert "cannot be read" in await cli.fails(2, "audit", "check-proof", "/none", "--key", sealed.public)
    assert "no inclusion proof" in await cli.fails(2, "audit", "check-proof", sealed.export, "--key", sealed.public)
    assert "say --checkpoint" in await cli.fails(2, "audit", "prove", "3", "-", "--export", sealed.export)


async def test_a_rewritten_log_proves_nothing_and_its_sealer_stops(
    cli: Cli, sealed: Sealed, log: EventLog, start: Start, orchestrator: OrchestratorService
) -> None:
    orchestrator.stop()  # who would notice too, and raise
    await asyncio.wait([task for task in asyncio.all_tasks() if task.get_name() == "orchestrator"])
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    await log.ensure()
    for _ in range(sealed.last):
        await log.connection.request(f"{log.subjects.space}.event.parcel.lost", b"{}", timeout=30)
    assert "are not those that were signed" in await cli.fails(8, "audit", "prove", "5", "-")
    assert "are not those that were signed" in await cli.fails(8, "audit", "grown", "4", "8", "--to", "-")
    await cli.ok("events", "export", sealed.export)
    said = await cli.fails(8, "audit", "verify", sealed.export, *sealed.with_checkpoints)
    assert "altered: sequences 1 to 4: the tree of 4 messages is not the one that was signed" in said
    async with start("serve", "sealer", "--key", sealed.key, "--file", sealed.checkpoints) as program:
        assert await program.ends() == 8
        assert f"holds another message at {sealed.last} than was sealed" in program.errors


async def test_checkpoints_come_from_the_stream_as_the_file_has_them(cli: Cli, sealed: Sealed) -> None:
    text = Path(sealed.checkpoints).read_text()
    assert await cli.ok("audit", "checkpoints", "--key", sealed.public) == text
    last = await cli.ok("audit", "checkpoints", "--last")
    assert last == text[-len(last) :]
    assert last.split("\n")[1] == str(sealed.last)


async def test_nothing_sealed_says_so(cli: Cli, log: EventLog) -> None:
    assert "nothing of space" in await cli.fails(3, "audit", "checkpoints")


async def test_an_import_is_proved_and_verified_like_its_origin(
    cli: Cli, sealed: Sealed, space: str, tmp_path: Path
) -> None:
    await cli.ok("events", "import", sealed.export, "--reroot", "--space", f"{space}-b")
    there = ("--space", f"{space}-b")
    await cli.ok("events", "export", str(tmp_path / "again.jsonl"), *there)
    report = await cli.json("audit", "verify", str(tmp_path / "again.jsonl"), *sealed.with_checkpoints)
    assert report["sealed_to"] == sealed.last
    await cli.ok("audit", "prove", "5", str(tmp_path / "here"))
    await cli.ok("audit", "prove", "5", str(tmp_path / "there"), *there, *sealed.with_checkpoints)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


async def test_a_sealer_killed_and_started_again_goes_on(cli: Cli, sealed: Sealed, log: EventLog, start: Start) -> None:
    for _ in range(3):
        for _ in range(5):
            await cli.ok("events", "publish", "parcel.lost", "{}")
        async with sealing(start, sealed, (await log.verify()).last_sequence) as program:
            program.send(signal.SIGKILL)
            await program.process.wait()
    await cli.ok("events", "export", sealed.export)
    report = await cli.json("audit", "verify", sealed.export, *sealed.with_checkpoints)
    assert report["sealed_to"] == sealed.last + 15


async def test_the_sealer_needs_a_key_that_is_its_own(cli: Cli, start: Start, log: EventLog, tmp_path: Path) -> None:
    async with start("serve", "sealer") as program:
        assert await program.ends() == 2
        assert "cuebook audit key FILE" in program.errors
    key = tmp_path / "k"
    await cli.ok("audit", "key", str(key))
    key.chmod(0o644)
    async with start("serve", "sealer", "--key", str(key)) as program:
        assert await program.ends() == 2
        assert "can be read by others" in program.errors


async def test_the_audit_log_is_searched_by_who_what_when_why_and_conversation(
    cli: Cli, sealed: Sealed, log: EventLog, client: Client, start: Start, database_url: str
) -> None:
    env = {"CUEBOOK_DATABASE_URL": database_url}
    await cli.ok("run", "submit", "--agent", "nobody", "1", "--no-check", "--id", "c1")
    await cli.ok("run", "cancel", "c1", "--by", "berta", "--reason", "by mistake")
    await reaches(client, "c1", "cancelled")

    async def found(*words: str) -> list[Any]:
        rows: list[Any] = await cli.json("audit", "search", *words, env=env)
        return rows

    async with start("serve", "projections", **env) as program:
        await program.says("ready")
        last = (await log.verify()).last_sequence
        await eventually(lambda: is_audited(database_url, log.subjects.space, last))
        program.send(signal.SIGTERM)
        await program.ends()
    everything = await found("--run", "o13", "--oldest", "-n", "1000")
    assert [one["sequence"] for one in everything] == [one["sequence"] for one in await cli.json("replay", "o13")]
    cause = everything[0]["event_id"]
    assert {one["causation_id"] for one in await found("--why", cause)} == {cause}
    assert {one["correlation_id"] for one in await found("--correlation", cause)} == {everything[0]["correlation_id"]}
    assert {one["event_type"] for one in await found("--what", "task.completed")} == {"task.completed.v1"}
    assert {one["event_type"].partition(".")[0] for one in await found("--what", "run.*")} == {"run"}
    assert any(one["run_id"] == "c1" for one in await found("--who", "berta"))
    assert {one["agent"] for one in await found("--who", "echo")} == {"echo"}
    assert [one["event_id"] for one in await found("--event", cause)] == [cause]
    assert await found("--until", everything[0]["recorded_at"], "--run", "o13") == []
    assert len(await found("--since", "1h", "--subject", f"{log_space(cli)}.run.o13.completed")) == 0
    assert (await found("--contains", '{"reason": "by mistake"}'))[0]["run_id"] == "c1"
    assert "RECORDED" in await cli.ok("audit", "search", "--run", "o13", env=env)
    assert "still to come" in await cli.fails(2, "audit", "search", "--since", "2199-01-01T00:00Z", env=env)
    assert "exchange them" in await cli.fails(2, "audit", "search", "--since", "1h", "--until", "2h", env=env)
    assert "searched in PostgreSQL" in await cli.fails(1, "audit", "search")


async def is_audited(database_url: str, space: str, last: int) -> bool:
    rows = await Tables(database_url, space).rows(
        "SELECT 1 FROM checkpoints WHERE projection = 'audit' AND sequence >= %s", last
    )
    return bool(rows)


def log_space(cli: Cli) -> str:
    return cli.env["CUEBOOK_SPACE"]


def test_dev_seals_its_log(tmp_path: Path) -> None:
    ports = ("--nats-port", "0", "--postgres-port", "0")
    with started("dev", *ports, cwd=tmp_path) as dev:
        dev.line("Ctrl-C stops everything")
        if not any("cuebook.ledger.sealer: sealing" in line for line in dev.lines):
            dev.line("cuebook.ledger.sealer: sealing")
        done = subprocess.run(
            [sys.executable, "-m", "cuebook.cli.main", "events", "publish", "parcel.lost", "{}"],
            env={**os.environ, **dev.exported()},
            check=True,
        )
        assert done.returncode == 0
        dev.interrupt()
        dev.end()
    folder = tmp_path / ".cuebook" / "seals"
    key = PrivateKey.load(folder / "cue.key")
    notes, rest = read_notes((folder / "cue.checkpoints").read_text())
    assert rest == ""
    assert key.public.checkpoint(notes[-1]).size >= 1
