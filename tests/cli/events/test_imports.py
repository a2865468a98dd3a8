"""`cuebook events import` of files that mean harm, and imports that were cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.ledger.exports import open_export
from cuebook.ledger.importing import Importer
from cuebook.ledger.manifest import Header
from cuebook.ledger.record import Record
from cuebook.ledger.source import Imported
from tests.cli.conftest import Cli
from tests.ledger.files import written


def records(space: str, names: Sequence[str]) -> list[Record]:
    """Outside events with these message ids; empty: without one."""
    return [
        Record(
            n,
            1_767_225_600_000_000_000 + n,
            f"{space}.event.order".encode(),
            f"NATS/1.0\r\nNats-Msg-Id: {name}\r\n\r\n".encode() if name else b"",
            json.dumps({"n": n}).encode(),
        )
        for n, name in enumerate(names, 1)
    ]


def export(path: Path, space: str, found: list[Record]) -> Path:
    header = Header(space=space, stream=space.upper(), filters=(), first=1, last=len(found), before=())
    path.write_bytes(written("jsonl", found, header))
    return path


async def begun(log: EventLog, path: Path, space: str, count: int) -> None:
    """A live import into a space that is there, killed after so many messages."""
    with open_export(path) as reader:
        found = list(reader.items())
        assert reader.end is not None
        imported = Imported(header=reader.header, end=reader.end)
    importer = Importer(log.connection, space, imported, reroot=True, live_effects=True)
    assert await importer.prepare() == 0
    assert await importer._publish(iter(found[:count]), 0, None) == count  # type: ignore[arg-type]


async def stored(log: EventLog) -> list[tuple[int, bytes]]:
    last = (await log.verify()).last_sequence
    return (
        [(one.sequence, one.body) async for batch in log.batches(after=0, until=last) for one in batch] if last else []
    )


async def test_a_subject_that_is_none_of_the_space_reaches_no_server(
    cli: Cli, log: EventLog, space: str, tmp_path: Path
) -> None:
    """Published as it stands it would be a request to JetStream, with the rights of who imports."""
    victim = f"{space.upper()}-VICTIM"
    await js_request(log.connection, f"STREAM.CREATE.{victim}", {"name": victim, "subjects": [f"{space}-victim.>"]})
    found = records(f"{space}-b", ["a", "b", "c"])
    found[1] = found[1]._replace(subject=f"$JS.API.STREAM.DELETE.{victim}".encode(), body=b"")
    file = export(tmp_path / "bad.jsonl", f"{space}-b", found)
    result = await cli.run("events", "import", str(file), "--space", f"{space}-b")
    assert await js_request(log.connection, f"STREAM.INFO.{victim}", {})
    assert result.exit_code == 2
    assert "no log of space" in result.stderr
    assert "no stream" in await cli.fails(3, "events", "tail", "--space", f"{space}-b")


async def test_more_than_the_export_holds_is_said_in_a_sentence(
    cli: Cli, log: EventLog, space: str, tmp_path: Path
) -> None:
    there, file = f"{space}-b", export(tmp_path / "all.jsonl", space, records(space, ["a", "b"]))
    with open_export(file) as reader:
        list(reader.items())
        assert reader.end is not None
        imported = Imported(header=reader.header, end=reader.end)
    await Importer(log.connection, there, imported, reroot=True, live_effects=False).prepare()
    for _ in range(3):
        await log.connection.request(f"{there}.event.x", b"1")
    said = await cli.fails(1, "events", "import", str(file), "--reroot", "--space", there)
    assert "holds 3 messages, and the export 2" in said
    assert "fix: " in said


async def test_a_live_import_that_was_cut_off_goes_on_where_it_was(
    cli: Cli, log: EventLog, space: str, tmp_path: Path
) -> None:
    found = records(space, ["a", "", "c", "d", "", "f"])
    file = export(tmp_path / "all.jsonl", space, found)
    await begun(log, file, space, 4)
    words = ("events", "import", str(file), "--live-effects")
    assert (await cli.json(*words))["stored_before"] == 4
    assert await stored(log) == [(one.sequence, one.body) for one in found]
    assert (await cli.json(*words))["stored_before"] == 6


async def test_a_live_import_does_not_go_on_where_somebody_else_has_written(
    cli: Cli, log: EventLog, space: str, tmp_path: Path
) -> None:
    file = export(tmp_path / "all.jsonl", space, records(space, ["a", "b", "c", "d"]))
    await begun(log, file, space, 2)
    await log.connection.request(f"{space}.event.order", b"1")
    assert "holds something else at 3" in await cli.fails(1, "events", "import", str(file), "--live-effects")
    assert len(await stored(log)) == 3


@pytest.mark.parametrize("names", [["a", "b", "a", "c"], ["a", "b", "b", "c", "d"], ["a", "b", "a"]])
async def test_what_the_server_takes_for_a_repetition_is_not_lost(
    cli: Cli, log: EventLog, space: str, tmp_path: Path, names: list[str]
) -> None:
    """A log may hold the same message id twice, minutes apart. An import is quicker than that."""
    found = records(space, names)
    file = export(tmp_path / "all.jsonl", space, found)
    words = ("events", "import", str(file), "--live-effects")
    said = await cli.fails(5, *words)
    assert "the same Nats-Msg-Id" in said
    assert "two minutes" in said
    assert await stored(log) == [(one.sequence, one.body) for one in found[:2]]
    assert "the same Nats-Msg-Id" in await cli.fails(5, *words)
    assert await stored(log) == [(one.sequence, one.body) for one in found[:2]]
