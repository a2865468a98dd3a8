"""A group of processes keeps its places filled, replaces one after another, and leaves empty what a person has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cuebook.cli.exits import InputError
from cuebook.cli.serving import supervisor
from cuebook.cli.serving.cores import count_processes, usable_cores
from cuebook.cli.serving.supervised import VARIABLE
from cuebook.cli.serving.supervisor import Group, Plan, environment_of
from tests.cli.serving import supervised_program
from tests.waiting import eventually


class Play:
    """A group under way. `notes`: what its processes have lived through, in order, as (what, process id)."""

    def __init__(self, group: Group, folder: Path, running: asyncio.Task[int]) -> None:
        self.group, self.folder, self.running = group, folder, running

    @property
    def notes(self) -> list[tuple[str, int]]:
        path = self.folder / "notes"
        words = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
        return [(what, int(pid)) for what, pid in words]

    @property
    def pids(self) -> list[int]:
        """Of the processes in their places, that are ready."""
        found = [place.current for place in self.group._places if not place.closed]
        return [one.pid for one in found if one is not None and one.ready.is_set() and not one.ended.is_set()]

    async def has(self, count: int, *, without: set[int] | None = None) -> list[int]:
        """Wait until so many are ready in their places, none of them of `without`."""
        gone = without or set()
        await eventually(lambda: len(self.pids) == count and not gone & set(self.pids), within_s=60)
        return self.pids

    def tell(self, what: str) -> None:
        (self.folder / what).touch()


Begin = Callable[..., AbstractAsyncContextManager[Play]]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    @contextlib.asynccontextmanager
    async def begun(processes: int, *, drain_s: float = 5.0, patience_s: float = 30.0) -> AsyncIterator[Play]:
        argv = [sys.executable, supervised_program.__file__, str(tmp_path)]
        plan = Plan(argv=argv, env=dict(os.environ), processes=processes, drain_s=drain_s, patience_s=patience_s)
        group = Group(plan)
        running = asyncio.create_task(group.run())
        try:
            yield Play(group, tmp_path, running)
        finally:
            group.stop()
            await asyncio.wait([running])

    return begun


async def test_one_that_dies_is_started_again_and_said_why(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    async with begin(2) as play:
        one, other = await play.has(2)
        await asyncio.wait_for(play.group.ready.wait(), 60)
        assert play.group.status_line() == "processes 2 of 2, slots 4, in flight 2, lag 0, done 6"
        play.tell(f"crash-{one}")
        assert other in await play.has(2, without={one})
        ended = next(record for record in caplog.records if record.message.startswith("a process ended by itself"))
        assert (vars(ended)["pid"], vars(ended)["ended"], vars(ended)["pause_s"]) == (one, "by SIGSEGV", 0.25)
    assert play.running.result() == 0


async def test_pauses_grow_while_one_does_not_stay_up(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    def pauses() -> list[float]:
        return [vars(record)["pause_s"] for record in caplog.records if "pause_s" in vars(record)]

    async with begin(2) as play:
        one, _ = await play.has(2)
        play.tell("refuse")
        play.tell(f"crash-{one}")
        await eventually(lambda: len(pauses()) >= 3, within_s=60)
        (play.folder / "refuse").unlink()
        await play.has(2, without={one})
    assert pauses()[:3] == [0.25, 0.5, 1.0]


async def test_who_is_spent_works_on_until_a_fresh_one_is_ready_and_one_goes_at_a_time(begin: Begin) -> None:
    async with begin(3) as play:
        old = await play.has(3)
        for pid in old:
            play.tell(f"spent-{pid}")
        fresh = await play.has(3, without=set(old))
        await eventually(lambda: sum(what == "ends" for what, _ in play.notes) == 3, within_s=60)
        begun = [play.notes.index(note) for note in play.notes[3:] if note[0].startswith("begins")]
        ended = [play.notes.index(note) for note in play.notes if note[0] == "ends"]
        assert [first < then for first, then in zip(begun, ended, strict=True)] == [True] * 3  # the fresh one first
        assert [first < then for first, then in zip(ended, begun[1:], strict=False)] == [True] * 2  # one at a time
        assert {what for what, pid in play.notes if pid in fresh} <= {"begins0", "begins1", "begins2", "begins3"}


@pytest.mark.parametrize("how", ["stuck", "stopped"])
async def test_one_that_hangs_is_killed_and_replaced_and_the_others_work_on(
    begin: Begin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 0.2)
    async with begin(2, patience_s=5.0) as play:
        one, other = await play.has(2)
        if how == "stuck":
            play.tell(f"stuck-{one}")
        else:
            os.kill(one, signal.SIGSTOP)
        assert other in await play.has(2, without={one})
        said = next(record for record in caplog.records if "hangs" in record.message)
        assert vars(said)["stuck"] == ("r/0 wait" if how == "stuck" else "it says nothing")
        assert play.group.hanging() == ""


async def test_reloading_replaces_one_after_another_and_changes_their_number(begin: Begin) -> None:
    async with begin(2) as play:
        old = await play.has(2)
        play.group.reload(replace(play.group.plan, processes=3, env={**os.environ, "MORE": "1"}))
        fresh = await play.has(3, without=set(old))
        assert all(psutil.Process(pid).environ()["MORE"] == "1" for pid in fresh)
        await eventually(lambda: not play.group.reloading, within_s=60)
        play.group.reload(replace(play.group.plan, processes=1))
        await play.has(1, without=set(fresh))
        await eventually(lambda: len(play.group._live) == 1, within_s=60)
        assert play.group.status_line().startswith("processes 1 of 1")


async def test_what_cannot_take_over_leaves_the_old_ones_at_work(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    async with begin(2) as play:
        old = await play.has(2)
        play.tell("refuse")
        play.group.reload(play.group.plan)
        await eventually(lambda: not play.group.reloading, within_s=60)
        assert play.pids == old
        assert [what for what, _ in play.notes].count("refuses") == 1  # the second was not even tried
        assert "the other processes stay as they are" in caplog.text


async def test_a_process_that_does_not_get_ready_holds_up_neither_the_next_reload_nor_the_work(
    begin: Begin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SLOW_START_S", 0.1)
    async with begin(2) as play:
        old = await play.has(2)
        play.tell("linger")
        play.group.reload(play.group.plan)
        await eventually(lambda: "a process is not ready yet" in caplog.text, within_s=60)
        assert play.pids == old
        await eventually(lambda: play.group.status_line().endswith(", starting, reloading"), within_s=60)
        (play.folder / "linger").unlink()
        play.group.reload(play.group.plan)
        await play.has(2, without=set(old))
        await eventually(lambda: not play.group.reloading, within_s=60)
        monkeypatch.setattr(supervisor, "READY_WITHIN_S", 0.3)
        fresh = play.pids
        play.tell("linger")
        play.group.reload(play.group.plan)
        await eventually(lambda: not play.group.reloading, within_s=60)
        assert play.pids == fresh
        assert "the fresh process does not get ready: the old one goes on" in caplog.text
        await eventually(lambda: len(play.group._live) == 2, within_s=60)


async def test_a_reload_while_one_is_under_way_reaches_every_place(begin: Begin) -> None:
    async with begin(2) as play:
        old = await play.has(2)
        play.tell("slow-to-end")
        play.group.reload(replace(play.group.plan, env={**os.environ, "RELEASE": "1"}))
        await eventually(lambda: len(set(play.pids) - set(old)) == 1, within_s=60)  # the old one drains yet
        play.group.reload(replace(play.group.plan, env={**os.environ, "RELEASE": "2"}))
        (play.folder / "slow-to-end").unlink()
        await eventually(lambda: not play.group.reloading, within_s=60)
        assert [psutil.Process(pid).environ()["RELEASE"] for pid in play.pids] == ["2", "2"]


async def test_who_cannot_be_started_at_all_leaves_the_others_at_work(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    async with begin(2) as play:
        one, other = await play.has(2)
        plan = play.group.plan
        play.group.reload(replace(plan, argv=[str(play.folder / "away")]))
        await eventually(lambda: not play.group.reloading, within_s=60)
        play.tell(f"crash-{one}")
        await eventually(lambda: caplog.text.count("a process cannot be started") >= 3, within_s=60)
        assert play.pids == [other]
        play.group.reload(plan)
        await play.has(2, without={one, other})
    assert play.running.result() == 0


async def test_a_place_that_is_removed_before_anybody_stood_in_it_stays_empty(begin: Begin) -> None:
    async with begin(3) as play:
        play.group.reload(replace(play.group.plan, processes=1))
        await play.has(1)
        await eventually(lambda: not play.group.reloading and len(play.group._live) == 1, within_s=60)
        assert all(place.closed for place in play.group._places[1:])


async def test_a_first_process_that_cannot_start_ends_all_with_its_status(begin: Begin) -> None:
    async with begin(4) as play:
        play.tell("refuse")
        assert await asyncio.wait_for(play.running, 60) == 4
        assert {what for what, _ in play.notes} == {"refuses"}


async def test_a_place_that_a_person_has_emptied_stays_empty(begin: Begin) -> None:
    async with begin(2) as play:
        one, other = await play.has(2)
        play.tell(f"over-{one}")
        assert await play.has(1) == [other]
        play.group.reload(play.group.plan)
        (fresh,) = await play.has(1, without={other})
        play.tell(f"over-{fresh}")
        assert await asyncio.wait_for(play.running, 60) == 0
    assert len([what for what, _ in play.notes if what.startswith("begins")]) == 3


async def test_an_agent_that_a_person_has_drained_is_not_brought_back_by_who_comes_next(begin: Begin) -> None:
    async with begin(1) as play:
        (pid,) = await play.has(1)
        play.tell(f"drained-{pid}")
        await eventually(lambda: play.group._places[0].without, within_s=60)
        play.tell(f"spent-{pid}")
        (fresh,) = await play.has(1, without={pid})
        await eventually(lambda: len(play.group._live) == 1, within_s=60)  # its number is free again
        play.tell(f"crash-{fresh}")
        (last,) = await play.has(1, without={fresh})
        assert [what for what, one in play.notes if one in (fresh, last)] == ["begins1echo", "begins0echo"]


async def test_one_that_does_not_end_in_time_is_killed_and_the_status_says_so(
    begin: Begin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(supervisor, "END_WITHIN_S", 0.1)
    async with begin(2, drain_s=0.1) as play:
        await play.has(2)
        play.tell("deaf")
        play.group.stop()
        assert await asyncio.wait_for(play.running, 60) == 1
    assert caplog.text.count("did not end in time and is killed") == 2


def test_the_environment_of_a_process_is_ours_with_a_place_of_its_own() -> None:
    env = {"A": "b", "NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1"}
    own = environment_of(env, number=2, place=1, relieves=True, fd=7, without=frozenset({"echo"}))
    assert own.pop(VARIABLE) == '{"fd": 7, "number": 2, "place": 1, "relieves": true, "without": ["echo"]}'
    assert own == {"A": "b"}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8),
        ({"": "max 100000"}, 8),
        ({"a": "250000 100000"}, 3),
        ({"a": "800000 100000", "a/b": "100000 100000"}, 1),
        ({"a/b": "10000 100000"}, 1),
    ],
)
def test_auto_is_a_process_for_each_core_that_we_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/other\n0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    for folder, text in limits.items():
        (tmp_path / "sys/fs/cgroup" / folder / "cpu.max").write_text(text + "\n")
    assert usable_cores(tmp_path) == expected


def test_a_number_of_processes_is_a_number() -> None:
    assert (count_processes("3"), count_processes("auto")) == (3, usable_cores())
    for text in ("0", "-1", "many", "1.5", "9999"):
        with pytest.raises(InputError, match="is no number of processes"):
            count_processes(text)


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cuebook.cli.serving.supervisor")
