"""A whole space without a network: a log in memory, orchestrators and agents that take turns as chance has it.

What is simulated is only who is how fast and who dies. The orchestrators are the real ones, the bytes are the real
ones, and the log keeps the one promise that everything rests on: an append that names a wrong sequence is refused.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from pydantic import ValidationError

from cuebook.actors import Agent, Saga
from cuebook.actors.orchestrator.core import Orchestrator
from cuebook.actors.orchestrator.listening import SnapshotGapError
from cuebook.actors.orchestrator.matching import matches
from cuebook.actors.orchestrator.repertoire import Repertoire
from cuebook.actors.orchestrator.state import RunState, fold_run
from cuebook.actors.orchestrator.world import World
from cuebook.events.append import Done
from cuebook.events.codec import decode, encode
from cuebook.events.envelope import Envelope
from cuebook.events.errors import ConcurrencyConflictError, CuebookError, PoisonMessageError, UnavailableError
from cuebook.events.facts import (
    AgentLost,
    AgentRegistered,
    AgentStopped,
    Error,
    Event,
    MessageRejected,
    OutsideEvent,
    RunRequested,
    RunStarted,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskRequested,
)
from cuebook.events.log import Unreadable
from cuebook.events.subjects import Subjects

__all__ = ["Book", "Director", "Theatre", "Troupe"]

START_US = 1_800_000_000_000_000
SECOND_US = 1_000_000


class Book:
    """The log: a list of messages. Time is what the test makes it."""

    def __init__(self, space: str = "play") -> None:
        self.subjects = Subjects(space)
        self.now = START_US
        self._messages: list[tuple[str, bytes, int, bool]] = []
        self._items: list[Envelope | Unreadable] = []
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._messages)

    def append(
        self, subject: str, body: bytes, *, scope: str = "", expected: int | None = None
    ) -> int | ConcurrencyConflictError:
        """As the server does: store it, unless the last message under `scope` is another than expected."""
        if expected is not None and self.last(scope) != expected:
            return ConcurrencyConflictError(scope, expected)
        run_id = subject.split(".")[2]
        whole = subject.split(".")[1] == "run" and scope == self.subjects.everything_of(run_id) and expected == 0
        self.now += 1
        self._messages.append((subject, body, self.now, whole))
        return len(self._messages)

    def write(self, subject: str, event: Event | bytes, *, scope: str = "", expected: int | None = None) -> int:
        """Append from outside."""
        body = (
            event
            if isinstance(event, bytes)
            else encode(
                event,
                event_id=self.new_id(),
                source="test",
                event_type=(subject.split(".", 2)[2] if isinstance(event, OutsideEvent) else ""),
            )
        )
        sequence = self.append(subject, body, scope=scope, expected=expected)
        if isinstance(sequence, ConcurrencyConflictError):
            raise sequence
        return sequence

    def new_id(self) -> str:
        """A fresh event id."""
        self._numbers += 1
        return f"e{self._numbers}"

    def last(self, scope: str) -> int:
        """The sequence of the last message under a scope, or 0."""
        found = (n for n in range(len(self._messages), 0, -1) if _is_under(self._messages[n - 1][0], scope))
        return next(found, 0)

    def first(self, scope: str) -> int:
        """The sequence of the first message under a scope, or 0."""
        return next((n for n, message in enumerate(self._messages, 1) if _is_under(message[0], scope)), 0)

    def read(self, sequence: int) -> tuple[Envelope | Unreadable, bool]:
        """One message, and whether its author guarded its whole run."""
        while len(self._items) < sequence:
            self._items.append(self._decode(len(self._items) + 1))
        return self._items[sequence - 1], self._messages[sequence - 1][3]

    def _decode(self, sequence: int) -> Envelope | Unreadable:
        subject, body, recorded_at, _ = self._messages[sequence - 1]
        try:
            return decode(self.subjects, subject, body, sequence=sequence, recorded_at=recorded_at)
        except PoisonMessageError as error:
            return Unreadable(subject=subject, sequence=sequence, recorded_at=recorded_at, body=body, reason=str(error))

    def all(self) -> list[Envelope]:
        """Everything that can be read."""
        items = (self.read(sequence)[0] for sequence in range(1, len(self) + 1))
        return [item for item in items if isinstance(item, Envelope)]

    def run(self, run_id: str) -> RunState:
        """A run, folded from the start."""
        prefix = self.subjects.everything_of(run_id)[:-1]
        return fold_run(run_id, (item for item in self.all() if item.subject.startswith(prefix)))

    def facts(self, run_id: str) -> list[str]:
        """What happened to a run, as the tails of the subjects."""
        prefix = self.subjects.everything_of(run_id)[:-1]
        return [subject.removeprefix(prefix) for subject, *_ in self._messages if subject.startswith(prefix)]


@dataclass(slots=True)
class _Post:
    subject: str
    body: bytes
    scope: str
    expected: int | None
    done: Done


class _Strict(Orchestrator):
    """In tests a decision that raises is not logged but seen."""

    def _try(self, decide: Callable[..., None], *about: Any) -> None:
        decide(*about)


class Director:
    """An orchestrator with a port to the book. Nothing happens by itself: each `*_one` is one step of its machine."""

    def __init__(self, book: Book, sagas: Repertoire, troupe: Troupe, snapshot: bytes = b"") -> None:
        self.book, self.sagas, self._troupe = book, sagas, troupe
        self._began = len(book)
        self._begin()
        self.is_ready = False
        if snapshot:
            with contextlib.suppress(SnapshotGapError):
                self.core.world.load(msgpack.unpackb(snapshot, strict_map_key=False))
                self.read = self.core.world.position.sequence
        self.posted: deque[_Post] = deque()
        self.acks: deque[Callable[[], None]] = deque()
        self.answers: deque[Callable[[], None]] = deque()

    def _begin(self) -> None:
        self.core = _Strict(self.book.subjects, self.sagas, self)
        self.core.world.listening.process_began = self._began
        self.read = 0

    # --- the port ---

    def post(
        self,
        subject: str,
        event: Event,
        *,
        scope: str = "",
        expected: int | None = None,
        correlation_id: str = "",
        causation_id: str = "",
        traceparent: str = "",
        done: Done,
    ) -> str:
        event_id = self.book.new_id()
        body = encode(
            event,
            event_id=event_id,
            source="orchestrator",
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
        )
        self.posted.append(_Post(subject, body, scope, expected, done))
        return event_id

    def signal(self, agent: str, instance: str, message: dict[str, Any]) -> None:
        self._troupe.hear(agent, instance, message)

    def open_inbox(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        pass

    def forget_inbox(self, agent: str, instance: str) -> None:
        pass

    def close_inbox(self, agent: str, instance: str) -> None:
        pass

    def was_rolled(self) -> bool:
        return False

    def is_guard(self, sequence: int) -> bool:
        return True

    def first_sequence(self, scope: str, answer: Callable[[int], None]) -> None:
        self.answers.append(lambda: answer(self.book.first(scope)))

    def find_event(
        self, topic: str, match: dict[str, Any], after: int, until: int, answer: Callable[[int, Any], None]
    ) -> None:
        def look() -> None:
            for sequence in range(after + 1, until + 1):
                item, _ = self.book.read(sequence)
                if isinstance(item, Envelope) and item.address.topic == topic and matches(match, item.data):
                    answer(sequence, item.data)
                    return

        self.answers.append(look)

    def ready(self) -> None:
        self.is_ready = True

    def now(self) -> int:
        return self.book.now

    # --- its machine ---

    def read_one(self) -> None:
        """Receive the next message of the log; where the snapshot turns out to be too little, all of them."""
        self.read += 1
        item, whole = self.book.read(self.read)
        try:
            self.core.receive(item, guarded=whole)
        except SnapshotGapError:
            active = self.core.active
            self._begin()
            self.catch_up()
            if active:
                self.core.activate()

    def catch_up(self) -> None:
        """Receive what is stored."""
        while self.read < len(self.book):
            self.read_one()

    def store_one(self) -> None:
        """An append reaches the log; its acknowledgement is on the way."""
        post = self.posted.popleft()
        outcome = self.book.append(post.subject, post.body, scope=post.scope, expected=post.expected)
        if isinstance(outcome, int):
            self.acks.append(lambda: post.done(outcome, None))
        else:
            self.acks.append(lambda: post.done(0, outcome))

    def fail_one(self, *, stored: bool | None = None) -> None:
        """An append fails, its outcome unknown: stored or not, as chance has it unless the test says so."""
        post = self.posted.popleft()
        if self._troupe.chance.random() < 0.5 if stored is None else stored:
            self.book.append(post.subject, post.body, scope=post.scope, expected=post.expected)
        self.acks.append(lambda: post.done(0, UnavailableError("no answer")))

    def turns(self) -> list[Callable[[], None]]:
        """What may happen to it next."""
        found: list[Callable[[], None]] = []
        if self.read < len(self.book):
            found += [self.read_one] * 3
        if self.posted:
            found += [self.store_one] * 3
        if self.acks:
            found.append(lambda: self.acks.popleft()())
        if self.answers:
            found.append(lambda: self.answers.popleft()())
        return found

    def settle(self) -> None:
        """Let everything happen that can, in the natural order, without time passing."""
        while turns := self.turns():
            turns[0]()

    def snapshot(self) -> bytes:
        """As it is stored."""
        return bytes(msgpack.packb(self.core.world.dump()))

    def refolded(self) -> dict[str, Any]:
        """What folding all that it has read gives, from the start."""
        world = World(self.book.subjects, self.sagas)
        for sequence in range(1, self.read + 1):
            item, guarded = self.book.read(sequence)
            world.fold(item, guarded=guarded)
        return world.dump()


@dataclass(slots=True)
class _Job:
    assigned: Envelope
    event: TaskAssigned
    cancelled: bool = False


@dataclass
class Troupe:
    """Agents whose handlers are plain functions.

    `handlers` by `agent.handler`: input to output; what they raise fails the attempt. `performed` and `undone` are the
    idempotency keys of what had its effect and of what was taken back; `attempts` counts calls.
    """

    book: Book
    agents: Sequence[type[Agent]]
    handlers: Mapping[str, Callable[[Any], Any]]
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    attempts: Counter[str] = field(default_factory=Counter)
    performed: set[str] = field(default_factory=set)
    undone: list[str] = field(default_factory=list)
    jobs: list[_Job] = field(default_factory=list)
    instances: dict[str, type[Agent]] = field(default_factory=dict)
    _read: int = 0

    def join(self, cls: type[Agent], instance: str) -> None:
        """An instance registers."""
        registered = AgentRegistered(
            slots=cls.concurrency,
            handlers={name: handler.spec() for name, handler in cls.handlers().items()},
            labels=dict(cls.labels),
            version=cls.version,
        )
        self.book.write(self.book.subjects.agent(cls.name, instance, "registered"), registered)
        self.instances[instance] = cls

    def lose(self, instance: str) -> None:
        """An instance falls silent: its work goes to others, but it does not know and works on."""
        name = self.instances[instance].name
        self.book.write(self.book.subjects.agent(name, instance, "lost"), AgentLost(silent_s=6.0))

    def leave(self, instance: str) -> None:
        """An instance is gone, and so is what it was doing."""
        name = self.instances.pop(instance).name
        self.jobs = [job for job in self.jobs if job.assigned.address.instance != instance]
        self.book.write(self.book.subjects.agent(name, instance, "stopped"), AgentStopped())

    def hear(self, agent: str, instance: str, message: dict[str, Any]) -> None:
        """A signal; cancellations may get lost."""
        for job in self.jobs:
            address = job.assigned.address
            if message.get("cancel") == [address.run_id, address.n, job.assigned.sequence]:
                job.cancelled = self.chance.random() < 0.7

    def turns(self) -> list[Callable[[], None]]:
        """What the agents may do next."""
        for sequence in range(self._read + 1, len(self.book) + 1):
            item, _ = self.book.read(sequence)
            if not isinstance(item, Envelope) or not isinstance(item.event, TaskAssigned):
                continue
            if item.address.instance in self.instances:
                self.jobs.append(_Job(item, item.event))
        self._read = len(self.book)
        return [lambda job=job: self.work(job) for job in self.jobs]  # type: ignore[misc]

    def work(self, job: _Job) -> None:
        """Handle one assignment and answer."""
        self.jobs.remove(job)
        address, event = job.assigned.address, job.event
        key = f"{address.run_id}/{address.n}"
        answer: Event
        if job.cancelled:
            fact, answer = "cancelled", TaskCancelled(reason="cancelled")
        else:
            fact, answer = self._attempt(self.instances[address.instance], key, event)
        subjects = self.book.subjects
        scope = subjects.task_scope(address.run_id, address.n)
        expected = job.assigned.sequence
        while True:
            body = encode(answer, event_id=self.book.new_id(), source=address.instance)
            subject = subjects.task(address.run_id, address.n, fact)
            if isinstance(self.book.append(subject, body, scope=scope, expected=expected), int):
                return
            since = [self.book.read(n)[0] for n in range(expected + 1, len(self.book) + 1)]
            mine = [item for item in since if item.subject.startswith(scope[:-1])]
            moved = [item.address.fact for item in mine if isinstance(item, Envelope)]
            if fact == "completed" and event.compensates is None and {"cancelled", "aborted"} & set(moved):
                self.undone.append(key)
            if not STRAY_FACTS.issuperset(moved):
                return
            expected = mine[-1].sequence

    def _attempt(self, cls: type[Agent], key: str, event: TaskAssigned) -> tuple[str, Event]:
        self.attempts[key] += 1
        name = f"{cls.name}.{event.handler}"
        if wrong := _find_mistake(cls, event):
            return "failed", TaskFailed(error=Error(type="Mistaken", message=wrong), attempt=event.attempt)
        if event.compensates is not None:
            self.undone.append(f"{key.partition('/')[0]}/{event.compensates}")
            return "completed", TaskCompleted(attempt=event.attempt)
        try:
            output = self.handlers[name](event.input)
        except CuebookError as error:
            return "failed", TaskFailed(error=Error(type="Refused", message=str(error)), attempt=event.attempt)
        self.performed.add(key)
        return "completed", TaskCompleted(output=output, attempt=event.attempt)


def _find_mistake(cls: type[Agent], event: TaskAssigned) -> str:
    """Why an instance of this class cannot do what it was given."""
    found = cls.handlers().get(event.handler)
    if found is None:
        return f"version {cls.version} has no handler {event.handler!r}"
    if event.compensates is not None:
        return "" if found.undo is not None else f"version {cls.version} cannot undo {event.handler!r}"
    try:
        found.input_type.read(event.input)
    except ValidationError as error:
        return f"version {cls.version}: {error}"
    return ""


STRAY_FACTS = frozenset({"requested", "cancel_requested", "resolved", "reverted"})


class Theatre:
    """A book, a troupe and directors, and a clock that moves on when nothing else does."""

    def __init__(
        self,
        sagas: Sequence[Saga[Any, Any]],
        agents: Sequence[type[Agent]],
        handlers: Mapping[str, Callable[[Any], Any]],
        *,
        seed: int = 0,
    ) -> None:
        self.chance = random.Random(seed)
        self.book = Book()
        self.sagas = Repertoire(sagas)
        self.troupe = Troupe(self.book, agents, handlers, self.chance)
        self.directors: list[Director] = []
        for number, cls in enumerate(agents):
            self.troupe.join(cls, f"i{number}")

    def hire(self, snapshot: bytes = b"", sagas: Sequence[Saga[Any, Any]] = ()) -> Director:
        """Another orchestrator, which has caught up and is ready: it decides from then on."""
        director = self.engage(snapshot, sagas)
        director.catch_up()
        director.core.activate()
        while not director.is_ready:
            director.turns()[0]()
        return director

    def engage(self, snapshot: bytes = b"", sagas: Sequence[Saga[Any, Any]] = ()) -> Director:
        """Another orchestrator, whose process begins now, with other sagas if wanted. It stands by."""
        known = Repertoire(sagas) if sagas else self.sagas
        director = Director(self.book, known, self.troupe, snapshot)
        self.directors.append(director)
        return director

    def fire(self, director: Director) -> None:
        """It dies. What it has sent may still arrive."""
        self.directors.remove(director)
        while director.posted and self.chance.random() < 0.5:
            director.store_one()

    def request(self, saga: str, run_id: str, data: Any) -> None:
        """Ask for a run by name."""
        self.book.write(
            self.book.subjects.run(run_id, "requested", saga),
            RunRequested(input=data),
            scope=self.book.subjects.everything_of(run_id),
            expected=0,
        )

    def ask(self, agent: str, run_id: str, data: Any, **options: Any) -> None:
        """Ask for one task."""
        self.book.write(
            self.book.subjects.task(run_id, 0, "requested", agent),
            TaskRequested(input=data, **options),
            scope=self.book.subjects.everything_of(run_id),
            expected=0,
        )

    def publish(self, topic: str, data: Any) -> int:
        """A fact from outside."""
        return self.book.write(self.book.subjects.event(topic), OutsideEvent(data=data))

    def turns(self) -> list[Callable[[], None]]:
        """Everything that may happen next."""
        found = [turn for director in self.directors for turn in director.turns()]
        return found + self.troupe.turns()

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes."""
        self.book.now += int(seconds * SECOND_US)
        for director in self.directors:
            director.core.tick()

    def take_turn(self) -> bool:
        """Let chance decide who acts; False when nobody can before time passes."""
        turns = self.turns()
        if turns:
            self.chance.choice(turns)()
        return bool(turns)

    def play(self, *, until: Callable[[], bool], most: int = 20_000) -> None:
        """Go on until nobody can act and `until` holds; time passes when nothing else does."""
        for _ in range(most):
            if self.take_turn():
                continue
            if until():
                return
            self.tick()
        raise AssertionError(f"still open: {[(run_id, self.book.facts(run_id)) for run_id in self.open_runs()]}")

    def owes_nothing(self) -> bool:
        """Nothing is open and nobody waits for an answer, as every orchestrator sees it."""
        worlds = [director.core.world for director in self.directors]
        return not any(world.runs or world.triggers or world.refusals or world.unchecked for world in worlds)

    def rejections(self) -> dict[int, str]:
        """The messages that were refused, once each, and why."""
        found = [item for item in self.book.all() if isinstance(item.event, MessageRejected)]
        assert len({item.address.n for item in found}) == len(found)
        return {item.address.n: item.event.reason for item in found if isinstance(item.event, MessageRejected)}

    def begun(self, saga: str = "") -> list[int]:
        """The messages that have started runs, of one saga or of all, in the order of the runs."""
        found = [item.event for item in self.book.all() if isinstance(item.event, RunStarted)]
        return [event.trigger for event in found if event.saga == saga or not saga]

    def open_runs(self) -> list[str]:
        """Runs that some director has in memory."""
        return sorted({run_id for director in self.directors for run_id in director.core.world.runs})


def _is_under(subject: str, scope: str) -> bool:
    """As the server matches the filters used here: exactly, `.*` or `.>` at the end."""
    if scope[-1] not in "*>":
        return subject == scope
    return subject.startswith(scope[:-1]) and (scope[-1] == ">" or "." not in subject[len(scope) - 1 :])
