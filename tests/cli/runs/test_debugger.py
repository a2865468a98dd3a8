"""The viewer of one run: the real application on the real log, driven by its keys."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import termios
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.widgets import DataTable, Input, Static

from cuebook.actors.client import Client
from cuebook.actors.orchestrator.state import fold_run
from cuebook.cli.history.difference import apply_changes
from cuebook.cli.history.views import run_view
from cuebook.cli.runs.debugger import Debugger
from cuebook.cli.runs.debugging import read_steps
from cuebook.cli.runs.diffs import run_fields
from cuebook.cli.runs.stepping import KEEP_EVERY, Steps
from cuebook.events.errors import HistoryRegressedError
from tests.cli.conftest import Cli, command, reaches
from tests.waiting import eventually


@pytest.fixture
async def steps(cli: Cli, client: Client, agents: object) -> Steps:
    """A run of two tasks that was compensated."""
    await cli.run("run", "submit", "order", '{"n": 13}', "--id", "o13", "--wait")
    return await read_steps(client.log, "o13")


def seen(app: Debugger) -> str:
    """All of the state, also what is scrolled out of sight."""
    return str(app.query_one("#fields", Static).content)


def title(app: Debugger) -> str:
    return str(app.query_one("#title", Static).content)


def rows(app: Debugger) -> list[str]:
    table = app.query_one(DataTable)
    return [" ".join(str(cell) for cell in table.get_row_at(n)) for n in range(table.row_count)]


async def test_keys_step_through_the_events_and_what_changed_stands_out(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24)) as pilot:
        assert len(rows(app)) == len(steps.items)
        assert app.place == 1
        assert "run.requested.v1" in seen(app)
        await pilot.press("down")
        assert app.place == 2
        assert "*status running  was requested" in seen(app)
        assert "event 2 of" in title(app)
        await pilot.press("j", "space", "k", "up")
        assert app.place == 2
        await pilot.press("G")
        assert app.place == len(steps.items)
        assert "*status compensated  was compensating" in seen(app)
        await pilot.press("down")
        assert app.place == len(steps.items)
        await pilot.press("g")
        assert app.place == 1
        await pilot.press("up", "end", "home")
        assert app.place == 1


async def test_the_task_of_the_event_is_shown_in_full(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24)) as pilot:
        assigned = next(n for n, item in enumerate(steps.items, 1) if item.address.fact == "assigned")  # type: ignore[union-attr]
        for _ in range(assigned - 1):
            await pilot.press("down")
        assert "▶  0 assigned   echo.add" in seen(app)
        assert "*status assigned  was waiting" in seen(app)
        assert " agent echo" in seen(app)
        await pilot.press("e")
        assert '"fact": "assigned"' in seen(app)
        await pilot.press("e")
        assert '"fact": "assigned"' not in seen(app)


async def test_searching_finds_the_next_event_and_goes_round(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("slash")
        assert app.query_one(Input).has_focus
        await pilot.press(*"COMPLETED", "enter")
        expected = [n for n in steps.places() if steps.find("completed", [n], 0)]
        assert app.place == expected[0]
        await pilot.press("n")
        assert app.place == expected[1]
        await pilot.press("N", "N")
        assert app.place == expected[-1]
        await pilot.press("slash", *"no such words", "enter")
        await pilot.press("slash", "escape", "g")
        assert app.place == 1
        assert not app.query_one(Input).display


async def test_a_task_can_be_looked_at_alone(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24)) as pilot:
        own = [place for place in steps.places() if steps.part(place) == 1]
        for _ in range(own[0] - 1):
            await pilot.press("down")
        await pilot.press("f")
        assert len(rows(app)) == len(own)
        assert "only 1" in title(app)
        await pilot.press("G")
        assert app.place == own[-1]
        await pilot.press("f")
        assert (len(rows(app)), app.place) == (len(steps.items), own[-1])
        await pilot.press("f", "escape")
        assert len(rows(app)) == len(steps.items)


async def test_it_fits_a_small_terminal_and_the_state_can_be_scrolled(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24)) as pilot:
        timeline, state = app.query_one("#timeline"), app.query_one("#state")
        assert timeline.region.width + state.region.width == 80
        assert (timeline.region.height, state.region.height) == (22, 22)
        assert state.max_scroll_y > 0
        await pilot.press("tab", "pagedown")
        await pilot.pause()
        assert state.scroll_offset.y > 0
        assert app.place == 1
        await pilot.resize_terminal(120, 40)
        assert app.query_one("#timeline").region.width == 60


async def test_a_run_that_goes_on_is_followed(cli: Cli, client: Client, agents: object) -> None:
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    steps = await read_steps(client.log, "o15")
    filters = [client.log.subjects.everything_of("o15"), client.log.subjects.progress_of("o15")]
    app = Debugger(steps, client.log.follow(after=steps.items[-1].sequence, filters=filters))
    async with app.run_test(size=(80, 24)) as pilot:
        before = len(steps.items)
        assert "live" in title(app)
        await pilot.press("down")
        await cli.ok("escalation", "resolve", "o15/1", "--approve")
        await eventually(lambda: steps.ended and "live" not in title(app))
        await pilot.pause()
        assert app.place == 2
        assert len(rows(app)) == len(steps.items) > before


async def test_at_the_end_what_comes_is_shown_at_once(cli: Cli, client: Client, agents: object) -> None:
    await cli.ok("run", "submit", "order", '{"n": 15}', "--id", "o15")
    await reaches(client, "o15", items=2)
    steps = await read_steps(client.log, "o15")
    filters = [client.log.subjects.everything_of("o15")]
    app = Debugger(steps, client.log.follow(after=steps.items[-1].sequence, filters=filters))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("G")
        await cli.ok("escalation", "resolve", "o15/1", "--approve")
        await eventually(lambda: steps.ended)
        await pilot.pause()
        assert app.place == len(steps.items)
        assert "*status completed  was running" in seen(app)


async def test_a_log_that_ends_badly_ends_the_viewer_and_is_told(steps: Steps) -> None:
    async def broken() -> Any:
        if steps.items:
            raise HistoryRegressedError("the log was truncated")
        yield

    open_ended = Steps("o13")
    for item in steps.items[:3]:
        open_ended.add(item)
    app = Debugger(open_ended, broken())
    async with app.run_test(size=(80, 24)):
        await eventually(lambda: app.failure is not None)
    assert isinstance(app.failure, HistoryRegressedError)


async def test_what_comes_from_the_log_is_neither_markup_nor_control(cli: Cli, client: Client) -> None:
    await client.submit_run("order", {"text": "[bold]\x1b[2Jx[/bold][@click=app.quit]"}, run_id="bad")
    app = Debugger(await read_steps(client.log, "bad"))
    async with app.run_test(size=(80, 24)):
        assert "[bold]\\u001b[2Jx[/bold][@click=app.quit]" in seen(app)
        assert "\x1b" not in "".join(rows(app)) + seen(app)


async def test_a_standalone_task_is_a_run_too(cli: Cli, client: Client, agents: object) -> None:
    await cli.ok("run", "submit", "--agent", "echo", '{"n": 1}', "--id", "t1", "--wait")
    app = Debugger(await read_steps(client.log, "t1"))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("slash", *"task.completed", "enter")
        assert "*status completed  was running" in seen(app)


async def test_q_leaves(steps: Steps) -> None:
    app = Debugger(steps)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("q")
    assert app.return_code == 0


async def test_on_a_terminal_it_takes_the_screen_and_gives_it_back(steps: Steps, cli: Cli) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *command(["run", "debug", "o13", "--at", str(steps.items[1].sequence)]),
        env={**os.environ, **cli.env, "TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    output = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal whose last process is gone
            output.extend(os.read(master, 65536))

    asyncio.get_running_loop().add_reader(master, read)
    try:
        await eventually(lambda: b"event 2 of" in output, within_s=60)
        os.write(master, b"q")
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"\x1b[?1049h" in output


async def test_without_a_terminal_it_names_what_prints(cli: Cli, client: Client) -> None:
    complaint = await cli.fails(2, "run", "debug", "o13")
    assert "needs a terminal" in complaint
    assert "cuebook replay o13 --state" in complaint


# --- laws ------------------------------------------------------------------------------------------------------------


async def test_the_state_at_a_place_is_the_fold_of_the_first_so_many_events_in_whatever_order_one_looks(
    cli: Cli, client: Client, agents: object
) -> None:
    for n in (13, 14):
        await cli.run("run", "submit", "order", f'{{"n": {n}}}', "--id", f"o{n}")
        await reaches(client, f"o{n}", items=2)
    story = [*(await read_steps(client.log, "o13")).items, *(await read_steps(client.log, "o14")).items] * 8
    items = [item for item in story if item.address.kind != "progress"]  # type: ignore[union-attr]
    assert len(items) > KEEP_EVERY

    @given(st.lists(st.integers(0, len(items)), max_size=6), st.integers(0, len(items)))
    def holds(places: list[int], known: int) -> None:
        steps = Steps("o13")
        for item in items[:known]:
            steps.add(item)
        for place in [place for place in places if place <= known]:
            part = items[:place]
            folded = run_fields(run_view(fold_run("o13", part), part[:1], {}, {})) if part else {}
            assert steps.fields(place) == folded
            if place:
                assert apply_changes(steps.fields(place - 1), steps.changes(place)) == folded

    await asyncio.to_thread(holds)
