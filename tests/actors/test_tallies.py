"""What is counted happened: duplicates and late messages change nothing, in the fold and in the figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cuebook.actors.orchestrator.tallies import Tallies
from cuebook.actors.orchestrator.world import World
from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    Error,
    Event,
    RunRequested,
    RunStarted,
    TaskAssigned,
    TaskCompleted,
    TaskEscalated,
    TaskFailed,
    TaskRequested,
    TaskRetried,
)
from cuebook.events.subjects import Subjects
from cuebook.telemetry import metric_names as names
from cuebook.telemetry.metric import Distribution, Metric

SUBJECTS = Subjects("cue")
SECOND = 1_000_000
ERROR = Error(type="ConnectionError", message="no")
ASSIGNED = TaskAssigned(handler="work", attempt=1, timeout_s=60.0, input=None, reason={})
COMPLETED = TaskCompleted(output=None, attempt=2, duration_s=0.1, by="i1")
FAILED = TaskFailed(error=ERROR, attempt=1, duration_s=0.1, by="i1")
STORY: list[tuple[int, str, Event]] = [
    (0, SUBJECTS.task("r1", 0, "requested", "desk"), TaskRequested(handler="work")),
    (2, SUBJECTS.task("r1", 0, "assigned", "desk", "i1"), ASSIGNED),
    (3, SUBJECTS.task("r1", 0, "failed"), FAILED),
    (3, SUBJECTS.task("r1", 0, "retried"), TaskRetried(delay_s=4.0)),
    (8, SUBJECTS.task("r1", 0, "assigned", "desk", "i1"), ASSIGNED),
    (9, SUBJECTS.task("r1", 0, "escalated"), TaskEscalated(reason="lost too often")),
    (10, SUBJECTS.task("r1", 0, "completed"), COMPLETED),
]
"""At which second, where, what."""


class Book:
    """A world that is told a story, with its tallies."""

    def __init__(self) -> None:
        self.tallies, self._world, self._sequence = Tallies(), World(SUBJECTS, {}), 0

    def tell(self, second: float, subject: str, event: Event) -> None:
        self._sequence += 1
        envelope = Envelope(
            id=f"e{self._sequence}",
            event_type=event.event_type,
            time=0,
            source="orchestrator",
            correlation_id="",
            causation_id="",
            traceparent="",
            data=None,
            event=event,
            address=SUBJECTS.parse(subject),
            subject=subject,
            sequence=self._sequence,
            recorded_at=int(second * SECOND) + self._sequence,
        )
        self.tallies.saw(envelope, self._world.fold(envelope))

    def count(self, metric: Metric, *labels: str) -> float:
        found = {(one.metric, one.labels): one.value for one in self.tallies.samples()}
        value = found.get((metric, labels), 0)
        return sum(value.counts) if isinstance(value, Distribution) else value

    def seconds(self, metric: Metric, *labels: str) -> float:
        found = {(one.metric, one.labels): one.value for one in self.tallies.samples()}
        value = found[metric, labels]
        assert isinstance(value, Distribution)
        return round(value.total, 3)


def test_durations_are_those_between_the_times_in_the_log() -> None:
    book = Book()
    for second, subject, event in STORY:
        book.tell(second, subject, event)
    assert book.seconds(names.RUN_DURATION, "", "desk") == book.seconds(names.TASK_DURATION, "desk") == 10
    assert book.seconds(names.PLACEMENT, "desk") == 2 + 1  # free again at 3 + 4


@given(st.lists(st.integers(0, len(STORY) - 1), max_size=20))
def test_what_comes_again_after_the_end_is_not_counted(again: list[int]) -> None:
    book = Book()
    for second, subject, event in [*STORY, *(STORY[n] for n in again if n > 0)]:
        book.tell(second, subject, event)
    assert book.count(names.RUNS_STARTED, "", "desk") == 1
    assert book.count(names.RUNS, "", "desk", "completed") == book.count(names.TASKS, "desk", "completed") == 1
    assert book.count(names.RETRIES, "desk", "failure") == book.count(names.ESCALATIONS, "task", "", "desk") == 1
    assert book.count(names.PLACEMENT, "desk") == 2


def test_a_run_counts_from_its_request() -> None:
    book = Book()
    book.tell(0, SUBJECTS.run("s1", "requested", "order"), RunRequested(input=None))
    book.tell(5, SUBJECTS.run("s1", "started"), RunStarted(saga="order", version="1", input=None))
    assert book.count(names.RUNS_STARTED, "order", "") == 1


def test_the_first_escalation_of_a_saga_s_task_is_an_increase() -> None:
    """For Prometheus a counter that appears as 1 has not increased."""
    book = Book()
    book.tell(0, SUBJECTS.run("s1", "requested", "order"), RunRequested(input=None))
    book.tell(1, SUBJECTS.run("s1", "started"), RunStarted(saga="order", version="1", input=None))
    book.tell(2, SUBJECTS.task("s1", 0, "requested", "desk"), TaskRequested(handler="work"))
    escalations = [one for one in book.tallies.samples() if one.metric is names.ESCALATIONS]
    assert [(one.labels, one.value) for one in escalations] == [(("task", "order", "desk"), 0)]
