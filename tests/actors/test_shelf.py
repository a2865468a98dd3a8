"""What is kept at an edge outlives a disk that is lost or put back, and belongs to one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import msgpack
import nats
import pytest
from nats.aio.msg import Msg

from cuebook.actors import shelf as shelf_module
from cuebook.actors.shelf import KeptTask, Shelf, make_stream, open_shelf
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.lookup import matches
from tests.actors.site import copied
from tests.waiting import eventually

LOST = "the edge's JetStream has lost what was kept there"


@pytest.fixture
async def keeper(nats_url: str) -> AsyncIterator[Connection]:
    connection = await connect(nats_url, name="keeper")
    yield connection
    await connection.close()


def task(sequence: int) -> KeptTask:
    return KeptTask(subject="s", body=b"b", sequence=sequence, recorded_at=1)


async def claimed(connection: Connection, space: str, *sequences: int) -> Shelf:
    shelf = await open_shelf(connection, space, "shop-7", "till")
    await shelf.claim("i1")
    for sequence in sequences:
        await shelf.keep(task(sequence))
    return shelf


async def found(connection: Connection, space: str) -> tuple[str, int, list[int]]:
    """What the next process finds."""
    again = await open_shelf(connection, space, "shop-7", "till")
    await again.close()
    return again.instance, again.received, [one.sequence for one in again.tasks]


# --- one process at a time ---


async def test_of_two_processes_that_begin_at_the_same_moment_one_has_the_shelf(nats_url: str, space: str) -> None:
    connections = [await connect(nats_url, name=f"keeper-{n}") for n in range(2)]
    for name in ("till", "door", "lamp", "belt", "gate"):
        came = await asyncio.gather(
            *(open_shelf(one, space, "shop-7", name) for one in connections), return_exceptions=True
        )
        [shelf] = [one for one in came if isinstance(one, Shelf)]
        [refused] = [one for one in came if one is not shelf]
        assert isinstance(refused, ConfigurationError)
        assert "is served by another process already" in str(refused)
        await shelf.close()
    for connection in connections:
        await connection.close()


@pytest.fixture
async def owner(nats_url: str, space: str) -> AsyncIterator[list[Msg]]:
    """Requests that come to a process that has the shelf and stands still; the third it answers."""
    asked: list[Msg] = []

    async def hear(request: Msg) -> None:
        asked.append(request)
        if len(asked) == 3:
            await request.respond(b"here")

    connection = await nats.connect(nats_url)
    await connection.subscribe(f"who.{space}.shop-7.till", cb=hear)
    await connection.flush()
    yield asked
    await connection.close()


async def test_who_has_a_shelf_may_stand_still_for_a_while(
    keeper: Connection, space: str, owner: list[Msg], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_SILENT_S", 60.0)
    with pytest.raises(ConfigurationError, match="is served by another process already"):
        await open_shelf(keeper, space, "shop-7", "till")
    assert len(owner) == 3


async def test_who_does_not_answer_at_all_is_no_reason_to_take_its_shelf(
    keeper: Connection, space: str, owner: list[Msg], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_SILENT_S", 0.3)
    with pytest.raises(UnavailableError, match="does not answer; does it stand still"):
        await open_shelf(keeper, space, "shop-7", "till")
    assert len(owner) == 1


# --- leaving it ---


async def test_a_shelf_is_not_emptied_while_nobody_knows_what_is_still_on_its_way_to_it(
    keeper: Connection, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = await claimed(keeper, space, 7)

    async def silence(_subject: str, _record: dict[str, Any], *, expected: int | None = None) -> None:
        raise UnavailableError(f"nats: timeout, {expected}")

    monkeypatch.setattr(shelf, "_store", silence)
    assert not await shelf.forget()
    await shelf.close()
    assert await found(keeper, space) == ("i1", 0, [7])


async def test_a_shelf_that_was_emptied_is_not_written_again(keeper: Connection, space: str) -> None:
    """As by who looks after all shelves of the edge every second."""
    shelf = await claimed(keeper, space, 7)
    epoch = await make_stream(keeper, space)
    looking = [asyncio.create_task(shelf.restore(epoch)) for _ in range(3)]
    assert await shelf.forget()
    await asyncio.gather(*looking)
    await shelf.restore(epoch)
    assert await matches(keeper, f"{space.upper()}_EDGE", f"edge.{space}.>") == []
    await shelf.close()


# --- a disk that is lost ---


async def lost(connection: Connection, space: str) -> str:
    await connection.jetstream().delete_stream(f"{space.upper()}_EDGE")
    return await make_stream(connection, space)


@pytest.mark.parametrize("written", range(7))
async def test_who_is_killed_while_it_writes_all_again_has_lost_nothing_or_gets_it_again(
    keeper: Connection, space: str, written: int, monkeypatch: pytest.MonkeyPatch, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    shelf = await claimed(keeper, space, 3, 5, 7, 9)
    shelf.note(9)
    epoch = await lost(keeper, space)
    monkeypatch.setattr(shelf, "_store", only(written, shelf._store))
    try:
        await shelf.restore(epoch)
    except UnavailableError:
        assert written < 6
    else:
        assert written == 6
    await shelf.close()
    instance, received, sequences = await found(keeper, space)
    assert instance == ("i1" if written else "")
    if instance:
        assert {3, 5, 7, 9} <= {*sequences, *range(received + 1, 10)}
        assert received == (9 if written == 6 else 2)


def only(count: int, store: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Store as often as `count`, then no more: the process is as good as gone."""
    left = iter(range(count))

    async def stored(*args: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise UnavailableError("killed")
        await store(*args, **options)

    return stored


async def test_what_the_log_has_decided_is_not_written_again(
    keeper: Connection, space: str, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    shelf = await claimed(keeper, space, 5, 7)
    shelf.settle(5, 0)  # it cannot be removed yet: something before it may still come
    await shelf.restore(await lost(keeper, space))
    await shelf.close()
    assert await found(keeper, space) == ("i1", 0, [7])


async def test_a_shelf_is_closed_once_what_was_lost_is_written_again(
    keeper: Connection, space: str, monkeypatch: pytest.MonkeyPatch, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    shelf = await claimed(keeper, space, 3, 5)
    store, may_store, order = shelf._store, asyncio.Event(), []

    async def stored(*args: Any, **options: Any) -> None:
        await may_store.wait()
        await store(*args, **options)

    monkeypatch.setattr(shelf, "_store", stored)
    writing = asyncio.create_task(shelf.restore(await lost(keeper, space)))
    writing.add_done_callback(lambda _: order.append("written"))
    await eventually(shelf._writing.locked)
    closing = asyncio.create_task(shelf.close())
    closing.add_done_callback(lambda _: order.append("closed"))
    for _ in range(3):  # whoever does not wait has closed it meanwhile
        await keeper.flush()
    may_store.set()
    await asyncio.gather(writing, closing)
    assert order == ["written", "closed"]
    assert await found(keeper, space) == ("i1", 0, [3, 5])


# --- a disk that is put back ---


class Copied:
    """A shelf of the edge's server, with a copy of its disk: by then it had 3 and 5."""

    def __init__(self, servers: NatsEdge, space: str, folder: Path) -> None:
        self._servers, self._space = servers, space
        self._store, self._copy = folder / "servers" / "edge" / "jetstream", folder / "copy"
        self.connection: Connection
        self.shelf: Shelf

    async def __aenter__(self) -> Self:
        self.connection = await connect(self._servers.keeper_url, name="keeper")
        self.shelf = await claimed(self.connection, self._space, 3, 5)
        await copied(self._servers, self._store, self._copy)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.shelf.is_open:
            await self.shelf.close()
        await self.connection.close()

    async def put_back(self) -> str:
        await copied(self._servers, self._copy, self._store)

        async def epoch() -> str:
            try:
                return await make_stream(self.connection, self._space)
            except UnavailableError:
                return ""

        return await eventually(epoch)

    async def found(self) -> tuple[str, int, list[int]]:
        return await found(self.connection, self._space)


async def test_what_came_since_the_copy_is_written_again_and_what_was_told_since_is_not_done_again(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    async with Copied(servers, space, tmp_path) as at:
        await at.shelf.keep(task(7))
        at.shelf.note(7)
        at.shelf.settle(3, 7)
        await eventually(lambda: sorted(at.shelf._kept) == [5, 7])
        await at.shelf.restore(await at.put_back())
        await at.shelf.close()
        assert await at.found() == ("i1", 7, [5, 7])


async def test_an_older_copy_is_not_told_that_more_has_come_than_it_has(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    async with Copied(servers, space, tmp_path) as at:
        await at.shelf.keep(task(7))
        at.shelf.note(7)
        epoch = await at.put_back()
        at.shelf.settle(3, 7)
        await eventually(lambda: at.shelf._epoch == "")
        instance, received, kept = await on_disk(at.connection, space)
        assert (instance, received, kept) == ("i1", 0, [3, 5])
        await at.shelf.restore(epoch)
        await eventually(lambda: sorted(at.shelf._kept) == [5, 7])
        await at.shelf.close()
        assert await at.found() == ("i1", 7, [5, 7])


async def test_what_is_stored_in_an_older_copy_shows_that_it_is_one(
    servers: NatsEdge, space: str, tmp_path: Path, expected_errors: list[str]
) -> None:
    expected_errors.append(LOST)
    async with Copied(servers, space, tmp_path) as at:
        await at.shelf.keep(task(7))
        epoch = await at.put_back()
        await at.shelf.keep(task(9))  # at the sequence that 7 had
        await at.shelf.restore(epoch)
        await at.shelf.close()
        assert await at.found() == ("i1", 0, [3, 5, 7, 9])


async def test_a_shelf_that_is_as_it_was_left_is_not_written_again(
    servers: NatsEdge, space: str, tmp_path: Path
) -> None:
    async with Copied(servers, space, tmp_path) as at:
        epoch = await at.put_back()
        await at.shelf.restore(epoch)
        at.shelf.note(5)
        at.shelf.settle(5, 5)
        await eventually(lambda: sorted(at.shelf._kept) == [3])
        await at.shelf.restore(epoch)


async def on_disk(connection: Connection, space: str) -> tuple[str, int, list[int]]:
    """What is stored, beside the process that has it."""
    scope = f"edge.{space}.shop-7.till"
    messages = {one.subject: one.body for one in await matches(connection, f"{space.upper()}_EDGE", f"{scope}.>")}
    name = msgpack.unpackb(messages.pop(f"{scope}.instance"))
    return name["instance"], name["received"], sorted(int(subject.rpartition(".")[2]) for subject in messages)
