"""What all service processes do alike: wait for what they need, tell that they are ready, and end in good order.

The first SIGTERM or SIGINT lets the service finish within its deadline; the second ends the process at once, which
loses nothing either: tasks in flight go to others when our heartbeats are missed. Where a supervisor has started the
process (see supervisor.py), that one hears how it goes, decides when a fresh one should take over, and its end is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import typer

from cuebook.actors.collector import tend_collector
from cuebook.cli.exits import Exit, reported_errors
from cuebook.cli.logs import LogFormat, LogLevel, configure_logs
from cuebook.cli.options import DEFAULT_DRAIN_S, Target
from cuebook.cli.serving.metrics import following, measured, watch_readiness
from cuebook.cli.serving.supervised import Supervised
from cuebook.cli.session import reading_segments
from cuebook.cli.tracing import traced
from cuebook.cli.units.sd_notify import keep_posted, notify
from cuebook.cli.units.settings_files import SettingsFiles
from cuebook.events.connection import Connection, connect
from cuebook.events.errors import CuebookError, StreamMissingError, UnavailableError
from cuebook.events.log import EventLog

if TYPE_CHECKING:
    from cuebook.telemetry.metrics import Metrics
    from cuebook.telemetry.pipeline import Tracing

__all__ = ["END_WITHIN_S", "STOP_GRACE_S", "Running", "Serving", "Settings", "end_now", "run_service"]

RETRY_S: Final = 0.5
STOP_GRACE_S: Final = 5.0
"""Beyond the deadline of the drain: for the last appends, and for what the service's own end needs."""
END_WITHIN_S: Final = 3.0
"""So long may a handler's thread that does not return, or a task that will not be cancelled, hold the process."""
LOOK_EVERY_S: Final = 1.0
MOST_SAID: Final = 2_000
"""Characters about what hangs."""
_OF_ALL: Final = frozenset({"CUEBOOK_LOG_LEVEL", "CUEBOOK_LOG_FORMAT", "CUEBOOK_DRAIN_S"})
"""What every service takes on when it is told to reload."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every service is told. `wait_s` None: wait for NATS and the stream for ever.

    `files`: read again on SIGHUP; without them SIGHUP ends the process, as it does others.
    """

    target: Target
    drain_s: float
    wait_s: float | None
    log_format: LogFormat
    log_level: LogLevel
    monitor_url: str
    files: SettingsFiles | None = None
    metrics: str = ""
    """HOST:PORT where metrics are served; empty: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service under way: `run` serves until `stop` is called, `ready` is set once it takes work.

    Asked every second: `status` is how it goes, in words; `figures` the numbers behind it, for who adds them up;
    `stuck` what hangs, and `spent` why a fresh process should take over, both empty as a rule. `reload` is given all
    settings and the names of those that have changed, and raises ValueError or CuebookError when it cannot have them;
    `reloadable` are those that it takes on.
    """

    run: Coroutine[Any, Any, None]
    stop: Callable[[], None]
    ready: asyncio.Event
    facts: dict[str, Any]
    status: Callable[[], str] = lambda: "ready"
    stuck: Callable[[], str] = lambda: ""
    spent: Callable[[], str] = lambda: ""
    figures: Callable[[], Mapping[str, Any]] = dict
    reload: Callable[[Mapping[str, str], set[str]], None] = lambda *_: None
    reloadable: frozenset[str] = frozenset()


class Serving:
    """A service process from the inside."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopping = asyncio.Event()
        self.status = Exit.OK
        self._service: Running | None = None
        self.tracing: Tracing | None = None
        self.supervised = Supervised.from_environment()
        self.signalled = False
        self.metrics: Metrics | None = None

    @property
    def place(self) -> int:
        """Where it stands among several processes under a supervisor, from 0."""
        return self.supervised.place if self.supervised is not None else 0

    @property
    def relieves(self) -> bool:
        """It takes over from a process that still runs."""
        return self.supervised is not None and self.supervised.relieves

    @property
    def is_ready(self) -> bool:
        """It takes work, or stands by."""
        return self._service is not None and self._service.ready.is_set() and not self.stopping.is_set()

    async def connect(self, name: str, *, url: str = "") -> Connection | None:
        """A connection, once NATS answers; None when we are to stop. Raises as `events.connection.connect`.

        `url`: another server than the one with the log.
        """
        target = self.settings.target
        options = {} if url else target.client_options
        found: Connection | None = await self._persist(
            "waiting for NATS", lambda: connect(url or target.nats_url, name=f"cuebook {name}", **options)
        )
        return reading_segments(found) if found is not None else None

    async def stream(self, log: EventLog, *, replicas: int | None = None) -> bool:
        """Whether the stream is there, made with `replicas` or waited for; False when we are to stop."""
        find = log.verify if replicas is None else lambda: log.ensure(replicas=replicas)
        return await self._persist("waiting for the stream, which the orchestrator makes", find) is not None

    def say(self, status: str) -> None:
        """Tell whoever started us, systemd or a supervisor, how it goes until we are ready."""
        notify(f"STATUS={status}")
        if self.supervised is not None:
            self.supervised.tell(state=status)

    async def serve(self, service: Running, connection: Connection) -> None:
        """Run the service until it ends by itself, we are to stop, or NATS will not have us any more."""
        async with AsyncExitStack() as stack:
            self._service = service
            running = asyncio.ensure_future(service.run)
            ended: list[asyncio.Future[Any]] = [
                running, asyncio.ensure_future(self.stopping.wait()), asyncio.ensure_future(connection.closed.wait())
            ]  # fmt: skip
            helpers = [
                *ended[1:],
                asyncio.ensure_future(self._announce(service)),
                asyncio.ensure_future(self._recycle(service)),
            ]
            for helper in helpers:
                stack.callback(helper.cancel)
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            lost = connection.closed.is_set() and not self.stopping.is_set()
            if self.supervised is not None and running.done() and not lost:
                self._report(service, over=True)
            if not running.done():
                notify("STOPPING=1", f"STATUS=draining for at most {self.settings.drain_s:g} s")
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

    def reload(self) -> None:
        """Read the files with settings again and take on what can be; all else counts from the next start."""
        assert self.settings.files is not None, "asked for only with files"
        service, present = self._service, self.settings
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        values, changed = self.settings.files.read_again()

        def now(name: str, default: object, current: object) -> str:
            return (values.get(name) or str(default)) if name in changed else str(current)

        try:
            settings = replace(
                present,
                log_level=LogLevel(now("CUEBOOK_LOG_LEVEL", LogLevel.INFO, present.log_level)),
                log_format=LogFormat(now("CUEBOOK_LOG_FORMAT", LogFormat.TEXT, present.log_format)),
                drain_s=float(now("CUEBOOK_DRAIN_S", DEFAULT_DRAIN_S, present.drain_s)),
            )
            if service is not None:
                service.reload(values, changed)
        except (ValueError, CuebookError) as error:
            logger.error("not reloaded: %s", error)  # noqa: TRY400 - a mistake in a file, not ours
        else:
            self.settings = settings
            configure_logs(settings.log_level, settings.log_format, _facts_of(self))
            later = changed - _OF_ALL - (service.reloadable if service is not None else frozenset())
            logger.info("reloaded", extra={"changed": ",".join(sorted(changed)) or "nothing"})
            if later:
                logger.warning("these count from the next start", extra={"changed": ",".join(sorted(later))})
        if service is not None and service.ready.is_set():
            notify("READY=1")

    async def _recycle(self, service: Running) -> None:
        """End in good order, with a status of its own, when the service says that it is spent."""
        await service.ready.wait()
        if self.supervised is not None:
            return  # a fresh process comes first, then we are told to stop
        reason = ""
        while not reason:
            await asyncio.sleep(LOOK_EVERY_S)
            reason = service.spent()
        if self.stopping.is_set():
            return
        logger.info("recycling: a fresh process should take over", extra={"reason": reason})
        self.status = Exit.RECYCLED
        self.stopping.set()

    async def _announce(self, service: Running) -> None:
        await service.ready.wait()
        logger.info("ready", extra=service.facts)
        notify("READY=1", f"STATUS={service.status()}")
        keep = keep_posted(service.status, service.stuck) if self.supervised is None else self._keep_reporting(service)
        posted = asyncio.ensure_future(keep)
        try:
            await tend_collector()
        finally:
            posted.cancel()

    async def _keep_reporting(self, service: Running) -> None:
        while True:
            self._report(service)
            await asyncio.sleep(LOOK_EVERY_S)

    def _report(self, service: Running, **more: Any) -> None:
        """Tell the supervisor how it goes, as others tell systemd."""
        if self.supervised is not None:
            told = {"state": service.status(), "stuck": service.stuck()[:MOST_SAID], "spent": service.spent()}
            self.supervised.tell(ready=service.ready.is_set(), **told, **service.figures(), **more)

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
                    self.say(message)
                    said = True
            stopping = asyncio.ensure_future(self.stopping.wait())
            await asyncio.wait([stopping], timeout=RETRY_S)
            stopping.cancel()
        return None


def run_service(settings: Settings, name: str, main: Callable[[Serving], Coroutine[Any, Any, None]]) -> None:
    """Run a service process to its end; raises typer.Exit with the status, or ends the process."""
    serving = Serving(settings)
    configure_logs(settings.log_level, settings.log_format, _facts_of(serving))
    faulthandler.enable()  # the watchdog's SIGABRT leaves in the log where every thread stood
    as_json = settings.log_format is LogFormat.JSON
    status = int(Exit.OK)
    runner = asyncio.Runner()
    loop = runner.get_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, serving, number)
    if serving.supervised is not None:
        serving.supervised.when_orphaned(lambda: _on_orphaned(serving, loop))
    elif settings.files is not None:
        loop.add_signal_handler(signal.SIGHUP, serving.reload)
    try:
        with (
            reported_errors(as_json=as_json),
            measured(
                following(settings.metrics, serving.place),
                f"cuebook-{name}",
                settings.target.space,
                loop,
                waits=serving.relieves,
            ) as serving.metrics,
            traced(f"cuebook-{name}") as serving.tracing,
        ):
            if serving.metrics is not None:
                watch_readiness(serving.metrics, lambda: serving.is_ready)
            runner.run(_guarded(main(serving)))
        status = int(serving.status)
    except typer.Exit as ended:
        status = ended.exit_code
    deadline = threading.Timer(END_WITHIN_S, end_now, [status])
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
    if serving.signalled and serving.supervised is not None:
        return  # a supervisor kills when it is impatient; when it dies, Linux may tell us once for each of its threads
    if serving.signalled:
        logger.warning("stopping at once; tasks in flight go to others", extra={"signal": name})
        end_now(Exit.INTERRUPTED)
    serving.signalled = True
    logger.info("stopping", extra={"signal": name, "drain_s": serving.settings.drain_s})
    serving.stopping.set()


def _on_orphaned(serving: Serving, loop: asyncio.AbstractEventLoop) -> None:
    """The supervisor is gone, without having told us to stop as a rule. We end as if it had, whatever the loop does."""

    def stop() -> None:
        if not serving.stopping.is_set():
            logger.warning("the supervisor is gone: stopping", extra={"drain_s": serving.settings.drain_s})
            serving.stopping.set()

    with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end already
        loop.call_soon_threadsafe(stop)
    time.sleep(serving.settings.drain_s + STOP_GRACE_S + END_WITHIN_S)
    end_now(Exit.FAILURE)


def _facts_of(serving: Serving) -> dict[str, Any]:
    return {} if serving.supervised is None else {"child": serving.supervised.number}


def end_now(status: int) -> None:
    """End the process whatever its threads do."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)
