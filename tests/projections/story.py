"""Consecutive messages as the log would give them, without a server; and random ones about a few runs and agents."""

from __future__ import annotations

from hypothesis import strategies as st

from cuebook.events.codec import decode, encode
from cuebook.events.envelope import Envelope
from cuebook.events.errors import PoisonMessageError
from cuebook.events.facts import (
    AgentDraining,
    AgentLost,
    AgentRecovered,
    AgentRegistered,
    AgentStopped,
    AgentSuspected,
    DrainRequested,
    Event,
    HandlerSpec,
    RunRequested,
    TaskAssigned,
    TaskCompleted,
    TaskRequested,
)
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Subjects
from cuebook.projections.projection import Item
from tests.events.strategies import EVENT_TYPES, events

__all__ = ["START", "Story", "agent_stories", "run_stories"]

START = 1_790_000_000_000_000
"""Microseconds since 1970; one message a second from then on."""


class Story:
    """What is told gets the next sequence, from 1."""

    def __init__(self, space: str = "cue") -> None:
        self.subjects = Subjects(space)
        self.items: list[Item] = []

    def tell(
        self, subject: str, event: Event, *, source: str = "tests", correlation_id: str = "", at: int | None = None
    ) -> Envelope:
        """Add an event."""
        event_id = f"e{len(self.items) + 1}"
        item = self.receive(
            subject, encode(event, event_id=event_id, source=source, correlation_id=correlation_id, now=START), at=at
        )
        assert isinstance(item, Envelope), item
        return item

    def receive(self, subject: str, body: bytes, *, at: int | None = None) -> Item:
        """Add a message as somebody sent it."""
        sequence = len(self.items) + 1
        recorded_at = START + sequence * 1_000_000 if at is None else at
        try:
            item: Item = decode(self.subjects, subject, body, sequence=sequence, recorded_at=recorded_at)
        except PoisonMessageError as error:
            item = Unreadable(subject=subject, sequence=sequence, recorded_at=recorded_at, body=body, reason=str(error))
        self.items.append(item)
        return item

    # Short forms for what tests say most.

    def request(self, run_id: str, n: int = 0, *, agent: str = "refund", source: str = "tests") -> Envelope:
        return self.tell(
            self.subjects.task(run_id, n, "requested", agent),
            TaskRequested(handler="issue", input={"order": 8812}),
            source=source,
        )

    def assign(self, run_id: str, n: int = 0, *, attempt: int = 1, instance: str = "i1") -> Envelope:
        return self.tell(
            self.subjects.task(run_id, n, "assigned", "refund", instance),
            TaskAssigned(handler="issue", attempt=attempt, timeout_s=60, reason={"free": 3}),
        )

    def complete(self, run_id: str, n: int = 0) -> Envelope:
        return self.task(run_id, n, TaskCompleted(output={"ok": True}, attempt=1, by="refund/i1"))

    def task(self, run_id: str, n: int, event: Event) -> Envelope:
        """Any other fact about a task."""
        return self.tell(self.subjects.task(run_id, n, _fact(event)), event)

    def ask_for(self, run_id: str, saga: str = "support") -> Envelope:
        return self.tell(self.subjects.run(run_id, "requested", saga), RunRequested(input={"ticket": 17}))

    def run(self, run_id: str, event: Event) -> Envelope:
        """Any other fact about a run."""
        return self.tell(self.subjects.run(run_id, _fact(event)), event)

    def register(
        self,
        agent: str = "refund",
        instance: str = "i1",
        *,
        slots: int = 4,
        version: str = "1.2",
        handler: str = "issue",
    ) -> Envelope:
        event = AgentRegistered(slots=slots, handlers={handler: HandlerSpec(timeout_s=30)}, version=version, host="h")
        return self.tell(self.subjects.agent(agent, instance, "registered"), event)

    def agent(self, event: Event, agent: str = "refund", instance: str = "i1") -> Envelope:
        """Any other fact about an instance."""
        return self.tell(self.subjects.agent(agent, instance, _fact(event)), event)


def _fact(event: Event) -> str:
    return event.event_type.split(".")[1]


_RUN_FACTS = tuple(cls for cls in EVENT_TYPES if cls.event_type.startswith(("run.", "task.")))
_AGENT_FACTS = (
    AgentRegistered, AgentSuspected, AgentLost, AgentRecovered, DrainRequested, AgentDraining, AgentStopped,
)  # fmt: skip


@st.composite
def run_stories(draw: st.DrawFn, *, max_size: int = 40) -> list[Item]:
    """Any facts about three runs and their first tasks, in any order: sensible, repeated, late or senseless."""
    story = Story()
    for cls in draw(st.lists(st.sampled_from(_RUN_FACTS), min_size=1, max_size=max_size)):
        run_id, n = draw(st.sampled_from("abc")), draw(st.integers(0, 1))
        event, fact = draw(events(cls)), cls.event_type.split(".")[1]
        if cls.event_type.startswith("run."):
            subject = story.subjects.run(run_id, fact, "support" if fact == "requested" else "")
        else:
            agent = "refund" if fact in ("requested", "assigned") else ""
            subject = story.subjects.task(run_id, n, fact, agent, "i1" if fact == "assigned" else "")
        story.tell(subject, event)
    return story.items


@st.composite
def agent_stories(draw: st.DrawFn, *, max_size: int = 30) -> list[Item]:
    """Any facts about two instances, in any order."""
    story = Story()
    for cls in draw(st.lists(st.sampled_from(_AGENT_FACTS), min_size=1, max_size=max_size)):
        story.agent(draw(events(cls)), instance=draw(st.sampled_from(["i1", "i2"])))
    return story.items
