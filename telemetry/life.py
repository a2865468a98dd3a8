"""The life of one run as spans, made from its events: publish, run, steps, place, execute, complete, escalate.

Times are those of the log, so a span says how long something took and not when we heard of it. What is made here is the
same whoever folds the events, and however often: `cuebook trace` shows it, and the orchestrator sends its own share of
it. The others' share, such as what an agent does, is sent by them as they do it; what they could not send, because they
died, counts as the orchestrator's.
"""

from __future__ import annotations

from typing import Final

from cuebook.events import facts
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Event
from cuebook.telemetry import attributes as names
from cuebook.telemetry.span import Link, Span, SpanEvent, Value
from cuebook.telemetry.trace import (
    TraceContext,
    context_of,
    execute_span,
    publish_span,
    run_span,
    span_id,
    task_span,
)

__all__ = ["RunTrace", "closes", "origin_of"]

SYSTEM: Final = "nats"
MAX_EVENTS: Final = 128
"""Of one span. Source: the default of OTEL_SPAN_EVENT_COUNT_LIMIT."""
_STEP_OPENING: Final = {facts.StepSlept: "sleep", facts.StepWaiting: "wait", facts.StepAsked: "ask"}
_STEP_CLOSING: Final = (facts.StepMatched, facts.StepAnswered, facts.StepExpired, facts.StepCancelled)
_ENDS: Final = (facts.TaskCompleted, facts.TaskAborted, facts.TaskCancelled, facts.TaskRejected)
_RUN_ENDS: Final = (
    facts.RunCompleted,
    facts.RunFailed,
    facts.RunCompensated,
    facts.RunCancelled,
    facts.RunRejected,
)
_CLOSING: Final = frozenset((*_ENDS, *_RUN_ENDS, *_STEP_CLOSING))
_GOOD: Final = frozenset({"completed", "cancelled", "matched", "answered", "expired"})


def closes(event: Event) -> bool:
    """Whether this ends a task, a step or a run."""
    return type(event) in _CLOSING


def origin_of(event: Event) -> tuple[str, str]:
    """The run that the one begun with this event goes back to, and why; both empty when it is a new one."""
    match event:
        case facts.RunRequested(retry_of=str(run_id)) | facts.RunStarted(retry_of=str(run_id)):
            return run_id, "retry of another run"
        case facts.RunForked():
            return event.fork_of, "fork of another run"
    return "", ""


class RunTrace:
    """One run, fed with its events in order; each gives the spans that have ended with it.

    `space` is for attributes. `trigger` is the outside event that started the run, where it is at hand.
    """

    def __init__(
        self,
        run_id: str,
        opening: Envelope,
        space: str,
        *,
        trigger: Envelope | None = None,
    ) -> None:
        self.run_id, self._space = run_id, space
        self.context: TraceContext = context_of(opening)
        self.closed = False
        self.run: Span | None = None
        self._trace = self.context.trace_id
        self._parts: dict[int, _Part] = {}
        self._undoing: Span | None = None
        self._answered: Span | None = None
        """A question with an answer that may still be refused, by the next event of the run."""
        self.publish = self._publish_span(opening, trigger)

    @property
    def root(self) -> Span | None:
        """What the run is: that of its saga, or of its one task."""
        return self.run or (self._parts[0].span if 0 in self._parts else None)

    def apply(self, envelope: Envelope) -> list[Span]:
        """Take in one event; returns what has ended, the inner before the outer."""
        ended = self._settle_answer(envelope)
        match envelope.address.kind:
            case "run":
                ended += self._apply_to_run(envelope)
            case "task":
                ended += self._apply_to_task(envelope)
            case "step":
                ended += self._apply_to_step(envelope)
        return ended

    def link_origin(self, trace_id: int, id_: int, why: str) -> None:
        """The run goes back to another one, whose root span this is."""
        link = Link(trace_id, id_, why)
        if self.root is not None and link not in self.root.links:
            self.root.links.append(link)

    def open(self) -> list[Span]:
        """What goes on, the outer before the inner; `end` is 0."""
        found = [self.run, self._undoing]
        for part in self._parts.values():
            found += [part.span, *part.open()]
        return [span for span in found if span is not None and not span.end]

    # --- the run ---

    def _publish_span(self, opening: Envelope, trigger: Envelope | None) -> Span | None:
        """What its author's span says, or would say: an author who has one has sent it."""
        event = opening.event
        if isinstance(event, facts.RunStarted) and event.trigger:
            cause = trigger
            event_id = opening.causation_id
        else:
            cause, event_id = opening, opening.id
        if cause is None:
            return None
        destination = cause.address.topic or cause.address.agent or getattr(cause.event, "saga", "")
        span = Span(
            name=f"publish {destination}",
            kind="producer",
            author="client" if self.context.parent_id else "orchestrator",
            trace_id=self._trace,
            span_id=self.context.parent_id or publish_span(self._trace, event_id),
            parent_id=0,
            begin=cause.recorded_at - min(max(cause.recorded_at - cause.time, 0), 1_000_000),
            end=cause.recorded_at,
        )
        span.attributes = message_attributes("publish", "send", destination, cause)
        span.attributes[names.SPACE] = self._space
        return span

    @property
    def _above(self) -> int:
        return self.context.parent_id or (self.publish.span_id if self.publish is not None else 0)

    def _apply_to_run(self, envelope: Envelope) -> list[Span]:
        event, at = envelope.event, envelope.recorded_at
        ended: list[Span] = []
        match event:
            case facts.RunRequested():
                self._begin_run(envelope.address.agent, at)
            case facts.RunForked():
                self._begin_run(event.saga, at)
            case facts.RunStarted():
                run = self._begin_run(event.saga, at)
                run.attributes[names.SAGA_VERSION] = event.version
                _add(run, "started", at)
            case facts.RunCompensating() if self.run is not None and self._undoing is None:
                self._undoing = Span(
                    name="compensate",
                    trace_id=self._trace,
                    span_id=span_id(self._trace, "compensate", self.run_id),
                    parent_id=self.run.span_id,
                    begin=at,
                    attributes=self._about(),
                )
            case _ if isinstance(event, _RUN_ENDS) and self.run is not None:
                fact = envelope.address.fact
                if self._undoing is not None:
                    ended.append(_ended(self._undoing, at, fact, "" if fact == "compensated" else fact))
                error = getattr(event, "error", None)
                wrong = "" if fact in _GOOD else (error.type if error is not None else fact)
                ended.append(_ended(self.run, at, fact, wrong))
                self.closed = True
            case facts.RunStuck() | facts.RunResumed() | facts.RunCancelRequested() | facts.RunRetryRequested():
                if self.run is not None:
                    _add(self.run, envelope.address.fact, at)
        return ended

    def _begin_run(self, saga: str, at: int) -> Span:
        if self.run is None:
            self.run = Span(
                name=f"run {saga}",
                trace_id=self._trace,
                span_id=run_span(self._trace, self.run_id),
                parent_id=self._above,
                begin=at,
                attributes=self._about() | {names.SAGA: saga},
            )
        return self.run

    def _about(self) -> dict[str, Value]:
        return {names.SPACE: self._space, names.RUN_ID: self.run_id}

    # --- tasks and other steps ---

    def _apply_to_task(self, envelope: Envelope) -> list[Span]:
        n = envelope.address.n
        part = self._parts.get(n)
        if part is None:
            if not isinstance(envelope.event, facts.TaskRequested):
                return []
            part = self._parts[n] = self._open_task(envelope, envelope.event)
            return []
        if part.is_over():
            return []
        ended = part.apply(envelope)
        if part.is_over() and self.run is None:
            self.closed = True
        return ended

    def _open_task(self, envelope: Envelope, event: facts.TaskRequested) -> _Part:
        n, agent = envelope.address.n, envelope.address.agent
        named = f"{agent}.{event.handler}" if event.handler else agent
        what = "task" if self.run is None else "step" if event.compensates is None else "undo"
        undoing = self._undoing if event.compensates is not None else None
        above = undoing or self.run
        span = Span(
            name=f"{what} {named}",
            trace_id=self._trace,
            span_id=task_span(self._trace, self.run_id, n),
            parent_id=above.span_id if above is not None else self._above,
            begin=envelope.recorded_at,
            attributes=self._about() | {names.STEP: n, names.STEP_TYPE: "task", names.AGENT_NAME: agent},
        )
        if event.handler:
            span.attributes[names.HANDLER] = event.handler
        if event.priority:
            span.attributes[names.PRIORITY] = event.priority
        if event.compensates is not None:
            span.attributes[names.UNDOES] = event.compensates
            span.links.append(Link(self._trace, task_span(self._trace, self.run_id, event.compensates), "undoes"))
        return _Part(span, named, agent)

    def _apply_to_step(self, envelope: Envelope) -> list[Span]:
        n, event, at = envelope.address.n, envelope.event, envelope.recorded_at
        part = self._parts.get(n)
        type_ = _STEP_OPENING.get(type(event))
        if part is None and type_ is not None and self.run is not None:
            topic = f" {event.topic}" if isinstance(event, facts.StepWaiting) else ""
            span = Span(
                name=f"{type_}{topic}",
                trace_id=self._trace,
                span_id=task_span(self._trace, self.run_id, n),
                parent_id=self.run.span_id,
                begin=at,
                attributes=self._about() | {names.STEP: n, names.STEP_TYPE: type_},
            )
            self._parts[n] = _Part(span, type_, "")
        elif part is not None and not part.span.end and isinstance(event, _STEP_CLOSING):
            _ended(part.span, at, envelope.address.fact, "")
            if isinstance(event, facts.StepAnswered):
                self._answered = part.span
            else:
                return [part.span]
        return []

    def _settle_answer(self, envelope: Envelope) -> list[Span]:
        """What comes after an answer says whether it counts; something always does."""
        answered, self._answered = self._answered, None
        if answered is None:
            return []
        if isinstance(envelope.event, facts.AnswerRefused):
            answered.end = 0
            _add(answered, "answer refused", envelope.recorded_at)
            return []
        return [answered]


class _Part:
    """One task, or another step, of a run."""

    __slots__ = ("agent", "assigned", "escalation", "free_at", "last_execute", "named", "span")

    def __init__(self, span: Span, named: str, agent: str) -> None:
        self.span, self.named, self.agent = span, named, agent
        self.free_at = span.begin
        self.assigned: Span | None = None
        """The attempt under way."""
        self.last_execute = 0
        self.escalation: Span | None = None

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.span.end > 0

    def apply(self, envelope: Envelope) -> list[Span]:
        """One event about a task that is open."""
        event, at = envelope.event, envelope.recorded_at
        ended: list[Span] = []
        match event:
            case facts.TaskAssigned():
                ended += self._end_attempt(envelope, "lost")
                ended.append(self._place(envelope, event))
            case facts.TaskFailed():
                ended += self._end_attempt(envelope, event.error.type)
                self.free_at = at
            case facts.TaskRetried():
                ended += self._end_attempt(envelope, "lost" if event.lost else "handed_back")
                ended += self._end_escalation(at, "retry")
                self.free_at = at + int(min(max(event.delay_s, 0.0), 1e9) * 1_000_000)
                _add(self.span, "retried", at)
            case facts.TaskEscalated():
                ended += self._end_escalation(at, "again")
                self.escalation = self._inner("escalate", at, span_id(self.span.trace_id, "escalate", envelope.id))
            case facts.TaskResolved():
                ended += self._end_escalation(at, event.action)
            case _ if isinstance(event, _ENDS):
                fact = envelope.address.fact
                wrong = "" if fact in _GOOD else self._why(event, fact)
                ended += self._end_attempt(envelope, wrong or ("" if fact == "completed" else fact))
                ended += self._end_escalation(at, fact)
                ended.append(_ended(self.span, at, fact, wrong))
            case facts.TaskCancelRequested():
                _add(self.span, "cancel requested", at)
        return ended

    def open(self) -> list[Span]:
        """What is under way in it."""
        return [span for span in (self.assigned, self.escalation) if span is not None]

    @staticmethod
    def _why(event: Event, fact: str) -> str:
        error = getattr(event, "error", None)
        return error.type if error is not None else fact

    def _place(self, envelope: Envelope, event: facts.TaskAssigned) -> Span:
        if self.named == self.agent:  # asked for without naming the handler, since there is only one
            self.named = f"{self.agent}.{event.handler}"
            self.span.name = f"{self.span.name.partition(' ')[0]} {self.named}"
        self.span.attributes[names.HANDLER] = event.handler
        trace, assigned_at = self.span.trace_id, envelope.recorded_at
        place = self._inner(f"place {self.agent}", min(self.free_at, assigned_at), span_id(trace, "place", envelope.id))
        place.kind = "producer"
        place.attributes |= message_attributes("place", "send", self.agent, envelope)
        place.attributes |= {names.AGENT_ID: envelope.address.instance, names.ATTEMPT: event.attempt}
        if self.last_execute:
            place.links.append(Link(trace, self.last_execute, "attempt before"))
        place.end = assigned_at
        self.assigned = self._inner(f"execute {self.named}", assigned_at, execute_span(trace, envelope.id))
        self.assigned.kind = "consumer"
        self.assigned.attributes |= execute_attributes(envelope, event)
        return place

    def _end_attempt(self, envelope: Envelope, wrong: str) -> list[Span]:
        """The attempt is over, by a word of the agent's own (then it has sent the span), or without one."""
        execute, self.assigned = self.assigned, None
        if execute is None:
            return []
        trace, event, at = self.span.trace_id, envelope.event, envelope.recorded_at
        self.last_execute = execute.span_id
        if execute.attributes[names.MESSAGE_ID] != envelope.causation_id:
            return [_ended(execute, at, "", wrong or "superseded")]
        execute.author = "agent"
        said_at = min(max(envelope.time, execute.begin), at)  # by its own clock, as far as that can be
        took_us = int(getattr(event, "duration_s", 0.0) * 1_000_000)
        execute.begin = max(execute.begin, said_at - took_us) if took_us else execute.begin
        complete = self._inner(f"complete {self.named}", said_at, span_id(trace, "complete", envelope.id))
        complete.parent_id, complete.author, complete.kind = execute.span_id, "agent", "producer"
        complete.attributes |= message_attributes("complete", "send", self.agent, envelope)
        complete.attributes[names.OUTCOME] = envelope.address.fact
        complete.end = at
        return [complete, _ended(execute, said_at, "", wrong)]

    def _end_escalation(self, at: int, action: str) -> list[Span]:
        escalation, self.escalation = self.escalation, None
        if escalation is None:
            return []
        escalation.attributes[names.ACTION] = action
        return [_ended(escalation, at, "", "")]

    def _inner(self, name: str, begin: int, id_: int) -> Span:
        about = {key: self.span.attributes[key] for key in (names.SPACE, names.RUN_ID, names.STEP)}
        return Span(
            name=name,
            trace_id=self.span.trace_id,
            span_id=id_,
            parent_id=self.span.span_id,
            begin=begin,
            attributes=about,
        )


def message_attributes(operation: str, type_: str, destination: str, envelope: Envelope) -> dict[str, Value]:
    """What the conventions for messaging say of one message."""
    return {
        names.SYSTEM: SYSTEM,
        names.OPERATION: operation,
        names.OPERATION_TYPE: type_,
        names.DESTINATION: destination,
        names.MESSAGE_ID: envelope.id,
        names.CONVERSATION_ID: envelope.correlation_id,
    }


def execute_attributes(assigned: Envelope, event: facts.TaskAssigned) -> dict[str, Value]:
    """Of one attempt, by the event that assigned it."""
    address = assigned.address
    return message_attributes("execute", "process", address.agent, assigned) | {
        names.GEN_AI_OPERATION: "invoke_agent",
        names.AGENT_NAME: address.agent,
        names.AGENT_ID: address.instance,
        names.HANDLER: event.handler,
        names.ATTEMPT: event.attempt,
    }


def _ended(span: Span, at: int, outcome: str, wrong: str) -> Span:
    span.end, span.error = max(at, span.begin), wrong
    if outcome:
        span.attributes[names.OUTCOME] = outcome
    if wrong:
        span.attributes[names.ERROR_TYPE] = wrong
    return span


def _add(span: Span, name: str, at: int) -> None:
    if len(span.events) < MAX_EVENTS:
        span.events.append(SpanEvent(name, at))
