"""What metrics cost: the processes serve them, and somebody scrapes them all once a second.

`python -m benchmarks.metrics` times what is added to the path of a task, by itself; the rest varies by more.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from cuebook.actors.handling import Handling
from cuebook.actors.orchestrator.tallies import Tallies
from cuebook.actors.orchestrator.world import World
from cuebook.embedded.process import free_port
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Event, TaskAssigned, TaskCompleted, TaskRequested
from cuebook.events.subjects import Subjects
from cuebook.telemetry.metric import Histogram, Sample
from cuebook.telemetry.metrics import Metrics

__all__ = ["metrics_address", "metrics_environment", "scraped"]

TASKS: Final = 10_000
EVERY_S: Final = 1.0
"""Fifteen times as often as Prometheus usually does."""
ROLES: Final = ("orchestrator", "agents", "projections")
_VARIABLE: Final = "BENCHMARK_METRICS_{}"


def metrics_environment() -> dict[str, str]:
    """An address for each process."""
    return {_VARIABLE.format(role.upper()): f"127.0.0.1:{free_port()}" for role in ROLES}


def metrics_address(role: str) -> str:
    """Where the process in this role serves them; empty: nowhere."""
    return os.environ.get(_VARIABLE.format(role.upper()), "")


@contextmanager
def scraped(env: Mapping[str, str]) -> Iterator[None]:
    """Scrape whoever has an address there, until the end of the block, in a thread of this process."""
    ended = threading.Event()
    urls = [f"http://{env[name]}/metrics" for role in ROLES if (name := _VARIABLE.format(role.upper())) in env]

    def scrape() -> None:
        while not ended.wait(EVERY_S):
            for url in urls:
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        answer.read()
                except OSError:
                    pass  # no projections, or not yet

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _events(n: int) -> list[Envelope]:
    """Of one task: requested, assigned, completed."""
    subjects, run_id = Subjects("bench"), f"r{n}"
    assigned = TaskAssigned(handler="work", attempt=1, timeout_s=60.0, input=None, reason={})
    written: list[tuple[str, Event]] = [
        (subjects.task(run_id, 0, "requested", "stagehand"), TaskRequested(handler="work")),
        (subjects.task(run_id, 0, "assigned", "stagehand", "i1"), assigned),
        (subjects.task(run_id, 0, "completed"), TaskCompleted(output=None, attempt=1, duration_s=0.1, by="i1")),
    ]
    return [
        Envelope(
            id=f"{run_id}-{k}", event_type=event.event_type, time=k, source="bench", correlation_id=run_id,
            causation_id="", traceparent="", data=None, event=event, address=subjects.parse(subject), subject=subject,
            sequence=3 * n + k, recorded_at=3 * n + k,
        )
        for k, (subject, event) in enumerate(written, 1)
    ]  # fmt: skip


def _per_task_us(work: Callable[[], None]) -> float:
    """CPU microseconds for one of TASKS, the least of several attempts: what it costs when nothing disturbs."""
    best = float("inf")
    for _ in range(9):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best / TASKS * 1e6


def _main() -> None:
    events = [envelope for n in range(TASKS) for envelope in _events(n)]

    def fold(tallies: Tallies | None) -> None:
        world = World(Subjects("bench"), {})
        for envelope in events:
            touched = world.fold(envelope)
            if tallies is not None:
                tallies.saw(envelope, touched)

    handling, times = Handling().of("stagehand"), Histogram()

    def record() -> None:
        for _ in range(TASKS):
            handling.ended("completed", 0.1)
            for _ in range(3):
                times.record(0.001)

    def empty() -> None:
        for _ in range(TASKS):
            for _ in range(3):
                pass

    otel = MeterProvider([InMemoryMetricReader()]).get_meter("bench").create_histogram("bench", unit="s")
    labels = {"agent": "stagehand", "outcome": "completed"}

    def record_otel() -> None:
        for _ in range(TASKS):
            otel.record(0.1, labels)

    folded = _per_task_us(lambda: fold(None))
    print("CPU microseconds for one task of three events, the least of nine attempts")
    print(f"  the orchestrator counts it         {_per_task_us(lambda: fold(Tallies())) - folded:5.2f}")
    print(f"    (folding it alone takes          {folded:5.2f})")
    print(f"  a handler and three appends timed  {_per_task_us(record) - _per_task_us(empty):5.2f}")
    print(f"    (one record of OpenTelemetry's   {_per_task_us(record_otel):5.2f})")
    print(f"one scrape of what that gives, ms    {_scrape_ms(fold):5.2f}")


def _scrape_ms(fold: Callable[[Tallies], None]) -> float:
    tallies, metrics = Tallies(), Metrics("bench", "bench")
    fold(tallies)

    async def told() -> list[Sample]:
        return tallies.samples()

    metrics.add(told)
    asyncio.run(metrics.look())
    best = float("inf")
    for _ in range(20):
        began = time.process_time()
        metrics.write("")
        best = min(best, time.process_time() - began)
    metrics.close()
    return best * 1e3


if __name__ == "__main__":
    _main()
