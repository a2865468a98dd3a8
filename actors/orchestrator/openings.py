"""Starting runs from outside events: each that counts begins one run of each saga that listens, or is refused once.

Also on record from here: from where the events of a saga count, and which messages have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cuebook.actors.attempt import raise_from_a_person, text_of
from cuebook.actors.orchestrator.listening import Trigger
from cuebook.actors.orchestrator.port import Port
from cuebook.actors.orchestrator.timers import Timers
from cuebook.actors.orchestrator.world import World
from cuebook.actors.saga import Saga
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, PoisonMessageError
from cuebook.events.facts import MessageRejected, RunStarted, SagaServed

__all__ = ["Openings", "find_input_error"]

REPEAT_AFTER_US = 1_000_000


class Openings:
    """Decides about outside events and about messages that cannot be taken."""

    def __init__(self, world: World, port: Port, timers: Timers, sagas: Mapping[str, Saga[Any, Any]]) -> None:
        self.world, self._port, self._timers, self._sagas = world, port, timers, sagas
        self._starting: dict[str, list[Trigger]] = {}
        """Runs whose start is under way, with the other events that would start the same one."""
        self._announcing: set[str] = set()
        self._rejecting: set[int] = set()
        self._misfits: dict[int, dict[str, tuple[str, str]]] = {}
        """Outside events that some saga cannot begin with: by sequence and saga, the reason and what to do."""

    def announce(self) -> None:
        """Put on the log from when the events of each saga count, where nobody has done that before."""
        for name, served, expected in self.world.listening.unrecorded():
            if name not in self._announcing:
                self._announce(name, served, expected)

    def _announce(self, name: str, served: SagaServed, expected: int) -> None:
        subjects = self.world.subjects

        def done(_: int, error: CuebookError | None) -> None:
            if error is not None:  # also after a conflict: the other's fact may be about another topic
                self._announcing.discard(name)
                self._again(("saga", name))

        self._announcing.add(name)
        self._port.post(
            subjects.saga(name, "served"), served, scope=subjects.saga_scope(name), expected=expected, done=done
        )

    def start_from(self, trigger: Trigger) -> None:
        """An outside event that a saga listens to: start its run, or record why not."""
        saga = self._sagas[trigger.saga]
        run_id = saga.run_id(trigger.data, trigger.event_id)
        if run_id in self._starting:
            self._starting[run_id].append(trigger)
            return
        run = self.world.runs.get(run_id)
        if wrong := find_input_error(saga, trigger.data):
            self._reject_trigger(trigger, f"saga {saga.name}: {wrong}", "send an event that fits the saga's input")
            return
        if run is not None and run.status != "new":
            self._reject_late(trigger, run_id)
            return
        if self._port.was_rolled():
            self._starting[run_id] = []
            self._port.first_sequence(
                self.world.subjects.everything_of(run_id), lambda first: self._start_if_new(trigger, run_id, first)
            )
        else:
            self._start(trigger, run_id)

    def _start_if_new(self, trigger: Trigger, run_id: str, first: int) -> None:
        """The whole log was looked through, of which the server knows only a part: here is what is first of the run."""
        waiting = self._starting.pop(run_id, None)
        if waiting is None:
            return  # somebody else decides now
        if not self._is_open(trigger):
            for one in filter(self._is_open, waiting):
                self._again(("trigger", one.sequence, one.saga))
        elif not first:
            self._start(trigger, run_id)
            if run_id in self._starting:
                self._starting[run_id] = waiting
        elif self.world.position.sequence >= first:
            for one in filter(self._is_open, (trigger, *waiting)):
                self._reject_late(one, run_id)
        else:
            for one in (trigger, *waiting):
                self._again(("trigger", one.sequence, one.saga))

    def _start(self, trigger: Trigger, run_id: str) -> None:
        saga = self._sagas[trigger.saga]
        event = RunStarted(saga=saga.name, version=saga.version, input=trigger.data, trigger=trigger.sequence)

        def done(_: int, error: CuebookError | None) -> None:
            if error is None:
                return  # the fold settles the others
            waiting = self._starting.pop(run_id, [])
            if isinstance(error, ConcurrencyConflictError):
                self._check_conflicting_start([trigger, *waiting], run_id)
            else:
                for one in (trigger, *waiting):
                    self._again(("trigger", one.sequence, one.saga))

        try:
            self._port.post(
                self.world.subjects.run(run_id, "started"),
                event,
                scope=self.world.subjects.everything_of(run_id),
                expected=0,
                correlation_id=trigger.correlation_id,
                causation_id=trigger.event_id,
                traceparent=trigger.traceparent,
                done=done,
            )
        except PoisonMessageError as error:
            self._reject_trigger(trigger, f"saga {saga.name}: {error}", error.remedy)
        else:
            self._starting[run_id] = []

    def started(self, run_id: str) -> None:
        """A run has started: the other events that would start it have no effect."""
        for trigger in self._starting.pop(run_id, ()):
            if self._is_open(trigger):
                self._reject_late(trigger, run_id)

    def _check_conflicting_start(self, triggers: Iterable[Trigger], run_id: str) -> None:
        """The run exists. By one of these through another orchestrator: its fact is on the way. Else: refuse them."""

        def answer(first: int) -> None:
            for trigger in filter(self._is_open, triggers):
                if first and self.world.position.sequence >= first:
                    self._reject_late(trigger, run_id)
                else:
                    self._again(("trigger", trigger.sequence, trigger.saga))

        self._port.first_sequence(self.world.subjects.everything_of(run_id), answer)

    def _is_open(self, trigger: Trigger) -> bool:
        return (trigger.sequence, trigger.saga) in self.world.triggers

    def _reject_late(self, trigger: Trigger, run_id: str) -> None:
        self._reject_trigger(trigger, f"run {run_id} was started already", "one event with this key is enough")

    def _reject_trigger(self, trigger: Trigger, reason: str, remedy: str) -> None:
        self._misfits.setdefault(trigger.sequence, {})[trigger.saga] = reason, remedy
        self.settle(trigger.sequence)

    def settle(self, sequence: int) -> None:
        """Record what came of an outside event, once every saga that listens has begun or cannot begin with it."""
        misfits = self._misfits.get(sequence)
        waiting = self.world.triggers_at(sequence)
        if misfits is None or not all(trigger.saga in misfits for trigger in waiting):
            return
        del self._misfits[sequence]
        if waiting:
            subject = self.world.subjects.event(self._sagas[waiting[0].saga].on)
            reason = "; ".join(misfits[trigger.saga][0] for trigger in waiting)
            remedy = misfits[waiting[0].saga][1]
            self.reject_message(
                sequence,
                subject,
                reason,
                remedy,
                correlation_id=waiting[0].correlation_id,
                sagas=[trigger.saga for trigger in waiting],
                expected=max(trigger.refused if self._port.is_guard(trigger.refused) else 0 for trigger in waiting),
            )

    def reject_message(
        self,
        sequence: int,
        subject: str,
        reason: str,
        remedy: str,
        *,
        correlation_id: str = "",
        sagas: Sequence[str] = (),
        expected: int = 0,
    ) -> None:
        """Record that the message at `sequence` has no effect, or none in these sagas, once.

        `expected`: where it was recorded already, for other sagas.
        """
        if sequence in self._rejecting:
            if sagas:  # what is under way may be about others
                self._again(("refusal", sequence))
            return
        self._rejecting.add(sequence)
        rejected = self.world.subjects.rejected(sequence)

        def done(_: int, error: CuebookError | None) -> None:
            self._rejecting.discard(sequence)
            if error is not None and (sagas or not isinstance(error, ConcurrencyConflictError)):
                self._again(("refusal", sequence))  # what conflicts may be about other sagas

        self._port.post(
            rejected,
            MessageRejected(subject=subject, reason=reason[:2000], remedy=remedy, sagas=list(sagas)),
            scope=rejected,
            expected=expected,
            correlation_id=correlation_id,
            done=done,
        )

    def rest(self) -> None:
        """Somebody else decides now; what was under way here has its outcome in the log."""
        self._starting.clear()
        self._announcing.clear()
        self._misfits.clear()

    def _again(self, key: tuple[str | int, ...]) -> None:
        self._timers.set(key, self._port.now() + REPEAT_AFTER_US)


def find_input_error(saga: Saga[Any, Any], data: Any) -> str:
    """Why a saga cannot begin with some data, or an empty string."""
    try:
        saga.input_type.read(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    except BaseException as error:  # noqa: BLE001 - of an author's validator, which raises what pydantic does not expect
        raise_from_a_person(error)
        return f"checking it failed: {type(error).__name__}: {text_of(error)}"
    return ""
