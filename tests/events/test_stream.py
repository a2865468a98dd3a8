from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.runtime import AgentHost
from cuebook.events import stream as stream_module
from cuebook.events.codec import MAX_BYTES
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import ConfigurationError, CuebookError, StreamMissingError, UnavailableError
from cuebook.events.facts import OutsideEvent
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.stream import ensure_stream, refuse_recording, stream_config, verify_stream
from cuebook.events.subjects import Subjects
from tests.events.server import plain_server
from tests.waiting import eventually

WRONG: dict[str, dict[str, Any]] = {
    "retention": {"retention": "interest"},
    "discard": {"discard": "old"},
    "storage": {"storage": "memory"},
    "max_age": {"max_age": 3_600 * 10**9},
    "max_msgs": {"max_msgs": 1_000},
    "max_msgs_per_subject": {"max_msgs_per_subject": 1},
    "deny_delete": {"deny_delete": False},
    "deny_purge": {"deny_purge": False},
    "allow_direct": {"allow_direct": False},
    "allow_atomic": {"allow_atomic": False},
    "allow_rollup_hdrs": {"allow_rollup_hdrs": True, "deny_purge": False},
    "allow_msg_ttl": {"allow_msg_ttl": True},
    "allow_msg_schedules": {
        "allow_msg_schedules": True,
        "discard": "old",
        "allow_rollup_hdrs": True,
        "deny_purge": False,
    },
    "allow_batched": {"allow_batched": True},
    "no_ack": {"no_ack": True, "allow_atomic": False},
    "persist_mode": {"persist_mode": "async", "allow_atomic": False},
    "republish": {"republish": None},
    "max_msg_size": {"max_msg_size": MAX_BYTES},
    "duplicate_window": {"duplicate_window": 10**9},
}


async def create(connection: Connection, of: Subjects, **overrides: Any) -> None:
    config = stream_config(of, replicas=1) | overrides
    await js_request(connection, f"STREAM.CREATE.{config['name']}", config)


async def test_a_missing_stream_is_made_once_and_then_left_alone(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    with pytest.raises(StreamMissingError, match=subjects.stream):
        await verify_stream(connection, subjects)
    facts = await ensure_stream(connection, subjects)
    assert (facts.name, facts.first_sequence, facts.last_sequence, facts.messages, facts.replicas) == (
        space.upper(),
        0,
        0,
        0,
        1,
    )
    assert await ensure_stream(connection, subjects) == facts
    assert await verify_stream(connection, subjects) == facts


@pytest.mark.parametrize("name", WRONG)
async def test_each_wrong_setting_is_refused_by_name_and_not_corrected(
    connection: Connection, space: str, name: str
) -> None:
    subjects = Subjects(space)
    await create(connection, subjects, **WRONG[name])
    for check in (verify_stream, ensure_stream):
        with pytest.raises(ConfigurationError, match=rf"\b{name} is ") as caught:
            await check(connection, subjects)
        assert caught.value.remedy


async def test_another_republish_or_other_subjects_are_refused(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    others = {"subjects": [f"{space}.>", f"{space}x.>"], "republish": {"src": f"{space}.>", "dest": f"other.{space}.>"}}
    await create(connection, subjects, **others)
    with pytest.raises(ConfigurationError, match=r"subjects is .* republish is "):
        await verify_stream(connection, subjects)


async def test_a_stream_that_is_filled_from_others_is_refused(connection: Connection, space: str) -> None:
    await create(connection, Subjects(f"{space}a"))
    subjects = Subjects(space)
    await create(connection, subjects, sources=[{"name": f"{space}A".upper()}])
    with pytest.raises(ConfigurationError, match="sources is "):
        await verify_stream(connection, subjects)


async def test_a_stream_that_rewrites_subjects_is_refused(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    await create(connection, subjects, subject_transform={"src": f"{space}.x", "dest": f"{space}.y"})
    with pytest.raises(ConfigurationError, match="subject_transform is "):
        await verify_stream(connection, subjects)


async def test_a_sealed_stream_is_refused(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    await ensure_stream(connection, subjects)
    config = stream_config(subjects, replicas=1) | {"sealed": True}
    await js_request(connection, f"STREAM.UPDATE.{subjects.stream}", config)
    with pytest.raises(ConfigurationError, match="is sealed: nothing is written to it"):
        await verify_stream(connection, subjects)


async def test_what_does_no_harm_may_differ(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    await create(
        connection,
        subjects,
        description="ours",
        max_bytes=10**9,
        max_msg_size=-1,
        max_consumers=-1,
        compression="s2",
        metadata={"owner": "desk"},
        duplicate_window=600 * 10**9,
    )
    assert (await verify_stream(connection, subjects)).messages == 0


async def test_all_that_is_wrong_is_said_at_once(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    await create(connection, subjects, discard="old", max_msgs=5, deny_purge=False)
    with pytest.raises(
        ConfigurationError, match=r"discard is 'old', must be 'new'; max_msgs is 5, must be -1; deny_purge"
    ):
        await verify_stream(connection, subjects)


async def test_subjects_that_another_stream_has_are_refused(connection: Connection, space: str) -> None:
    await create(connection, Subjects(space), name=f"{space}_OTHER")
    with pytest.raises(ConfigurationError, match="overlap"):
        await ensure_stream(connection, Subjects(space))


async def test_replicas_without_a_cluster_are_refused(connection: Connection, space: str) -> None:
    with pytest.raises(ConfigurationError, match="replicas"):
        await ensure_stream(connection, Subjects(space), replicas=3)


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    async with plain_server(tmp_path, "") as url:
        connection = await connect(url, name="tests")
        for check in (verify_stream, ensure_stream):
            with pytest.raises(ConfigurationError, match="JetStream is not enabled"):
                await check(connection, Subjects("cue"))
        await connection.close()


async def test_an_account_without_jetstream_is_refused(tmp_path: Path) -> None:
    accounts = 'accounts { APP { users: [{user: "ann", password: "x"}] }, OTHER { jetstream: enabled } }'
    async with plain_server(tmp_path, f'jetstream {{ store_dir: "{tmp_path}/js" }}\n{accounts}') as url:
        connection = await connect(url.replace("//", "//ann:x@"), name="tests")
        with pytest.raises(ConfigurationError, match="10039"):
            await ensure_stream(connection, Subjects("cue"))
        await connection.close()


async def test_an_old_server_is_refused(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MINIMUM_SERVER", (99, 0))
    with pytest.raises(ConfigurationError, match=r"older than 99\.0"):
        await verify_stream(connection, Subjects("cue"))


async def test_a_closed_connection_is_no_answer(nats_url: str) -> None:
    connection = await connect(nats_url, name="tests")
    await connection.close()
    with pytest.raises(UnavailableError):
        await verify_stream(connection, Subjects("cue"))


async def test_spaces_know_nothing_of_each_other(connection: Connection, space: str) -> None:
    async with (
        EventLog(connection, f"{space}a", source="a") as first,
        EventLog(connection, f"{space}b", source="b") as second,
    ):
        await first.ensure()
        await second.ensure()
        await first.append(first.subjects.event("x"), OutsideEvent(data="a"))
        assert await second.append(second.subjects.event("x"), OutsideEvent(data="b")) == 1
        assert [item.data async for item in first.read()] == ["a"]  # type: ignore[union-attr]
        assert [item.data async for item in second.read()] == ["b"]  # type: ignore[union-attr]


async def test_events_are_republished_once_they_are_stored_and_refused_ones_never(log: EventLog) -> None:
    heard: list[bytes] = []
    listener = await log.connection.listen(log.subjects.live, lambda subject, *rest: heard.append(subject))
    topic = log.subjects.event("a")
    await log.append(topic, OutsideEvent(), scope=topic, expected=0)
    waiting = log.append(topic, OutsideEvent(), scope=topic, expected=0)
    with pytest.raises(Exception, match="after sequence 0"):
        await waiting
    await log.append(log.subjects.event("b"), OutsideEvent())
    await eventually(lambda: len(heard) > 1)
    assert heard == [f"live.{topic}".encode(), f"live.{log.subjects.event('b')}".encode()]
    await listener.close()


async def test_nothing_can_be_deleted_or_purged(log: EventLog) -> None:
    await log.append(log.subjects.event("a"), OutsideEvent())
    stream = log.subjects.stream
    for request, content in ((f"STREAM.PURGE.{stream}", {}), (f"STREAM.MSG.DELETE.{stream}", {"seq": 1})):
        with pytest.raises(CuebookError, match="not permitted"):
            await js_request(log.connection, request, content)
    assert (
        json.loads((await log.connection.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=10)).data)["state"][
            "messages"
        ]
        == 1
    )


async def test_a_recording_is_marked_when_it_is_made_and_stays_what_it_is(connection: Connection, space: str) -> None:
    subjects = Subjects(space)
    assert (await ensure_stream(connection, subjects, recording=True)).recording
    assert (await ensure_stream(connection, subjects)).recording
    live = Subjects(f"{space}-live")
    assert not (await ensure_stream(connection, live)).recording
    assert not (await ensure_stream(connection, live, recording=True)).recording
    with pytest.raises(ConfigurationError, match="is a recording"):
        refuse_recording(await verify_stream(connection, subjects))


async def test_nothing_drives_a_recording(connection: Connection, space: str) -> None:
    await ensure_stream(connection, Subjects(space), recording=True)
    with pytest.raises(ConfigurationError, match="is a recording"):
        await OrchestratorService(connection, space, []).run()
    with pytest.raises(ConfigurationError, match="is a recording"):
        await AgentHost(connection, space, []).run()
    assert (await verify_stream(connection, Subjects(space))).last_sequence == 0
