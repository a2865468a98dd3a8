"""`cuebook events types` and `schema`: what is stored for ever, and whether somebody changed it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuebook.cli.events import event_types
from cuebook.events.catalogue import EVENT_TYPES
from cuebook.events.schemas import released_schemas
from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(workplace)
    before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        del sys.modules[name]


async def test_types_are_listed_with_those_of_outside_events(cli: Cli) -> None:
    rows = await cli.json("events", "types", "--saga", "mydesk:order")
    assert {row["type"] for row in rows} == {cls.event_type for cls in EVENT_TYPES} | {"event.order.placed"}
    stuck = next(row for row in rows if row["type"] == "run.stuck.v1")
    assert (stuck["fields"], stuck["required"]) == (["reason", "step", "recorded", "asked"], ["reason"])
    assert "run.stuck.v1" in await cli.ok("events", "types")


async def test_a_schema_is_shown_by_its_type_or_its_fact(cli: Cli) -> None:
    shown = await cli.json("events", "schema", "show", "task.failed.v1")
    assert shown["schema"]["properties"]["error"]["required"] == ["type", "message"]
    assert await cli.json("events", "schema", "show", "task.failed") == shown
    outside = await cli.json("events", "schema", "show", "event.order.placed", "--saga", "mydesk:order")
    assert list(outside["schema"]["properties"]) == ["n"]
    assert "did you mean 'task.failed.v1'" in await cli.fails(3, "events", "schema", "show", "task.faild.v1")


async def test_this_release_edits_nothing(cli: Cli) -> None:
    assert await cli.json("events", "schema", "check") == []


async def test_an_edited_type_is_found_and_cannot_be_recorded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released = released_schemas()
    del released["run.stuck.v1"]["properties"]["asked"]
    released["task.failed.v1"]["properties"]["attempt"]["type"] = "string"
    released["task.vanished.v1"] = {"type": "object"}
    kept = tmp_path / "cuebook-types.json"
    monkeypatch.setattr(event_types, "released_schemas", lambda: released)
    monkeypatch.setattr(event_types, "files", lambda _: tmp_path)
    (tmp_path / "types.json").write_text(json.dumps(released))
    result = await cli.run("events", "schema", "check", "-o", "json")
    assert result.exit_code == 8
    assert {(one["type"], one["what"]) for one in json.loads(result.stdout)} == {
        ("run.stuck.v1", "extended"), ("task.failed.v1", "edited"), ("task.vanished.v1", "removed"),
    }  # fmt: skip
    assert "2 released types were edited or removed" in result.stderr
    assert 'attempt: "string" became "integer"' in (await cli.run("events", "schema", "check")).stdout
    assert (await cli.run("events", "schema", "check", "--write")).exit_code == 8
    written = json.loads((tmp_path / "types.json").read_text())
    assert "asked" in written["run.stuck.v1"]["properties"]
    assert written["task.failed.v1"]["properties"]["attempt"]["type"] == "string"
    assert not kept.exists()


async def test_outside_events_are_held_to_what_their_author_recorded(cli: Cli, workplace: Path) -> None:
    words = ("events", "schema", "check", "--file", "types.json", "--saga")
    source = (workplace / "mydesk.py").read_text()
    (workplace / "longer.py").write_text(source.replace("n: int\n", "n: int\n    note: str = ''\n", 1))
    (workplace / "edited.py").write_text(source.replace("n: int\n", "n: str\n", 1))
    (workplace / "stricter.py").write_text(source.replace("n: int\n", "n: int\n    note: str\n", 1))
    assert "not recorded as they are" in await cli.fails(8, *words, "mydesk:order")
    await cli.ok(*words, "mydesk:order", "--write")
    assert await cli.json(*words, "mydesk:order") == []
    for name in ("edited", "stricter"):
        assert "instead of versioned" in await cli.fails(8, *words, f"{name}:order", "--write")
    result = await cli.run(*words, "longer:order")
    assert (result.exit_code, result.stdout) == (8, "event.order.placed was extended\n  note was added\n")
    await cli.ok(*words, "longer:order", "--write")
    await cli.ok(*words, "longer:order")
    assert "instead of versioned" in await cli.fails(8, *words, "mydesk:order")  # which no longer knows the note


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--saga", "mydesk:order"], "--saga and --file go together"),
        (["--file", "types.json"], "--saga and --file go together"),
        (["--saga", "mydesk:order", "--file", "broken.json"], "broken.json cannot be read"),
        (["--saga", "mydesk:order", "--file", "list.json"], "is no object of schemas"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_checked(cli: Cli, workplace: Path, words: list[str], complaint: str) -> None:
    (workplace / "broken.json").write_text("{")
    (workplace / "list.json").write_text("[]")
    assert complaint in await cli.fails(2, "events", "schema", "check", *words)
