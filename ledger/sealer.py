"""The sealer: reads the log, grows its Merkle tree, and signs a checkpoint every so many messages or seconds.

Each checkpoint is stored in the stream of seals, expecting the one before it, and then appended to a file. What it
keeps in memory is the tree's frontier. Killed at any moment it goes on from the last seal: it never signs a tree that
does not continue every tree it has signed. When the log does not hold what was sealed, it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from cuebook.events.append import Appender
from cuebook.events.errors import ConcurrencyConflictError, ConfigurationError, HistoryRegressedError, UnavailableError
from cuebook.events.log import EventLog, Stored
from cuebook.events.lookup import first_match
from cuebook.events.stream import StreamFacts, refuse_recording
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.notes import Checkpoint, PrivateKey, read_notes
from cuebook.ledger.record import Record, leaf_of
from cuebook.ledger.seals import Seal, Seals

__all__ = ["EVERY", "EVERY_S", "Sealer"]

EVERY: Final = 1_000
EVERY_S: Final = 10.0
RETRY_S: Final = 1.0

logger = logging.getLogger(__name__)


class Sealer:
    """Seals one space. `run` returns after `stop`; `ready` is set once the last seal was found and checked."""

    def __init__(
        self,
        log: EventLog,
        key: PrivateKey,
        file: Path,
        *,
        every: int = EVERY,
        every_s: float = EVERY_S,
        replicas: int = 1,
    ) -> None:
        """A checkpoint at each multiple of `every` messages, and `every_s` seconds after the first that has none."""
        self._log, self._key, self._file, self._every, self._every_s = log, key, file, every, every_s
        self._replicas = replicas
        self._seals = Seals(log.connection, log.subjects.space, key.public)
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self._tree, self._before = Frontier(), Frontier()
        self._leaf = b""
        self._sealed = 0
        self._number = 0
        self._log_first = 1

    def stop(self) -> None:
        """Seal what has been read, and end."""
        self._stopping.set()

    @property
    def sealed(self) -> int:
        """Messages that the newest checkpoint covers."""
        return self._sealed

    async def run(self) -> None:
        """Seal until `stop`.

        Raises HistoryRegressedError when the log, the seals or the file have lost or changed what was sealed;
        ConfigurationError, UnavailableError.
        """
        async with Appender(self._log.connection, first_after=self._first_after) as self._appender:
            while not self._stopping.is_set():
                try:
                    await self._restore()
                    self.ready.set()
                    await self._follow()
                except ConcurrencyConflictError:
                    logger.warning("another sealer was faster", extra={"space": self._log.subjects.space})
                except UnavailableError as error:
                    if self._log.connection.is_closed:
                        raise
                    logger.warning("sealing waits for the server", extra={"reason": str(error)})
                    await self._pause()

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._stopping.wait()

    # --- taking up where the last seal is ---

    async def _restore(self) -> None:
        refuse_recording(await self._log.verify())
        self._number = (await self._seals.ensure(replicas=self._replicas)).last_sequence
        seal = await self._seals.at(self._number) if self._number else None
        facts = await self._log.verify()  # after the seal: another sealer may be at work
        self._log_first = max(facts.first_sequence, 1)
        if seal is not None:
            await self._compare(seal, facts)
        self._tree = seal.frontier if seal else Frontier()
        self._sealed = self._tree.size
        await self._mend_file(seal)
        logger.info("sealing", extra={"sealed": self._sealed, "origin": self._key.public.name})

    async def _compare(self, seal: Seal, facts: StreamFacts) -> None:
        """The log must still hold the last message that was sealed."""
        sequence = self._log_first + seal.checkpoint.size - 1
        if sequence > facts.last_sequence:
            raise HistoryRegressedError(
                f"stream {facts.name} ends at {facts.last_sequence}, but it was sealed up to {sequence}"
            )
        message = await self._log.message_at(sequence)
        found = await self._leaf_at(sequence) if message is not None else None
        if found != seal.leaf:
            raise HistoryRegressedError(f"stream {facts.name} holds another message at {sequence} than was sealed")

    async def _leaf_at(self, sequence: int) -> bytes | None:
        async with aclosing(self._log.batches(after=sequence - 1, until=sequence)) as batches:
            async for batch in batches:
                return leaf_of(_record(batch[0]))
        return None

    async def _mend_file(self, seal: Seal | None) -> None:
        """Cut off what a crash has left unfinished, and add the checkpoints that are only in the stream."""
        notes = _read(self._file)
        known = [self._key.public.checkpoint(note) for note in notes[-1:]]
        last = known[-1].size if known else 0
        if last > self._sealed:
            raise HistoryRegressedError(
                f"{self._file} has a checkpoint of {last} messages, the stream of seals ends at {self._sealed}"
            )
        missing: list[Checkpoint] = []
        number = self._number
        while number:
            found = (await self._seals.at(number)).checkpoint
            if found.size <= last:
                if found.size == last and found.root != known[-1].root:
                    raise HistoryRegressedError(f"{self._file} has another tree of {last} messages than was sealed")
                break
            missing.append(found)
            number -= 1
        if seal is None and known:
            raise HistoryRegressedError(f"{self._file} has checkpoints, the stream of seals has none")
        for checkpoint in reversed(missing):
            self._write(checkpoint)

    # --- following ---

    async def _follow(self) -> None:
        async with self._batches() as batches:
            stopping = asyncio.ensure_future(self._stopping.wait())
            clock = asyncio.get_running_loop().time
            due: float | None = None
            coming = asyncio.ensure_future(anext(batches))
            try:
                while not self._stopping.is_set():
                    timeout = None if due is None else max(due - clock(), 0)
                    await asyncio.wait([coming, stopping], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                    if coming.done():
                        await self._take(coming.result())
                        coming = asyncio.ensure_future(anext(batches))
                        if self._tree.size == self._sealed:
                            due = None
                        elif due is None:
                            due = clock() + self._every_s
                    if due is not None and clock() >= due:
                        await self._seal()
                        due = None
                if self._tree.size > self._sealed:
                    await self._seal()
            finally:
                stopping.cancel()
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await coming

    @contextlib.asynccontextmanager
    async def _batches(self) -> AsyncIterator[Any]:
        async with aclosing(self._log.batches(after=self._log_first + self._tree.size - 1)) as batches:
            yield batches

    async def _take(self, batch: list[Stored]) -> None:
        tree, last = self._tree, batch[-1].sequence
        for message in batch:
            if message.sequence != self._log_first + tree.size:
                raise HistoryRegressedError(
                    f"stream {self._log.subjects.stream} holds nothing from {self._log_first + tree.size} "
                    f"to {message.sequence - 1}"
                )
            leaf = leaf_of(_record(message))
            full = (tree.size + 1) % self._every == 0
            if full or message.sequence == last:  # what a seal is made from
                self._before, self._leaf = tree.copy(), leaf
            tree.add(leaf)
            if full:
                await self._seal()

    async def _seal(self) -> None:
        """Sign the tree as it is, store it in the stream, then in the file."""
        seal = Seal.make(self._key, self._before, self._leaf)
        subject = self._seals.names.all
        await self._appender.append(subject, seal.body, event_id=_id(seal.body), scope=subject, expected=self._number)
        self._number += 1
        self._sealed = seal.checkpoint.size
        self._write(seal.checkpoint)
        logger.debug("sealed", extra={"size": self._sealed})

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{checkpoint.note}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigurationError(
                f"{self._file} cannot be written: {error}", remedy="choose another file"
            ) from error

    async def _first_after(self, scope: str, after: int) -> tuple[int, str] | None:
        found = await first_match(self._log.connection, self._seals.names.stream, scope, after)
        return (found.sequence, _id(found.body)) if found else None


def _record(message: Stored) -> Record:
    subject, body, sequence, recorded_ns, headers = message
    return Record(sequence, recorded_ns, subject.encode("utf-8", "surrogateescape"), headers or b"", body)


def _id(body: bytes) -> str:
    return sha256(body).hexdigest()


def _read(file: Path) -> list[str]:
    """The notes in the file, from which a torn end is cut off."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        text = file.read_bytes().decode("utf-8", "replace")
        notes, rest = read_notes(text)
        if rest or (notes and not text.endswith("\n\n")):
            whole = "".join(f"{note}\n" for note in notes)
            with file.open("r+b") as opened:
                if opened.read(len(whole.encode())) == whole.encode():
                    opened.truncate(len(whole.encode()))
                else:  # a single note without the empty line after it
                    opened.seek(0)
                    opened.write(whole.encode())
                    opened.truncate()
                os.fsync(opened.fileno())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be used: {error}", remedy="choose another file") from error
    return notes
