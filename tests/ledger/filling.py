"""A log with messages of many kinds, some of them of nobody's."""

from __future__ import annotations

from cuebook.events.log import EventLog
from tests.waiting import eventually

__all__ = ["fill"]

RUNS = 150


async def fill(log: EventLog, count: int) -> None:
    """Store so many of them, as the first of the log."""
    space, connection = log.subjects.space, log.connection
    for n in range(count):
        subjects = (
            f"run.r{n % RUNS}.started",
            f"run.r{n % RUNS}.task.{n // RUNS}.requested.echo",
            f"agent.echo.i{n % 3}.registered" if n % 100 == 2 else f"event.order.placed.n{n % 5}",
            f"run.r{n % RUNS}.completed",
            f"rejected.{n}",
        )
        name = f"{space}.{subjects[n % len(subjects)]}".encode()
        if n % 500 == 77:
            name = f"{space}.event.odd.".encode() + b"\xff\xfe"
        body = b'{"n": %d}' % n if n % 3 else bytes([n % 256]) * (n % 700)
        if n % 4:
            connection.write(b"PUB %b %d\r\n%b\r\n" % (name, len(body), body))
        else:
            head = b"NATS/1.0\r\nNats-Msg-Id: m-%d\r\n\r\n" % n
            connection.write(b"HPUB %b %d %d\r\n%b%b\r\n" % (name, len(head), len(head) + len(body), head, body))
    await connection.flush()
    await stored(log, count)


async def stored(log: EventLog, count: int) -> None:
    async def there() -> bool:
        return (await log.verify()).last_sequence >= count

    await eventually(there)
