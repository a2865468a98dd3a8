"""What an agent at the edge was given and has answered, on the edge's own JetStream until the log has decided about it.

One message for each assignment, replaced when it is answered and removed when the log has the answer or has refused it;
and one that says under which name the instance goes on after a restart, and up to where its assignments have come.
Everything here can be written twice. The log itself stays the only truth: what is kept here is on its way there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import nats.errors

from cuebook.events.codec import MAX_BYTES
from cuebook.events.connection import Connection, Listener, ended
from cuebook.events.errors import ConfigurationError, CuebookError, UnavailableError
from cuebook.events.jetstream import NAME_IN_USE, NO_STREAM, WRONG_SEQUENCE, js_request
from cuebook.events.lookup import last_match, matches, message_at
from cuebook.events.subjects import Subjects, check_token

__all__ = ["KeptTask", "Shelf", "make_stream", "open_shelf", "unserved"]

RETRY_S = 1.0
ANSWER_S = 5.0
_ASK_S = 0.5
_SILENT_S = 5.0
"""Who has a shelf and stands still answers later; who was killed is taken off the server's list by then."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTask:
    """One assignment as the log has it, and the answer once there is one: the fact and its encoded event."""

    subject: str
    body: bytes
    sequence: int
    recorded_at: int
    fact: str = ""
    answer: bytes = b""


class _RefusedError(UnavailableError):
    """The edge's JetStream was there, and did not take it. `code`: its err_code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Shelf:
    """The shelf of one agent at one edge; `open_shelf` is the way to get one.

    `instance`: the name under which it was served last, empty when it was not, or has left in good order. `received`:
    up to which sequence its assignments had come. `tasks`: those without an outcome, in the order of the log.
    """

    def __init__(self, connection: Connection, space: str, edge: str, agent: str) -> None:
        self.agent = agent
        self.instance, self.received = "", 0
        self.tasks: list[KeptTask] = []
        self._connection, self._space, self._stream = connection, space, _stream(space)
        self._scope = f"edge.{space}.{edge}.{agent}"
        self._who = _who(space, edge, agent)
        self._title = f"agent {agent!r} of edge {edge!r}"
        self._kept: dict[int, KeptTask] = {}
        self._settled: set[int] = set()
        self._news = asyncio.Event()
        self._listener: Listener | None = None
        self._epoch = ""
        self._storing = 0
        self._last = (0, "")
        """The newest message that we stored: its sequence and its subject. It stays until we store another."""
        self._writing = asyncio.Lock()
        """Held by what writes all of it again, and by what removes: a purge overtakes what is still to be stored."""
        self._refused = False
        self.is_open = False

    @property
    def waiting(self) -> int:
        """Answers that the log does not have yet."""
        return sum(bool(one.fact) for sequence, one in self._kept.items() if sequence not in self._settled)

    async def open(self) -> None:
        """Read what is there, and see to it that nobody else has this shelf. Raises as `open_shelf`.

        A shelf that was closed may be opened again.
        """
        self._epoch = await make_stream(self._connection, self._space)
        before = await last_match(self._connection, self._stream, f"{self._scope}.instance")
        served = await _is_served(self._connection, self._who)
        if served is None:
            raise UnavailableError(f"the process that has {self._title} does not answer; does it stand still?")
        if served:
            raise self._served_already()
        self._listener = await self._connection.listen(self._who, self._answer)
        self._kept, self._settled, self._last = {}, set(), (0, "")
        self.instance, self.received = "", 0
        try:
            for message in await matches(self._connection, self._stream, f"{self._scope}.>"):
                told = msgpack.unpackb(message.body)
                if message.subject.endswith(".instance"):
                    self.instance, self.received = told["instance"], told["received"]
                else:
                    task = KeptTask(**told)
                    self._kept[task.sequence] = task
            await self._take(before.sequence if before is not None else 0)
            if self._kept and not self.instance:
                await self._remove_what_is_nobodys()
        except BaseException:
            await self._listener.close()  # else it is we who would have it when we try again
            raise
        self.tasks = [self._kept[sequence] for sequence in sorted(self._kept)]
        self._cleaner = asyncio.get_running_loop().create_task(self._clean())
        self.is_open = True

    async def _take(self, before: int) -> None:
        """Of two that begin at the same moment, and do not hear each other, one finds that the other was here."""
        try:
            await self._store_name(self.received, expected=before)
        except _RefusedError as refusal:
            if refusal.code == WRONG_SEQUENCE:
                raise self._served_already() from refusal
            # such as no room; who has something to keep says it

    def _served_already(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._title} is served by another process already",
            remedy="raise its slots, or serve it under another name of the edge",
        )

    async def _remove_what_is_nobodys(self) -> None:
        """Whoever had these tasks is not known any more. The log gives them to others, as it does when one is lost."""
        logger.warning(
            "tasks are kept here under no instance's name: they are removed, and the log gives them to others",
            extra={"stream": self._stream, "scope": self._scope, "tasks": len(self._kept)},
        )
        await self._purge(f"{self._scope}.>")
        self._kept, self._last = {}, (0, "")

    async def close(self) -> None:
        """Leave everything where it is, for the next process."""
        self.is_open = False
        await ended(self._cleaner)
        async with self._writing:  # what was lost is written again before anybody else has it
            if self._listener is not None:
                await self._listener.close()

    async def claim(self, instance: str) -> None:
        """From now on it is served under this name."""
        self.instance = instance
        await self._persist(f"{self._scope}.instance", self._name(self.received))

    async def forget(self) -> bool:
        """The instance leaves and has nothing left: the next one takes another name. Whether that is stored.

        A purge overtakes what the server was sent before and has not stored yet, such as an answer that nobody waits
        for any more. What is sent to be stored is taken in order, so one more such message comes first.
        """
        await ended(self._cleaner)
        async with self._writing:
            try:
                with contextlib.suppress(_RefusedError):  # such as no room, which is said in its turn, too
                    await self._store_name(self.received)
                await self._purge(f"{self._scope}.>")
            except CuebookError as error:
                logger.warning("the shelf could not be emptied: %s", error)
                return False
            self.instance, self.is_open = "", False  # nothing of it is written again
            return True

    async def restore(self, epoch: str) -> None:
        """Write all of it again, if the disk of the edge was lost, or put back to an older copy, since we wrote it.

        `epoch`: see `make_stream`. Raises UnavailableError; then it is still to be done.
        """
        async with self._writing:
            if not self.is_open or (epoch == self._epoch and await self._is_there()):
                return
            self._epoch = ""
            logger.error(
                "the edge's JetStream has lost what was kept there; it is written again, from memory",
                extra={"stream": self._stream, "scope": self._scope, "tasks": len(self._kept)},
            )
            await self._write_again()
            self._epoch = epoch

    async def _write_again(self) -> None:
        """Tasks that are not written yet must not count as received, should we end half-way."""
        open_ones = sorted(self._kept.keys() - self._settled)
        await self._store_name(min([self.received, *(sequence - 1 for sequence in open_ones[:1])]))
        for sequence in open_ones:
            if sequence not in self._settled:  # meanwhile
                await self._store(self._task_subject(sequence), _record(self._kept[sequence]))
        for message in await matches(self._connection, self._stream, f"{self._scope}.task.*"):
            if int(message.subject.rpartition(".")[2]) not in self._kept:  # an older copy has what was removed since
                await self._purge(message.subject)
        await self._store_name(self.received)

    async def _is_there(self) -> bool:
        """Whether the stream still has the last that we stored. While more is being stored nobody can say: True."""
        sequence, subject = last = self._last
        if self._storing or not sequence:
            return True
        found = await message_at(self._connection, self._stream, sequence)
        return (found is not None and found.subject == subject) or self._storing > 0 or last != self._last

    async def keep(self, task: KeptTask) -> None:
        """Store an assignment. Returns when it is stored, however long that takes."""
        self._kept[task.sequence] = task
        await self._write(task)

    async def answer(self, sequence: int, fact: str, body: bytes) -> None:
        """Store the answer to an assignment. Returns when it is stored, however long that takes."""
        task = self._kept[sequence] = replace(self._kept[sequence], fact=fact, answer=body)
        await self._write(task)

    def settle(self, sequence: int, received: int) -> None:
        """The log has decided. `received`: up to where all assignments are stored here."""
        self._settled.add(sequence)
        self.received = max(self.received, received)
        self._news.set()

    def note(self, received: int) -> None:
        """Up to here all assignments are stored here."""
        if received > self.received:
            self.received = received
            if self._settled:
                self._news.set()

    async def _clean(self) -> None:
        """Remove what is settled, but first say that it had come: else it would come again after a restart."""
        while True:
            await self._news.wait()
            self._news.clear()
            done = {sequence for sequence in self._settled if sequence <= self.received}
            if not done:
                continue
            async with self._writing:
                removed = await self._remove(done)
            if not removed:
                self._news.set()
                await asyncio.sleep(RETRY_S)

    async def _remove(self, done: set[int]) -> bool:
        """Whether they are gone. Not while all is to be written again: an old copy must not pass for a new one."""
        try:
            if not self._epoch or not await self._is_there():
                self._epoch = ""
                return False
            await self._store_name(self.received)
            for sequence in sorted(done):
                self._kept.pop(sequence, None)
                await self._purge(self._task_subject(sequence))
                self._settled.discard(sequence)
        except CuebookError as error:  # also when the stream is gone, which is made anew
            logger.info("removed later: %s", error)
            return False
        return True

    async def _write(self, task: KeptTask) -> None:
        await self._persist(self._task_subject(task.sequence), _record(task))

    async def _store_name(self, received: int, *, expected: int | None = None) -> None:
        await self._store(f"{self._scope}.instance", self._name(received), expected=expected)

    def _name(self, received: int) -> dict[str, Any]:
        return {"instance": self.instance, "received": received}

    def _task_subject(self, sequence: int) -> str:
        return f"{self._scope}.task.{sequence}"

    async def _persist(self, subject: str, record: dict[str, Any]) -> None:
        while True:
            try:
                await self._store(subject, record)
            except UnavailableError as error:
                logger.log(
                    logging.DEBUG if self._refused else logging.ERROR,  # once is enough, for all that waits
                    "the edge's JetStream does not take what is to be kept; work waits, give it room or start it",
                    extra={"stream": self._stream, "error": str(error)},
                )
                self._refused = True
                await asyncio.sleep(RETRY_S)
            else:
                self._refused = False
                return

    async def _store(self, subject: str, record: dict[str, Any], *, expected: int | None = None) -> None:
        """Store it now, with `expected` only if that is the sequence of the subject's last message.

        Raises UnavailableError; where it was heard and refused, that is a _RefusedError with the server's words.
        """
        before, self._storing = self._last[0], self._storing + 1
        headers = None if expected is None else {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        try:
            answer = await self._connection.request(subject, msgpack.packb(record), timeout=ANSWER_S, headers=headers)
            told = json.loads(answer.data)
        except (nats.errors.Error, TimeoutError, ValueError) as failure:
            raise UnavailableError(str(failure) or type(failure).__name__) from failure
        finally:
            self._storing -= 1
        if "error" in told:
            raise _RefusedError(told["error"].get("err_code", 0), str(told["error"].get("description")))
        stored = (told["seq"], subject)
        if told["seq"] > before:
            self._last = max(self._last, stored)
        else:  # sequences begin again: an older copy was put in the place of what we had
            self._epoch, self._last = "", stored

    async def _purge(self, subject: str) -> None:
        await js_request(self._connection, f"STREAM.PURGE.{self._stream}", {"filter": subject})

    def _answer(self, _subject: bytes, reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
        if reply:
            self._connection.post(reply.decode(), b"here")


async def open_shelf(connection: Connection, space: str, edge: str, agent: str) -> Shelf:
    """The shelf of an agent, on the JetStream that `connection` leads to. The stream is made if it is missing.

    Raises ConfigurationError when another process has it, UnavailableError when JetStream does not answer.
    """
    Subjects(space)
    shelf = Shelf(connection, space, check_token(edge, "edge"), check_token(agent, "agent"))
    await shelf.open()
    return shelf


async def make_stream(connection: Connection, space: str) -> str:
    """Make the stream of all shelves of a space if it is missing.

    Returns when it was made, to the nanosecond: another answer means another stream, whatever is in it. Raises
    ConfigurationError, UnavailableError.
    """
    stream = _stream(space)
    config = {
        "name": stream,
        "description": f"cuebook space {space}: work at the edge on its way to the log",
        "subjects": [f"edge.{space}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "max_msg_size": 3 * MAX_BYTES,
        "allow_direct": True,
        "num_replicas": 1,
    }
    info = await js_request(connection, f"STREAM.INFO.{stream}", {}, none_for={NO_STREAM})
    if info is None:
        await js_request(connection, f"STREAM.CREATE.{stream}", config, none_for={NAME_IN_USE})
        info = await js_request(connection, f"STREAM.INFO.{stream}", {})
    return str(info["created"])


async def unserved(connection: Connection, space: str, edge: str, served: Collection[str]) -> dict[str, int]:
    """How many tasks are kept at an edge for agents that neither we, who serve `served`, nor another process has.

    Raises ConfigurationError, also where the stream is missing, and UnavailableError.
    """
    request = {"subjects_filter": f"edge.{space}.{edge}.*.task.*"}
    info = await js_request(connection, f"STREAM.INFO.{_stream(space)}", request)
    kept = Counter(subject.split(".")[3] for subject in info["state"].get("subjects") or {})
    return {
        agent: tasks
        for agent, tasks in sorted(kept.items())
        if agent not in served and await _is_served(connection, _who(space, edge, agent)) is False
    }


async def _is_served(connection: Connection, who: str) -> bool | None:
    """Whether somebody has it; None when nobody says so, though somebody is there. Raises UnavailableError."""
    give_up = time.monotonic() + _SILENT_S
    while time.monotonic() < give_up:
        try:
            await connection.request(who, b"", timeout=_ASK_S)
        except nats.errors.NoRespondersError:
            return False
        except TimeoutError:
            continue
        except nats.errors.Error as error:
            if connection.is_closed:
                raise
            raise UnavailableError(f"the edge's JetStream cannot be asked: {error}") from error
        return True
    return None


def _stream(space: str) -> str:
    return f"{space.upper()}_EDGE"


def _who(space: str, edge: str, agent: str) -> str:
    return f"who.{space}.{edge}.{agent}"


def _record(task: KeptTask) -> dict[str, Any]:
    return {name: getattr(task, name) for name in KeptTask.__slots__}
