"""The sealer: every message in a tree that only grows, whenever it is killed, and a stop where history was changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cuebook.events.append import Appender
from cuebook.events.connection import Connection
from cuebook.events.errors import CuebookError, HistoryRegressedError
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.lookup import message_at
from cuebook.events.stream import verify_stream
from cuebook.ledger.errors import TamperedError
from cuebook.ledger.merkle import Frontier
from cuebook.ledger.notes import Checkpoint, PrivateKey, read_notes
from cuebook.ledger.record import leaf_of
from cuebook.ledger.sealer import Sealer
from cuebook.ledger.seals import Seal, SealNames, Seals
from cuebook.ledger.source import Source
from tests.events.rolls import roll
from tests.waiting import eventually


@contextlib.asynccontextmanager
async def sealing(log: EventLog, key: PrivateKey, file: Path, **options: Any) -> AsyncIterator[Sealer]:
    """A sealer under way; leaving cancels it, as if it were killed."""
    sealer = Sealer(log, key, file, **options)
    running = asyncio.create_task(sealer.run())
    try:
        await asyncio.wait([running, asyncio.ensure_future(sealer.ready.wait())], return_when="FIRST_COMPLETED")
        if running.done():
            running.result()
        yield sealer
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def publish(log: EventLog, count: int) -> None:
    for n in range(count):
        answer = await log.connection.request(f"{log.subjects.space}.event.x", b"%d" % n, timeout=30)
        assert b'"seq"' in answer.data


async def roots(log: EventLog) -> dict[int, bytes]:
    """The root of the log at each size, computed anew."""
    facts = await log.verify()
    tree, found = Frontier(), {}
    async for batch in Source(log, facts).batches(after=0, until=facts.last_sequence):
        for record in batch:
            tree.add(leaf_of(record))
            found[tree.size] = tree.root()
    return found


def checkpoints(file: Path, key: PrivateKey) -> list[Checkpoint]:
    notes, rest = read_notes(file.read_text())
    assert rest == ""
    return [key.public.checkpoint(note) for note in notes]


async def sealed_sizes(log: EventLog, key: PrivateKey) -> list[int]:
    seals = Seals(log.connection, log.subjects.space, key.public)
    return [(await seals.at(n)).checkpoint.size for n in range(1, await seals.count() + 1)]


async def test_a_checkpoint_at_each_multiple_and_after_a_while(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    file = tmp_path / "seals" / "cue.checkpoints"
    await publish(log, 23)
    async with sealing(log, key, file, every=10, every_s=1000) as sealer:
        await eventually(lambda: sealer._tree.size == 23)
    assert await sealed_sizes(log, key) == [10, 20]
    async with sealing(log, key, file, every=10, every_s=0.05) as sealer:
        await eventually(lambda: sealer.sealed == 23)
        await publish(log, 1)
        await eventually(lambda: sealer.sealed == 24)
    sizes = await sealed_sizes(log, key)
    assert [n for n in sizes if n not in (21, 22)] == [10, 20, 23, 24]  # those, if they came only after a while
    true = await roots(log)
    assert [(one.size, one.root) for one in checkpoints(file, key)] == [(n, true[n]) for n in sizes]


async def test_it_goes_on_in_the_next_stream_when_the_log_is_rolled(
    log: EventLog, key: PrivateKey, tmp_path: Path
) -> None:
    file = tmp_path / "cue.checkpoints"
    await publish(log, 7)
    async with sealing(log, key, file, every=10, every_s=0.05) as sealer:
        await roll(log)
        await publish(log, 7)
        await eventually(lambda: sealer.sealed == 15)
    await roll(log)
    await publish(log, 1)
    async with sealing(log, key, file, every=10, every_s=0.05) as sealer:
        await eventually(lambda: sealer.sealed == 17)
    trees = await roots(log)
    for one in checkpoints(file, key):
        assert trees[one.size] == one.root


async def test_nothing_is_signed_while_nothing_happens(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    async with sealing(log, key, tmp_path / "c", every=1, every_s=0.01) as sealer:
        await publish(log, 2)
        await eventually(lambda: sealer.sealed == 2)
    async with sealing(log, key, tmp_path / "c", every=1, every_s=0.01) as again:
        assert again.sealed == 2
        await publish(log, 1)
        await eventually(lambda: again.sealed == 3)
    assert await sealed_sizes(log, key) == [1, 2, 3]


async def test_it_seals_the_rest_when_it_is_stopped(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    await publish(log, 5)
    sealer = Sealer(log, key, tmp_path / "c", every=1000, every_s=1000)
    running = asyncio.create_task(sealer.run())
    await eventually(lambda: sealer._tree.size == 5)
    sealer.stop()
    await running
    assert await sealed_sizes(log, key) == [5]


async def test_the_stream_of_seals_is_as_strict_as_the_log(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    heard: list[bytes] = []
    space = log.subjects.space
    listener = await log.connection.listen(f"live.seals.{space}", lambda s, r, body, h: heard.append(body))
    async with sealing(log, key, tmp_path / "c", every=1) as sealer:
        await publish(log, 1)
        await eventually(lambda: sealer.sealed == 1 and heard)
    assert Seal.parse(heard[0], key.public).checkpoint.size == 1
    await verify_stream(log.connection, SealNames(space))
    await listener.close()
    with pytest.raises(CuebookError, match="purge not permitted"):
        await js_request(log.connection, f"STREAM.PURGE.{space.upper()}_SEALS", {})


@pytest.mark.parametrize("moment", ["before the stream", "before the file", "within the file"])
async def test_killed_at_any_moment_it_goes_on_and_no_other_tree_is_signed(
    log: EventLog, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    file = tmp_path / "c"
    await publish(log, 7)

    class KilledError(BaseException):
        pass

    original = Sealer._write
    killed: list[object] = []

    def write(self: Sealer, checkpoint: Checkpoint) -> None:
        if checkpoint.size == 4 and not killed:
            killed.append(checkpoint)
            if moment == "within the file":
                with file.open("a") as opened:
                    opened.write(checkpoint.note[:-9])
            raise KilledError
        original(self, checkpoint)

    async def append(self: Any, subject: str, body: bytes, **options: Any) -> int:
        if b"\n4\n" in body and not killed:
            killed.append(body)
            raise KilledError
        return int(await appending(self, subject, body, **options))

    appending = Appender.append
    with monkeypatch.context() as patch:
        if moment == "before the stream":
            patch.setattr(Appender, "append", append)
        else:
            patch.setattr(Sealer, "_write", write)
        with pytest.raises(KilledError):
            await Sealer(log, key, file, every=1).run()
    async with sealing(log, key, file, every=1) as again:
        await eventually(lambda: again.sealed == 7)
    true = await roots(log)
    assert await sealed_sizes(log, key) == [1, 2, 3, 4, 5, 6, 7]
    assert [(one.size, one.root) for one in checkpoints(file, key)] == list(true.items())


async def test_two_sealers_make_one_row_of_seals(
    log: EventLog, key: PrivateKey, tmp_path: Path, connection: Connection
) -> None:
    async with (
        EventLog(connection, log.subjects.space, source="tests") as other,
        sealing(log, key, tmp_path / "a", every=3, every_s=0.01) as first,
        sealing(other, key, tmp_path / "b", every=3, every_s=0.01) as second,
    ):
        await publish(log, 50)
        await eventually(lambda: first.sealed == 50 or second.sealed == 50)
    sizes = await sealed_sizes(log, key)
    assert sizes == sorted(set(sizes))
    true = await roots(log)
    for file in (tmp_path / "a", tmp_path / "b"):
        assert all(one.root == true[one.size] for one in checkpoints(file, key))


async def rewritten(log: EventLog, count: int) -> None:
    """The log again under its name, with other messages in it."""
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}", {})
    await log.ensure()
    await publish(log, count)


@pytest.mark.parametrize(
    ("count", "says"),
    [(3, "ends at 3, but it was sealed up to 5"), (5, "holds another message at 5"), (9, "holds another message at 5")],
)
async def test_a_log_that_was_truncated_or_rewritten_stops_it(
    log: EventLog, key: PrivateKey, tmp_path: Path, count: int, says: str
) -> None:
    await publish(log, 5)
    async with sealing(log, key, tmp_path / "c", every=5) as sealer:
        await eventually(lambda: sealer.sealed == 5)
    await rewritten(log, count)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(HistoryRegressedError, match=says):
        await Sealer(log, key, tmp_path / "c", every=1).run()
    assert await sealed_sizes(log, key) == [5]
    assert (tmp_path / "c").read_bytes() == before


async def test_seals_that_were_lost_or_exchanged_stop_it(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    await publish(log, 5)
    file = tmp_path / "c"
    async with sealing(log, key, file, every=5) as sealer:
        await eventually(lambda: sealer.sealed == 5)
    await js_request(log.connection, f"STREAM.DELETE.{log.subjects.stream}_SEALS", {})
    with pytest.raises(HistoryRegressedError, match="has a checkpoint of 5 messages, the stream of seals ends at 0"):
        await Sealer(log, key, file).run()
    file.write_text(f"{key.checkpoint(5, b'r' * 32).note}\n")
    async with sealing(log, key, tmp_path / "d", every=5) as sealer:
        await eventually(lambda: sealer.sealed == 5)
    with pytest.raises(HistoryRegressedError, match="has another tree of 5 messages"):
        await Sealer(log, key, file).run()


async def test_another_key_does_not_go_on_with_a_log(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    await publish(log, 1)
    async with sealing(log, key, tmp_path / "c", every=1) as sealer:
        await eventually(lambda: sealer.sealed == 1)
    with pytest.raises(TamperedError, match="has not signed"):
        await Sealer(log, PrivateKey.generate("example.com/cue"), tmp_path / "d").run()


async def test_what_no_sealer_wrote_is_no_seal(log: EventLog, key: PrivateKey, tmp_path: Path) -> None:
    await publish(log, 4)
    async with sealing(log, key, tmp_path / "c", every=2) as sealer:
        await eventually(lambda: sealer.sealed == 4)
    stored = await message_at(log.connection, f"{log.subjects.stream}_SEALS", 2)
    assert stored is not None
    assert Seal.parse(stored.body, key.public).frontier.root() == (await roots(log))[4]
    lines = stored.body.decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    forged = Seal(checkpoint=key.checkpoint(4, b"r" * 32), leaf=b"l" * 32, path=())
    with pytest.raises(TamperedError, match="does not agree with itself"):
        Seal.parse(forged.body, key.public)
