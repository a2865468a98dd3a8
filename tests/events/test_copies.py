"""Copies of messages: what the original was comes back, and only from a stream that is marked as an import."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.copies import Original, copy_guard, copy_headers, original_of
from cuebook.events.log import EventLog

originals = st.builds(Original, st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(max_size=100))


@given(originals, st.sampled_from([b"", b"17"]), st.integers(0, 2**63 - 1))
def test_an_original_comes_back_from_its_copy(original: Original, before: bytes, last: int) -> None:
    assert original_of(copy_headers(original, b"18", copy_guard(before, last, "cue.>"))) == original


@given(st.binary(max_size=100))
def test_other_headers_are_those_of_no_copy(headers: bytes) -> None:
    assert original_of(headers) is None
    assert original_of(None) is None


async def test_a_living_log_does_not_believe_who_says_to_be_a_copy(log: EventLog) -> None:
    before = time.time_ns() // 1000 - 60_000_000
    forged = {"Cuebook-Original": "1 7 1000000000 "}
    await log.connection.request(f"{log.subjects.space}.event.x", b"{}", timeout=10, headers=forged)
    item = await log.at(1)
    assert item is not None
    assert item.recorded_at > before
    assert item.sequence == 1
