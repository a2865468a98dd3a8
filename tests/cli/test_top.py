"""`cuebook top`: the real screen on a real space, driven by its keys, and one frame of it as text and JSON."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from textual.widgets import DataTable, Input, Static

from cuebook.actors.client import Client
from cuebook.cli.top import board as board_module
from cuebook.cli.top import commands as command_line
from cuebook.cli.top import watching
from cuebook.cli.top.board import ENDINGS, WINDOW_S, Board
from cuebook.cli.top.frame import SORTS
from cuebook.cli.top.screen import Top
from cuebook.cli.top.watching import Watch
from cuebook.events.connection import connect
from cuebook.events.envelope import Envelope
from cuebook.events.errors import UnavailableError
from cuebook.events.facts import (
    AgentRegistered,
    Error,
    HandlerSpec,
    TaskAssigned,
    TaskCompleted,
    TaskFailed,
    TaskRequested,
)
from cuebook.events.log import EventLog
from cuebook.projections.runner import Runner
from tests.cli.conftest import Cli, command, reaches
from tests.projections.test_runner import append_tasks, running
from tests.waiting import eventually

LONG_WINDOW_S = 120
"""Rates over so long have what a test has done in them, however slowly."""


@pytest.fixture
def long_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (board_module, watching):
        monkeypatch.setattr(module, "WINDOW_S", LONG_WINDOW_S)


@pytest.fixture
async def watch(nats_url: str, space: str, client: Client) -> AsyncIterator[Watch]:
    connection = await connect(nats_url, name="tests top")
    async with Client(connection, space, by="tests") as own:
        yield Watch(own, "")
    await connection.close()


@asynccontextmanager
async def screen(watch: Watch, width: int = 100) -> AsyncIterator[tuple[Top, Any]]:
    await watch.begin()
    app = Top(lambda: watch.board.frame(watch.now), watch.run, interval_s=0.2)
    async with app.run_test(size=(width, 30)) as pilot:
        yield app, pilot


def rows(app: Top, name: str) -> list[list[str]]:
    table = app.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row_at(n)] for n in range(table.row_count)]


def text(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).content)


@pytest.mark.usefixtures("long_window")
async def test_agents_runs_endings_and_rates_come_in_as_they_happen(
    cli: Cli, client: Client, agents: object, watch: Watch
) -> None:
    async with screen(watch) as (app, pilot):
        idle = [["echo", "1", "healthy", "0/4"], ["faulty", "1", "healthy", "0/1"]]
        await eventually(lambda: [row[:4] for row in rows(app, "agents")] == idle)
        assert rows(app, "endings")[0][0] == "none"
        await client.submit_task("echo", {"n": 1}, run_id="t1")
        await client.submit_run("order", {"n": 15}, run_id="o15")
        await client.submit_run("order", {"n": 1}, run_id="o1")
        await reaches(client, "o15", items=2)
        await reaches(client, "o1", "completed")
        await reaches(client, "t1", "completed")
        await eventually(lambda: {row[2] for row in rows(app, "endings")} == {"t1", "o1"})
        ended = {row[2]: (row[1], row[3]) for row in rows(app, "endings")}
        assert ended == {"t1": ("completed", "echo"), "o1": ("completed", "order")}
        await eventually(lambda: rows(app, "runs")[1:] == [["1", "order", "running"]])
        assert rows(app, "runs")[0][:2] == ["1", "questions for a person"]
        await eventually(lambda: "1 runs open · 0 tasks waiting · 1 for a person" in text(app, "status"))
        last = (await client.log.verify()).last_sequence
        await eventually(lambda: f"event {last} " in text(app, "title"))
        assert watch.board.frame(watch.now)["agents"][0]["tasks_s"] == 3 / LONG_WINDOW_S
        await pilot.press("q")
    assert app.failure is None


async def test_what_waits_says_why_and_which_agent_is_missing(
    client: Client, log: EventLog, orchestrator: object, watch: Watch
) -> None:
    event = AgentRegistered(slots=1, handlers={"add": HandlerSpec()}, heartbeat_s=60)
    await log.append(log.subjects.agent("busy", "b1", "registered"), event)
    await client.submit_task("busy", {"n": 1}, run_id="t1")
    await reaches(client, "t1", attempt=1)
    await client.submit_task("busy", {"n": 1}, run_id="t2", priority=7)
    async with screen(watch) as (app, _):
        why = "all 1 slots of 1 instances of 'busy' are taken; 0 more wait"
        await eventually(lambda: [[*row[:3], *row[4:]] for row in rows(app, "queues")] == [["busy", "7", "1", why]])
        await eventually(lambda: rows(app, "agents")[0][3] == "1/1")
        assert rows(app, "agents")[0][7] == "1"


@pytest.mark.usefixtures("long_window")
async def test_keys_sort_filter_pause_and_show_instances(
    cli: Cli, client: Client, agents: object, watch: Watch
) -> None:
    async with screen(watch) as (app, pilot):
        await client.submit_task("faulty", {"n": 1}, run_id="f1")
        await reaches(client, "f1", "escalated")
        await eventually(lambda: watch.board.frame(watch.now)["agents"][1]["failures_s"] > 0)
        app.refresh_frame()
        for sort in (*SORTS[1:], SORTS[0]):
            await pilot.press("s")
            assert f"by {sort}" in text(app, "title")
            if sort == "failures":
                assert rows(app, "agents")[0][0] == "faulty"
        await pilot.press("d")
        assert [row[0] for row in rows(app, "agents")] == ["echo", "faulty"]
        assert rows(app, "agents")[0][6].endswith(f":{os.getpid()}")
        await pilot.press("d", "slash", *"faul")
        assert app.query_one(Input).has_focus
        await eventually(lambda: [row[0] for row in rows(app, "agents")] == ["faulty"])
        await pilot.press("enter")
        assert "only 'faul'" in text(app, "title")
        await pilot.press("p")
        assert "paused" in text(app, "title")
        before = text(app, "title")
        await client.submit_task("echo", {"n": 1}, run_id="t1")
        await reaches(client, "t1", "completed")
        await eventually(lambda: watch.board.frame(watch.now)["endings"])
        app.refresh_frame()
        assert text(app, "title") == before
        await pilot.press("p", "escape")
        await eventually(lambda: "live" in text(app, "title") and rows(app, "endings")[0][2] == "t1")
        await eventually(lambda: len(rows(app, "agents")) == 2)


async def test_it_works_without_an_orchestrator(client: Client, nats_url: str, space: str, watch: Watch) -> None:
    await client.submit_task("echo", {"n": 1}, run_id="t1")
    async with screen(watch) as (app, _):
        assert rows(app, "runs") == [["1", "echo", "waiting"]]
        assert "since no orchestrator answers" in text(app, "status")
        await client.submit_task("echo", {"n": 1}, run_id="t2")
        await eventually(lambda: rows(app, "runs") == [["2", "echo", "waiting"]])


async def test_projections_are_told_where_a_database_is_named(
    client: Client, nats_url: str, space: str, database_url: str
) -> None:
    runner = Runner(client.log, database_url)
    async with running(runner):
        last = await append_tasks(client.log, 5)
        await eventually(lambda: {one.sequence for one in runner.status().positions.values()} == {last})

        async def lags() -> dict[str, int]:
            watch = Watch(client, database_url)
            await watch.begin()
            return {one["projection"]: one["lag"] for one in watch.board.frame(watch.now)["projections"]}

        assert await eventually(lags) == {"agents": 0, "audit": 0, "runs": 0}
    away = Watch(client, "postgresql://postgres@127.0.0.1:1/x")
    await away.begin()
    assert away.board.frame(away.now)["projections"] == []


async def test_a_connection_that_ends_ends_the_screen_and_is_told(watch: Watch) -> None:
    async with screen(watch) as (app, _):
        await watch._client.log.connection.close()
        await eventually(lambda: app.failure is not None)
    assert isinstance(app.failure, ExceptionGroup)
    assert app.failure.subgroup(UnavailableError) is not None


async def test_what_comes_from_the_log_is_neither_markup_nor_control(client: Client, watch: Watch) -> None:
    event = AgentRegistered(slots=1, handlers={}, host="[bold]\x1b[2J", version="[@click=app.quit]x")
    await client.log.append(client.log.subjects.agent("evil", "e1", "registered"), event)
    async with screen(watch, 140) as (app, pilot):
        await pilot.press("d")
        shown = " ".join(rows(app, "agents")[0])
        assert "[bold]\\x1b[2J" in shown
        assert "[@click=app.quit]x" in shown


# --- one frame -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("long_window")
async def test_one_frame_as_text_and_as_json(cli: Cli, client: Client, agents: object) -> None:
    for n in range(12):
        await client.submit_task("echo", {"n": n}, run_id=f"t{n}")
        await reaches(client, f"t{n}", "completed")
    printed = ""

    async def at_rest() -> bool:
        nonlocal printed
        printed = await cli.ok("top")  # there is no terminal
        return ["echo", "1", "healthy", "0/4", "0.1", "0.0", "0"] in [line.split() for line in printed.splitlines()]

    await eventually(at_rest)  # what the orchestrator tells is half a second old
    assert " t11 " in await cli.ok("top", "--once", "--sort", "load")
    assert "newest endings" in printed
    frame = await cli.json("top")
    assert frame["endings"][0]["run_id"] == "t11"
    assert frame["log"]["sequence"] == (await client.log.verify()).last_sequence
    assert {one["agent"]: one["slots"] for one in frame["agents"]} == {"echo": 4, "faulty": 1}
    assert json.loads(await cli.ok("top", "-o", "jsonl"))["space"] == frame["space"]


@pytest.mark.parametrize("end", ["q", signal.SIGTERM, signal.SIGHUP])
async def test_on_a_terminal_it_takes_the_screen_and_gives_it_back(
    cli: Cli, agents: object, end: str | signal.Signals
) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *command(["top"]),
        env={**os.environ, **cli.env, "TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    output = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            output.extend(os.read(master, 65536))

    asyncio.get_running_loop().add_reader(master, read)
    try:
        await eventually(lambda: b"faulty" in output, within_s=60)
        if isinstance(end, str):
            os.write(master, end.encode())
        else:
            process.send_signal(end)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        await eventually(lambda: b"\x1b[?1049l" in output)
    finally:
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"\x1b[?1049h" in output


# --- the board -------------------------------------------------------------------------------------------------------


async def test_memory_does_not_grow_with_the_log(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuebook.cli.top.board.REMEMBERED_RUNS", 200)
    board, count = Board(log.subjects.space), 1_000
    for n in range(count):
        for item in _story(log, n):
            board.apply(item)
    assert len(board._runs) == 200
    assert len(board._endings) == ENDINGS
    assert len(board._seconds) <= WINDOW_S + 1
    frame = board.frame(count * 1_000_000)
    assert frame["log"]["sequence"] == 4 * count
    assert frame["log"]["events_s"] == pytest.approx(4, abs=0.5)
    assert {one["agent"]: (one["tasks_s"], one["failures_s"]) for one in frame["agents"]} == {"refund": (1.0, 1.0)}


def test_the_command_line_knows_what_can_be_sorted_by() -> None:
    assert tuple(one.value for one in command_line.Sort) == SORTS


_ERROR = Error(type="ValueError", message="no")


def _story(log: EventLog, n: int) -> list[Envelope]:
    """A task that fails and then completes, in second n."""
    subjects, run_id = log.subjects, f"r{n}"
    events = [
        (subjects.task(run_id, 0, "requested", "refund"), TaskRequested(handler="issue")),
        (subjects.task(run_id, 0, "assigned", "refund", "i1"), TaskAssigned(handler="issue", attempt=1, timeout_s=9)),
        (subjects.task(run_id, 0, "failed"), TaskFailed(error=_ERROR)),
        (subjects.task(run_id, 0, "completed"), TaskCompleted(output=n)),
    ]
    return [
        Envelope(
            id=f"{n}-{k}", event_type=event.event_type, time=0, source="tests", correlation_id="", causation_id="",
            traceparent="", data=None, event=event, address=subjects.parse(subject), subject=subject,
            sequence=4 * n + k, recorded_at=n * 1_000_000,
        )
        for k, (subject, event) in enumerate(events, 1)
    ]  # fmt: skip
