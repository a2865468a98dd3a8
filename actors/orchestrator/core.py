"""The orchestrator as an actor: fold the next message, then decide what follows from it.

A standby folds only. `activate` makes it decide, beginning with everything that is open; two active ones are
harmless, since each append names what it has seen and only one of them wins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from cuebook.actors.orchestrator.conductor import Conductor
from cuebook.actors.orchestrator.dispatcher import Dispatcher
from cuebook.actors.orchestrator.liveness import Liveness
from cuebook.actors.orchestrator.openings import Openings
from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.registry import InstanceState
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RunState, StepState, TaskState
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.world import Touched, Unchecked, World
from cuebook.events.envelope import Envelope
from cuebook.events.facts import RunStarted
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Subjects

__all__ = ["Orchestrator"]

REPEAT_AFTER_US = 1_000_000

logger = logging.getLogger(__name__)


class Orchestrator:
    """Folds and decides; all effects go through the port. No I/O and no waiting in here."""

    def __init__(self, subjects: Subjects, sagas: Repertoire, port: Port) -> None:
        self.world = World(subjects, sagas)
        self.timers = Timers()
        self.dispatcher = Dispatcher(self.world, port, self.timers)
        self.conductor = Conductor(self.world, port, self.timers, sagas)
        self.openings = Openings(self.world, port, self.timers, sagas)
        self.liveness = Liveness(self.world, port)
        self._port = port
        self.active = False

    def receive(self, item: Envelope | Unreadable, *, guarded: bool = True) -> Touched:
        """Fold the next message of the log and, when active, decide what follows. Returns what it was about."""
        touched = self.world.fold(item, guarded=guarded)
        if isinstance(item, Envelope):
            _clear_pending(item.id, touched)
        if self.active:
            self._try(self._react, item, touched)
        elif self.world.owed:
            self.world.owed.clear()
        return touched

    def activate(self) -> None:
        """Begin to decide: catch up on everything that is open. See Liveness for who was silent."""
        self.active = True
        self.liveness.start(time.monotonic())
        for instance in list(self.world.registry.instances.values()):
            self._try(self._decide_instance, instance)
        for run in list(self.world.runs.values()):
            self._try(self._decide_all, run)
        begun_with = dict.fromkeys(sequence for sequence, _ in self.world.triggers)
        self.world.owed = [*self.world.refusals, *begun_with, *self.world.unchecked]
        self._try(self._settle_owed)
        self._try(self._announce)

    def deactivate(self) -> None:
        """Stop deciding; the fold goes on."""
        self.active = False
        self.conductor.rest()
        self.openings.rest()

    def _try(self, decide: Callable[..., None], *about: Any) -> None:
        """A decision that raises is a mistake of ours about one run: the others go on, and a person must see it.

        Nothing is lost by that, since every decision follows from the fold and is asked for again.
        """
        try:
            decide(*about)
        except Exception:
            sequence = self.world.position.sequence
            logger.exception("a decision of the orchestrator failed", extra={"sequence": sequence})

    def _react(self, item: Envelope | Unreadable, touched: Touched) -> None:
        run = touched.run
        if run is not None:
            self._react_to_run(item, run, touched)
        elif touched.instance is not None:
            instance = touched.instance
            self._decide_instance(instance)
            self.dispatcher.instances_changed(instance.agent)
        elif touched.event is not None:
            self.conductor.offer(touched.event)
        elif touched.saga:
            self._announce()
        if self.world.owed:
            self._settle_owed()

    def _react_to_run(self, item: Envelope | Unreadable, run: RunState, touched: Touched) -> None:
        part = touched.item
        if part is None:
            if self._is_doubtful(run):
                return
            if isinstance(item, Envelope) and isinstance(item.event, RunStarted):
                self.openings.settle(item.event.trigger)
                self.openings.started(run.run_id)
            if run.closed:
                self.conductor.forget(run)
            else:
                self.conductor.decide(run)
                self._decide_open(run)
            return
        if self._is_doubtful(run):
            return
        if isinstance(part, TaskState):
            self.dispatcher.decide(run, part)
            if touched.freed is not None:
                self.dispatcher.place(touched.freed.agent)
        else:
            self._decide_part(run, part)
        if part.closed and not run.standalone:
            self.conductor.decide(run)
            if run.winding:
                self._decide_open(run)

    def _decide_open(self, run: RunState) -> None:
        """The run is being ended: each open part closes itself."""
        if not (run.winding or run.cancel_reason is not None):
            return
        for part in list(run.items.values()):
            self._decide_part(run, part)

    def _decide_part(self, run: RunState, part: TaskState | StepState) -> None:
        if isinstance(part, TaskState):
            self.dispatcher.decide(run, part)
        else:
            self.conductor.decide_step(run, part)
            if part.type == "wait" and part.status == "open" and not part.pending:
                self.conductor.look_back(run, part)

    def _is_doubtful(self, run: RunState) -> bool:
        """Whether it may be over: nothing is decided about it before it was looked up."""
        return run.opened_sequence in self.world.unchecked and not run.verified

    def _decide_all(self, run: RunState) -> None:
        if self._is_doubtful(run):
            return
        for part in list(run.items.values()):
            self._decide_part(run, part)
        if not run.standalone:
            self.conductor.decide(run)
            self._decide_open(run)

    def _decide_instance(self, instance: InstanceState) -> None:
        if instance.health in ("stopped", "lost"):
            if instance.health == "stopped":
                self._port.close_inbox(instance.agent, instance.instance)
                self.liveness.forget(instance)
            else:
                self._port.forget_inbox(instance.agent, instance.instance)
            self.dispatcher.instance_gone(instance)
        elif instance.health != "unregistered":
            self._port.open_inbox(instance.agent, instance.instance, instance.registered_sequence)
            self.liveness.expect(instance, time.monotonic())
            if instance.wants_drain:
                self._port.signal(instance.agent, instance.instance, {"drain": instance.reason})

    def _settle_owed(self) -> None:
        """Answer what must be answered: refusals, triggers, and requests whose run may have existed before."""
        world = self.world
        while world.owed:
            owed, world.owed = world.owed, []
            for sequence in owed:
                self._try(self._settle, sequence)

    def _settle(self, sequence: int) -> None:
        world = self.world
        if refusal := world.refusals.get(sequence):
            self.openings.reject_message(
                sequence, refusal.subject, refusal.reason, refusal.remedy, correlation_id=refusal.correlation_id
            )
        elif (unchecked := world.unchecked.get(sequence)) is not None:
            self._check(unchecked)
        else:
            for trigger in world.triggers_at(sequence):
                self.openings.start_from(trigger)

    def _announce(self) -> None:
        if self.world.listening.all_recorded:
            self._port.ready()
        else:
            self.openings.announce()

    def _check(self, request: Unchecked) -> None:
        """A request came without an expected sequence: it counts only if it is the first under its run."""
        world, sequence, run_id = self.world, request.sequence, request.run_id
        scope = world.subjects.everything_of(run_id)

        def answer(first: int) -> None:
            if sequence not in world.unchecked or not self.active:
                return
            if first == sequence:
                run = world.runs[run_id]
                run.verified = True
                self._decide_all(run)
            elif first:  # what people want of this run is answered when the refusal has been read
                reason = f"{run_id} was requested before and is over"
                self.openings.reject_message(
                    sequence, request.subject, reason, "use another run id", correlation_id=request.correlation_id
                )
            else:  # from a replica that is behind
                self.timers.set(("refusal", sequence), self._port.now() + REPEAT_AFTER_US)

        self._port.first_sequence(scope, answer)

    # --- time and heartbeats ---

    def tick(self) -> None:
        """Fire what is due. Call it often, at least every tenth of a second."""
        if not self.active:
            return
        for key in list(self.timers.expired(self._port.now())):
            self._try(self._fire, key)
        self.liveness.check(time.monotonic())

    def _fire(self, key: Any) -> None:
        kind, *rest = key
        if kind == "trigger":
            trigger = self.world.triggers.get((rest[0], rest[1]))
            if trigger is not None:
                self.openings.start_from(trigger)
            return
        if kind == "refusal":
            self._settle(rest[0])
            return
        if kind == "saga":
            self._announce()
            return
        run = self.world.runs.get(rest[0])
        if run is None:
            return
        if kind == "run":
            self._decide_all(run)
            return
        part = run.items.get(rest[1])
        if part is None:
            return
        if kind == "deadline" and isinstance(part, TaskState):
            self.dispatcher.overdue(run, part)
        else:
            self._decide_part(run, part)


def _clear_pending(event_id: str, touched: Touched) -> None:
    """Our own append has come back through the log: the decision is made."""
    target = touched.item or touched.run or touched.instance
    if target is not None and target.pending == event_id:
        target.pending = ""
