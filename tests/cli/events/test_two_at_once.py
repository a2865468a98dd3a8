"""Two who write to the same file at once: one of them does, and the other one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuebook.cli.replay.line_files import FileDestination
from cuebook.cli.replay.slices import Choice, make_slice
from cuebook.events.errors import ConfigurationError
from cuebook.events.log import EventLog
from cuebook.ledger.exports import new_export
from cuebook.ledger.manifest import Header
from tests.cli.conftest import Cli
from tests.ledger.files import history, read
from tests.ledger.filling import fill

HEADER = Header(space="cue", stream="CUE", filters=(), first=1, last=20, before=())


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_an_export_is_whole_though_another_one_to_the_same_file_was_begun(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"all.{name}"
    with new_export(str(path), HEADER, name) as writer:
        writer.add(history(10))
        with pytest.raises(ConfigurationError, match="somebody else") as raised:
            new_export(str(path), HEADER, name).__enter__()
        assert raised.value.remedy
        writer.add(history(10, first=11))
        writer.close()
    assert read(name, path.read_bytes()).sound
    with new_export(str(path), HEADER, name) as writer:  # what is over stands in nobody's way
        writer.add(history(20))
        writer.close()
    assert read(name, path.read_bytes()).sound
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


async def test_a_replay_to_a_file_is_written_by_one_only(cli: Cli, log: EventLog, tmp_path: Path) -> None:
    await fill(log, 20)
    path = tmp_path / "all.jsonl"
    part = await make_slice(log, Choice())
    first = FileDestination(part, path)
    await first.open()
    said = await cli.fails(1, "replay", "send", "--into", str(path))
    assert "somebody else" in said
    assert "fix: " in said
    await first.close()
    await cli.ok("replay", "send", "--into", str(path))
    assert len(path.read_text().splitlines()) == 20
