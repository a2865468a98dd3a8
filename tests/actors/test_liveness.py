"""Instances that come, go, fall silent and come back: their work is done by somebody, and has one outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cuebook.actors import Agent, Retry, Task, handler
from cuebook.actors.instance import Instance
from cuebook.actors.orchestrator import core, dispatcher, liveness
from cuebook.actors.orchestrator.dispatcher import Dispatcher
from cuebook.actors.orchestrator.liveness import Liveness
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RunState, TaskState
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.world import World
from cuebook.events.append import Done
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConcurrencyConflictError, UnavailableError
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    AnswerDropped,
    DrainRequested,
    Event,
)
from cuebook.events.subjects import Subjects
from tests.actors.cast import Number, lines, note
from tests.actors.desk import Desk
from tests.actors.theatre import Director, Theatre
from tests.commands import started
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


class Patient(Agent):
    """Works until the file named by `PATIENT_GATE` exists; without one it is done at once."""

    name = "patient"
    concurrency = 10
    recycle_after = 0
    heartbeat_s = float(os.environ.get("PATIENT_HEARTBEAT_S", "1"))

    @handler(timeout_s=60)
    async def wait(self, number: Number, task: Task) -> Number:
        note("wait", task)
        while _closed():  # noqa: ASYNC110 - the gate is opened by another process
            await asyncio.sleep(0.01)
        return Number(n=task.attempt)

    @handler(timeout_s=60)
    async def block(self, number: Number, task: Task) -> Number:
        note("block", task)
        while _closed():
            time.sleep(0.01)
        return Number(n=task.attempt)


def _closed() -> bool:
    gate = os.environ.get("PATIENT_GATE")
    return gate is not None and not Path(gate).exists()


# --- processes ---


@pytest.mark.parametrize("how", ["stopped", "blocked"])
async def test_the_work_of_a_silent_process_goes_to_another_and_its_own_answer_is_refused(
    nats_url: str, space: str, tmp_path: Path, how: str
) -> None:
    gate, ledger = tmp_path / "gate", tmp_path / "ledger"
    env = {
        "CUEBOOK_NATS_URL": nats_url,
        "CUEBOOK_SPACE": space,
        "PYTHONPATH": str(ROOT),
        "PATIENT_GATE": str(gate),
        "PATIENT_HEARTBEAT_S": "0.5",
        "CAST_LEDGER": str(ledger),
    }
    async with Desk(nats_url, space) as desk:
        with started("serve", "agents", f"{__name__}:Patient", cwd=tmp_path, env=env) as zombie:
            await asyncio.to_thread(zombie.line, "ready")
            name = "wait" if how == "stopped" else "block"
            run_id = await desk.client.submit_task("patient", {"n": 1}, handler=name, run_id="r1")
            await eventually(lambda: lines(ledger))
            silent = lines(ledger)[0][3]
            if how == "stopped":
                zombie.process.send_signal(signal.SIGSTOP)
            await desk.sees(lambda: desk.health(silent) == "lost")
            other = (await desk.hire(Patient)).host.instances[0].id
            outcome = await desk.client.wait(run_id, timeout_s=20)
            assert (outcome.status, outcome.result) == ("completed", {"n": 2})
            gate.touch()
            zombie.process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(zombie.line, "answer not needed any more: the task has moved on")
            await desk.sees(lambda: desk.health(silent) == "healthy")

            [retried] = await desk.events("r1", "retried")
            assert (retried.lost, retried.reason) == (True, f"instance {silent} was lost")
            [completed] = await desk.events("r1", "completed")
            assert completed.by == other
            assert len(lines(ledger)) == 1
            life = [item.address.fact for item in await desk.log() if item.address.instance == silent]
            assert [fact for fact in life if fact != "suspected"] == ["registered", "assigned", "lost", "recovered"]

            await desk.crews[0].stop()
            again = await desk.client.run_task("patient", {"n": 1}, handler="wait", run_id="r2", timeout_s=20)
            assert again.status == "completed"
            assert (await desk.events("r2", "completed"))[0].by == silent


async def test_a_killed_process_leaves_nothing_undone(nats_url: str, space: str, tmp_path: Path) -> None:
    env = {
        "CUEBOOK_NATS_URL": nats_url,
        "CUEBOOK_SPACE": space,
        "PYTHONPATH": str(ROOT),
        "PATIENT_GATE": str(tmp_path / "gate"),
        "PATIENT_HEARTBEAT_S": "0.3",
        "CAST_LEDGER": str(tmp_path / "ledger"),
    }
    async with Desk(nats_url, space) as desk:
        with started("serve", "agents", f"{__name__}:Patient", cwd=tmp_path, env=env) as victim:
            await asyncio.to_thread(victim.line, "ready")
            for n in range(5):
                await desk.client.submit_task("patient", {"n": 1}, handler="wait", run_id=f"r{n}")
            await eventually(lambda: len(lines(tmp_path / "ledger")) == 5)
            victim.process.kill()
        other = (await desk.hire(Patient)).host.instances[0].id
        for n in range(5):
            assert (await desk.client.wait(f"r{n}", timeout_s=20)).status == "completed"
            assert [event.by for event in await desk.events(f"r{n}", "completed")] == [other]


# --- many instances ---


class Adder(Agent):
    name = "adder"
    concurrency = 10
    recycle_after = 0
    heartbeat_s = 0.2

    @handler(timeout_s=30, retry=Retry(attempts=1))
    async def add(self, number: Number) -> Number:
        await asyncio.sleep(0.002)
        return Number(n=number.n + 1)


class Doomed(Adder):
    """Has answered nothing when it dies."""

    name = "adder"

    @handler(timeout_s=30, retry=Retry(attempts=1))
    async def add(self, number: Number) -> Number:
        await asyncio.Event().wait()
        return number


async def test_instances_join_leave_and_die_while_work_flows(nats_url: str, space: str) -> None:
    over = asyncio.Event()
    results: dict[int, Any] = {}

    async def ask_on(desk: Desk, first: int) -> None:
        n = first
        while not over.is_set():
            results[n] = (await desk.client.run_task("adder", {"n": n}, timeout_s=30, run_id=f"r{n}")).result
            n += 20

    async with Desk(nats_url, space, agents=[Adder]) as desk:
        async with asyncio.TaskGroup() as group:
            for first in range(20):
                group.create_task(ask_on(desk, first))
            await eventually(lambda: len(results) > 50)
            await desk.hire(Adder)
            await desk.crews[0].stop()
            victim = await desk.hire(Doomed)
            await eventually(lambda: victim.host.instances[0].in_flight >= 2)
            dead = victim.host.instances[0].id
            with contextlib.suppress(UnavailableError):
                await victim.die()
            await desk.hire(Adder)
            await desk.sees(lambda: desk.health(dead) == "lost")
            enough = len(results) + 50
            await eventually(lambda: len(results) > enough)
            over.set()
        assert results == {n: {"n": n + 1} for n in results}
        facts = [item.address for item in await desk.log() if item.address.kind == "task"]
        for fact in ("requested", "completed"):
            assert Counter(item.run_id for item in facts if item.fact == fact) == dict.fromkeys(
                [f"r{n}" for n in results], 1
            )
        assert len([item for item in facts if item.fact == "retried"]) >= 2
        assert len({item.instance for item in facts if item.fact == "assigned"}) == 4


async def test_instances_share_the_work(nats_url: str, space: str) -> None:
    gate = asyncio.Event()
    given: Counter[str] = Counter()

    class Waiting(Agent):
        name = "waiting"
        concurrency = 5

        @handler()
        async def wait(self, number: Number, task: Task) -> Number:
            given[task.instance] += 1
            await gate.wait()
            return number

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        await desk.hire(Waiting)
        names = [crew.host.instances[0].id for crew in desk.crews]
        run_ids = [await desk.client.submit_task("waiting", {"n": n}) for n in range(6)]
        await eventually(lambda: given.total() == 6)
        assert given == dict.fromkeys(names, 3)
        run_ids += [await desk.client.submit_task("waiting", {"n": n}) for n in range(6)]
        await eventually(lambda: given.total() == 10)
        assert given == dict.fromkeys(names, 5)
        why = {"0": "all 10 slots of 2 instances of 'waiting' are taken; 1 more wait"}

        async def waits() -> bool:
            return await desk.client.ask("waiting", {"run": run_ids[-1]}) == {"waiting": why}

        await eventually(waits)
        gate.set()
        for run_id in run_ids:
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"


async def test_assignments_arrive_although_somebody_deleted_the_consumer(
    nats_url: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "INBOX_STALLED_S", 0.1)
    gate = asyncio.Event()
    begun: list[str] = []

    class Waiting(Agent):
        name = "waiting"
        concurrency = 20
        heartbeat_s = 0.5

        @handler(timeout_s=60)
        async def wait(self, number: Number, task: Task) -> Number:
            begun.append(task.run_id)
            await gate.wait()
            return number

    async with Desk(nats_url, space, agents=[Waiting]) as desk:
        await desk.client.submit_task("waiting", {"n": 0}, run_id="before")
        await eventually(lambda: begun == ["before"])
        js = desk.client.log.connection.jetstream()
        instance = desk.crews[0].host.instances[0].id
        for turn in range(2):
            await js.delete_consumer(desk.client.log.subjects.stream, f"waiting__{instance}")
            await asyncio.gather(
                *(desk.client.submit_task("waiting", {"n": n}, run_id=f"r{turn}-{n}") for n in range(5))
            )
            await eventually(lambda: len(begun) == 1 + 5 * (turn + 1))  # noqa: B023 - asked in this turn only
        gate.set()
        for run_id in begun:
            assert (await desk.client.wait(run_id, timeout_s=30)).status == "completed"
        assert len(set(begun)) == len(begun) == 11


# --- silence, without a network ---


class Notes:
    """A port that keeps what it is asked for."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Event, int | None, Done]] = []
        self.opened: list[tuple[str, int, bool]] = []
        self.signalled: list[dict[str, Any]] = []

    def post(self, subject: str, event: Event, *, expected: int | None = None, done: Done, **rest: Any) -> str:
        self.posted.append((subject, event, expected, done))
        return f"e{len(self.posted)}"

    def open_inbox(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        self.opened.append((instance, after, anew))

    def signal(self, agent: str, instance: str, message: dict[str, Any]) -> None:
        Subjects("ward").control(agent, instance)
        self.signalled.append(message)

    def forget_inbox(self, agent: str, instance: str) -> None: ...
    def close_inbox(self, agent: str, instance: str) -> None: ...
    def first_sequence(self, scope: str, answer: Callable[[int], None]) -> None: ...
    def find_event(
        self, topic: str, match: dict[str, Any], after: int, until: int, answer: Callable[[int, Any], None]
    ) -> None: ...
    def ready(self) -> None: ...
    def was_rolled(self) -> bool:
        return False

    def is_guard(self, sequence: int) -> bool:
        return True

    def now(self) -> int:
        return 0


class Ward:
    """One instance that beats once a second, and who watches it."""

    def __init__(self, offline_for_s: float = 0.0) -> None:
        self.notes = Notes()
        self.world = World(Subjects("ward"), {})
        self.liveness = Liveness(self.world, self.notes)
        self.liveness.start(0.0)
        self.sequence = 0
        self.tell(AgentRegistered(slots=1, handlers={}, offline_for_s=offline_for_s), "registered")
        self.liveness.expect(self.instance, 0.0)

    @property
    def instance(self) -> InstanceState:
        return self.world.registry.instance("nurse", "i1")

    def tell(self, event: Event, fact: str) -> None:
        """The event comes through the log."""
        self.sequence += 1
        subject = self.world.subjects.agent("nurse", "i1", fact)
        envelope = Envelope(
            id=f"e{self.sequence}",
            event_type=event.event_type,
            time=0,
            source="test",
            correlation_id="",
            data=None,
            event=event,
            address=self.world.subjects.parse(subject),
            subject=subject,
            sequence=self.sequence,
            recorded_at=self.sequence,
        )
        self.world.fold(envelope)
        self.instance.pending = ""

    def look(self, until: float, since: float) -> None:
        """Check ten times a second."""
        for tenth in range(int(since * 10) + 1, int(until * 10) + 1):
            self.liveness.check(tenth / 10)

    def says(self) -> list[str]:
        """The facts that it wanted to append, each of which then comes through the log."""
        posted, self.notes.posted = self.notes.posted, []
        for subject, event, expected, _ in posted:
            assert expected == self.instance.last_sequence
            self.tell(event, subject.rpartition(".")[2])
        return [subject.rpartition(".")[2] for subject, *_ in posted]


def test_silence_makes_suspect_then_lost_and_a_heartbeat_recovers() -> None:
    ward = Ward()
    ward.look(3.0, 0.0)
    assert ward.says() == []
    ward.look(3.1, 3.0)
    assert ward.says() == ["suspected"]
    assert ward.instance.health == "suspect"
    ward.look(6.0, 3.1)
    assert ward.says() == []
    ward.look(6.1, 6.0)
    assert ward.says() == ["lost"]
    assert ward.instance.health == "lost"
    ward.look(60.0, 6.1)
    assert ward.says() == []
    ward.liveness.heard("nurse", "i1", 0, 60.0, active=True)
    assert ward.says() == ["recovered"]
    assert ward.instance.health == "healthy"


def test_one_that_may_be_offline_is_suspect_but_not_lost_until_then() -> None:
    ward = Ward(offline_for_s=60.0)
    ward.look(60.0, 0.0)
    assert ward.says() == ["suspected"]
    ward.look(60.2, 60.0)
    assert ward.says() == ["lost"]


def test_one_that_registers_again_keeps_the_place_where_its_inbox_begins() -> None:
    ward = Ward()
    ward.tell(AgentSuspected(), "suspected")
    ward.tell(AgentRegistered(slots=3, handlers={}), "registered")
    assert (ward.instance.health, ward.instance.slots, ward.instance.registered_sequence) == ("healthy", 3, 1)


def test_heartbeats_keep_it_healthy_and_a_standby_says_nothing() -> None:
    ward = Ward()
    for second in range(20):
        ward.liveness.heard("nurse", "i1", 0, float(second), active=True)
        ward.look(second + 1.0, float(second))
    assert ward.says() == []
    ward.tell(AgentLost(), "lost")
    ward.liveness.heard("nurse", "i1", 0, 21.0, active=False)
    assert ward.says() == []


def test_an_orchestrator_that_stood_still_itself_blames_nobody() -> None:
    ward = Ward()
    ward.look(1.0, 0.0)
    ward.liveness.check(500.0)
    assert ward.says() == []
    ward.look(501.9, 500.0)
    assert ward.says() == []
    ward.look(502.2, 501.9)
    assert ward.says() == ["suspected"]


def test_who_fell_silent_before_a_takeover_is_lost_soon_after_it() -> None:
    ward = Ward()
    ward.liveness.heard("nurse", "i1", 0, 0.2, active=False)
    ward.liveness.start(3.0)
    ward.look(6.2, 3.0)
    assert ward.says() == ["suspected"]
    ward.look(6.3, 6.2)
    assert ward.says() == ["lost"]


def test_a_standby_that_was_deaf_itself_gives_everybody_three_beats_for_a_word() -> None:
    ward = Ward()
    ward.liveness.heard("nurse", "i1", 0, 0.2, active=False)
    ward.liveness.start(500.0)
    ward.look(502.9, 500.0)
    assert "lost" not in ward.says()
    ward.liveness.heard("nurse", "i1", 0, 502.9, active=True)
    ward.look(505.9, 502.9)
    assert "lost" not in ward.says()


def test_one_fact_about_an_instance_is_under_way_at_a_time_and_a_failed_one_is_said_again() -> None:
    ward = Ward()
    ward.look(5.0, 0.0)
    [(_, _, _, done)] = ward.notes.posted
    done(0, UnavailableError("away"))
    ward.look(5.2, 5.0)
    [_, (_, _, _, done)] = ward.notes.posted
    done(0, ConcurrencyConflictError("scope", 1))
    ward.look(5.3, 5.2)
    assert len(ward.notes.posted) == 3


@pytest.mark.parametrize(
    ("facts", "health"),
    [
        ([("draining", AgentDraining())], "draining"),
        ([("drain_requested", DrainRequested())], "draining"),
        ([("draining", AgentDraining()), ("suspected", AgentSuspected())], "suspect"),
        (
            [("draining", AgentDraining()), ("suspected", AgentSuspected()), ("recovered", AgentRecovered())],
            "draining",
        ),
        (
            [("lost", AgentLost()), ("drain_requested", DrainRequested()), ("recovered", AgentRecovered())],
            "draining",
        ),
        ([("lost", AgentLost()), ("suspected", AgentSuspected())], "lost"),
        ([("stopped", AgentStopped()), ("recovered", AgentRecovered()), ("lost", AgentLost())], "stopped"),
        ([("recovered", AgentRecovered())], "healthy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(fact for fact, _ in value),
)
def test_health_follows_the_facts(facts: list[tuple[str, Event]], health: str) -> None:
    ward = Ward()
    for fact, event in facts:
        ward.tell(event, fact)
    assert ward.instance.health == health


def test_a_stopped_instance_is_not_waited_for() -> None:
    ward = Ward()
    ward.tell(AgentStopped(), "stopped")
    ward.look(100.0, 0.0)
    assert ward.says() == []


def test_an_inbox_that_stays_behind_is_opened_anew_from_where_it_stopped() -> None:
    ward = Ward()
    ward.instance.newest = 10
    ward.liveness.heard("nurse", "i1", 7, 0.0, active=True)
    ward.liveness.heard("nurse", "i1", 7, 2.9, active=True)
    assert ward.notes.opened == []
    ward.liveness.heard("nurse", "i1", 8, 3.1, active=True)
    assert ward.notes.opened == [("i1", 8, True)]
    ward.liveness.heard("nurse", "i1", 8, 5.0, active=True)
    ward.liveness.heard("nurse", "i1", 10, 8.0, active=True)
    ward.liveness.heard("nurse", "i1", 10, 20.0, active=True)
    assert len(ward.notes.opened) == 1


@pytest.mark.parametrize(("fact", "event"), [("draining", AgentDraining()), ("suspected", AgentSuspected())])
def test_the_inbox_of_one_that_drains_or_is_suspect_is_opened_anew_too(fact: str, event: Event) -> None:
    ward = Ward()
    ward.tell(event, fact)
    ward.instance.newest = 10
    for second in (0.0, 4.0):
        ward.liveness.heard("nurse", "i1", 7, second, active=True)
    assert ward.notes.opened == [("i1", 7, True)]


def test_one_that_falls_silent_while_it_drains_is_suspect_and_then_lost() -> None:
    ward = Ward()
    ward.tell(AgentDraining(), "draining")
    ward.look(4.0, 0.0)
    assert ward.says() == ["suspected"]
    ward.look(7.0, 4.0)
    assert ward.says() == ["lost"]


def test_who_begins_to_decide_gives_an_inbox_its_time_anew() -> None:
    ward = Ward()
    ward.instance.newest = 10
    ward.liveness.heard("nurse", "i1", 7, 0.0, active=True)
    ward.liveness.start(100.0)
    ward.liveness.heard("nurse", "i1", 7, 100.1, active=True)
    assert ward.notes.opened == []


def test_the_inbox_of_an_instance_that_has_received_nothing_begins_where_it_registered() -> None:
    ward = Ward()
    ward.instance.registered_sequence, ward.instance.newest = 40, 50
    for second in (0.0, 4.0):
        ward.liveness.heard("nurse", "i1", 0, second, active=True)
    assert ward.notes.opened == [("i1", 40, True)]


def test_who_takes_over_after_hours_as_a_standby_notices_silence_as_soon_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(core, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    play = Theatre([], [Adder], {})
    standby = Director(play.book, Repertoire(), play.troupe)
    standby.settle()
    standby.core.liveness.heard("adder", "i0", 0, clock[0], active=False)
    clock[0] += 3600
    standby.core.activate()
    for _ in range(65):
        clock[0] += 0.1
        standby.core.tick()
        standby.settle()
    assert [item.address.fact for item in play.book.all()] == ["registered", "suspected", "lost"]


@pytest.mark.parametrize("health", ["unregistered", "stopped", "lost"])
def test_no_inbox_is_opened_for_one_that_is_not_there(health: str) -> None:
    ward = Ward()
    ward.instance.newest, ward.instance.health = 10, health
    ward.liveness.heard("nurse", "i1", 7, 0.0, active=True)
    ward.liveness.heard("nurse", "i1", 7, 9.0, active=True)
    assert ward.notes.opened == []


@pytest.mark.parametrize("is_named", [False, True], ids=["forgotten", "known only by an answer that came too late"])
def test_one_that_is_heard_and_has_not_registered_is_asked_to_do_so_again(is_named: bool) -> None:
    ward = Ward()
    ward.world.registry.instances.clear()
    if is_named:
        ward.tell(AnswerDropped(run_id="r", n=0), "dropped")
    for tenth in range(100):
        ward.liveness.heard("nurse", "i1", 0, tenth / 10, active=True)
    assert ward.notes.signalled == [{"register": True}] * 3
    ward.tell(AgentRegistered(slots=1, handlers={}), "registered")
    for tenth in range(100, 200):
        ward.liveness.heard("nurse", "i1", 0, tenth / 10, active=True)
    assert len(ward.notes.signalled) == 3


def test_who_is_heard_under_a_name_that_no_instance_has_is_asked_nothing() -> None:
    ward = Ward()
    for second in range(10):
        ward.liveness.heard("nurse", "No Name", 0, float(second), active=True)
    assert ward.notes.signalled == []


# --- what an instance says it has received ---


_THREE = [("assign", 1), ("assign", 1), ("assign", 1)]


@example([*_THREE, ("deliver", 3), *_THREE, ("begin anew", 0), ("lose", 1), ("deliver", 1)])
@example([("assign", 1), ("deliver", 1), *_THREE, ("begin anew", 0), ("lose", 1), ("deliver", 1)])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("assign"), st.integers(1, 3)),
            st.tuples(st.just("deliver"), st.integers(0, 3)),
            st.tuples(st.just("store"), st.integers(0, 5)),
            st.just(("lose", 1)),
            st.tuples(st.sampled_from(["begin anew", "begin untold"]), st.integers(0, 5)),
        ),
        max_size=60,
    )
)
def test_whatever_is_lost_or_comes_twice_an_instance_takes_each_assignment_once_and_says_what_it_has(
    happenings: list[tuple[str, int]],
) -> None:
    """An instance is told that its consumer begins anew, or takes the first message for a sign: one of both arrives."""
    instance = Instance(None, Adder, lambda _: None)  # type: ignore[arg-type]
    receipt = instance._receipt
    stream: list[int] = []
    position, delivered, told = 0, 0, True
    taken: Counter[int] = Counter()
    said = [0]
    for what, count in happenings:
        waiting = [sequence for sequence in stream if sequence > position]
        match what:
            case "assign":
                stream.append((stream[-1] if stream else 0) + count)
            case "deliver":
                for sequence in waiting[:count]:
                    position, delivered = sequence, delivered + 1
                    if receipt.is_new(sequence, delivered):
                        taken[sequence] += 1
                        receipt.being_stored.add(sequence)
                said.append(receipt.safely_until)
            case "store" if receipt.being_stored:
                receipt.being_stored.discard(sorted(receipt.being_stored)[count % len(receipt.being_stored)])
                said.append(receipt.safely_until)
            case "lose" if waiting and (delivered or told):
                position, delivered = waiting[0], delivered + 1
            case "begin anew" | "begin untold":
                position, delivered = said[-1 - min(count, len(said) - 1)], 0
                if told := what == "begin anew":
                    instance._on_control(b"", b"", b'{"anew": true}', None)
        assert set(taken.values()) <= {0, 1}
        stored = set(+taken) - receipt.being_stored
        assert {sequence for sequence in stream if sequence <= receipt.safely_until} <= stored
    assert said == sorted(said)
    missing = [sequence for sequence in stream if sequence > receipt.until]
    for number, sequence in enumerate(missing, 1):
        taken[sequence] += receipt.is_new(sequence, number)
    assert taken == Counter(stream)
    assert not stream or receipt.until == stream[-1]


@pytest.mark.parametrize(("offline_for_s", "due_s"), [(0.0, 5 + dispatcher.ANSWER_GRACE_S), (60.0, 65 + 2.0)])
def test_the_time_of_a_task_runs_out_later_for_one_that_may_be_offline(offline_for_s: float, due_s: float) -> None:
    ward, timers = Ward(offline_for_s), Timers()
    task = TaskState("r", 0)
    task.status, task.agent, task.instance, task.timeout_s = "assigned", "nurse", "i1", 5.0
    Dispatcher(ward.world, ward.notes, timers).decide(RunState("r"), task)
    assert list(timers.expired(int(due_s * 1e6) - 1)) == []
    assert list(timers.expired(int(due_s * 1e6))) == [("deadline", "r", 0)]
