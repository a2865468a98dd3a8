"""Events in words, one line each."""

from __future__ import annotations

from typing import Any

from cuebook.cli.history.views import Item
from cuebook.cli.moments import clock, span
from cuebook.cli.output import compact, gist, plain, styled
from cuebook.events import facts
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Error, Event
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Address

__all__ = ["alarm", "event_line", "run_line", "words"]

_ALARMING = {"failed": "red", "escalated": "bold yellow", "stuck": "bold red", "aborted": "red", "rejected": "red",
             "lost": "red", "suspected": "yellow", "completed": "green", "compensating": "yellow"}  # fmt: skip


def event_line(item: Item) -> str:
    """A line of the log: sequence, time, subject without its space, and what it says."""
    subject = plain(item.subject.partition(".")[2])
    return f"{item.sequence:>8}  {clock(item.recorded_at)}  {subject}  {_coloured(item, words(item))}"


def run_line(item: Item, began_at: int) -> str:
    """A line of one run's history: sequence, time since `began_at`, which task, and what it says."""
    address = item.address if isinstance(item, Envelope) else None
    part = f"{address.n}" if address is not None and address.n >= 0 else "run"
    since = f"+{span(max(item.recorded_at - began_at, 0) / 1e6)}"
    return f"{item.sequence:>8}  {since:>9}  {part:>4}  {_coloured(item, words(item))}"


def words(item: Item) -> str:
    """What one message says, on one line."""
    if isinstance(item, Unreadable):
        return f"unreadable: {plain(item.reason)}"
    return plain(_of_task(item.event, item.address) or _of_run(item.event, item.address) or _other(item))


def alarm(item: Item) -> str:
    """The rich style of what a person should notice; empty for all else."""
    return "red" if isinstance(item, Unreadable) else _ALARMING.get(item.address.fact, "")


def _coloured(item: Item, text: str) -> str:
    return styled(text, alarm(item))


def _of_run(event: Event, address: Address) -> str:  # noqa: C901 - one branch a fact
    match event:
        case facts.RunRequested():
            return f"run of saga {address.agent} requested, input {compact(event.input)}"
        case facts.RunForked():
            other = f", other answers to {', '.join(map(str, event.changed))}" if event.changed else ""
            return f"fork of {event.fork_of} at {event.at}{_by(event.by)}: {event.copied} steps are shared{other}"
        case facts.RunStarted():
            cause = f" by the message at {event.trigger}" if event.trigger else ""
            return f"saga {event.saga} version {event.version} started{cause}, input {compact(event.input)}"
        case facts.RunCompleted():
            return f"completed: {compact(event.result)}"
        case facts.RunFailed():
            return f"failed: {_error(event.error)}"
        case facts.RunCompensating():
            return f"compensating steps {', '.join(map(str, event.steps))}: {event.reason}"
        case facts.RunCompensated():
            return f"compensated: {event.reason}"
        case facts.RunCancelRequested():
            return f"cancel requested{_by(event.by)}{_because(event.reason)}"
        case facts.RunCancelled():
            return f"cancelled{_because(event.reason)}"
        case facts.RunStuck():
            return f"stuck: {event.reason}"
        case facts.RunRetryRequested():
            return f"retry requested{_by(event.by)}{_because(event.note)}"
        case facts.RunResumed():
            return "resumed"
        case facts.RunRejected():
            return f"rejected: {event.reason}" + (f" ({event.remedy})" if event.remedy else "")
        case facts.StepSlept():
            return f"sleeps {span(event.seconds)}"
        case facts.StepCopied():
            answer = f": {compact(event.value)}" if event.value is not None else ""
            return f"{_copied(event)}, {event.kind} {event.status}{answer}"
        case facts.StepWaiting():
            return f"waits for {event.topic}" + (f" with {compact(event.match)}" if event.match else "")
        case facts.StepMatched():
            return f"got the message at {event.sequence}: {compact(event.data)}"
        case facts.StepAsked():
            return f"asks: {gist(event.question)}"
        case facts.StepAnswered():
            return f"answered{_by(event.by)}: {compact(event.value)}{_because(event.note)}"
        case facts.AnswerRefused():
            return f"the answer at {event.sequence} was refused: {event.reason}"
        case facts.StepExpired():
            return "time is over"
        case facts.StepCancelled():
            return f"cancelled{_because(event.reason)}"
    return ""


def _of_task(event: Event, address: Address) -> str:  # noqa: C901 - one branch a fact
    match event:
        case facts.TaskRequested():
            undo = f" to undo step {event.compensates}" if event.compensates is not None else ""
            priority = f", priority {event.priority}" if event.priority else ""
            name = f"{address.agent}.{event.handler}" if event.handler else address.agent
            return f"asks {name}{undo}{priority}, input {compact(event.input)}"
        case facts.TaskCopied():
            outcome = compact(event.output) if event.error is None else _error(event.error)
            name = f"{address.agent}.{event.handler}" if event.handler else address.agent
            return f"{_copied(event)}, {name} {event.status}: {outcome}"
        case facts.TaskAssigned():
            why = f" ({event.reason['by']})" if "by" in event.reason else ""
            return f"attempt {event.attempt} at {address.agent}/{address.instance}{why}"
        case facts.TaskCompleted():
            return f"completed{_by(event.by)} in {span(event.duration_s)}: {compact(event.output)}"
        case facts.TaskFailed():
            return f"attempt {event.attempt} failed after {span(event.duration_s)}: {_error(event.error)}"
        case facts.TaskRetried():
            when = f"again in {span(event.delay_s)}" if event.delay_s else "again at once"
            return when + _because(event.reason)
        case facts.TaskEscalated():
            return f"escalated to a person: {event.reason}"
        case facts.TaskResolved():
            output = f" {compact(event.output)}" if event.action == "supply" else ""
            return f"resolved{_by(event.by)}: {event.action}{output}{_because(event.note)}"
        case facts.TaskAborted():
            return f"aborted: {event.reason}"
        case facts.TaskCancelRequested():
            return f"cancel requested{_by(event.by)}{_because(event.reason)}"
        case facts.TaskCancelled():
            return f"cancelled{_because(event.reason)}" + (", outcome unknown" if event.outcome_unknown else "")
        case facts.TaskRejected():
            return f"rejected: {event.reason}" + (f" ({event.remedy})" if event.remedy else "")
        case facts.TaskReverted():
            done = f"could not be undone: {_error(event.error)}" if event.error is not None else "was undone"
            return f"an effect that came too late {done}"
        case facts.TaskProgressed():
            share = f"{event.fraction:.0%} " if event.fraction is not None else ""
            return f"{share}{event.message}".strip() or "goes on"
    return ""


def _other(item: Envelope) -> str:
    match item.event:
        case facts.AgentRegistered() as event:
            return f"{event.slots} slots, version {event.version}, handlers {', '.join(event.handlers)}"
        case facts.AgentSuspected() | facts.AgentLost() as event:
            return f"{item.address.fact}: silent for {event.silent_s:g} s"
        case facts.AgentRecovered():
            return "heard again"
        case facts.AnswerDropped() as event:
            return f"its answer to {event.run_id}/{event.n}, {event.fact}, came when the task had moved on"
        case facts.DrainRequested() as event:
            return f"drain requested{_by(event.by)}{_because(event.reason)}"
        case facts.AgentDraining() as event:
            return f"draining{_because(event.reason)}"
        case facts.AgentStopped() as event:
            return f"stopped after {event.handled} tasks{_because(event.reason)}"
        case facts.SagaServed() as event:
            return f"serves saga {item.address.agent}: events on {event.on} after {event.after} start its runs"
        case facts.SpaceRolled() as event:
            return f"stream {event.stream} ends here, the log goes on in {event.into}{_by(event.by)}"
        case facts.MessageRejected() as event:
            return f"{event.subject} has no effect: {event.reason}" + (f" ({event.remedy})" if event.remedy else "")
    return compact(item.data)


def _copied(event: facts.TaskCopied | facts.StepCopied) -> str:
    origin = event.origin
    other = ", with another answer" if event.changed else ""
    return f"copied from {origin.run_id}/{origin.n} at {origin.sequence}{other}"


def _error(error: Error) -> str:
    return f"{error.type}: {error.message}"


def _by(who: str) -> str:
    return f" by {who}" if who else ""


def _because(reason: Any) -> str:
    return f" ({reason})" if reason else ""
