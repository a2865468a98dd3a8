"""A service collects garbage in small pieces, whatever Python's own counters say."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from functools import partial

import pytest

from cuebook.actors import collector
from cuebook.events.connection import ended
from tests.waiting import eventually


class Knot:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def own_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process of the tests gets its settings back."""
    thresholds = gc.get_threshold()
    monkeypatch.setattr(collector, "YOUNG_EVERY_S", 0.01)
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_THRESHOLDS", (1_000_000_000, 1_000, 1_000))


async def test_young_garbage_goes_soon_and_what_was_there_at_the_start_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never_by_itself(monkeypatch)
    there = Knot()
    tending = asyncio.create_task(collector.tend_collector())
    await eventually(lambda: gc.get_freeze_count() > 0)
    left_alone = weakref.ref(there)
    del there
    gone = weakref.ref(Knot())
    await eventually(lambda: gone() is None)
    assert left_alone() is not None
    await ended(tending)


async def test_old_garbage_goes_when_it_is_time_or_memory_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    never_by_itself(monkeypatch)
    memory = [1 << 30]
    monkeypatch.setattr(collector, "_resident_bytes", lambda: memory[0])
    tending = asyncio.create_task(collector.tend_collector())
    await eventually(lambda: gc.get_freeze_count() > 0)

    def grow() -> None:
        memory[0] *= 2

    def wait_a_minute() -> None:
        monkeypatch.setattr(collector, "ALL_EVERY_S", 0.0)

    for make_due in (grow, wait_a_minute):
        gone = old_garbage()
        await eventually(partial(has_collected_since, gc.get_stats()[0]["collections"] + 3))
        assert gone() is not None
        make_due()
        await eventually(partial(is_gone, gone))
    await ended(tending)


def old_garbage() -> weakref.ref[Knot]:
    knot = Knot()
    for generation in (0, 1):
        gc.collect(generation)
    return weakref.ref(knot)


def has_collected_since(count: int) -> bool:
    return bool(gc.get_stats()[0]["collections"] > count)


def is_gone(knot: weakref.ref[Knot]) -> bool:
    return knot() is None
