"""Every history that a release has recorded still means what it meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.world import World
from cuebook.events.catalogue import CATALOGUE
from cuebook.events.envelope import Envelope
from cuebook.events.subjects import Subjects
from tests.histories.history import FOLDER, History, fold, releases, stored, tables
from tests.histories.record import current_release

HISTORIES = [history for release in releases() for history in stored(release)]
BY_NAME = [pytest.param(one, id=f"{one.release}/{one.name}") for one in HISTORIES]
RECORD = "record it: see tests/histories/README.md"


def differences(recorded: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where `found` is not what was recorded. What has been added since then is none."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key, value in recorded.items():
            if key in found:
                yield from differences(value, found[key], f"{path}/{key}")
            else:
                yield f"{path}/{key} is gone, it was {value!r}"
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for n, (old, new) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(old, new, f"{path}/{n}")
    elif recorded != found or type(recorded) is not type(found):
        yield f"{path} was {recorded!r}, is {found!r}"


@pytest.mark.parametrize("history", BY_NAME)
def test_a_recorded_history_decodes_and_folds_to_what_it_did_when_it_was_recorded(history: History) -> None:
    recorded, found = history.folded, json.loads(json.dumps(fold(history)))
    assert list(differences(recorded, found))[:20] == []
    for part in ("runs", "open", "agents"):
        assert list(found[part]) == list(recorded[part])
    for table, rows in recorded["tables"].items():
        assert list(found["tables"][table]) == list(rows)


@pytest.mark.parametrize("history", BY_NAME)
def test_its_open_runs_and_their_tables_are_the_same_from_a_snapshot_or_in_parts(history: History) -> None:
    """Cut anywhere: what is kept in between is enough."""
    items = list(zip(history.items(), history.messages, strict=True))
    subjects = Subjects(history.space)
    whole = World(subjects, {})
    for item, message in items:
        whole.fold(item, guarded=is_guarded(item, message.headers, 1))
    for cut in range(0, len(items), max(1, len(items) // 20)):
        first, second = World(subjects, {}), World(subjects, {})
        for item, message in items[:cut]:
            first.fold(item, guarded=is_guarded(item, message.headers, 1))
        second.load(msgpack.unpackb(msgpack.packb(first.dump()), strict_map_key=False))
        for item, message in items[cut:]:
            second.fold(item, guarded=is_guarded(item, message.headers, 1))
        assert second.dump() == whole.dump()
    found = fold(history)
    assert found["open"] == {run_id: found["runs"][run_id] for run_id in found["open"]}
    status = {"waiting": "requested", "aborted": "failed"}
    for run_id, row in tables(history.items())["runs"].items():
        outcome = found["runs"][run_id]["outcome"]
        assert row["status"] in (status.get(outcome, outcome), "running")


@pytest.mark.parametrize("history", BY_NAME)
def test_its_messages_stand_without_a_gap(history: History) -> None:
    assert [message.sequence for message in history.messages] == list(range(1, len(history.messages) + 1))
    assert all(message.subject.startswith(f"{history.space}.") for message in history.messages)
    assert history.about


@pytest.mark.parametrize("release", releases())
def test_every_event_type_occurs_in_a_history_of_the_release_that_introduced_it(release: str) -> None:
    earlier = {one for before in releases()[: releases().index(release)] for one in known_to(before)}
    seen = {
        item.event_type
        for history in HISTORIES
        if history.release == release
        for item in history.items()
        if isinstance(item, Envelope)
    }
    assert sorted(known_to(release) - earlier - seen) == [], RECORD


def test_every_event_type_of_the_catalogue_is_of_a_release_that_is_recorded() -> None:
    recorded = {one for release in releases() for one in known_to(release)}
    assert sorted(CATALOGUE.types.keys() - recorded) == [], RECORD
    assert sorted(recorded - CATALOGUE.types.keys() - CATALOGUE.upcasters.keys()) == [], (
        "a stored type is read for ever"
    )
    assert current_release() in releases(), RECORD


def test_messages_of_every_form_are_among_them() -> None:
    """Native, plain JSON, both modes of CloudEvents, and what is no event at all."""
    forms = set()
    for history in HISTORIES:
        for item, message in zip(history.items(), history.messages, strict=True):
            if not isinstance(item, Envelope):
                forms.add("none")
            elif b"ce-specversion" in (message.headers or b""):
                forms.add("binary")
            elif b'"specversion"' in message.body:
                forms.add("structured")
            else:
                forms.add("plain" if message.body[:1] == b"{" else "native")
    assert forms == {"none", "binary", "structured", "plain", "native"}


def known_to(release: str) -> set[str]:
    """The catalogue of a release."""
    return set(json.loads((FOLDER / release / "types.json").read_text()))
