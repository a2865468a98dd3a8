"""Many time limits on one timer behave as `asyncio.timeout` does, each for itself."""

import asyncio

import pytest

from cuebook.actors.deadlines import Deadlines, TaskTimeoutError

FOREVER_S = 3600.0


async def test_what_ends_in_time_keeps_its_result() -> None:
    deadlines = Deadlines()
    with deadlines.within(FOREVER_S):
        await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_what_takes_too_long_is_cancelled_and_the_error_says_how_long_it_had() -> None:
    deadlines = Deadlines()
    with pytest.raises(TaskTimeoutError, match=r"no result within 0\.01 s"), deadlines.within(0.01):
        await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_shorter_limit_that_begins_later_ends_first() -> None:
    deadlines, order = Deadlines(), []

    async def wait(span_s: float) -> None:
        try:
            with deadlines.within(span_s):
                await asyncio.Event().wait()
        except TaskTimeoutError:
            order.append(span_s)

    await asyncio.gather(wait(2.0), wait(1.0), wait(2.0), wait(0.1))
    assert order == [0.1, 1.0, 2.0, 2.0]


async def test_of_many_with_the_same_limit_only_those_that_last_expire() -> None:
    deadlines, done, late = Deadlines(), asyncio.Event(), []

    async def work(number: int) -> None:
        try:
            with deadlines.within(1.0):
                if number % 3:
                    await done.wait()
                else:
                    await asyncio.Event().wait()
        except TaskTimeoutError:
            late.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(work(number))
        await asyncio.sleep(0)
        done.set()
    assert sorted(late) == list(range(0, 30, 3))


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    deadlines = Deadlines()

    async def work() -> None:
        with deadlines.within(FOREVER_S):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_comes_together_with_the_limit_wins() -> None:
    deadlines = Deadlines()

    async def work() -> None:
        with deadlines.within(0.01):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                raise

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_result_that_comes_in_spite_of_the_cancellation_counts() -> None:
    deadlines, event = Deadlines(), asyncio.Event()
    with deadlines.within(0.01):
        try:
            await event.wait()
        except asyncio.CancelledError:
            event.set()
    assert event.is_set()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_an_error_of_the_work_itself_is_not_mistaken_for_the_limit() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError) as raised, deadlines.within(FOREVER_S):
        raise TimeoutError("the bank did not answer")
    assert not isinstance(raised.value, TaskTimeoutError)


async def test_limits_within_limits_are_told_apart() -> None:
    deadlines = Deadlines()
    inner = deadlines.within(0.01)
    with pytest.raises(TaskTimeoutError, match=r"within 0\.01 s"), deadlines.within(FOREVER_S), inner:
        await asyncio.Event().wait()
