"""Every subject is built and parsed here, from tokens checked by one function.

    <space>.run.<run_id>.<fact>[.<saga>]                             history of one run
    <space>.run.<run_id>.task.<n>.<fact>[.<agent>[.<instance>]]      one unit of work inside it
    <space>.run.<run_id>.step.<n>.<fact>                             a timer, a wait or a question inside it
    <space>.progress.<run_id>.<n>                                    what a handler says while it works
    <space>.agent.<agent>.<instance>.<fact>                          life of an agent instance
    <space>.event.<topic>                                            facts from anybody; a topic may have dots
    <space>.rejected.<sequence>                                      the message at that sequence was refused
    live.<space>.>                                                   all of it again, once it is durable

Tasks and steps of a run share one numbering, from 0, in the order in which the saga asked for them.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from cuebook.events.errors import InvalidTokenError, PoisonMessageError

__all__ = ["Address", "Kind", "Subjects", "check_token", "parse_task_id", "task_id"]

Kind = Literal["run", "task", "step", "progress", "agent", "event", "rejected"]

_TOKEN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_LONG_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_is_token = _TOKEN.fullmatch


class Address(NamedTuple):
    """A parsed subject. Fields that a kind does not have are empty, and `n` is -1."""

    kind: Kind
    fact: str
    run_id: str = ""
    n: int = -1
    agent: str = ""
    """The agent; for `run.<id>.requested.<saga>` the saga."""
    instance: str = ""
    topic: str = ""


def check_token(value: str, what: str = "id") -> str:
    """Return `value` if it can be one token of a subject: `^[a-z0-9][a-z0-9_-]{0,63}$`, else InvalidTokenError."""
    if not isinstance(value, str) or _is_token(value) is None:
        raise InvalidTokenError(
            f"{what} {value!r} cannot be part of a subject",
            remedy="use 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit",
        )
    return value


def task_id(run_id: str, n: int) -> str:
    """How people and logs name task or step `n` of a run; also its idempotency key."""
    return f"{run_id}/{n}"


def parse_task_id(value: str) -> tuple[str, int]:
    """Split `RUN/N`; a bare `RUN` means its task 0. Raises InvalidTokenError."""
    run_id, slash, number = value.partition("/")
    if slash and _NUMBER.fullmatch(number) is None:
        raise InvalidTokenError(f"{value!r} names no task", remedy="write it as RUN/N, for example ticket-17/0")
    return check_token(run_id, "run id"), int(number) if slash else 0


class Subjects:
    """Builds and parses the subjects of one space. Every argument is checked; see `check_token`."""

    def __init__(self, space: str) -> None:
        self.space = check_token(space, "space")
        self.all = f"{space}.>"
        self.live = f"live.{space}.>"
        self.stream = space.upper()
        self._cut = len(space) + 1
        self._prefix = f"{space}."

    # The shapes below are the only places where a subject is put together.

    def run(self, run_id: str, fact: str, saga: str = "") -> str:
        tail = f".{check_token(saga, 'saga')}" if saga else ""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.{check_token(fact, 'fact')}{tail}"

    def task(self, run_id: str, n: int, fact: str, agent: str = "", instance: str = "") -> str:
        if _is_token(run_id) is None or n < 0:
            check_token(run_id, "run id")
            raise InvalidTokenError(f"task number {n} is negative")
        subject = f"{self.space}.run.{run_id}.task.{n}.{fact}"
        if agent:
            subject += f".{check_token(agent, 'agent')}"
            if instance:
                subject += f".{check_token(instance, 'instance')}"
        return subject

    def step(self, run_id: str, n: int, fact: str) -> str:
        return f"{self.space}.run.{check_token(run_id, 'run id')}.step.{n}.{check_token(fact, 'fact')}"

    def progress(self, run_id: str, n: int) -> str:
        return f"{self.space}.progress.{check_token(run_id, 'run id')}.{n}"

    def agent(self, agent: str, instance: str, fact: str) -> str:
        agent, instance = check_token(agent, "agent"), check_token(instance, "instance")
        return f"{self.space}.agent.{agent}.{instance}.{check_token(fact, 'fact')}"

    def event(self, topic: str) -> str:
        for token in topic.split("."):
            check_token(token, "topic part")
        return f"{self.space}.event.{topic}"

    def rejected(self, sequence: int) -> str:
        return f"{self.space}.rejected.{sequence}"

    # Scopes: what an append names to say which history it has read (design §2), and what a reader filters on.

    def run_scope(self, run_id: str) -> str:
        """The facts about the run itself, without its tasks and steps."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.*"

    def task_scope(self, run_id: str, n: int) -> str:
        return f"{self.space}.run.{run_id}.task.{n}.>"

    def step_scope(self, run_id: str, n: int) -> str:
        return f"{self.space}.run.{run_id}.step.{n}.>"

    def agent_scope(self, agent: str, instance: str) -> str:
        return f"{self.space}.agent.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}.>"

    def everything_of(self, run_id: str) -> str:
        """The run with all its tasks and steps."""
        return f"{self.space}.run.{check_token(run_id, 'run id')}.>"

    def inbox(self, agent: str, instance: str) -> str:
        """Filter of an instance's own consumer: what was assigned to it."""
        agent, instance = check_token(agent, "agent"), check_token(instance, "instance")
        return f"{self.space}.run.*.task.*.assigned.{agent}.{instance}"

    # Core NATS subjects: not stored, never decisive.

    def delivery(self, agent: str, instance: str) -> str:
        """Where the server pushes the instance's inbox."""
        return f"deliver.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def control(self, agent: str, instance: str) -> str:
        """Signals to a live instance, such as 'cancel this task'."""
        return f"control.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def heartbeat(self, agent: str, instance: str) -> str:
        return f"heartbeat.{self.space}.{check_token(agent, 'agent')}.{check_token(instance, 'instance')}"

    def query(self, noun: str) -> str:
        """Questions that the running orchestrator answers from memory."""
        return f"query.{self.space}.{check_token(noun, 'noun')}"

    def parse(self, subject: str) -> Address:
        """Take a subject of this space apart. Raises PoisonMessageError for anything not built by this module."""
        if not subject.startswith(self._prefix):
            raise PoisonMessageError(f"subject {subject!r} is not in space {self.space!r}")
        tokens = subject[self._cut :].split(".")
        address = _parse(tokens)
        if address is None:
            raise PoisonMessageError(
                f"subject {subject!r} is none that cuebook reads", remedy="docs/wire-format.md lists the subjects"
            )
        return address


def _parse(tokens: list[str]) -> Address | None:
    for token in tokens:
        if _is_token(token) is None:
            return None
    size = len(tokens)
    match tokens[0]:
        case "run" if size >= 5 and tokens[2] == "task":
            if size > 7 or _NUMBER.fullmatch(tokens[3]) is None:
                return None
            agent = tokens[5] if size > 5 else ""
            return Address("task", tokens[4], tokens[1], int(tokens[3]), agent, tokens[6] if size > 6 else "")
        case "run" if size == 5 and tokens[2] == "step":
            if _NUMBER.fullmatch(tokens[3]) is None:
                return None
            return Address("step", tokens[4], tokens[1], int(tokens[3]))
        case "run" if size == 3:
            return Address("run", tokens[2], tokens[1])
        case "run" if size == 4 and tokens[2] == "requested":
            return Address("run", tokens[2], tokens[1], agent=tokens[3])
        case "progress" if size == 3 and _NUMBER.fullmatch(tokens[2]):
            return Address("progress", "progress", tokens[1], int(tokens[2]))
        case "agent" if size == 4:
            return Address("agent", tokens[3], agent=tokens[1], instance=tokens[2])
        case "event" if size >= 2:
            return Address("event", "event", topic=".".join(tokens[1:]))
        case "rejected" if size == 2 and _LONG_NUMBER.fullmatch(tokens[1]):
            return Address("rejected", "rejected", n=int(tokens[1]))
        case _:
            return None
