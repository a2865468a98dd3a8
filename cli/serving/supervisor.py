"""Several processes that do the same, kept running: one dies, hangs or is spent, and the others never notice.

Each has a *place*. Who ends without having been asked is started again in it, after pauses that grow. Who is to be
replaced, because it is spent or we were told to reload, works on until a fresh process in its place is registered and
ready; this goes one place after another. A place whose agents a person has drained stays empty.

The processes end with us: asked to, when we are; and however we end, since their line to us closes (see supervised.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cuebook.cli.exits import Exit
from cuebook.cli.serving.children import Restarts
from cuebook.cli.serving.lifecycle import END_WITHIN_S, STOP_GRACE_S
from cuebook.cli.serving.supervised import VARIABLE, encode_place
from cuebook.embedded.process import dies_with_this_thread, how_it_ended

__all__ = ["PATIENCE_S", "Group", "Plan", "environment_of", "this_program"]

PATIENCE_S: Final = 15.0
"""So long may a process say nothing, or say that it hangs, where systemd sets no limit (`WatchdogSec=`)."""
LAST_WORDS_S: Final = 2.0
"""What a process that hangs gets to write down where its threads stand (SIGABRT), before SIGKILL."""
LOOK_EVERY_S: Final = 1.0
SLOW_START_S: Final = 30.0
"""After so long the log says that a process is not ready yet."""
READY_WITHIN_S: Final = 300.0
"""Who is to replace another and is not ready by then never will be: the other one goes on."""
_OF_THE_MANAGER: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What systemd tells us, and us alone."""
_ADDED_UP: Final = ("slots", "in_flight", "lag", "done")

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What to run: `processes` of `argv`, with `env`. All may change; what runs already is not touched by that.

    `drain_s`: how long they take at most to finish what they have. `patience_s`: how long one may hang.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    processes: int
    drain_s: float
    patience_s: float = PATIENCE_S


class _Process:
    """One process, in the place with the number `place`; `report` is what it said last.

    `number` is its own alone, and free again when it has ended. `age`: how many reloads came before it. `running` None:
    it could not even be started, and has ended.
    """

    def __init__(
        self,
        number: int,
        place: int,
        without: frozenset[str],
        *,
        age: int,
        running: asyncio.subprocess.Process | None,
    ) -> None:
        self.number, self.place, self.without, self.age, self._running = number, place, without, age, running
        self.pid = running.pid if running is not None else 0
        self.report: dict[str, Any] = {}
        self.ready, self.ended = asyncio.Event(), asyncio.Event()
        self.status = 0 if running is not None else int(Exit.FAILURE)
        self.leaving = self.condemned = self.said_slow = False
        self.began = self.well_at = asyncio.get_running_loop().time()
        if running is None:
            self.ended.set()

    @property
    def was_drained(self) -> bool:
        """It has ended because a person has drained its agents."""
        return self.ended.is_set() and self.status == 0 and bool(self.report.get("over"))

    @property
    def ended_well(self) -> bool:
        """It has ended as it should; before it serves, it knows no better way than to die of our signal."""
        return self.status == 0 or (self.status == -signal.SIGTERM and self.leaving and not self.ready.is_set())

    def signal(self, number: signal.Signals) -> None:
        """To the process; SIGKILL also to what it has started itself."""
        if self.ended.is_set():
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    async def follow(self, line: socket.socket, heard: Callable[[_Process], None]) -> None:
        """Take in what it says until it has ended."""
        assert self._running is not None, "it was started"
        reader, writer = await asyncio.open_unix_connection(sock=line)
        listening = asyncio.ensure_future(self._listen(reader, heard))
        self.status = await self._running.wait()
        await asyncio.wait([listening], timeout=LOOK_EVERY_S)  # its last words are on the line already
        listening.cancel()
        writer.close()
        self.ended.set()

    async def _listen(self, reader: asyncio.StreamReader, heard: Callable[[_Process], None]) -> None:
        with contextlib.suppress(ConnectionError):
            while (text := await reader.readline()).endswith(b"\n"):  # else it was killed in the middle of a word
                self.report = json.loads(text)
                if not self.report.get("stuck"):
                    self.well_at = asyncio.get_running_loop().time()
                if self.report.get("ready"):
                    self.ready.set()
                heard(self)


class _Place:
    """Where one process after another stands. `fresh` is the one that is to take over; `without` whom nobody serves.

    `number`: counts from 0, and is another's once the place has been removed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: _Process | None = None
        self.fresh: _Process | None = None
        self.without: frozenset[str] = frozenset()
        self.closed = False
        self.removed = False
        self.restarts = Restarts(give_up=False)


class Group:
    """The processes of a plan. `run` until `stop`, until a person has drained all, or until none can be started."""

    def __init__(self, plan: Plan, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when `ready` is set, and when a reload has ended."""
        self.plan = plan
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.reloading = False
        self.status: int = Exit.OK
        self._changed = changed
        self._places = [_Place(number) for number in range(plan.processes)]
        self._live: list[_Process] = []
        self._due: dict[_Place, str] = {}
        self._due_changed = asyncio.Event()
        self._reloads = 0
        self._reloaded = asyncio.Event()
        """Set, and replaced, by each reload: what was under way for the one before is in vain."""
        self._loaded = asyncio.Event()
        """One process has found its agents, and so will the others."""
        self._tasks: asyncio.TaskGroup

    async def run(self) -> int:
        """Keep them running; returns the exit status of the whole."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for place in self._places:
                    self._tasks.create_task(self._keep(place))
                self._tasks.create_task(self._roll())
                watching = self._tasks.create_task(self._watch())
                await self.stopping.wait()
                self._due_changed.set()
                for process in self._live:
                    self._send_away(process)
                while self._live:
                    await self._live[0].ended.wait()
                watching.cancel()
        finally:
            self.kill()
        return self.status

    def stop(self) -> None:
        """Let all finish what they have, and end."""
        self.stopping.set()

    def kill(self) -> None:
        """End all at once; tasks in flight go to others."""
        for process in self._live:
            process.signal(signal.SIGKILL)

    def reload(self, plan: Plan) -> None:
        """From now on this plan counts: each process is replaced by a fresh one, and there are so many places."""
        self.plan = plan
        kept = [place for place in self._places if not place.removed]
        for place in kept[plan.processes :]:
            place.removed = True
        for place in kept:
            self._due[place] = "removed" if place.removed else "reload"
        for number in range(len(kept), plan.processes):
            place = _Place(number)
            self._places.append(place)
            self._tasks.create_task(self._keep(place))
        self.reloading = True
        self._due_changed.set()
        self._reloads += 1
        self._reloaded.set()
        self._reloaded = asyncio.Event()

    def status_line(self) -> str:
        """How it goes, in words."""
        current = [place.current for place in self._places if place.current is not None and not place.closed]
        serving = [one for one in current if one.ready.is_set() and not one.ended.is_set()]
        figures = {name: sum(one.report.get(name, 0) for one in self._live) for name in _ADDED_UP}
        text = f"processes {len(serving)} of {self.plan.processes}"
        if serving:
            text += ", slots {slots}, in flight {in_flight}, lag {lag}, done {done}".format(**figures)
        unready = [one for one in self._live if not one.ready.is_set() and not one.leaving]
        waiting = next((one.report["state"] for one in unready if one.report), "")
        return text + (f", {waiting}" if waiting else "") + (", reloading" if self.reloading else "")

    def hanging(self) -> str:
        """Processes that hang although they were killed, which is more than we can mend. Empty as a rule."""
        latest = asyncio.get_running_loop().time() - self.plan.patience_s - 2 * LAST_WORDS_S
        return ", ".join(f"process {one.pid}" for one in self._live if one.condemned and one.well_at < latest)

    # --- one place ---

    async def _keep(self, place: _Place) -> None:
        """Have a process in a place until the place is closed or we are to end."""
        if place is not self._places[0]:  # what is written wrong shows with the first
            await _first(self._loaded.wait(), self.stopping.wait())
        while (process := await self._start(place)) is not None:
            place.current = process
            while process is not None:
                await process.ended.wait()
                process = self._successor(place, process)
            pause_s = self._judge(place)
            if pause_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self.stopping.wait()

    def _successor(self, place: _Place, ended: _Process) -> _Process | None:
        """Who stands in the place of one that has ended, where somebody does."""
        if place.current is not ended:
            return place.current
        if place.fresh is not None and not place.fresh.ended.is_set() and not ended.was_drained:
            place.current, place.fresh = place.fresh, None
            return place.current
        return None

    def _judge(self, place: _Place) -> float:
        """What comes after the end of the process in a place: a pause, after which the next one starts."""
        process = place.current
        assert process is not None
        if self.stopping.is_set() or place.closed:
            return 0.0
        facts = {"child": process.number, "pid": process.pid, "ended": how_it_ended(process.status)}
        if process.was_drained:
            logger.info("a process ended, for its agents were drained; its place stays empty", extra=facts)
            self._close(place)
            return 0.0
        if process.status == Exit.RECYCLED:
            logger.info("a process has done its share: a fresh one starts", extra=facts)
            return 0.0
        if process.status > 0 and not any(one.ready.is_set() for one in self._live) and not self.ready.is_set():
            if not self.stopping.is_set():
                logger.error("the first process did not start: the others would not either", extra=facts)
            self.status = process.status
            self.stop()
            return 0.0
        pause_s = place.restarts.pause_s(asyncio.get_running_loop().time() - process.began) or 0.0
        logger.warning("a process ended by itself; a fresh one starts", extra={**facts, "pause_s": pause_s})
        return pause_s

    def _close(self, place: _Place) -> None:
        place.closed = True
        if place.fresh is not None:
            self._send_away(place.fresh)
        if all(one.closed for one in self._places):
            logger.info("no place is left to serve")
            self.stop()
        self._look()

    # --- replacing ---

    async def _roll(self) -> None:
        """Replace what is due, one after another."""
        while not self.stopping.is_set():
            await self._due_changed.wait()
            while self._due and not self.stopping.is_set():
                place = next(iter(self._due))
                reason, reloads = self._due[place], self._reloads
                well = await self._replace(place, reason)
                again = self._reloads != reloads
                if again and reason == "reload" and place.current is not None and place.current.age < self._reloads:
                    continue  # it has what the reload before this one brought
                if self._due.get(place) == reason:
                    del self._due[place]
                if not well and not again and reason == "reload":
                    logger.error("reloading has ended: the other processes stay as they are")
                    self._due = {one: why for one, why in self._due.items() if why != "reload"}
            self._due_changed.clear()
            if self.reloading and not self.stopping.is_set():
                self.reloading = False
                self._changed()

    async def _replace(self, place: _Place, reason: str) -> bool:
        """Put a fresh process in the place of its present one. False: none could be had, and that one goes on."""
        old = place.current
        if place.closed:
            return True
        if reason == "removed":
            self._close(place)
            if old is not None:
                self._send_away(old)
                await old.ended.wait()
            return True
        if old is None:
            return True
        if old.ended.is_set():
            return True  # a fresh one is on its way already
        logger.info("a fresh process is to take over", extra={"child": old.number, "pid": old.pid, "reason": reason})
        while True:
            fresh = place.fresh = await self._start(place)
            if fresh is None:
                return True
            await self._until_known(fresh, old.ended.wait())
            outdated = fresh.age < self._reloads and not fresh.ready.is_set() and not fresh.ended.is_set()
            if place.fresh is fresh and fresh.without == place.without and not outdated:
                break
            if place.fresh is not fresh or place.closed:  # it stands in the place already, or nobody does any more
                await self._until_known(fresh)
                return fresh.ready.is_set() or fresh.ended.is_set()
            self._send_away(fresh)  # a person has drained one of its agents meanwhile, or reloaded once more
        return await self._take_over(place, old, fresh)

    async def _take_over(self, place: _Place, old: _Process, fresh: _Process) -> bool:
        if old.ended.is_set():
            await self._until_known(fresh)
        place.fresh = None if place.fresh is fresh else place.fresh
        if self.stopping.is_set() or place.current is fresh or place.closed:
            return True
        if old.was_drained:
            place.current, place.fresh = fresh, fresh
            self._close(place)
            return True
        if not fresh.ready.is_set() and not fresh.ended.is_set():
            facts = {"child": fresh.number, "pid": fresh.pid, "old": old.pid, "for_s": READY_WITHIN_S}
            logger.error("the fresh process does not get ready: the old one goes on", extra=facts)
            self._send_away(fresh)
            return False
        if fresh.ended.is_set():
            ending = {"child": fresh.number, "pid": fresh.pid, "ended": how_it_ended(fresh.status)}
            logger.error("the fresh process did not get ready: the old one goes on", extra={**ending, "old": old.pid})
            pause_s = place.restarts.pause_s(0.0) or 0.0
            await _first(self.stopping.wait(), asyncio.sleep(pause_s))
            return False
        place.current = fresh
        self._send_away(old)
        await old.ended.wait()
        return True

    async def _until_known(self, fresh: _Process, *others: Coroutine[Any, Any, Any]) -> None:
        """Until one that starts is ready or has ended, and no longer than anybody may want to know."""
        if fresh.ready.is_set() or fresh.ended.is_set():
            for other in others:
                other.close()
            return
        waits = [fresh.ready.wait(), fresh.ended.wait(), self.stopping.wait(), self._reloaded.wait()]
        await _first(*waits, *others, asyncio.sleep(READY_WITHIN_S))

    # --- one process ---

    async def _start(self, place: _Place) -> _Process | None:
        """Start a process for a place; None when we are to end."""
        if self.stopping.is_set() or place.closed:
            return None
        age, taken = self._reloads, {one.number for one in self._live}
        number = next(free for free in itertools.count() if free not in taken)
        try:
            ours, running = await self._spawn(number, place)
        except (OSError, subprocess.SubprocessError) as error:  # no memory, too many processes, a Python that is away
            logger.error("a process cannot be started", extra={"child": number, "error": str(error)})  # noqa: TRY400
            return _Process(number, place.number, place.without, age=age, running=None)
        process = _Process(number, place.number, place.without, age=age, running=running)
        self._live.append(process)
        self._tasks.create_task(self._follow(process, ours, place))
        if self.stopping.is_set():
            self._send_away(process)
        return process

    async def _spawn(self, number: int, place: _Place) -> tuple[socket.socket, asyncio.subprocess.Process]:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            with theirs:
                running = await asyncio.create_subprocess_exec(
                    *self.plan.argv,
                    env=environment_of(
                        self.plan.env,
                        number=number,
                        place=place.number,
                        relieves=any(one.place == place.number for one in self._live),
                        fd=theirs.fileno(),
                        without=place.without,
                    ),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in a terminal is for us
                    preexec_fn=dies_with_this_thread(signal.SIGTERM),
                )
            stack.pop_all()
        return ours, running

    async def _follow(self, process: _Process, line: socket.socket, place: _Place) -> None:
        await process.follow(line, lambda one: self._heard(one, place))
        self._live.remove(process)
        if self.stopping.is_set() and self.status == Exit.OK and not process.ended_well:
            self.status = process.status if process.status > 0 else Exit.FAILURE

    def _heard(self, process: _Process, place: _Place) -> None:
        report = process.report
        self._loaded.set()
        if process is place.current:
            place.without |= frozenset(report.get("drained", ()))
            if report.get("spent") and not process.leaving and place not in self._due:
                self._due[place] = str(report["spent"])
                self._due_changed.set()
        self._look()

    def _look(self) -> None:
        if not self.ready.is_set() and all(
            place.closed or (place.current is not None and place.current.ready.is_set()) for place in self._places
        ):
            self.ready.set()
            self._changed()

    def _send_away(self, process: _Process) -> None:
        """Let a process finish what it has; kill it when it has not after its time."""
        if not process.leaving:
            process.leaving = True
            process.signal(signal.SIGTERM)
            self._tasks.create_task(self._see_off(process))

    async def _see_off(self, process: _Process) -> None:
        limit_s = self.plan.drain_s + STOP_GRACE_S + END_WITHIN_S
        await _first(process.ended.wait(), asyncio.sleep(limit_s))
        if not process.ended.is_set():
            facts = {"child": process.number, "pid": process.pid, "after_s": limit_s}
            logger.error("a process did not end in time and is killed; its tasks go to others", extra=facts)
            process.signal(signal.SIGKILL)

    async def _watch(self) -> None:
        """Put down who hangs: its event loop stands still, or its handlers are over their time and do not let go."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, self.plan.patience_s / 4))
            for process in self._live:
                silent_s = clock() - process.well_at
                if not process.ready.is_set() and not process.leaving:
                    self._say_if_slow(process, clock() - process.began)
                if not process.ready.is_set() or process.leaving or process.condemned:
                    continue  # whoever starts may take its time, and whoever ends has a deadline of its own
                if silent_s > self.plan.patience_s:
                    process.condemned = True
                    why = process.report.get("stuck") or "it says nothing"
                    facts = {"child": process.number, "pid": process.pid, "stuck": why, "for_s": round(silent_s, 1)}
                    logger.error("a process hangs and is killed; its tasks go to others", extra=facts)
                    self._tasks.create_task(self._put_down(process))

    def _say_if_slow(self, process: _Process, age_s: float) -> None:
        if age_s < SLOW_START_S or process.said_slow:
            return
        process.said_slow = True
        state = process.report.get("state") or "in the start of an agent, or of its module"
        facts = {"child": process.number, "pid": process.pid, "for_s": round(age_s, 1), "state": state}
        logger.warning("a process is not ready yet", extra=facts)

    async def _put_down(self, process: _Process) -> None:
        process.signal(signal.SIGABRT)
        await _first(process.ended.wait(), asyncio.sleep(LAST_WORDS_S))
        process.signal(signal.SIGKILL)


def environment_of(
    env: Mapping[str, str], *, number: int, place: int, relieves: bool, fd: int, without: frozenset[str]
) -> dict[str, str]:
    """The environment of one process."""
    own = {name: value for name, value in env.items() if name not in _OF_THE_MANAGER}
    own[VARIABLE] = encode_place(fd=fd, number=number, place=place, relieves=relieves, without=without)
    return own


def this_program() -> list[str]:
    """How this very command is started again."""
    return [sys.executable, "-P", "-c", "from cuebook.cli.main import main; main()", *sys.argv[1:]]


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when one of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
