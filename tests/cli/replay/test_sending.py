"""Sending history somewhere else: whole, once, in order, and without anything being done a second time."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.service import OrchestratorService
from cuebook.actors.orchestrator.state import fold_run
from cuebook.actors.runtime import AgentHost
from cuebook.cli.exits import InputError
from cuebook.cli.history.views import run_view
from cuebook.cli.replay.destinations import Recording
from cuebook.cli.replay.pace import Pace, parse_speed
from cuebook.cli.replay.sending import Progress, Sending, Where, parse_destination
from cuebook.cli.replay.slices import Choice, make_slice
from cuebook.cli.runs.diffs import run_fields
from cuebook.embedded.nats_server import nats_server
from cuebook.events.connection import Connection, connect
from cuebook.events.copies import original_of
from cuebook.events.errors import ConfigurationError
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog
from tests.cli import desk
from tests.cli.conftest import Cli, Start, reaches
from tests.commands import started
from tests.waiting import eventually


@pytest.fixture
async def filled(cli: Cli, client: Client, agents: AgentHost) -> EventLog:
    """A log with two runs that have ended, a standalone task, an outside event, and messages of foreign make."""
    for n, run_id in ((1, "o1"), (13, "o13")):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", run_id, "--wait")
    await cli.ok("run", "submit", "--agent", "echo", '{"n": 4}', "--id", "t4", "--wait")
    prefix = client.log.subjects.space
    js = client.log.connection.jetstream(timeout=30)
    await js.publish(f"{prefix}.event.note", b'{"n": 1}', headers={"Nats-Msg-Id": "their-id", "Cue-Causation-Id": "c"})
    await js.publish(f"{prefix}.event.note", b'{"n": 2}')
    await js.publish(f"{prefix}.event.note", b"\xff not JSON")
    await js.publish(f"{prefix}.Event.\u00dcber", b"{}")

    async def refused() -> bool:
        return len(await everything(client.log, [client.log.subjects.all_rejected])) == 2

    await eventually(refused)
    return client.log


@pytest.fixture
def filled_url(nats_url: str, space: str) -> tuple[str, str, float]:
    """A server and a space with five events, made without an event loop that goes on; and how far apart they are."""

    async def fill() -> float:
        connection = await connect(nats_url, name="tests")
        async with EventLog(connection, space, source="tests") as log:
            await log.ensure()
            for n in range(5):
                await log.append(log.subjects.event("note"), OutsideEvent(data=n))
            items = await everything(log)
        await connection.close()
        return float(items[-1].recorded_at - items[0].recorded_at) / 1e6

    return nats_url, space, asyncio.run(fill())


@asynccontextmanager
async def opened(nats_url: str, space: str) -> AsyncIterator[EventLog]:
    connection = await connect(nats_url, name="tests")
    async with EventLog(connection, space, source="tests") as log:
        await log.verify()
        yield log
    await connection.close()


@asynccontextmanager
async def opened_new(nats_url: str) -> AsyncIterator[Connection]:
    connection = await connect(nats_url, name="tests")
    yield connection
    await connection.close()


async def everything(log: EventLog, filters: Sequence[str] = ()) -> list[Any]:
    return [item async for item in log.read(filters=filters)]


def essence(item: Any) -> Any:
    """A message as it is wherever it is stored."""
    subject = item.subject.partition(".")[2]
    if not hasattr(item, "id"):
        return subject, item.recorded_at, item.body
    return subject, item.recorded_at, item.id, item.event_type, item.time, item.source, item.correlation_id, \
        item.causation_id, item.data  # fmt: skip


# --- recordings ------------------------------------------------------------------------------------------------------


async def test_a_whole_space_is_copied_as_it_was(cli: Cli, filled: EventLog, nats_url: str, space: str) -> None:
    target = f"{space}-copy"
    said = await cli.ok("replay", "send", "--into", target)
    originals = await everything(filled)
    assert f"sent {len(originals)} events" in said
    async with opened(nats_url, target) as log:
        copies = await everything(log)
        assert [essence(item) for item in copies] == [essence(item) for item in originals]
        assert [item.sequence for item in copies] == list(range(1, len(originals) + 1))
        middle = originals[len(originals) // 2].recorded_at
        assert await log.sequence_at(middle) == await filled.sequence_at(middle)
        for run_id in ("o1", "o13", "t4"):
            folded = [
                run_fields(run_view(fold_run(run_id, part), part[:1], {}, {}))
                for part in (await filled.history(run_id), await log.history(run_id))
            ]
            assert folded[0] == folded[1]
    shown = [await cli.json("run", "show", "o13", env={"CUEBOOK_SPACE": name}) for name in (space, target)]
    assert shown[0]["status"] == shown[1]["status"] == "compensated"
    assert shown[0]["duration_s"] == shown[1]["duration_s"]


async def test_sent_again_it_goes_on_where_it_was(cli: Cli, filled: EventLog, nats_url: str, space: str) -> None:
    target = f"{space}-copy"
    first = await cli.json("replay", "send", "--into", target, "--to", "7")
    assert (first["sent"], first["resumed_after"]) == (7, None)
    second = await cli.json("replay", "send", "--into", target)
    assert second["resumed_after"] == 7
    assert (await cli.json("replay", "send", "--into", target))["sent"] == 0
    await cli.ok("events", "publish", "note", '{"n": 3}')
    assert (await cli.json("replay", "send", "--into", target))["sent"] == 1
    async with opened(nats_url, target) as log:
        assert [essence(item) for item in await everything(log)] == [essence(item) for item in await everything(filled)]


CHOICES = [
    Choice(),
    Choice(runs=["o13"]),
    Choice(runs=["o1", "t4"], filters=["agent.>"]),
    Choice(filters=["run.*.task.>", "event.>"]),
    Choice(types=["task.*"]),
    Choice(filters=["run.>"], types=["run.compensated", "unreadable"]),
    Choice(filters=["event.>"], types=["unreadable", "note"]),
]


async def test_in_whatever_pieces_a_slice_is_sent_the_copy_is_the_slice_and_nothing_is_done_by_it(
    cli: Cli, filled: EventLog, nats_url: str, space: str, agents: AgentHost
) -> None:
    """A law: for any choice, range and pieces. No orchestrator takes the copy, and nobody hears of it."""
    last = (await filled.verify()).last_sequence
    before = await everything(filled)
    count = 0

    async def holds(choice: Choice, first: int, ends: list[int]) -> None:
        nonlocal count
        count += 1
        target = f"{space}-{count}"
        connection = await connect(nats_url, name="tests")
        heard: list[str] = []
        listener = await connection.listen(f"live.{target}.>", lambda *message: heard.append(str(message)))
        words = ["replay", "send", *choice.runs, "--into", target, "--from", str(first)]
        words += [word for one in choice.filters for word in ("--filter", one)]
        words += [word for one in choice.types for word in ("--type", one)]
        part = await make_slice(filled, Choice(runs=choice.runs, filters=choice.filters, types=choice.types,
                                               first=str(first)))  # fmt: skip
        wanted = [one async for batch in filled.batches(after=part.after, until=last, filters=part.filters)
                  for one in batch if part.take(one) is not None]  # fmt: skip
        for end in [*sorted(ends), last]:
            result = await cli.run(*words, "--to", str(end))
            assert result.exit_code in ((0,) if end == last and wanted else (0, 3)), result.stderr
        if wanted:
            async with EventLog(connection, target, source="tests") as log:
                assert (await log.verify()).recording
                copies = [one async for batch in log.batches(until=len(wanted)) for one in batch]
                assert [(one.subject.partition(".")[2], one.body) for one in copies] == [
                    (one.subject.partition(".")[2], one.body) for one in wanted
                ]
                assert [original_of(one.headers) for one in copies] == [
                    (one.sequence, one.recorded_ns, one.headers or b"") for one in wanted
                ]
            with pytest.raises(ConfigurationError, match="is a recording"):
                await OrchestratorService(connection, target, [desk.order]).run()
            with pytest.raises(ConfigurationError, match="is a recording"):
                await AgentHost(connection, target, [desk.Echo]).run()
        await connection.flush()
        assert heard == []
        await listener.close()
        await connection.close()

    loop = asyncio.get_running_loop()

    @settings(max_examples=25)
    @given(st.sampled_from(CHOICES), st.integers(1, 8), st.lists(st.integers(8, last), max_size=3))
    def law(choice: Choice, first: int, ends: list[int]) -> None:
        asyncio.run_coroutine_threadsafe(holds(choice, first, ends), loop).result()

    await asyncio.to_thread(law)
    assert await everything(filled) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
async def test_interrupted_it_is_finished_by_the_same_command(
    cli: Cli, filled: EventLog, start: Start, nats_url: str, space: str, number: signal.Signals
) -> None:
    target = f"{space}-copy"
    words = ["replay", "send", "--into", target, "--speed"]
    async with start(*words, "0.001x") as program, opened(nats_url, space) as source:

        async def something_there() -> bool:
            with_copy = EventLog(source.connection, target, source="tests")
            try:
                return (await with_copy.verify()).last_sequence > 0
            except ConfigurationError:
                return False

        await eventually(something_there, within_s=60)
        program.send(number)
        status = await program.ends()
        if number is signal.SIGINT:
            assert status == 9
            assert "go on with: the same command" in program.errors
    await cli.ok(*words, "max")
    async with opened(nats_url, target) as log:
        assert [essence(item) for item in await everything(log)] == [essence(item) for item in await everything(filled)]


async def test_another_server_keeps_the_name_of_the_space(
    cli: Cli, filled: EventLog, space: str, tmp_path: Path
) -> None:
    async with nats_server(tmp_path) as server:
        assert "sent" in await cli.ok("replay", "send", "--into", server.url)
        assert "sent" in await cli.ok("replay", "send", "o13", "--into", f"{server.url}/incident")
        async with opened(server.url, space) as log, opened(server.url, "incident") as incident:
            assert [essence(item) for item in await everything(log)] == [
                essence(item) for item in await everything(filled)
            ]
            assert {item.address.run_id for item in await everything(incident)} == {"o13"}


async def test_a_recording_can_be_sent_on(cli: Cli, filled: EventLog, nats_url: str, space: str) -> None:
    await cli.ok("replay", "send", "--into", f"{space}-a")
    await cli.ok("replay", "send", "--into", f"{space}-b", env={"CUEBOOK_SPACE": f"{space}-a"})
    async with opened(nats_url, f"{space}-b") as log:
        copies, originals = await everything(log), await everything(filled)
        assert [(item.recorded_at, item.subject.partition(".")[2]) for item in copies] == [
            (item.recorded_at, item.subject.partition(".")[2]) for item in originals
        ]


async def test_nothing_can_be_added_to_a_recording(cli: Cli, filled: EventLog, space: str) -> None:
    await cli.ok("replay", "send", "--into", f"{space}-copy")
    env = {"CUEBOOK_SPACE": f"{space}-copy"}
    for words in (["events", "publish", "note", "{}"], ["run", "submit", "order", '{"n": 1}', "--no-check"],
                  ["run", "cancel", "o1"], ["agent", "drain", "echo"]):  # fmt: skip
        assert "is a recording" in await cli.fails(1, *words, env=env)


async def test_another_writer_is_noticed(cli: Cli, filled: EventLog, nats_url: str, space: str) -> None:
    await cli.ok("replay", "send", "--into", f"{space}-copy", "--to", "3")
    async with opened(nats_url, f"{space}-copy") as log:
        await log.connection.jetstream(timeout=30).publish(f"{space}-copy.event.note", b"{}")
    assert "holds something at 4 that is no copy" in await cli.fails(1, "replay", "send", "--into", f"{space}-copy")


async def test_a_message_lost_on_its_way_is_sent_again_in_its_place(
    cli: Cli, filled: EventLog, nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses all that was sent after it, since each names the one before."""
    part = await make_slice(filled, Choice())
    async with opened_new(nats_url) as connection:
        write = connection.write
        lost: list[bytes] = []

        def lose_one(frame: bytes) -> None:
            if b"Cuebook-Original: 1 5 " in frame and not lost:
                lost.append(frame)
            else:
                write(frame)

        monkeypatch.setattr(connection, "write", lose_one)
        destination = Recording(part, EventLog(connection, f"{space}-copy", source="tests"))
        await destination.open()
        await Sending(part, destination, Pace(None), None, "").run(0, Progress(part, "there", silent=True))
        await destination.close()
    assert lost
    async with opened(nats_url, f"{space}-copy") as log:
        assert [essence(item) for item in await everything(log)] == [essence(item) for item in await everything(filled)]


async def test_the_copy_is_whole_although_its_server_was_killed_meanwhile(
    log: EventLog, space: str, tmp_path: Path
) -> None:
    await asyncio.gather(*(log.append(log.subjects.event("note"), OutsideEvent(data=n)) for n in range(2_000)))
    items = await everything(log)
    took_s = (items[-1].recorded_at - items[0].recorded_at) / 1e6
    part = await make_slice(log, Choice())
    async with nats_server(tmp_path, sync_always=True) as server, opened_new(server.url) as connection:
        there = EventLog(connection, space, source="tests")
        destination = Recording(part, there)
        await destination.open()
        sending = asyncio.ensure_future(
            Sending(part, destination, Pace(took_s / 2.0), None, "").run(0, Progress(part, "there", silent=True))
        )

        async def half() -> bool:
            return (await there.verify()).last_sequence > 500

        await eventually(half, within_s=60)
        await server.kill()
        await server.restart()
        await sending
        await destination.close()
        assert [essence(item) for item in await everything(there)] == [essence(item) for item in items]


@pytest.mark.parametrize("had", [0, 3])
async def test_what_somebody_else_stores_meanwhile_is_noticed(
    cli: Cli, filled: EventLog, nats_url: str, space: str, had: int
) -> None:
    part = await make_slice(filled, Choice())
    if had:
        await cli.ok("replay", "send", "--into", f"{space}-copy", "--to", str(had))
    async with opened_new(nats_url) as connection:
        destination = Recording(part, EventLog(connection, f"{space}-copy", source="tests"))
        await destination.open()
        await connection.jetstream(timeout=30).publish(f"{space}-copy.event.note", b"{}")
        with pytest.raises(ConfigurationError, match="is no copy"):
            await Sending(part, destination, Pace(None), None, "").run(had, Progress(part, "there", silent=True))
        await destination.close()


async def test_what_was_recorded_while_it_was_interrupted_is_not_left_out(
    cli: Cli, filled: EventLog, nats_url: str, space: str
) -> None:
    """A range that is said by its age begins later when it is said again."""
    await cli.ok("replay", "send", "--into", f"{space}-copy", "--from", "3", "--to", "5")
    assert (await cli.json("replay", "send", "--into", f"{space}-copy", "--from", "9", "--to", "12"))["sent"] == 7
    async with opened(nats_url, f"{space}-copy") as log:
        originals = await everything(filled)
        assert [essence(item) for item in await everything(log)] == [essence(item) for item in originals[2:12]]


def test_on_a_terminal_a_bar_says_how_far_it_is(filled_url: tuple[str, str, float], tmp_path: Path) -> None:
    url, space, took_s = filled_url
    env = {"CUEBOOK_NATS_URL": url, "CUEBOOK_SPACE": space}
    words = (
        "replay",
        "send",
        "--into",
        f"{space}-copy",
        "--speed",
        f"{max(took_s / 3, 0.001):.6f}x",
    )  # about three seconds
    with started(*words, cwd=tmp_path, terminal=True, env=env) as program:
        program.line(rf"to recording {space}-copy ━.*% \d sent, next in")
        assert program.end() == 0
    with started(*words[:-1], "max", cwd=tmp_path, env=env) as program:
        program.line("has it up to sequence")
        program.line(r"sent \d+ events of")
        assert program.end() == 0


# --- living spaces ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def staging(nats_url: str, space: str) -> AsyncIterator[tuple[Client, OrchestratorService]]:
    """A second space that lives."""
    connection = await connect(nats_url, name="tests")
    service = OrchestratorService(connection, space, [desk.order])
    host = AgentHost(connection, space, [desk.Echo])
    running = [asyncio.create_task(service.run())]
    await asyncio.wait([running[0], asyncio.ensure_future(service.deciding.wait())], return_when="FIRST_COMPLETED")
    running.append(asyncio.create_task(host.run(drain_s=1)))
    await asyncio.wait([running[1], asyncio.ensure_future(host.ready.wait())], return_when="FIRST_COMPLETED")
    async with Client(connection, space, by="tests") as client:
        yield client, service
    host.stop()
    await running[1]
    service.stop()
    await running[0]
    await connection.close()


async def test_only_when_it_is_spelled_out_has_a_replay_effects_and_each_one_once(
    cli: Cli, client: Client, agents: AgentHost, nats_url: str, space: str
) -> None:
    for n in (1, 2, 3):
        await cli.ok("events", "publish", "order.placed", f'{{"n": {n}}}')
    await reaches(client, "order-3", "completed")
    async with staging(nats_url, f"{space}-staging") as (there, _):
        before = (await there.log.verify()).last_sequence
        words = ["replay", "send", "--filter", "event.>", "--into", f"{space}-staging"]
        refusal = await cli.fails(1, *words)
        assert "an orchestrator may drive space" in refusal
        assert "--live-effects" in refusal
        assert (await there.log.verify()).last_sequence == before
        assert (await cli.json(*words, "--live-effects", "--to", "8"))["sent"] > 0
        again = await cli.json(*words, "--live-effects")
        assert again["resumed_after"] is not None
        for n in (1, 2, 3):
            await reaches(there, f"order-{n}", "completed")
        assert (await cli.json(*words, "--live-effects"))["sent"] == 0
        placed = await everything(there.log, [f"{space}-staging.event.>"])
        assert [item.data for item in placed] == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert len(await everything(there.log, [f"{space}-staging.run.*.started"])) == 3


async def test_outside_events_alone_can_be_said_again_in_their_own_space(
    cli: Cli, client: Client, orchestrator: OrchestratorService, space: str
) -> None:
    await cli.ok("events", "publish", "note", '{"n": 1}')
    for words in ([], ["--filter", "event.>", "--filter", "run.>", "--live-effects"]):
        refusal = await cli.fails(2, "replay", "send", "--into", space, *words)
        assert "is where these events come from" in refusal
    assert "come from" in await cli.fails(2, "replay", "send", "--filter", "event.>", "--into", space)
    sent = await cli.json("replay", "send", "--filter", "event.note", "--into", space, "--live-effects")
    assert sent["sent"] == 1
    notes = await everything(client.log, [f"{space}.event.note"])
    assert [item.data for item in notes] == [{"n": 1}, {"n": 1}]


async def test_effects_need_a_space_that_lives(cli: Cli, filled: EventLog, space: str) -> None:
    words = ["replay", "send", "--filter", "event.>", "--live-effects", "--into", f"{space}-new"]
    assert "there is no space" in await cli.fails(3, *words)
    await cli.ok(*words[:4], "--into", f"{space}-new")
    assert "is a recording" in await cli.fails(1, *words)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_file_gets_lines_and_is_gone_on_with(cli: Cli, filled: EventLog, tmp_path: Path) -> None:
    file = tmp_path / "o13.jsonl"
    words = ["replay", "send", "o13", "--into", str(file)]
    own = [item.sequence for item in await filled.history("o13")]
    assert (await cli.json(*words, "--to", str(own[3])))["sent"] >= 4
    with file.open("ab") as opened_file:
        opened_file.write(b'{"sequence": 99')  # cut short by a machine that died
    await cli.ok(*words)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sequence"] for line in lines if line["kind"] != "progress"] == own
    assert (await cli.json(*words))["sent"] == 0
    stored = {one.sequence: one async for batch in filled.batches(until=own[-1]) for one in batch}
    for line in lines:
        message = stored[line["sequence"]]
        assert base64.b64decode(line["body"]) == message.body
        assert base64.b64decode(line["headers"] or "") == (message.headers or b"")
        assert line["recorded_ns"] == str(message.recorded_ns)
    shown = await cli.json("replay", "o13")
    assert [{key: line[key] for key in shown[0]} for line in lines if line["kind"] != "progress"] == [
        one for one in shown if one["kind"] != "progress"
    ]


async def test_stdout_gets_the_same_lines_and_nothing_else(cli: Cli, filled: EventLog, tmp_path: Path) -> None:
    await cli.ok("replay", "send", "--into", str(tmp_path / "all.jsonl"))
    printed = await cli.ok("replay", "send", "--into", "-")
    assert printed == (tmp_path / "all.jsonl").read_text()
    some = await cli.ok("replay", "send", "--type", "unreadable", "--into", "-")
    assert len(some.splitlines()) == 2
    assert all("unreadable" in json.loads(line) for line in some.splitlines())


async def test_a_file_of_something_else_is_left_alone(cli: Cli, filled: EventLog, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    for text in ("my notes", "my notes\n", '{"sequence": "x"}\n', "[1]\n"):
        file.write_text(text)
        assert "holds no events" in await cli.fails(2, "replay", "send", "--into", str(file))
        assert file.read_text() == text
    file.unlink()
    await cli.ok("replay", "send", "o1", "--into", str(file))
    kept = file.read_text()
    assert "holds something else" in await cli.fails(1, "replay", "send", "o13", "--into", str(file))
    line = json.loads(kept.splitlines()[-1])
    file.write_text(json.dumps({**line, "body": "AAAA"}) + "\n")
    assert "is not what stands in" in await cli.fails(8, "replay", "send", "o1", "--into", str(file))
    file.write_text(kept.splitlines()[-1] + "\n")
    assert "nothing can be put before" in await cli.fails(1, "replay", "send", "o1", "--into", str(file))
    assert "cannot be written" in await cli.fails(1, "replay", "send", "--into", f"{tmp_path}/none/x.jsonl")


# --- what cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--into", "Upper"], 2, "cannot be part of a subject"),
        (["--into", ""], 2, "is no destination"),
        (["--into", "http://x/y"], 2, "is no destination"),
        (["--into", "x", "--speed", "fast"], 2, "is no speed"),
        (["--into", "x", "--speed", "0x"], 2, "is no speed"),
        (["--into", "x", "--from", "1", "--since", "1h"], 2, "say one of them"),
        (["--into", "x", "--from", "999999"], 2, "is in the future"),
        (["nobody", "--into", "x"], 3, "nothing of that is in the log"),
        (["--into", "-", "--live-effects", "--filter", "event.>"], 2, "a file has no effects"),
        (["--into", "x", "--live-effects"], 2, "all work ever recorded"),
        (["--into", "nats://127.0.0.1:1/x"], 5, "no NATS server answers"),
        ([], 2, "--into"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_cannot_be_sent(cli: Cli, client: Client, words: list[str], status: int, complaint: str) -> None:
    await client.publish("note", {"n": 1})
    assert complaint in await cli.fails(status, "replay", "send", *words)


async def test_a_recording_of_something_else_is_left_alone(cli: Cli, filled: EventLog, space: str) -> None:
    await cli.ok("replay", "send", "o1", "--into", f"{space}-copy", "--from", "3")
    assert "holds something else" in await cli.fails(1, "replay", "send", "o13", "--into", f"{space}-copy")
    assert "holds something else" in await cli.fails(
        1, "replay", "send", "o1", "--type", "task.*", "--into", f"{space}-copy"
    )
    assert "nothing can be put before" in await cli.fails(1, "replay", "send", "o1", "--into", f"{space}-copy")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("rec", Where(space="rec")),
        ("nats://h:4222", Where(server="nats://h:4222", space="cue")),
        ("nats://h:4222/rec", Where(server="nats://h:4222", space="rec")),
        ("nats://a:1,nats://b:2/rec", Where(server="nats://a:1,nats://b:2", space="rec")),
        ("nats://a:1/rec/more", None),
        ("tls://h/rec", Where(server="tls://h", space="rec")),
        ("-", Where(path="-")),
        ("a.jsonl", Where(path="a.jsonl")),
        ("/tmp/a", Where(path="/tmp/a")),
    ],
)
def test_a_destination_is_told_by_its_shape(text: str, where: Where | None) -> None:
    if where is None:
        with pytest.raises(InputError):
            parse_destination(text, "cue")
    else:
        assert parse_destination(text, "cue") == where


# --- pace ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.sampled_from(["0.5x", "1x", "10x", "1000x"]))
def test_events_come_as_far_apart_as_they_were_divided_by_the_speed(moments: list[int], speed: str) -> None:
    now, came = 0.0, []
    pace = Pace(parse_speed(speed), clock=lambda: now)
    for moment in moments:
        now += pace.wait_s(moment)
        assert pace.wait_s(moment) == pytest.approx(0.0, abs=1e-6)
        came.append(now)
    first = moments[0]
    highest = first
    for moment, at in zip(moments, came, strict=True):
        highest = max(highest, moment)
        assert at == pytest.approx((highest - first) / 1e9 / float(speed[:-1]), abs=1e-3)


def test_at_most_speed_nothing_waits() -> None:
    pace = Pace(parse_speed("max"))
    assert [pace.wait_s(moment) for moment in (0, 10**15)] == [0.0, 0.0]
