"""Timers fire once, not early, at most a bucket late, and only where they were last set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cuebook.actors.orchestrator.timers import BUCKET_US, Timers

KEYS = st.sampled_from([("task", n) for n in range(6)])
MOMENTS = st.integers(0, 40 * BUCKET_US)


def test_a_timer_fires_once_and_not_early() -> None:
    timers = Timers()
    timers.set("a", 10 * BUCKET_US + 1)
    assert list(timers.expired(10 * BUCKET_US + 1)) == []
    assert list(timers.expired(11 * BUCKET_US)) == ["a"]
    assert list(timers.expired(99 * BUCKET_US)) == []
    assert len(timers) == 0


def test_earlier_ones_fire_first() -> None:
    timers = Timers()
    for n in (7, 3, 5, 1):
        timers.set(n, n * BUCKET_US)
    assert list(timers.expired(6 * BUCKET_US)) == [1, 3, 5]
    assert list(timers.expired(7 * BUCKET_US)) == [7]


def test_setting_it_again_moves_it_and_cancelling_forgets_it() -> None:
    timers = Timers()
    timers.set("later", 5 * BUCKET_US)
    timers.set("later", 9 * BUCKET_US)
    timers.set("sooner", 9 * BUCKET_US)
    timers.set("sooner", 2 * BUCKET_US)
    timers.set("never", 3 * BUCKET_US)
    timers.cancel("never")
    timers.cancel("unknown")
    assert list(timers.expired(8 * BUCKET_US)) == ["sooner"]
    assert list(timers.expired(9 * BUCKET_US)) == ["later"]


def test_what_fires_may_be_set_again_meanwhile() -> None:
    timers = Timers()
    timers.set("a", BUCKET_US)
    timers.set("b", BUCKET_US)
    fired = set()
    for key in timers.expired(BUCKET_US):
        fired.add(key)
        timers.set(key, BUCKET_US * 3)
    assert fired == {"a", "b"}
    assert set(timers.expired(3 * BUCKET_US)) == {"a", "b"}


def test_what_is_set_in_the_past_is_due_at_once() -> None:
    timers = Timers()
    assert list(timers.expired(100 * BUCKET_US)) == []
    for due in (0, -BUCKET_US, 100 * BUCKET_US):
        timers.set(due, due)
        assert list(timers.expired(100 * BUCKET_US)) == [due]


@given(st.dictionaries(st.integers(), st.integers(0, 2**62), max_size=50), st.integers(0, 2**62))
def test_exactly_what_is_due_fires(due: dict[int, int], now: int) -> None:
    timers = Timers()
    for key, moment in due.items():
        timers.set(key, moment)
    fired = list(timers.expired(now))
    assert len(fired) == len(set(fired))
    assert all(due[key] <= now for key in fired)  # type: ignore[index]
    assert {key for key, moment in due.items() if moment <= now - BUCKET_US} <= set(fired)
    assert len(timers) == len(due) - len(fired)


class TimersAgainstADictionary(RuleBasedStateMachine):
    """Whatever is set, moved and cancelled in whatever order: as a dictionary of due times would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.due: dict[object, int] = {}
        self.now = 0

    @rule(key=KEYS, after=MOMENTS)
    def set(self, key: object, after: int) -> None:
        self.timers.set(key, self.now + after)
        self.due[key] = self.now + after

    @rule(key=KEYS)
    def cancel(self, key: object) -> None:
        self.timers.cancel(key)
        self.due.pop(key, None)

    @rule(by=MOMENTS)
    def pass_time(self, by: int) -> None:
        self.now += by
        for key in self.timers.expired(self.now):
            assert self.due.pop(key) <= self.now
        assert all(moment > self.now - BUCKET_US for moment in self.due.values())

    @invariant()
    def remembers_what_is_due(self) -> None:
        assert len(self.timers) == len(self.due)


test_timers_against_a_dictionary = TimersAgainstADictionary.TestCase
