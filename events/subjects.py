"""Every subject is built and parsed here, from tokens checked by one function.

    <space>.run.<run_id>.<fact>[.<saga>]                             history of one run
    <space>.run.<run_id>.task.<n>.<fact>[.<agent>[.<instance>]]      one unit of work inside it
    <space>.run.<run_id>.step.<n>.<fact>                             a timer, a wait or a question inside it
    <space>.progress.<run_id>.<n>                                    what a handler says while it works
    <space>.agent.<agent>.<instance>.<fact>                          life of an agent instance
    <space>.saga.<saga>.<fact>                                       from when its events count
    <space>.event.<topic>                                            facts from anybody; a topic may have dots
    <space>.rejected.<sequence>                                      the message at that sequence was refused
    <space>.space.<fact>                                             about the space and its log
    live.<space>.>                                                   all of it again, once it is durable

Tasks and steps of a run share one numbering, from 0, in the order in which the saga asked for them.

What is built here parses back to the same address, and nothing else parses.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from cuebook.events.errors import InvalidTokenError, PoisonMessageError

__all__ = ["MAX_TOPIC_LENGTH", "Address", "Kind", "Subjects", "check_token", "parse_task_id", "task_id"]

MAX_TOPIC_LENGTH = 255
"""Characters, dots included: with it every subject stays far below the server's `max_control_line` of 4 KiB."""

Kind = Literal["run", "task", "step", "progress", "agent", "saga", "event", "rejected", "space"]

_ID = "[a-z0-9][a-z0-9_-]{0,63}"
_NUMBER_PATTERN = "0|[1-9][0-9]{0,8}"
_TASK_PATTERN = (
    rf"run\.({_ID})\.task\.({_NUMBER_PATTERN})\.({_ID})"
    rf"(?:\.({_ID})(?:\.({_ID}))?)?"
)
_RESERVED = frozenset({"control", "deliver", "heartbeat", "live", "query", "rolled", "seals"})
_MAX_NUMBER = 999_999_999
_MAX_SEQUENCE = 2**63 - 1
_is_token = re.compile(_ID).fullmatch
_is_number = re.compile(_NUMBER_PATTERN).fullmatch
_is_sequence = re.compile("0|[1-9][0-9]{0,18}").fullmatch
_match_task = re.compile(_TASK_PATTERN).fullmatch  # most of all messages: one match is half the time of splitting


class Address(NamedTuple):
    """A parsed subject. Fields that a kind does not have are empty, and `n` is -1."""

    kind: Kind
    fact: str
    run_id: str = ""
    n: int = -1
    agent: str = ""
    """The agent; for `run.<id>.requested.<saga>` and `saga.<saga>.<fact>` the saga."""
    instance: str = ""
    topic: str = ""


def check_token(value: str, what: str = "id") -> str:
    """Return `value` if it can be one token of a subject: `^[a-z0-9][a-z0-9_-]{0,63}$`, else InvalidTokenError."""
    if _is_token(value) is None:
        raise InvalidTokenError(
            f"{what} {value[:80]!r} cannot be part of a subject",
            remedy="use 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit",
        )
    return value


def task_id(run_id: str, n: int) -> str:
    """How people and logs name task or step `n` of a run; also its idempotency key."""
    return f"{run_id}/{n}"


def parse_task_id(value: str) -> tuple[str, int]:
    """Split `RUN/N`; a bare `RUN` means its task 0. Raises InvalidTokenError."""
    run_id, slash, number = value.partition("/")
    if slash and _is_number(number) is None:
        raise InvalidTokenError(f"{value[:80]!r} names no task", remedy="write it as RUN/N, for example ticket-17/0")
    return check_token(run_id, "run id"), int(number) if slash else 0


class Subjects:
    """Builds and parses the subjects of one space. Every argument is checked; see `check_token`."""

    def __init__(self, space: str) -> None:
        self.space = check_token(space, "space")
        if space in _RESERVED:
            raise InvalidTokenError(
                f"{space!r} cannot be a space: its stream would take in subjects of the others", remedy="choose another"
            )
        self.purpose = "the log"
        self.all = f"{space}.>"
        self.live = f"live.{space}.>"
        self.all_runs = f"{space}.run.>"
        self.all_agents = f"{space}.agent.>"
        self.all_rejected = f"{space}.rejected.*"
        self.all_sagas = f"{space}.saga.>"
        self.all_of_space = f"{space}.space.>"
        self.stream = space.upper()
        self._cut = len(space) + 1
        self._prefix = f"{space}."

    # The shapes below are the only places where a subject is put together.

    def run(self, run_id: str, fact: str, saga: str = "") -> str:
        """A fact about a run; the fact `requested` names the saga."""
        subject = f"{self.space}.run.{check_token(run_id, 'run id')}.{check_token(fact, 'fact')}"
        if not saga:
            return subject
        if fact != "requested":
            raise InvalidTokenError(f"the fact {fact!r} of a run does not name a saga; only 'requested' does")
        return f"{subject}.{check_token(saga, 'saga')}"

    def task(self, run_id: str, n: int, fact: str, agent: str = "", instance: str = "") -> str:
        """A fact about a task; `requested` names the agent, `assigned` agent and instance."""
        subject = (
            f"{self.space}.run.{check_token(run_id, 'run id')}.task.{_check_number(n)}.{check_token(fact, 'fact')}"
        )
        if instance:
            return f"{subject}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"
        return f"{subject}.{check_token(agent, 'agent')}" if agent else subject

    def step(self, run_id: str, n: int, fact: str) -> str:
        """A fact about a step that is no task: a timer, a wait or a question."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.step.{_check_number(n)}.{check_token(fact, 'fact')}"

    def progress(self, run_id: str, n: int) -> str:
        """What the handler of a task says while it works: outside the task's scope, for it decides nothing."""
        return f"{self.space}.progress.{check_token(run_id, 'run id')}.{_check_number(n)}"

    def agent(self, agent: str, instance: str, fact: str) -> str:
        """A fact about an agent instance."""
        agent, instance = check_token(agent, "agent"), check_token(instance, "instance")
        return f"{self.space}.agent.{agent}.{instance}.{check_token(fact, 'fact')}"

    def saga(self, saga: str, fact: str) -> str:
        """A fact about a saga as such, not about one of its runs."""
        return f"{self.space}.saga.{check_token(saga, 'saga')}.{check_token(fact, 'fact')}"

    def event(self, topic: str) -> str:
        """A fact from anybody; `topic` is tokens with dots between them, at most `MAX_TOPIC_LENGTH` characters."""
        if len(topic) > MAX_TOPIC_LENGTH:
            raise InvalidTokenError(f"topic {topic[:40]!r}... is longer than {MAX_TOPIC_LENGTH} characters")
        for token in topic.split("."):
            check_token(token, "topic part")
        return f"{self.space}.event.{topic}"

    def rejected(self, sequence: int) -> str:
        """The refusal of the message at `sequence`."""
        if type(sequence) is not int or not 0 <= sequence <= _MAX_SEQUENCE:
            raise InvalidTokenError(f"{sequence!r} is no stream sequence")
        return f"{self.space}.rejected.{sequence}"

    def of_space(self, fact: str) -> str:
        """A fact about the space itself."""
        return f"{self.space}.space.{check_token(fact, 'fact')}"

    # Scopes: what an append names to say which history it has read (design §2), and what a reader filters on.

    def run_scope(self, run_id: str) -> str:
        """The facts about the run itself, without its tasks and steps."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.*"

    def task_scope(self, run_id: str, n: int) -> str:
        """All facts about one task."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.task.{_check_number(n)}.>"

    def step_scope(self, run_id: str, n: int) -> str:
        """All facts about one step."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.step.{_check_number(n)}.>"

    def agent_scope(self, agent: str, instance: str) -> str:
        """All facts about one instance."""
        return f"{self.space}.agent.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}.>"

    def saga_scope(self, saga: str) -> str:
        """All facts about one saga as such."""
        return f"{self.space}.saga.{check_token(saga, 'saga')}.>"

    def everything_of(self, run_id: str) -> str:
        """The run with all its tasks and steps."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.>"

    def progress_of(self, run_id: str) -> str:
        """What all handlers of a run say while they work."""
        return f"{self.space}.progress.{check_token(run_id, 'run id')}.*"

    def inbox(self, agent: str, instance: str) -> str:
        """Filter of an instance's own consumer: what was assigned to it."""
        agent, instance = check_token(agent, "agent"), check_token(instance, "instance")
        return f"{self.space}.run.*.task.*.assigned.{agent}.{instance}"

    def requests_to(self, agent: str) -> str:
        """What was asked of an agent, by all runs."""
        return f"{self.space}.run.*.task.*.requested.{check_token(agent, 'agent')}"

    # Core NATS subjects: not stored, never decisive.

    def delivery(self, agent: str, instance: str) -> str:
        """Where the server pushes the instance's inbox."""
        return f"deliver.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def control(self, agent: str, instance: str) -> str:
        """Signals to a live instance, such as 'cancel this task'."""
        return f"control.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def heartbeat(self, agent: str, instance: str) -> str:
        """Where an instance says that it lives."""
        return f"heartbeat.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def query(self, noun: str) -> str:
        """Questions that the running orchestrator answers from memory."""
        return f"query.{self.space}.{check_token(noun, 'noun')}"

    def parse(self, subject: str) -> Address:
        """Take a subject of this space apart. Raises PoisonMessageError for anything not built by this module."""
        if not subject.startswith(self._prefix):
            raise PoisonMessageError(f"subject {subject[:80]!r} is not in space {self.space!r}")
        task = _match_task(subject, self._cut)
        if task is not None:
            run_id, n, fact, agent, instance = task.groups("")
            return Address("task", fact, run_id, int(n), agent, instance)
        address = _parse(subject[self._cut :].split("."))
        if address is None:
            raise PoisonMessageError(
                f"subject {subject[:80]!r} is none that cuebook reads", remedy="docs/wire-format.md lists the subjects"
            )
        return address


def _check_number(n: int) -> int:
    if type(n) is int and 0 <= n <= _MAX_NUMBER:
        return n
    raise InvalidTokenError(f"number {n!r} of a task or step is not between 0 and {_MAX_NUMBER}")


def _parse(tokens: list[str]) -> Address | None:
    for token in tokens:
        if _is_token(token) is None:
            return None
    size = len(tokens)
    match tokens[0]:
        case "run" if size == 5 and tokens[2] == "step" and _is_number(tokens[3]):
            return Address("step", tokens[4], tokens[1], int(tokens[3]))
        case "run" if size == 3:
            return Address("run", tokens[2], tokens[1])
        case "run" if size == 4 and tokens[2] == "requested":
            return Address("run", tokens[2], tokens[1], agent=tokens[3])
        case "progress" if size == 3 and _is_number(tokens[2]):
            return Address("progress", "progress", tokens[1], int(tokens[2]))
        case "agent" if size == 4:
            return Address("agent", tokens[3], agent=tokens[1], instance=tokens[2])
        case "saga" if size == 3:
            return Address("saga", tokens[2], agent=tokens[1])
        case "event" if size >= 2:
            topic = ".".join(tokens[1:])
            return Address("event", "event", topic=topic) if len(topic) <= MAX_TOPIC_LENGTH else None
        case "space" if size == 2:
            return Address("space", tokens[1])
        case "rejected" if size == 2 and _is_sequence(tokens[1]):
            sequence = int(tokens[1])
            return Address("rejected", "rejected", n=sequence) if sequence <= _MAX_SEQUENCE else None
        case _:
            return None
