"""`cuebook serve agents --processes`: a group of processes under systemd, in a terminal, or in a container.

SIGTERM and SIGINT drain all at once, a second one kills them; SIGHUP reads the settings files again and puts a fresh
process in the place of each, one after another, with what the files say now and the code that is there now.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from typing import Final

import typer

from cuebook.cli.exits import Exit, reported_errors
from cuebook.cli.logs import LogFormat, LogLevel, configure_logs
from cuebook.cli.options import DEFAULT_DRAIN_S
from cuebook.cli.serving.cores import count_processes
from cuebook.cli.serving.lifecycle import Settings, end_now
from cuebook.cli.serving.supervisor import PATIENCE_S, Group, Plan, this_program
from cuebook.cli.units.sd_notify import keep_posted, notify, watchdog_s
from cuebook.events.errors import CuebookError

__all__ = ["run_group"]

_SETTINGS: Final = "CUEBOOK_"

logger = logging.getLogger(__name__)


def run_group(settings: Settings, processes: str) -> None:
    """Run a group of processes of this very command to its end; raises typer.Exit with the status."""
    configure_logs(settings.log_level, settings.log_format)
    with reported_errors(as_json=settings.log_format is LogFormat.JSON):
        count = count_processes(processes)
    logger.info("supervising", extra={"processes": count, "pid": os.getpid()})
    raise typer.Exit(asyncio.run(_Supervisor(settings, count).run()))


class _Supervisor:
    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        plan = Plan(
            argv=this_program(),
            env=dict(os.environ),
            processes=count,
            drain_s=settings.drain_s,
            patience_s=watchdog_s() or PATIENCE_S,
        )
        self._group = Group(plan, self._tell)
        self._at_terminal = _has_terminal()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, self._on_stop, signal.SIGINT)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        posted = asyncio.create_task(keep_posted(self._group.status_line, self._group.hanging))
        try:
            status = await self._group.run()
        finally:
            posted.cancel()
        logger.info("stopped", extra={"status": status})
        return status

    def _tell(self) -> None:
        """The group is ready, or has been reloaded."""
        if self._group.ready.is_set() and not self._group.reloading and not self._group.stopping.is_set():
            logger.info("all processes are ready", extra={"processes": self._group.plan.processes})
            notify("READY=1", f"STATUS={self._group.status_line()}")

    def _on_stop(self, number: signal.Signals) -> None:
        if self._group.stopping.is_set():
            logger.warning("stopping at once; tasks in flight go to others", extra={"signal": number.name})
            self._group.kill()
            end_now(Exit.INTERRUPTED)
        drain_s = self._group.plan.drain_s
        logger.info("stopping", extra={"signal": number.name, "drain_s": drain_s})
        notify("STOPPING=1", f"STATUS=draining for at most {drain_s:g} s")
        self._group.stop()

    def _on_hangup(self) -> None:
        if self._group.stopping.is_set():
            return
        if self._at_terminal and not _has_terminal():
            self._on_stop(signal.SIGHUP)  # the terminal we were started in has been closed
            return
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._reload()
        except (ValueError, CuebookError) as error:
            logger.error("not reloaded: %s", error)  # noqa: TRY400 - a mistake in a file, not ours
            self._tell()

    def _reload(self) -> None:
        present, plan = self._settings, self._group.plan
        values, changed = present.files.read_again() if present.files is not None else ({}, set[str]())

        def now(name: str, default: object, current: object) -> str:
            return (values.get(name) or str(default)) if name in changed else str(current)

        settings = replace(
            present,
            log_level=LogLevel(now("CUEBOOK_LOG_LEVEL", LogLevel.INFO, present.log_level)),
            log_format=LogFormat(now("CUEBOOK_LOG_FORMAT", LogFormat.TEXT, present.log_format)),
            drain_s=float(now("CUEBOOK_DRAIN_S", DEFAULT_DRAIN_S, present.drain_s)),
        )
        count = count_processes(now("CUEBOOK_PROCESSES", plan.processes, plan.processes))
        if present.files is not None:
            env = {name: value for name, value in plan.env.items() if not name.startswith(_SETTINGS)} | values
        else:
            env = dict(plan.env)
        self._settings = settings
        configure_logs(settings.log_level, settings.log_format)
        said = ",".join(sorted(changed)) or "nothing"
        logger.info("reloading: a fresh process for each", extra={"changed": said, "processes": count})
        self._group.reload(replace(plan, env=env, processes=count, drain_s=settings.drain_s))


def _has_terminal() -> bool:
    """Whether we were started in a terminal that is still there."""
    try:
        os.tcgetpgrp(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # it is closed, or is nothing at all
        return False
    return True
