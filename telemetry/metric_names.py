"""Every metric of ours. docs/telemetry.md explains them, and a test holds both to what processes export.

Labels take few values: agents and sagas by name, health, status, outcome, kind, priority, projection; never a run.
"""

from __future__ import annotations

from typing import Final

from cuebook.telemetry.metric import Kind, Metric

__all__ = ["ALL", "priority_label"]


def _of(by: str, kind: Kind, name: str, unit: str, labels: str, about: str) -> Metric:
    return Metric(name=f"cuebook.{name}", kind=kind, unit=unit, labels=tuple(labels.split()), about=about, by=by)


_ORCHESTRATOR: Final = "orchestrator"
_AGENTS: Final = "agents"
_PROJECTIONS: Final = "projections"
_SEALER: Final = "sealer"
_EDGE: Final = "edge"
_EVERY: Final = "every"

# --- the leading orchestrator: what is open now ---
LEADING: Final = _of(
    _ORCHESTRATOR, "gauge", "orchestrator.leading", "", "", "1: this orchestrator decides; 0: it stands by"
)
LAG: Final = _of(_ORCHESTRATOR, "gauge", "orchestrator.lag", "{event}", "", "Events stored and not folded yet")
TIMERS: Final = _of(
    _ORCHESTRATOR, "gauge", "orchestrator.timers", "{timer}", "", "Moments that it waits for: deadlines, pauses, sleeps"
)
RUNS_OPEN: Final = _of(
    _ORCHESTRATOR,
    "gauge",
    "runs.open",
    "{run}",
    "saga agent status",
    "Runs that have not ended; a task without a saga is a run of its agent",
)
TASKS_OPEN: Final = _of(
    _ORCHESTRATOR,
    "gauge",
    "tasks.open",
    "{task}",
    "agent status",
    "Tasks that have not ended: waiting, backoff, assigned, escalated, ...",
)
QUEUE_DEPTH: Final = _of(
    _ORCHESTRATOR, "gauge", "queue.depth", "{task}", "agent priority", "Tasks that could be placed now and are not"
)
QUEUE_AGE: Final = _of(
    _ORCHESTRATOR, "gauge", "queue.oldest.age", "s", "agent", "How long the first of these has waited"
)
ESCALATIONS_OPEN: Final = _of(
    _ORCHESTRATOR,
    "gauge",
    "escalations.open",
    "{escalation}",
    "kind saga agent",
    "What waits for a person: task, question, stuck",
)
ESCALATION_AGE: Final = _of(
    _ORCHESTRATOR, "gauge", "escalations.oldest.age", "s", "kind", "How long the oldest of these has waited"
)
INSTANCES: Final = _of(
    _ORCHESTRATOR,
    "gauge",
    "agent.instances",
    "{instance}",
    "agent health",
    "Instances: healthy, suspect, draining, and lost in the last hour",
)
SLOTS: Final = _of(
    _ORCHESTRATOR, "gauge", "agent.slots", "{slot}", "agent", "Tasks that the healthy instances can have at once"
)
SLOTS_USED: Final = _of(_ORCHESTRATOR, "gauge", "agent.slots.used", "{slot}", "agent", "Of these, with a task")
LOG_MESSAGES: Final = _of(_ORCHESTRATOR, "gauge", "log.messages", "{message}", "", "Messages in the log")
LOG_SIZE: Final = _of(_ORCHESTRATOR, "gauge", "log.size", "By", "", "What the log takes on the server's disk")
LOG_SUBJECTS: Final = _of(
    _ORCHESTRATOR, "gauge", "log.subjects", "{subject}", "", "Subjects in the log, which the server keeps in memory"
)
LOG_LAST: Final = _of(_ORCHESTRATOR, "gauge", "log.last.sequence", "", "", "Sequence of the last event")
LOG_CONSUMERS: Final = _of(_ORCHESTRATOR, "gauge", "log.consumers", "{consumer}", "", "Consumers of the log's stream")
STORE_USED: Final = _of(
    _ORCHESTRATOR,
    "gauge",
    "log.store.used",
    "By",
    "",
    "What all streams of the account, or of the server, take on disk",
)
STORE_LIMIT: Final = _of(
    _ORCHESTRATOR, "gauge", "log.store.limit", "By", "", "What they may take; at the limit every append is refused"
)

# --- the leading orchestrator: what has happened ---
RUNS_STARTED: Final = _of(_ORCHESTRATOR, "counter", "runs.started", "{run}", "saga agent", "Runs that were asked for")
RUNS: Final = _of(_ORCHESTRATOR, "counter", "runs", "{run}", "saga agent outcome", "Runs that have ended")
RUN_DURATION: Final = _of(
    _ORCHESTRATOR,
    "histogram",
    "run.duration",
    "s",
    "saga agent",
    "End to end: from the request in the log to the end of the run",
)
TASKS: Final = _of(
    _ORCHESTRATOR, "counter", "tasks", "{task}", "agent outcome", "Tasks that have ended, also those of sagas"
)
TASK_DURATION: Final = _of(
    _ORCHESTRATOR,
    "histogram",
    "task.duration",
    "s",
    "agent",
    "From the request of a task to its end, with all attempts",
)
PLACEMENT: Final = _of(
    _ORCHESTRATOR,
    "histogram",
    "task.placement.duration",
    "s",
    "agent",
    "Time to place: from the moment a task may be placed until an instance has it",
)
RETRIES: Final = _of(
    _ORCHESTRATOR,
    "counter",
    "task.retries",
    "{attempt}",
    "agent cause",
    "Tasks that wait for another attempt, after: failure, loss, handed_back, person",
)
ESCALATIONS: Final = _of(
    _ORCHESTRATOR, "counter", "escalations", "{escalation}", "kind saga agent", "What was put before a person"
)
COMPENSATIONS: Final = _of(
    _ORCHESTRATOR, "counter", "compensations", "{run}", "saga", "Runs that began to undo what they had done"
)
UNDONE: Final = _of(
    _ORCHESTRATOR, "counter", "compensation.tasks", "{task}", "agent outcome", "Tasks that undo a step and have ended"
)
HEALTH_CHANGES: Final = _of(
    _ORCHESTRATOR,
    "counter",
    "agent.health.changes",
    "{change}",
    "agent health",
    "Instances that became healthy (registered or recovered), suspect, lost, draining, stopped",
)
REJECTED: Final = _of(
    _ORCHESTRATOR,
    "counter",
    "messages.rejected",
    "{message}",
    "",
    "Messages in the log that have no effect, and were answered so",
)

# --- agents ---
HANDLER_DURATION: Final = _of(
    _AGENTS,
    "histogram",
    "handler.duration",
    "s",
    "agent outcome",
    "How long handlers took: completed, failed, cancelled, retried (handed back)",
)
HANDLER_IN_FLIGHT: Final = _of(
    _AGENTS,
    "gauge",
    "handler.in.flight",
    "{task}",
    "agent",
    "Tasks that this process has and whose answers are not stored yet",
)
HANDLER_SLOTS: Final = _of(
    _AGENTS, "gauge", "handler.slots", "{slot}", "agent", "Tasks that its instances can have at once"
)
HANDLER_PENDING: Final = _of(_AGENTS, "gauge", "handler.pending", "{task}", "agent", "Assignments on their way to it")
REDELIVERIES: Final = _of(
    _AGENTS,
    "counter",
    "handler.redeliveries",
    "{message}",
    "agent",
    "Assignments that came once more, and were passed over",
)
LATE: Final = _of(
    _AGENTS, "counter", "handler.late.answers", "{task}", "agent", "Answers nobody needed: the task had moved on"
)

# --- projections ---
PROJECTION_LAG: Final = _of(
    _PROJECTIONS, "gauge", "projection.lag", "{event}", "projection", "Events stored and not in the tables"
)
PROJECTION_LAG_S: Final = _of(
    _PROJECTIONS,
    "gauge",
    "projection.lag.time",
    "s",
    "projection",
    "How long the oldest of these has been in the log; 0: none",
)
PROJECTION_POSITION: Final = _of(
    _PROJECTIONS, "gauge", "projection.position", "", "projection", "Sequence of the last event in the tables"
)
PARKED: Final = _of(
    _PROJECTIONS,
    "gauge",
    "projection.parked",
    "{event}",
    "projection",
    "Events that could not be applied, and about which nobody has decided",
)
DATABASE_UP: Final = _of(_PROJECTIONS, "gauge", "database.up", "", "", "1: PostgreSQL answers")

# --- sealer ---
SEALED: Final = _of(_SEALER, "gauge", "sealer.sealed", "{message}", "", "Messages that the newest checkpoint covers")

# --- edge, besides its agents ---
EDGE_LINKED: Final = _of(_EDGE, "gauge", "edge.linked", "", "", "1: the log answers; 0: the link to it is cut")
EDGE_CUT: Final = _of(_EDGE, "gauge", "edge.cut.time", "s", "", "For how long the link has been cut; 0: it holds")
EDGE_ANSWERS: Final = _of(
    _EDGE, "gauge", "edge.answers.waiting", "{answer}", "", "Answers of its agents that the log does not have yet"
)
EDGE_EVENTS: Final = _of(
    _EDGE, "gauge", "edge.events.waiting", "{event}", "", "Events of its place that the log does not have yet"
)
EDGE_FORWARDED: Final = _of(
    _EDGE, "counter", "edge.events.forwarded", "{event}", "", "Events of its place that it has brought to the log"
)

# --- every process ---
READY: Final = _of(
    _EVERY, "gauge", "ready", "", "", "1: it takes work, or stands by; 0: it starts or waits for something"
)
NATS_UP: Final = _of(_EVERY, "gauge", "nats.up", "", "", "1: connected with NATS")
NATS_RECONNECTS: Final = _of(
    _EVERY, "counter", "nats.reconnects", "{connection}", "", "Connections that took the place of a lost one"
)
APPENDS: Final = _of(
    _EVERY,
    "counter",
    "appends",
    "{event}",
    "outcome",
    "Events that it appended: stored, conflict (another was faster), refused, unanswered",
)
APPEND_DURATION: Final = _of(
    _EVERY, "histogram", "append.duration", "s", "", "From handing over an event until the log has acknowledged it"
)
APPENDS_IN_FLIGHT: Final = _of(_EVERY, "gauge", "appends.in.flight", "{event}", "", "Appends without an outcome yet")
APPENDS_RESENT: Final = _of(
    _EVERY, "counter", "appends.resent", "{event}", "", "Appends sent once more for want of an answer"
)
LOOP_DELAY: Final = _of(
    _EVERY, "histogram", "event.loop.delay", "s", "", "How late its event loop is, asked ten times a second"
)
LOOP_BLOCKED: Final = _of(
    _EVERY, "gauge", "event.loop.blocked", "s", "", "For how long the event loop has been standing still, now"
)

ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

_FIRST: Final = 9


def priority_label(priority: int) -> str:
    """Priorities beyond nine are together, so that there are 21 at most."""
    if -_FIRST <= priority <= _FIRST:
        return str(priority)
    return f">{_FIRST}" if priority > 0 else f"<-{_FIRST}"
