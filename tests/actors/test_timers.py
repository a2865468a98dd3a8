"""Timers: due once, at most a bucket late, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cuebook.actors.orchestrator.timers import BUCKET_US, Timers


def test_what_is_due_comes_once_and_earlier_ones_first() -> None:
    timers = Timers()
    timers.set("late", 900_000)
    timers.set("early", 100_000)
    assert list(timers.expired(99_999)) == []
    assert list(timers.expired(1_000_000)) == ["early", "late"]
    assert list(timers.expired(2_000_000)) == []
    assert len(timers) == 0


def test_setting_again_moves_and_cancelling_forgets() -> None:
    timers = Timers()
    timers.set("moved", 100_000)
    timers.set("moved", 500_000)
    timers.set("gone", 100_000)
    timers.cancel("gone")
    timers.cancel("never set")
    assert list(timers.expired(400_000)) == []
    assert list(timers.expired(500_000)) == ["moved"]


def test_what_is_set_in_the_past_is_due_at_once() -> None:
    timers = Timers()
    assert list(timers.expired(10_000_000)) == []
    for due in (0, -100_000, 10_000_000):
        timers.set(due, due)
        assert list(timers.expired(10_000_000)) == [due]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 10**7)), max_size=30), st.integers(0, 10**7)
)
def test_nothing_comes_early_and_nothing_is_forgotten(orders: list[tuple[str, int | None]], now: int) -> None:
    timers, due = Timers(), dict[str, int]()
    for key, moment in orders:
        if moment is None:
            timers.cancel(key)
            due.pop(key, None)
        else:
            timers.set(key, moment)
            due[key] = moment
    came = list(timers.expired(now))
    assert len(came) == len(set(came))
    assert all(due[str(key)] <= now for key in came)
    assert {key for key, moment in due.items() if moment + BUCKET_US <= now} <= set(came)
    assert set(came) | set(timers.expired(10**8)) == set(due)
