"""Two never change the streams of a space at once, and who was killed is not waited for long."""

from __future__ import annotations

import asyncio

import pytest
from nats.js.kv import KeyValue

from cuebook.events import reservation
from cuebook.events.connection import Connection
from cuebook.events.errors import CommandRejectedError, UnavailableError
from cuebook.events.reservation import Reservation, reserved
from tests.waiting import eventually


def is_lost(ours: Reservation) -> bool:
    """Whether it may be somebody else's."""
    try:
        ours.check()
    except UnavailableError:
        return True
    return False


async def test_the_second_is_told_who_is_at_it_and_comes_next(connection: Connection, space: str) -> None:
    async with reserved(connection, space, "roll of ana") as ours:
        with pytest.raises(CommandRejectedError, match="are being changed by roll of ana"):
            async with reserved(connection, space, "roll of bob"):
                pass
        ours.check()
    async with reserved(connection, space, "roll of bob") as theirs:
        theirs.check()


async def test_of_many_who_begin_at_once_one_is_at_it(connection: Connection, space: str) -> None:
    at_it: list[str] = []
    most = 0

    async def change(name: str) -> bool:
        nonlocal most
        try:
            async with reserved(connection, space, name):
                at_it.append(name)
                most = max(most, len(at_it))
                await asyncio.sleep(1.5)  # so long that the others see it renewed
                at_it.remove(name)
        except CommandRejectedError:
            return False
        return True

    done = await asyncio.gather(*(change(f"n{n}") for n in range(5)))
    assert (most, True in done, False in done) == (1, True, True)


async def test_who_was_killed_is_not_waited_for_long(
    connection: Connection, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "_RENEW_S", 600.0)
    with monkeypatch.context() as dies:
        dies.setattr(reservation.Reservation, "give_back", lambda self: asyncio.sleep(0))
        async with reserved(connection, space, "killed") as lost:
            pass
    async with reserved(connection, space, "next") as ours:
        ours.check()
        with pytest.raises(UnavailableError, match="were not reserved"):
            lost.check()


async def test_who_was_killed_may_be_free_at_the_moment_of_looking(
    connection: Connection, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = KeyValue._get

    async def late(bucket: KeyValue, key: str, revision: int | None = None) -> KeyValue.Entry:
        while True:  # until it has ended: then the server says so
            await get(bucket, key, revision)

    monkeypatch.setattr(reservation, "_RENEW_S", 600.0)
    with monkeypatch.context() as dies:
        dies.setattr(reservation.Reservation, "give_back", lambda self: asyncio.sleep(0))
        async with reserved(connection, space, "killed"):
            pass
    monkeypatch.setattr(KeyValue, "_get", late)
    async with reserved(connection, space, "next") as ours:
        ours.check()


async def test_what_was_lost_in_between_must_begin_anew(
    connection: Connection, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "_RENEW_S", 0.05)
    async with reserved(connection, space, "ours") as ours:
        bucket = await connection.jetstream().key_value(f"{space}_leases")
        await bucket.put("streams", b"somebody")
        await eventually(lambda: is_lost(ours))
        await ours.begin(30.0)  # theirs has ended
        ours.check()
