"""`cuebook events export|import`: byte for byte there and back, and nothing happens by it."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.events.connection import connect
from cuebook.events.errors import ConfigurationError
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from tests.cli import desk
from tests.cli.conftest import Cli
from tests.waiting import eventually

FORMATS = ["jsonl", "parquet"]


@pytest.fixture
async def history(cli: Cli, agents: AgentHost, client: Client) -> EventLog:
    """Two runs that have ended and one request that nobody will ever do, a foreign message and an unreadable one."""
    await cli.run("run", "submit", "order", '{"n": 1}', "--id", "o1", "--wait")
    await cli.run("run", "submit", "order", '{"n": 13}', "--id", "o13", "--wait")
    await cli.ok("run", "submit", "--agent", "nobody", "1", "--no-check", "--id", "open1")
    connection, space = client.log.connection, client.log.subjects.space
    ce = {"ce-id": "c-1", "ce-type": "parcel.lost", "ce-source": "/post", "ce-specversion": "1.0"}
    await connection.request(f"{space}.event.parcel.lost", b'{"p": 1}', headers=ce, timeout=30)
    await connection.request(
        f"{space}.event.parcel.lost", b'{"p": 1}', headers={**ce, "Nats-Msg-Id": "same"}, timeout=30
    )
    connection.write(b"PUB %b.event.odd.\xff\xfe 4\r\n\x93\xff\x00\r\r\n" % space.encode())
    await connection.flush()

    async def refused() -> bool:
        return bool(await cli.json("events", "tail", "--filter", "rejected.>"))

    await eventually(refused)  # the orchestrator's last word
    return client.log


async def exported(cli: Cli, path: Path, *words: str, **options: Any) -> bytes:
    await cli.ok("events", "export", str(path), *words, **options)
    return path.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
async def test_export_import_export_is_identical(
    cli: Cli, history: EventLog, tmp_path: Path, name: str, space: str
) -> None:
    first = await exported(cli, tmp_path / f"first.{name}")
    told = await cli.json("events", "import", str(tmp_path / f"first.{name}"), "--reroot", "--space", f"{space}-b")
    facts = await history.verify()
    assert told["keeps_sequences"]
    assert (told["count"], told["last_sequence"]) == (facts.messages, facts.last_sequence)
    assert await exported(cli, tmp_path / f"second.{name}", "--space", f"{space}-b") == first
    other = FORMATS[1 - FORMATS.index(name)]
    assert await exported(cli, tmp_path / f"third.{other}", "--space", f"{space}-b") == await exported(
        cli, tmp_path / f"fourth.{other}"
    )


async def test_a_part_with_gaps_comes_back_as_it_was(cli: Cli, history: EventLog, tmp_path: Path, space: str) -> None:
    first = await exported(cli, tmp_path / "first.jsonl", "--run", "o13", "--topic", "parcel.>")
    lines = [json.loads(line) for line in first.splitlines()]
    original = await cli.json("replay", "o13")
    assert [one["sequence"] for one in lines[1:-1]][: len(original)] == [one["sequence"] for one in original]
    told = await cli.json("events", "import", str(tmp_path / "first.jsonl"), "--reroot", "--space", f"{space}-b")
    assert not told["keeps_sequences"]
    assert await exported(cli, tmp_path / "second.jsonl", "--space", f"{space}-b") == first
    middle = original[3]["sequence"]
    await cli.ok("events", "export", str(tmp_path / "range.jsonl"), "--from", str(middle))
    await cli.ok("events", "import", str(tmp_path / "range.jsonl"), "--reroot", "--space", f"{space}-c")
    assert (await cli.json("events", "tail", "-n", "1000", "--space", f"{space}-c"))[0]["sequence"] == middle
    assert (
        await exported(cli, tmp_path / "again.jsonl", "--space", f"{space}-c")
        == (tmp_path / "range.jsonl").read_bytes()
    )


async def test_an_import_shows_what_was_when_it_was(cli: Cli, history: EventLog, tmp_path: Path, space: str) -> None:
    await exported(cli, tmp_path / "all.jsonl")
    await cli.ok("events", "import", str(tmp_path / "all.jsonl"), "--reroot", "--space", f"{space}-b")
    there = ("--space", f"{space}-b")

    def elsewhere(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        def renamed(name: str, value: Any) -> Any:
            return value.replace(f"{space}.", f"{space}-b.", 1) if name in ("subject", "unreadable") else value

        return [{name: renamed(name, value) for name, value in one.items()} for one in events]

    everything = await cli.json("replay")
    assert await cli.json("replay", *there) == elsewhere(everything)
    assert (await cli.json("run", "show", "o13", *there))["status"] == "compensated"
    middle = everything[4]["recorded_at"]
    assert await cli.json("replay", "--to", middle, *there) == elsewhere(await cli.json("replay", "--to", middle))
    assert await cli.json("replay", "--from", middle, *there) == elsewhere(everything[4:])


async def test_nothing_drives_or_changes_an_import(
    cli: Cli, history: EventLog, tmp_path: Path, nats_url: str, space: str
) -> None:
    await exported(cli, tmp_path / "all.jsonl")
    heard: list[bytes] = []
    listener = await history.connection.listen(
        f"live.{space}-b.>", lambda subject, reply, body, headers: heard.append(subject)
    )
    await cli.ok("events", "import", str(tmp_path / "all.jsonl"), "--reroot", "--space", f"{space}-b")
    await history.connection.flush()
    assert heard == []
    await listener.close()
    there = ("--space", f"{space}-b")
    last = (await cli.json("events", "tail", "-n", "1", *there))[0]["sequence"]
    connection = await connect(nats_url, name="tests")
    with pytest.raises(ConfigurationError, match="is a recording"):
        await OrchestratorService(connection, f"{space}-b", [desk.order]).run()
    with pytest.raises(ConfigurationError, match="is a recording"):
        await AgentHost(connection, f"{space}-b", [desk.Echo]).run()
    assert "recording" in await cli.fails(1, "run", "submit", "--agent", "echo", "1", "--no-check", *there)
    answer = await connection.request(f"{space}-b.event.x", b"1", timeout=30)
    assert b"sealed" in answer.data
    await connection.close()
    assert (await cli.json("events", "tail", "-n", "1", *there))[0]["sequence"] == last


async def test_live_effects_must_be_spelled_out_and_then_open_work_is_done(
    cli: Cli, history: EventLog, tmp_path: Path, nats_url: str, space: str
) -> None:
    await exported(cli, tmp_path / "all.jsonl")
    there = f"{space}-b"
    connection = await connect(nats_url, name="tests")
    async with EventLog(connection, there, source="tests") as log:
        await log.ensure()
        words = ("events", "import", str(tmp_path / "all.jsonl"), "--reroot", "--space", there)
        assert "say --live-effects" in await cli.fails(1, *words)
        assert (await log.verify()).messages == 0
        service = OrchestratorService(connection, there, [])
        running = asyncio.create_task(service.run())
        await eventually(service.deciding.is_set)
        assert "an orchestrator decides" in await cli.fails(1, *words, "--live-effects")
        service.stop()
        await running
        assert (await log.verify()).messages == 0
        await cli.ok(*words, "--live-effects")
        service = OrchestratorService(connection, there, [desk.order])
        running = asyncio.create_task(service.run())
        await asyncio.wait([running, asyncio.ensure_future(service.deciding.wait())], return_when="FIRST_COMPLETED")
        assert (await cli.json("run", "show", "open1", "--space", there))["status"] in ("requested", "running")
        client = Client(connection, there, by="tests")
        async with client:
            await client.cancel("open1")
            assert (await client.wait("open1", timeout_s=60)).status == "cancelled"
        service.stop()
        await running
        assert "holds" in await cli.fails(1, *words, "--live-effects")
    await connection.close()
    parts = ("events", "export", str(tmp_path / "part.jsonl"), "--run", "o1", "--topic", "parcel.lost")
    await cli.ok(*parts)
    refused = await cli.fails(
        1, "events", "import", str(tmp_path / "part.jsonl"), "--reroot", "--space", f"{space}-c", "--live-effects"
    )
    assert "leaves messages out" in refused


async def test_subjects_are_renamed_only_when_asked_for(
    cli: Cli, history: EventLog, tmp_path: Path, space: str
) -> None:
    await exported(cli, tmp_path / "all.jsonl")
    refused = await cli.fails(1, "events", "import", str(tmp_path / "all.jsonl"), "--space", f"{space}-b")
    assert f"is of space '{space}'" in refused
    assert "--reroot" in refused
    assert "already" in await cli.fails(1, "events", "import", str(tmp_path / "all.jsonl"))


async def test_an_interrupted_import_goes_on_where_it_was(
    cli: Cli, history: EventLog, tmp_path: Path, space: str
) -> None:
    first = await exported(cli, tmp_path / "all.jsonl")
    words = ("events", "import", str(tmp_path / "all.jsonl"), "--reroot", "--space", f"{space}-b")
    await cli.ok(*words)
    # The same import, cut off after three messages: its stream, unsealed.
    info = await js_request(history.connection, f"STREAM.INFO.{space.upper()}-B", {})
    messages = [
        (await js_request(history.connection, f"STREAM.MSG.GET.{space.upper()}-B", {"seq": n}))["message"]
        for n in (1, 2, 3)
    ]
    await js_request(history.connection, f"STREAM.DELETE.{space.upper()}-B", {})
    config = {name: value for name, value in info["config"].items() if name != "sealed"}
    await js_request(history.connection, f"STREAM.CREATE.{space.upper()}-B", config)
    for one in messages:
        block, body = base64.b64decode(one["hdrs"]), base64.b64decode(one.get("data", ""))
        inbox = history.connection.new_inbox()
        answer = await history.connection.subscribe(inbox)
        place = b"%b %b" % (one["subject"].encode(), inbox.encode())
        history.connection.write(b"HPUB %b %d %d\r\n%b%b\r\n" % (place, len(block), len(block + body), block, body))
        assert b'"seq"' in (await answer.next_msg(timeout=30)).data
    told = await cli.json(*words)
    assert told["stored_before"] == 3
    assert await exported(cli, tmp_path / "second.jsonl", "--space", f"{space}-b") == first
    assert (await cli.json(*words))["stored_before"] == told["count"]


@pytest.mark.parametrize("name", FORMATS)
async def test_a_damaged_export_is_not_imported_at_all(
    cli: Cli, history: EventLog, tmp_path: Path, name: str, space: str
) -> None:
    whole = await exported(cli, tmp_path / f"all.{name}")
    there = ("--reroot", "--space", f"{space}-b")
    bad = tmp_path / f"bad.{name}"
    bad.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in await cli.fails(2, "events", "import", str(bad), *there)
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 1
    bad.write_bytes(changed)
    assert "altered: sequence" in await cli.fails(2, "events", "import", str(bad), *there)
    assert "no stream" in await cli.fails(3, "events", "tail", "--space", f"{space}-b")


async def test_what_is_no_export_is_refused_in_one_sentence(cli: Cli, history: EventLog, tmp_path: Path) -> None:
    whole = (await exported(cli, tmp_path / "all.jsonl")).splitlines(keepends=True)
    bad = tmp_path / "bad.jsonl"
    cases = {
        b"": "the file is empty",
        b"hello\n": "not an export of cuebook",
        b'{"a": 1}\n': "not an export of cuebook",
        b"\x1f\x8b\x08\x00": "packed with gzip",
        whole[0].replace(b'"format":1', b'"format":2'): "of format 2, and this release reads up to 1",
        whole[0]: "cut short",
        b"PAR1" + bytes(100) + b"PAR1": "has no end",
        b"PAR1" + bytes(96) + b"\x10\0\0\0PAR1": "footer cannot be read",
    }
    for content, words in cases.items():
        bad.write_bytes(content)
        said = await cli.fails(2, "events", "import", str(bad))
        assert words in said
        assert "fix: " in said
    assert "No such file" in await cli.fails(2, "events", "import", str(tmp_path / "none.jsonl"))


async def test_a_range_that_holds_nothing_is_refused_and_leaves_no_file(
    cli: Cli, history: EventLog, tmp_path: Path, space: str
) -> None:
    path = tmp_path / "x.jsonl"
    last = (await history.verify()).last_sequence
    for words, said in (
        (("--from", str(last + 1)), f"the log ends at {last} (20"),
        (("--from", "2199-01-01T00:00Z"), "is in the future"),
        (("--from", "1", "--to", "2199-01-01T00:00Z"), "is in the future"),
        (("--from", "5", "--to", "4"), "before it begins"),
        (("--from", "5", "--since", "1h"), "both where to begin"),
        (("--filter", "run.none.>"), "nothing in the range has such a subject"),
        (("--filter", "..."), "is no subject filter"),
        (("--format", "xml"), "there is no format 'xml'"),
    ):
        assert said in await cli.fails(2, "events", "export", str(path), *words)
    too_early = await cli.fails(3, "events", "export", str(path), "--to", "2001-01-01T00:00Z")
    assert "begins at sequence 1" in too_early
    assert "not compressed" in await cli.fails(2, "events", "export", str(tmp_path / "x.jsonl.gz"))
    assert "is a folder" in await cli.fails(2, "events", "export", str(tmp_path))
    assert "cannot be written" in await cli.fails(1, "events", "export", str(tmp_path / "no" / "x.jsonl"))
    assert list(tmp_path.iterdir()) == []


async def test_parquet_without_its_library_says_what_to_install(
    cli: Cli, history: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = await cli.fails(1, "events", "export", str(tmp_path / "x.parquet"))
    assert "pip install 'cuebook[parquet]'" in said
    assert list(tmp_path.iterdir()) == []


async def test_an_export_to_stdout_is_the_same_as_to_a_file(
    start: Any, cli: Cli, history: EventLog, tmp_path: Path
) -> None:
    whole = await exported(cli, tmp_path / "all.jsonl", "--bare")
    async with start("events", "export", "-", "--bare") as program:
        assert await program.ends() == 0
        await eventually(lambda: program.output.encode() == whole)
        assert "sha256" in program.errors
