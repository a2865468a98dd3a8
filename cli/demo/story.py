"""What happens to each ticket of the demo, folded from the log: for the table, the plain lines and the report alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.events.envelope import Envelope
from cuebook.events.facts import (
    MessageRejected,
    OutsideEvent,
    RunCancelled,
    RunCompensated,
    RunCompensating,
    RunCompleted,
    RunFailed,
    RunRejected,
    RunStarted,
    RunStuck,
    StepAnswered,
    StepAsked,
    TaskCompleted,
    TaskEscalated,
    TaskResolved,
    TaskRetried,
)
from cuebook.events.log import Unreadable

__all__ = ["TOPIC", "Line", "Story", "TicketStory"]

TOPIC: Final = "ticket.opened"
_MICROSECONDS: Final = 1_000_000
_OPENING_CHARS: Final = 58


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing worth telling. `moment`: microseconds since 1970 by the server's clock."""

    moment: int
    ticket: str
    text: str


@dataclass(slots=True, kw_only=True)
class TicketStory:
    """One ticket. `run` is None until a run has started; `retries` counts attempts that were repeated."""

    id: str
    text: str
    opened_at: int
    run: RunState | None = None
    retries: int = 0

    @property
    def closed(self) -> bool:
        """The run has ended."""
        return self.run is not None and self.run.closed

    @property
    def status(self) -> str:
        """The desk's own word for the outcome, once the run completed; else the status of the run."""
        if self.run is None:
            return "opened"
        if self.run.status == "completed" and isinstance(self.run.result, dict):
            return str(self.run.result.get("resolution", "completed"))
        return self.run.status

    @property
    def tasks(self) -> list[TaskState]:
        """Its tasks, by number."""
        if self.run is None:
            return []
        return [item for _, item in sorted(self.run.items.items()) if isinstance(item, TaskState)]

    @property
    def questions(self) -> list[StepState]:
        """What people were asked, by number."""
        if self.run is None:
            return []
        found = [item for _, item in sorted(self.run.items.items()) if isinstance(item, StepState)]
        return [step for step in found if step.type == "ask"]

    def seconds(self, now: int) -> float:
        """From its opening to its end, or to `now` while it is open."""
        ended_at = self.run.ended_at if self.run is not None and self.run.closed else now
        return max(0, ended_at - self.opened_at) / _MICROSECONDS


class Story:
    """The fold. `answerer` is the name under which the demo answers questions to people.

    `closed` counts the tickets whose runs have ended.
    """

    def __init__(self, answerer: str) -> None:
        self.tickets: dict[str, TicketStory] = {}
        self.rejected: list[str] = []
        self.events = self.sequence = self.closed = 0
        self.moment = 0
        self._answerer = answerer
        self._by_run: dict[str, TicketStory] = {}

    def apply(self, item: Envelope | Unreadable) -> Line | None:
        """Fold the next message of the log; returns what there is to tell about it."""
        self.events += 1
        self.sequence, self.moment = item.sequence, item.recorded_at
        if isinstance(item, Unreadable):
            return None  # the orchestrator rejects it, which is told
        event = item.event
        if isinstance(event, OutsideEvent):
            return self._opened(item, event) if item.address.topic == TOPIC else None
        if isinstance(event, MessageRejected):
            self.rejected.append(f"{event.subject}: {event.reason}")
            return Line(moment=item.recorded_at, ticket="", text=f"rejected {event.subject}: {event.reason}")
        if item.address.kind not in ("run", "task", "step"):
            return None
        ticket = self._ticket_of(item)
        if ticket is None or ticket.run is None:
            return None
        was_closed = ticket.closed
        part = ticket.run.apply(item)
        self.closed += ticket.closed and not was_closed
        text = self._told(ticket, part, event)
        return Line(moment=item.recorded_at, ticket=ticket.id, text=text) if text else None

    def _opened(self, item: Envelope, event: OutsideEvent) -> Line | None:
        ticket_id = event.data.get("id") if isinstance(event.data, dict) else None
        if not isinstance(ticket_id, str) or ticket_id in self.tickets:
            return None
        ticket = TicketStory(id=ticket_id, text=str(event.data.get("text", "")), opened_at=item.recorded_at)
        self.tickets[ticket.id] = ticket
        return Line(moment=item.recorded_at, ticket=ticket.id, text=f"opened: {_shortened(ticket.text)}")

    def _ticket_of(self, item: Envelope) -> TicketStory | None:
        run_id, event = item.address.run_id, item.event
        if isinstance(event, RunStarted) and isinstance(event.input, dict) and run_id not in self._by_run:
            ticket = self.tickets.get(str(event.input.get("id")))
            if ticket is not None and ticket.run is None:
                ticket.run = RunState(run_id)
                self._by_run[run_id] = ticket
        return self._by_run.get(run_id)

    def _told(self, ticket: TicketStory, part: TaskState | StepState | None, event: Any) -> str:
        if isinstance(part, TaskState):
            return _told_of_task(ticket, part, event)
        if isinstance(part, StepState):
            return self._told_of_question(event)
        return _told_of_run(ticket, event)

    def _told_of_question(self, event: Any) -> str:
        match event:
            case StepAsked():
                return f"asks a person: {event.question.partition(chr(10))[0]}"
            case StepAnswered():
                who = "the demo answers in the person's place" if event.by == self._answerer else f"{event.by} answers"
                return f"{who}: {_answer(event.value)}"
        return ""


def _told_of_task(ticket: TicketStory, task: TaskState, event: Any) -> str:
    match event:
        case TaskRetried():
            ticket.retries += 1
            reason = "its agent was lost" if event.lost or task.error is None else task.error.message
            return f"{task.handler} failed, again in {event.delay_s:.1f} s: {_shortened(reason)}"
        case TaskEscalated():
            return f"{task.handler} needs a person: {event.reason}"
        case TaskResolved():
            return f"{event.by} decides about {task.handler}: {event.action}"
        case TaskCompleted() if task.compensates is not None:
            return f"undone: {task.handler}"
    return ""


def _told_of_run(ticket: TicketStory, event: Any) -> str:
    match event:
        case RunCompleted():
            reason = event.result.get("reason", "") if isinstance(event.result, dict) else ""
            return f"{ticket.status}: {reason}"
        case RunCompensating():
            return f"fails late, what was done is undone: {event.error.message if event.error else event.reason}"
        case RunCompensated():
            return "compensated"
        case RunFailed():
            return f"failed: {event.error.message}"
        case RunStuck() | RunCancelled() | RunRejected():
            return f"{ticket.status}: {event.reason}"
    return ""


def _answer(value: Any) -> str:
    if not isinstance(value, dict) or "approved" not in value:
        return str(value)
    return ("yes" if value["approved"] else "no") + (f", {value['note']}" if value.get("note") else "")


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _OPENING_CHARS else flat[: _OPENING_CHARS - 1].rstrip() + "…"
