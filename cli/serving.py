"""What all service processes do alike: wait for what they need, tell that they are ready, and end in good order.

The first SIGTERM or SIGINT lets the service finish within its deadline; the second ends the process at once, which
loses nothing either: tasks in flight go to others when our heartbeats are missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import typer

from cuebook.actors.collector import tend_collector
from cuebook.cli.exits import Exit, reported_errors
from cuebook.cli.logs import LogFormat, LogLevel, configure_logs
from cuebook.cli.options import Target
from cuebook.cli.systemd import feed_watchdog, notify
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import CuebookError, StreamMissingError, UnavailableError
from cuebook.events.log import EventLog

__all__ = ["Running", "Serving", "Settings", "run_service"]

RETRY_S: Final = 0.5
STOP_GRACE_S: Final = 5.0
"""Beyond the deadline of the drain: for the last appends, and for what the service's own end needs."""
END_WITHIN_S: Final = 3.0
"""So long may a handler's thread that does not return, or a task that will not be cancelled, hold the process."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every service is told. `wait_s` None: wait for NATS and the stream for ever."""

    target: Target
    drain_s: float
    wait_s: float | None
    log_format: LogFormat
    log_level: LogLevel
    monitor_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service under way: `run` serves until `stop` is called, `ready` is set once it takes work."""

    run: Coroutine[Any, Any, None]
    stop: Callable[[], None]
    ready: asyncio.Event
    facts: dict[str, Any]


class Serving:
    """A service process from the inside."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopping = asyncio.Event()

    async def connect(self, name: str) -> Connection | None:
        """A connection, once NATS answers; None when we are to stop. Raises as `events.connection.connect`."""
        target = self.settings.target
        options = target.client_options
        found: Connection | None = await self._persist(
            "waiting for NATS", lambda: connect(target.nats_url, name=f"cuebook {name}", **options)
        )
        return found

    async def stream(self, log: EventLog, *, replicas: int | None = None) -> bool:
        """Whether the stream is there, made with `replicas` or waited for; False when we are to stop."""
        find = log.verify if replicas is None else lambda: log.ensure(replicas=replicas)
        return await self._persist("waiting for the stream, which the orchestrator makes", find) is not None

    async def serve(self, service: Running, connection: Connection) -> None:
        """Run the service until it ends by itself, we are to stop, or NATS will not have us any more."""
        async with AsyncExitStack() as stack:
            running = asyncio.ensure_future(service.run)
            ended: list[asyncio.Future[Any]] = [
                running, asyncio.ensure_future(self.stopping.wait()), asyncio.ensure_future(connection.closed.wait())
            ]  # fmt: skip
            helpers = [*ended[1:], asyncio.ensure_future(_announce(service)), asyncio.ensure_future(feed_watchdog())]
            for helper in helpers:
                stack.callback(helper.cancel)
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            lost = connection.closed.is_set() and not self.stopping.is_set()
            if not running.done():
                notify("STOPPING=1", "STATUS=draining")
                service.stop()
                limit_s = self.settings.drain_s + STOP_GRACE_S
                if not (await asyncio.wait([running], timeout=limit_s))[0]:
                    raise UnavailableError(
                        f"not stopped in good order within {limit_s:g} s", remedy="nothing is lost: the log decides"
                    )
            running.result()
            if lost:
                raise UnavailableError("the connection to NATS has ended for good", remedy="look at the server's log")
        logger.info("stopped", extra=service.facts)

    async def _persist(self, message: str, attempt: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        clock = asyncio.get_running_loop().time
        give_up = None if self.settings.wait_s is None else clock() + self.settings.wait_s
        said = False
        while not self.stopping.is_set():
            try:
                return await attempt()
            except (UnavailableError, StreamMissingError) as error:
                if give_up is not None and clock() >= give_up:
                    raise
                if not said:
                    logger.warning(message, extra={"reason": str(error)})
                    notify(f"STATUS={message}")
                    said = True
            stopping = asyncio.ensure_future(self.stopping.wait())
            await asyncio.wait([stopping], timeout=RETRY_S)
            stopping.cancel()
        return None


async def _announce(service: Running) -> None:
    await service.ready.wait()
    logger.info("ready", extra=service.facts)
    notify("READY=1", "STATUS=ready")
    await tend_collector()


def run_service(settings: Settings, main: Callable[[Serving], Coroutine[Any, Any, None]]) -> None:
    """Run a service process to its end; raises typer.Exit with the status, or ends the process."""
    configure_logs(settings.log_level, settings.log_format)
    as_json = settings.log_format is LogFormat.JSON
    serving = Serving(settings)
    status = int(Exit.OK)
    runner = asyncio.Runner()
    loop = runner.get_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, serving, number)
    try:
        with reported_errors(as_json=as_json):
            runner.run(_guarded(main(serving)))
    except typer.Exit as ended:
        status = ended.exit_code
    deadline = threading.Timer(END_WITHIN_S, _end_now, [status])
    deadline.daemon = True
    deadline.start()
    runner.close()
    raise typer.Exit(status)


async def _guarded(main: Coroutine[Any, Any, None]) -> None:
    try:
        await main
    except (CuebookError, BaseExceptionGroup):
        raise
    except Exception as error:
        logger.exception("the service ended by an error that is not cuebook's own")
        raise CuebookError(f"{type(error).__name__}: {error}", remedy="the log above says where") from error


def _on_signal(serving: Serving, number: signal.Signals) -> None:
    name = signal.Signals(number).name
    if serving.stopping.is_set():
        logger.warning("stopping at once; tasks in flight go to others", extra={"signal": name})
        _end_now(Exit.INTERRUPTED)
    logger.info("stopping", extra={"signal": name, "drain_s": serving.settings.drain_s})
    serving.stopping.set()


def _end_now(status: int) -> None:
    """End the process whatever its threads do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)
