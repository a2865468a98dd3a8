"""Percentiles are what the project promises by, so they are checked against their definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.distribution import Distribution, middle
from benchmarks.scenarios import SCENARIOS

_times = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=300)


def test_percentiles_of_a_hundred() -> None:
    assert Distribution.of([float(n) for n in range(100, 0, -1)]) == Distribution(p50=50, p95=95, p99=99, max=100)


def test_one_time_is_all_percentiles() -> None:
    assert Distribution.of([7.0]) == Distribution(p50=7, p95=7, p99=7, max=7)


def test_nothing_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Distribution.of([])


@given(_times)
def test_percentiles_were_measured_and_stand_in_order(times: list[float]) -> None:
    found = Distribution.of(times)
    assert {found.p50, found.p95, found.p99, found.max} <= set(times)
    assert found.p50 <= found.p95 <= found.p99 <= found.max == max(times)


@given(_times)
def test_at_least_that_many_are_no_longer(times: list[float]) -> None:
    found = Distribution.of(times)
    for percent, limit in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert 100 * sum(time <= limit for time in times) >= percent * len(times)


def test_one_bad_round_shows_in_the_maximum_only() -> None:
    quiet, bad = Distribution(p50=1, p95=2, p99=3, max=4), Distribution(p50=10, p95=20, p99=30, max=40)
    assert middle([quiet, bad, quiet]) == Distribution(p50=1, p95=2, p99=3, max=40)


def test_a_smaller_scale_keeps_the_rhythm() -> None:
    small = SCENARIOS["S1"].scaled(0.01)
    assert (small.count, small.outstanding) == (200, 200)
    assert SCENARIOS["S2"].scaled(0.1).starts_per_s == SCENARIOS["S2"].starts_per_s
