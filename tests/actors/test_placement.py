"""Which instance gets the next task, and what is said about the ones that wait."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.actors.orchestrator import placement as placement_module
from cuebook.actors.orchestrator.placement import Placement, Queue, fits, why
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.state import TaskState
from tests.actors.cast import Bank
from tests.actors.theatre import Theatre


def instance(name: str, slots: int = 1, *, busy: int = 0, health: str = "healthy", **labels: str) -> InstanceState:
    one = InstanceState("bank", name)
    one.slots, one.health, one.labels = slots, health, labels
    one.tasks = {("busy", n) for n in range(busy)}
    return one


def task(sequence: int, *, priority: int = 0, affinity: str | None = None, **labels: str) -> TaskState:
    one = TaskState(f"r{sequence}", 0)
    one.status, one.agent, one.requested_sequence = "waiting", "bank", sequence
    one.priority, one.affinity, one.labels = priority, affinity, labels or None
    return one


def take_all(queue: Queue, instances: list[InstanceState], placement: Placement | None = None) -> list[str]:
    """Place as the dispatcher does, until nobody can take more."""
    placed = []
    placement = placement or Placement()
    while taken := queue.take(lambda one: placement.choose(one, instances)):
        one, (chosen, _) = taken
        chosen.tasks.add((one.run_id, one.n))
        placed.append(f"{one.run_id}@{chosen.instance}")
    return placed


def queue_of(*tasks: TaskState) -> Queue:
    queue = Queue()
    for one in tasks:
        queue.add(one)
    return queue


def test_priority_goes_first_then_age() -> None:
    queue = queue_of(task(3), task(1), task(2, priority=5), task(4, priority=5), task(5, priority=-1))
    assert take_all(queue, [instance("i", 9)]) == ["r2@i", "r4@i", "r1@i", "r3@i", "r5@i"]


def test_the_least_loaded_instance_is_chosen() -> None:
    half, tenth = instance("half", 2, busy=1), instance("tenth", 10, busy=1)
    chosen, reason = Placement().choose(task(1), [half, tenth]) or (None, {})
    assert chosen is tenth
    assert reason == {"by": "least loaded", "candidates": 2}


def test_a_task_for_a_version_that_is_there_is_not_stranded_because_that_is_busy() -> None:
    one = instance("i", 1, busy=1, zone="x")
    one.version = "2"
    assert fits(task(1, version="2", zone="x"), one)
    assert not fits(task(2, version="3"), one)


def test_full_unhealthy_and_unlabelled_instances_are_not_asked() -> None:
    others = [
        instance("full", 1, busy=1, gpu="yes"),
        instance("over", 1, busy=3, gpu="yes"),
        instance("none", 0, gpu="yes"),
        *(instance(health, 9, health=health, gpu="yes") for health in ("suspect", "lost", "draining", "stopped")),
        instance("plain", 9),
        instance("other", 9, gpu="no"),
    ]
    assert Placement().choose(task(1, gpu="yes"), others) is None
    right = instance("right", 1, gpu="yes", more="than asked")
    assert Placement().choose(task(1, gpu="yes"), [*others, right]) == (right, {"by": "only one", "candidates": 1})


def test_affinity_prefers_the_instance_that_had_the_key_and_falls_back() -> None:
    placement, first, second = Placement(), instance("first", 9, busy=5), instance("second", 9)
    before = task(1, affinity="customer-1")
    before.instance = "first"
    placement.remember(before)
    chosen, reason = placement.choose(task(2, affinity="customer-1"), [first, second]) or (None, {})
    assert chosen is first
    assert reason == {"by": "affinity", "key": "customer-1", "candidates": 2}
    first.health = "draining"
    chosen, reason = placement.choose(task(3, affinity="customer-1"), [first, second]) or (None, {})
    assert chosen is second
    assert reason["preferred"] == "first could not take it"
    chosen, reason = placement.choose(task(4, affinity="customer-2"), [first, second]) or (None, {})
    assert reason["by"] == "only one"


def test_affinity_keys_of_two_agents_are_apart_and_survive_a_snapshot() -> None:
    placement = Placement()
    for agent, name in (("bank", "i1"), ("shop", "i2")):
        one = task(1, affinity="")
        one.agent, one.instance = agent, name
        placement.remember(one)
    again = Placement()
    again.load(placement.dump())
    first, second = instance("i1", 9, busy=1), instance("i2", 9)
    assert (again.choose(task(2, affinity=""), [first, second]) or (None,))[0] is first


def test_a_task_nobody_can_take_does_not_stand_in_the_way() -> None:
    queue = queue_of(task(1, priority=9, gpu="yes"), task(2), task(3, gpu="yes", priority=-5))
    assert take_all(queue, [instance("i", 9)]) == ["r2@i"]
    assert len(queue) == 2
    assert take_all(queue, [instance("g", 9, gpu="yes")]) == ["r1@g", "r3@g"]
    assert len(queue) == 0


def test_what_is_no_longer_ready_is_dropped_and_may_come_again() -> None:
    gone, pending, later = task(1), task(2), task(3)
    queue = queue_of(gone, pending, later)
    gone.status, pending.pending = "cancelled", "e1"
    assert take_all(queue, [instance("i", 9)]) == ["r3@i"]
    pending.pending = ""
    queue.add(pending)
    queue.add(pending)
    assert take_all(queue, [instance("j", 9)]) == ["r2@j"]


@pytest.mark.parametrize(
    ("instances", "labels", "reason"),
    [
        ([], {}, "no instance of agent 'bank' is running"),
        ([instance("i", health="stopped")], {}, "no instance of agent 'bank' is running"),
        (
            [instance("i", health="lost"), instance("j", health="draining")],
            {},
            "no instance of agent 'bank' is healthy (2 draining, lost)",
        ),
        (
            [instance("i", 9, gpu="no")],
            {"gpu": "yes"},
            "none of the 1 healthy instances of 'bank' has the labels gpu=yes",
        ),
        (
            [instance("i", 2, busy=2), instance("j", 3, busy=3)],
            {},
            "all 5 slots of 2 instances of 'bank' are taken; 7 more wait",
        ),
        (
            [instance("i", 2, busy=2, gpu="yes"), instance("j", 3)],
            {"gpu": "yes"},
            "all 2 slots of 1 instances of 'bank' are taken; 7 more wait",
        ),
    ],
)
def test_why_says_what_a_task_waits_for(instances: list[Any], labels: dict[str, str], reason: str) -> None:
    waiting = task(1)
    waiting.labels = labels or None
    assert why(waiting, instances, 7) == reason


LABELS = st.dictionaries(st.sampled_from(["gpu", "zone"]), st.sampled_from(["a", "b"]), max_size=2)
TASKS = st.lists(st.tuples(st.integers(-2, 2), LABELS, st.sampled_from([None, "", "k"])), max_size=25)
INSTANCES = st.lists(
    st.tuples(st.integers(0, 4), LABELS, st.sampled_from(["healthy", "healthy", "lost", "draining"])), max_size=5
)


@given(TASKS, INSTANCES)
def test_never_more_than_the_slots_and_never_less_than_can_be(tasks: Any, kinds: Any) -> None:
    instances = [instance(f"i{n}", slots, health=health, **labels) for n, (slots, labels, health) in enumerate(kinds)]
    waiting = [task(n, priority=p, affinity=a, **labels) for n, (p, labels, a) in enumerate(tasks, 1)]
    placed = take_all(queue_of(*waiting), instances)
    assert len(placed) == len({name.partition("@")[0] for name in placed})
    for one in instances:
        assert len(one.tasks) <= one.slots
        assert not one.tasks or one.health == "healthy"
    placed_ids = {name.partition("@")[0] for name in placed}
    for left in waiting:
        if left.run_id not in placed_ids:
            assert Placement().choose(left, instances) is None


@given(TASKS)
def test_of_two_with_the_same_needs_the_more_urgent_is_placed_first(tasks: Any) -> None:
    waiting = {f"r{n}": task(n, priority=p, **labels) for n, (p, labels, _) in enumerate(tasks, 1)}
    everything = [instance(f"{gpu}{zone}", 99, gpu=gpu, zone=zone) for gpu in "ab" for zone in "ab"]
    order = [waiting[name.partition("@")[0]] for name in take_all(queue_of(*waiting.values()), everything)]
    for first, second in itertools.pairwise(order):
        if first.labels == second.labels:
            assert (-first.priority, first.requested_sequence) < (-second.priority, second.requested_sequence)


@given(st.lists(st.tuples(st.integers(-100, 100), st.sampled_from([{}, {"gpu": "yes"}, {"zone": "a"}])), max_size=30))
def test_what_one_instance_can_take_it_takes_by_priority_then_age_whatever_the_labels(tasks: Any) -> None:
    waiting = [task(n, priority=priority, **labels) for n, (priority, labels) in enumerate(tasks, 1)]
    ordered = sorted(waiting, key=lambda one: (-one.priority, one.requested_sequence))
    able = instance("i", 99, gpu="yes", zone="a")
    assert take_all(queue_of(*waiting), [able]) == [f"{one.run_id}@i" for one in ordered]


def test_affinities_are_remembered_up_to_a_number_the_last_used_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "REMEMBERED_AFFINITIES", 3)
    placement = Placement()
    for key in ("a", "b", "c", "a", "d"):
        one = task(1, affinity=key)
        one.instance = f"i-{key}"
        placement.remember(one)
    assert [key for _, key, _ in placement.dump()] == ["c", "a", "d"]


def test_a_task_for_an_agent_that_is_just_starting_is_placed_as_soon_as_it_is_there() -> None:
    play = Theatre([], [], {})
    director = play.hire()
    play.ask("bank", "r1", {"n": 1}, handler="add")
    director.settle()
    assert director.core.dispatcher.depths() == {"bank": 1}
    play.troupe.join(Bank, "late")
    director.settle()  # and no time passes
    assert play.book.facts("r1") == ["task.0.requested.bank", "task.0.assigned.bank.late"]
    assert not any(director.core.dispatcher.depths().values())
