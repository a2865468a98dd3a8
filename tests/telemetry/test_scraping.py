"""Whoever scrapes, and however slowly, holds up neither work nor others."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.telemetry.metric import OTHERS, Histogram, Names
from cuebook.telemetry.metric_names import priority_label
from cuebook.telemetry.metrics import Metrics
from cuebook.telemetry.scraping import Endpoint, parse_address
from tests.waiting import eventually

MOST = 3
LARGE = 16 * 1024 * 1024
"""Bytes: more than the system buffers for a connection."""


class Page:
    """Says how often it was looked at, after a lot of nothing."""

    def __init__(self, size: int = 0) -> None:
        self.looks = 0
        self._size = size

    async def look(self) -> None:
        self.looks += 1

    def write(self, accept: str) -> tuple[str, bytes]:
        return "text/plain", b" " * self._size + str(self.looks).encode()


@pytest.fixture
async def page() -> AsyncIterator[tuple[Page, Endpoint]]:
    large = Page(LARGE)
    endpoint = Endpoint("127.0.0.1:0", large, asyncio.get_running_loop(), most=MOST)
    endpoint.start()
    yield large, endpoint
    endpoint.close()


async def test_whoever_relieves_another_has_its_address_once_that_has_ended() -> None:
    loop = asyncio.get_running_loop()
    old = Endpoint("127.0.0.1:0", Page(), loop)
    old.start()
    address = old.url.removeprefix("http://").removesuffix("/metrics")
    with pytest.raises(UnavailableError, match="already in use"):
        Endpoint(address, Page(), loop)
    relieving = Page()
    fresh = Endpoint(address, relieving, loop, waits=True)
    fresh.start()
    try:
        assert fresh.url == old.url
        assert await asyncio.to_thread(read, old.url) == "1"
        assert relieving.looks == 0
        old.close()

        async def has_taken_over() -> bool:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(read, fresh.url)
            return relieving.looks > 0

        await eventually(has_taken_over, within_s=60)
    finally:
        old.close()
        fresh.close()


async def test_who_waits_for_an_address_can_end_meanwhile() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        endpoint = Endpoint(f"127.0.0.1:{port}", Page(), asyncio.get_running_loop(), waits=True)
        endpoint.start()
        endpoint.close()


def asking(endpoint: Endpoint) -> socket.socket:
    """A scraper that has asked and reads nothing yet."""
    port = int(endpoint.url.rpartition(":")[2].partition("/")[0])
    found = socket.create_connection(("127.0.0.1", port), timeout=60)
    found.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    return found


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode()).strip()


async def test_scrapers_that_read_byte_by_byte_hold_up_neither_work_nor_each_other(
    page: tuple[Page, Endpoint],
) -> None:
    large, endpoint = page
    slow = [asking(endpoint) for _ in range(MOST - 1)]
    try:
        await eventually(lambda: all_begun(slow))
        before = large.looks
        assert await asyncio.to_thread(read, endpoint.url) == str(before + 1)  # another one gets everything
        assert await all_begun(slow)  # while none of these has it
        turns = 0
        for _ in range(1000):  # and the loop goes round
            await asyncio.sleep(0)
            turns += 1
        assert turns == 1000
    finally:
        for one in slow:
            one.close()


async def all_begun(slow: list[socket.socket]) -> bool:
    """Each takes one byte."""
    return all([len(await asyncio.to_thread(one.recv, 1)) == 1 for one in slow])


async def test_more_scrapers_than_there_is_room_for_are_refused(page: tuple[Page, Endpoint]) -> None:
    _, endpoint = page
    slow = [asking(endpoint) for _ in range(MOST)]
    try:
        await eventually(lambda: all_begun(slow))
        with closing(asking(endpoint)) as last:
            assert (await asyncio.to_thread(last.recv, 4096)).startswith(b"HTTP/1.1 503 ")
    finally:
        for one in slow:
            one.close()
    answered = await eventually(lambda: asyncio.to_thread(tried, endpoint.url), within_s=60)
    assert answered.isdigit()


def tried(url: str) -> str:
    try:
        return read(url)
    except urllib.error.HTTPError:
        return ""


def test_while_the_loop_stands_still_the_last_values_are_told_and_that_it_does() -> None:
    metrics = Metrics("cuebook-test", "cue")
    loops: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    entered, go_on = threading.Event(), threading.Event()

    async def work() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        metrics.loop_delay.start(loop)
        loops.put((loop, end))
        await end.wait()

    def stand_still() -> None:
        entered.set()
        go_on.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    loop, end = loops.get()
    endpoint = Endpoint("127.0.0.1:0", metrics, loop)
    endpoint.start()
    try:
        while blocked(moving := read(endpoint.url)) >= 1:
            pass  # the machine stood still
        loop.call_soon_threadsafe(stand_still)
        entered.wait()
        standing = read(endpoint.url)
    finally:
        go_on.set()
        loop.call_soon_threadsafe(end.set)
        thread.join()
        endpoint.close()
        metrics.close()
    assert blocked(standing) > 1
    delays = [line for line in moving.splitlines() if line.startswith("cuebook_event_loop_delay")]
    assert delays == [line for line in standing.splitlines() if line.startswith("cuebook_event_loop_delay")]


def blocked(text: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith("cuebook_event_loop_blocked_seconds{")]
    return float(line.rpartition(" ")[2])


async def test_what_is_no_request_for_metrics_is_told_so(page: tuple[Page, Endpoint]) -> None:
    _, endpoint = page
    base = endpoint.url.removesuffix("/metrics")
    for request, status in (
        (urllib.request.Request(f"{base}/"), 404),
        (urllib.request.Request(endpoint.url, data=b"x"), 405),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, request, timeout=60)
        assert refused.value.code == status
        refused.value.close()


async def test_a_source_that_raises_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics("cuebook-test", "cue")

    async def broken() -> list[object]:
        raise RuntimeError("no")

    metrics.add(broken)  # type: ignore[arg-type]
    await metrics.look()
    text = metrics.write("")[1].decode()
    metrics.close()
    assert "cuebook_event_loop_delay_seconds_count" in text
    assert "some metrics cannot be told" in caplog.text


async def test_a_port_that_is_taken_is_said() -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnavailableError, match="metrics cannot be served at") as refused,
    ):
        Endpoint(f"127.0.0.1:{taken.getsockname()[1]}", Page(), loop)
    assert "CUEBOOK_METRICS" in refused.value.remedy


@pytest.mark.parametrize("text", ["9464", ":9464", "localhost", "localhost:", "h:70000", "::1:9464", "h:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no address"):
        parse_address(text)


def test_an_address_of_version_six_has_brackets() -> None:
    assert parse_address("[::1]:9464") == ("::1", 9464)


def test_a_histogram_counts_each_value_in_one_bucket() -> None:
    times = Histogram((1.0, 2.0))
    for value in (-1.0, 0.5, 1.0, 1.5, 3.0):
        times.record(value)
    found = times.now()
    assert (found.counts, found.total) == ((3, 1, 1), 6.0)


def test_names_beyond_the_limit_are_others() -> None:
    names = Names(2)
    assert [names(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHERS, "a", OTHERS]


def test_priorities_are_few() -> None:
    labels = {priority_label(one) for one in range(-1000, 1001)}
    assert len(labels) == 21
    assert [priority_label(one) for one in (-100, -9, 0, 9, 10)] == ["<-9", "-9", "0", "9", ">9"]
