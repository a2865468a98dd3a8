"""All that the orchestrator knows, folded from the log: open runs, agents, and what still has to be answered.

Closed runs leave memory at once, so its size follows the work that is open and not the length of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cuebook.actors.orchestrator.dumps import dump_run, load_run
from cuebook.actors.orchestrator.listening import Listening, SnapshotGapError, Trigger, trigger_of
from cuebook.actors.orchestrator.matching import MatchIndex
from cuebook.actors.orchestrator.placement import Placement
from cuebook.actors.orchestrator.registry import InstanceState, Registry, dump_registry, load_registry
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState, place_of
from cuebook.actors.saga import Saga
from cuebook.events.envelope import Envelope, Position
from cuebook.events.facts import MessageRejected, RunForked, RunRequested, RunStarted, TaskRequested
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Subjects

__all__ = ["Refusal", "SnapshotGapError", "Touched", "Trigger", "Unchecked", "World"]

_OPENING = frozenset({("task", "requested"), ("run", "requested"), ("run", "started"), ("run", "forked")})
_FROM_PEOPLE = frozenset({"cancel_requested", "retry_requested", "resolved", "answered", "requested"})
"""Facts that people and their programs address to a run; to a run that is not open they get an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A message that has no effect; it is owed a `rejected` fact saying why."""

    sequence: int
    subject: str
    reason: str
    remedy: str
    correlation_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A request that was stored without naming an expected sequence: its run may have existed before.

    `wishes`: what people have asked of the run since. Where it turns out to be over, they are answered too.
    """

    sequence: int
    run_id: str
    subject: str
    correlation_id: str
    wishes: list[Refusal] = field(default_factory=list)


@dataclass(slots=True)
class Touched:
    """What one event was about; the parts that do not apply are None. Not frozen: freezing doubles its cost."""

    run: RunState | None = None
    item: TaskState | StepState | None = None
    instance: InstanceState | None = None
    event: Envelope | None = None
    freed: InstanceState | None = None
    """An instance that got a slot back."""
    saga: str = ""
    """The saga that a fact was about."""


_NOTHING = Touched()
_REMEDY = "send it anew in a form that docs/wire-format.md describes"
"""For what cannot be read, where the codec has no better advice."""
_LOOK_AT_RUN = "look at the run with 'cuebook run show'"


class World:
    """The fold. `sagas` by name says which outside events matter here."""

    def __init__(self, subjects: Subjects, sagas: Mapping[str, Saga[Any, Any]]) -> None:
        self.subjects = subjects
        self.position = Position()
        self.runs: dict[str, RunState] = {}
        self.registry = Registry()
        self.placement = Placement()
        self.listening = Listening(sagas)
        self.triggers: dict[tuple[int, str], Trigger] = {}
        self.refusals: dict[int, Refusal] = {}
        self.unchecked: dict[int, Unchecked] = {}
        """By sequence, until the request is rejected or its run is over."""
        self.owed: list[int] = []
        """Sequences of new refusals, triggers and unchecked requests, for whoever decides to take up and clear."""
        self.waits: dict[str, MatchIndex[tuple[str, int]]] = {}
        """Open waits, as run id and number, by the topic they wait for."""

    def fold(self, item: Envelope | Unreadable, *, guarded: bool = True) -> Touched:
        """Fold the next message of the log. `guarded`: its author named the sequence expected under its scope.

        Raises SnapshotGapError when the world was loaded from a snapshot that does not go far enough.
        """
        if isinstance(item, Unreadable):
            self.position = Position(item.sequence)
            return self._fold_unreadable(item)
        self.position = Position(item.sequence, item.id)
        match item.address.kind:
            case "task" | "step" | "run":
                return self._fold_run(item, guarded)
            case "agent":
                return Touched(instance=self.registry.apply(item))
            case "event":
                return self._fold_outside(item)
            case "rejected":
                self._forget(item)
            case "saga":
                self._count(self.listening.serve(item))
                return Touched(saga=item.address.agent)
        return _NOTHING

    def _fold_run(self, envelope: Envelope, guarded: bool) -> Touched:
        address = envelope.address
        run = self.runs.get(address.run_id)
        if run is None:
            run = self._open(envelope, guarded)
            if run is None:
                return _NOTHING
        elif run.standalone and address.n > 0:
            self._refuse(envelope, f"{address.run_id} is one task, number 0", "ask for it under a run id of its own")
            return _NOTHING
        elif address.fact in ("requested", "forked") and self._is_repeated(run, envelope):
            self._refuse(envelope, f"{address.run_id} was requested before", "use another run id")
        if address.kind != "run":
            return self._fold_part(run, envelope)
        event = envelope.event
        if type(event) is RunStarted and event.trigger:
            self._begin(event, by_event=run.status == "new")
        run.apply(envelope)
        if self.unchecked:
            self._note_wish(run, envelope)
        if run.closed:
            self._evict(run)
        return Touched(run=run)

    def _open(self, envelope: Envelope, guarded: bool) -> RunState | None:
        """A run that is not in memory: new, when the event opens one; else it is over, or never was."""
        address = envelope.address
        if (address.kind, address.fact) not in _OPENING or address.n > 0:
            if address.fact in _FROM_PEOPLE:
                self._refuse(envelope, f"run {address.run_id} is not open", _LOOK_AT_RUN)
            return None
        run = self.runs[address.run_id] = RunState(address.run_id)
        if not guarded:
            self.unchecked[envelope.sequence] = Unchecked(
                sequence=envelope.sequence,
                run_id=address.run_id,
                subject=envelope.subject,
                correlation_id=envelope.correlation_id,
            )
            self.owed.append(envelope.sequence)
        return run

    def _note_wish(self, run: RunState, envelope: Envelope) -> None:
        """Where it is not clear whether the run is over, remember who wants something of it and has no answer yet."""
        opened = self.unchecked.get(run.opened_sequence)
        if opened is None or envelope.sequence == opened.sequence or envelope.sequence in self.refusals:
            return
        address = envelope.address
        if address.fact in _FROM_PEOPLE or (address.kind, address.fact) in _OPENING:
            opened.wishes.append(_refusal(envelope, f"run {run.run_id} is not open", _LOOK_AT_RUN))

    def _begin(self, event: RunStarted, *, by_event: bool) -> None:
        """A run began, perhaps with an outside event."""
        begun = event.trigger, event.saga
        if by_event and begun not in self.triggers:
            self._count(self.listening.begin(event.saga, event.trigger))
        self.triggers.pop(begun, None)

    def _fold_part(self, run: RunState, envelope: Envelope) -> Touched:
        """An event of a task or a step."""
        address = envelope.address
        before = run.items.get(address.n)
        had = before.instance if type(before) is TaskState and before.status == "assigned" else ""
        item = run.apply(envelope)
        if item is None:
            what = f"{address.kind} {address.n} of {address.run_id}"
            asked = run.items.get(address.n)
            reason = f"nobody has asked for {what}" if asked is None else f"{what} is a {asked.kind}"
            self._refuse(envelope, reason, _LOOK_AT_RUN)
            return _NOTHING
        if self.unchecked:
            self._note_wish(run, envelope)
        freed = None
        if isinstance(item, TaskState):
            freed = self._move(item, had, envelope.sequence)
            if run.standalone and item.closed:
                self._evict(run)
        elif item.type == "wait":
            self._index_wait(item)
        return Touched(run=run, item=item, freed=freed)

    def _move(self, task: TaskState, had: str, sequence: int) -> InstanceState | None:
        """Count slots after an event of a task that instance `had` had; returns the instance that got one back."""
        has = task.instance if task.status == "assigned" else ""
        if had == has:
            return None
        freed = None
        if had:
            freed = self.registry.instance(task.agent, had)
            freed.tasks.discard((task.run_id, task.n))
        if has:
            instance = self.registry.instance(task.agent, has)
            instance.tasks.add((task.run_id, task.n))
            instance.newest = sequence
            self.placement.remember(task)
        return freed

    def _is_repeated(self, run: RunState, envelope: Envelope) -> bool:
        if isinstance(envelope.event, RunRequested | RunForked):
            return run.status != "new" or bool(run.items)
        item = run.items.get(envelope.address.n)
        return isinstance(envelope.event, TaskRequested) and item is not None and item.status != "new"

    def _index_wait(self, item: StepState) -> None:
        if item.status == "open":
            self.waits.setdefault(item.topic, MatchIndex()).add((item.run_id, item.n), item.match or {})
        else:
            self._forget_wait(item)

    def _forget_wait(self, item: StepState) -> None:
        waiting = self.waits.get(item.topic)
        if waiting is not None:
            waiting.discard((item.run_id, item.n))
            if not waiting:
                del self.waits[item.topic]

    def _fold_outside(self, envelope: Envelope) -> Touched:
        if names := self.listening.on.get(envelope.address.topic):
            self._count([trigger_of(envelope, name) for name in names])
        if self.listening.candidates:
            self.listening.keep(envelope)
        return Touched(event=envelope)

    def _count(self, triggers: Iterable[Trigger]) -> None:
        """These start runs of their sagas."""
        sequence = 0
        for trigger in triggers:
            self.triggers[trigger.sequence, trigger.saga] = trigger
            if trigger.sequence != sequence:
                sequence = trigger.sequence
                self.owed.append(sequence)

    def triggers_at(self, sequence: int) -> list[Trigger]:
        """The sagas that still have to begin with, or to refuse, the outside event at a sequence."""
        names = self.listening.names
        return [trigger for name in names if (trigger := self.triggers.get((sequence, name))) is not None]

    def _fold_unreadable(self, item: Unreadable) -> Touched:
        self.refusals[item.sequence] = Refusal(
            sequence=item.sequence, subject=item.subject, reason=item.reason, remedy=item.remedy or _REMEDY
        )
        self.owed.append(item.sequence)
        return self._skip(item)

    def _skip(self, item: Unreadable) -> Touched:
        """It decides nothing, but whoever appends next under the same scope has to name it."""
        if (place := place_of(item.subject)) is not None:
            kind, run_id, n = place
            run = self.runs.get(run_id)
            if run is None:
                return _NOTHING
            touched = run.skip(kind, n, item.sequence)
            if kind == "run":
                return Touched(run=run)
            return Touched(run=run, item=touched) if isinstance(touched, TaskState | StepState) else _NOTHING
        match item.subject.split(".")[1:]:
            case ["agent", agent, name, _, *_]:
                instance = self.registry.instances.get((agent, name))
                if instance is not None:
                    instance.last_sequence = item.sequence
                    return Touched(instance=instance)
            case ["saga", saga, _, *_]:
                self.listening.skip(saga, item.sequence)
                return Touched(saga=saga)
        return _NOTHING

    def _refuse(self, envelope: Envelope, reason: str, remedy: str) -> None:
        self.refusals[envelope.sequence] = _refusal(envelope, reason, remedy)
        self.owed.append(envelope.sequence)

    def _forget(self, envelope: Envelope) -> None:
        """The rejection of a message is on record."""
        sequence, event = envelope.address.n, envelope.event
        assert isinstance(event, MessageRejected)
        self.refusals.pop(sequence, None)
        for trigger in self.triggers_at(sequence):
            if not event.sagas or trigger.saga in event.sagas:
                del self.triggers[sequence, trigger.saga]
            else:
                self.triggers[sequence, trigger.saga] = replace(trigger, refused=envelope.sequence)
        self.listening.refuse(sequence, envelope.sequence, event.sagas)
        unchecked = self.unchecked.pop(sequence, None)
        if unchecked is not None:
            for wish in unchecked.wishes:
                self.refusals[wish.sequence] = wish
                self.owed.append(wish.sequence)
            if (run := self.runs.get(unchecked.run_id)) is not None:
                self._evict(run)

    def _evict(self, run: RunState) -> None:
        self.runs.pop(run.run_id, None)
        self.unchecked.pop(run.opened_sequence, None)
        for item in run.items.values():
            if isinstance(item, TaskState):
                item.gone = True
                if item.status == "assigned":
                    self.registry.instance(item.agent, item.instance).tasks.discard((item.run_id, item.n))
            elif item.type == "wait":
                self._forget_wait(item)

    # --- snapshots ---

    def dump(self) -> dict[str, Any]:
        """Everything as plain data; `load` of it and folding on gives what folding from the start gives."""
        return {
            "sequence": self.position.sequence,
            "event_id": self.position.event_id,
            "runs": [dump_run(run) for run in self.runs.values()],
            "registry": dump_registry(self.registry),
            "placement": self.placement.dump(),
            "triggers": [asdict(trigger) for _, trigger in sorted(self.triggers.items())],
            "refusals": [asdict(refusal) for refusal in self.refusals.values()],
            "unchecked": [asdict(unchecked) for unchecked in self.unchecked.values()],
            "listening": self.listening.dump(),
        }

    def load(self, data: dict[str, Any]) -> None:
        """Take over a dump. Triggers of sagas that are no longer served are dropped.

        Raises, before anything is changed, ValueError for what is no dump, and SnapshotGapError for one made without a
        saga whose events it would have to know.
        """
        try:
            position, registry = Position(data["sequence"], data["event_id"]), load_registry(data["registry"])
            placement = [(agent, key, instance) for agent, key, instance in data["placement"]]
            runs = {run["run_id"]: load_run(run) for run in data["runs"]}
            triggers = [Trigger(**trigger) for trigger in data["triggers"]]
            refusals = {refusal["sequence"]: Refusal(**refusal) for refusal in data["refusals"]}
            unchecked = {one["sequence"]: _load_unchecked(one) for one in data["unchecked"]}
            self.listening.load(data["listening"], position.sequence)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"this is no dump of a world: {error!r}") from error
        self.position, self.registry, self.runs = position, registry, runs
        self.placement.load(placement)
        self.triggers = {(one.sequence, one.saga): one for one in triggers if one.saga in self.listening.names}
        self.refusals, self.unchecked = refusals, unchecked
        for item in _items(self.runs.values()):
            if isinstance(item, TaskState):
                if item.status == "assigned":
                    self.registry.instance(item.agent, item.instance).tasks.add((item.run_id, item.n))
            elif item.type == "wait" and item.status == "open":
                self._index_wait(item)


def _refusal(envelope: Envelope, reason: str, remedy: str) -> Refusal:
    return Refusal(
        sequence=envelope.sequence,
        subject=envelope.subject,
        reason=reason,
        remedy=remedy,
        correlation_id=envelope.correlation_id,
    )


def _load_unchecked(data: dict[str, Any]) -> Unchecked:
    return Unchecked(**{**data, "wishes": [Refusal(**wish) for wish in data["wishes"]]})


def _items(runs: Iterable[RunState]) -> Iterable[TaskState | StepState]:
    for run in runs:
        yield from run.items.values()
