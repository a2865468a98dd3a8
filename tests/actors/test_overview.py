"""What an orchestrator says is open: counted from its fold, and never at the cost of its work."""

from __future__ import annotations

import pytest

from cuebook.actors.orchestrator import overview as module
from cuebook.actors.orchestrator.overview import Overview, Tally
from cuebook.actors.orchestrator.state import RunState, TaskState


def run(run_id: str, *tasks: TaskState, saga: str = "order", status: str = "running") -> RunState:
    state = RunState(run_id)
    state.saga, state.status = saga, status
    state.items = dict(enumerate(tasks))
    return state


def task(run_id: str, n: int, status: str, at: int, **fields: object) -> TaskState:
    state = TaskState(run_id, n)
    state.agent, state.status, state.requested_at = "echo", status, at
    for name, value in fields.items():
        setattr(state, name, value)
    return state


def test_queues_are_by_agent_priority_and_labels_with_the_reason_of_the_oldest() -> None:
    runs = [
        run("a", task("a", 0, "waiting", 5), task("a", 1, "waiting", 3, priority=7)),
        run("b", task("b", 0, "waiting", 4), task("b", 1, "waiting", 9, labels={"zone": "x"})),
        run("c", task("c", 0, "backoff", 1, free_at=100), task("c", 1, "backoff", 2, free_at=1_000)),
    ]
    view = Tally(runs, 100).view(lambda one: f"why {one.run_id}/{one.n}", lambda one: bool(one.labels))
    found = [(one["oldest"], one["priority"], one["waiting"], one["reason"], one["stranded"]) for one in view["queues"]]
    assert found == [
        ("c/0", 0, 3, "why c/0", False),
        ("a/1", 7, 1, "why a/1", False),
        ("b/1", 0, 1, "why b/1", True),
    ]
    assert view["runs"] == [{"saga": "order", "agent": "", "status": "running", "count": 3}]


def test_what_waits_for_people_is_counted_by_kind_with_the_oldest_first() -> None:
    runs = [run(f"r{n}", task(f"r{n}", 0, "escalated", 1, escalated_at=100 - n)) for n in range(9)]
    runs.append(run("s", status="stuck"))
    view = Tally(runs, 200).view(lambda _: "", lambda _: False)
    told = {one["kind"]: (one["count"], one["oldest_at"], one["first"][0]) for one in view["escalations"]}
    assert told == {"task": (9, 92, "r8/0"), "stuck": (1, 0, "s")}


def test_counting_is_repeated_only_when_it_is_old_and_rarely_when_it_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counted = [0.0], []

    def count(core: object, now: int) -> dict[str, int]:
        clock[0] += 0.1  # so dear
        counted.append(now)
        return {"at": now}

    monkeypatch.setattr(module, "count_open", count)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    overview, core = Overview(), object()
    for moment in range(100):
        overview.get(core, moment)  # type: ignore[arg-type]
        clock[0] += 0.1
    assert counted == [0, 51]
    overview.get(object(), 100)  # type: ignore[arg-type]
    assert counted == [0, 51, 100]
