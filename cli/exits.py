"""Exit statuses, and the one place where an error becomes a message and a status. docs/cli.md lists them for users."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from cuebook.events.errors import (
    AccessDeniedError,
    ConcurrencyConflictError,
    CuebookError,
    HistoryRegressedError,
    InvalidTokenError,
    NotFoundError,
    PoisonMessageError,
    StreamMissingError,
    UnavailableError,
)
from cuebook.ledger.errors import ExportError, TamperedError

__all__ = [
    "OUTCOMES",
    "DecidedError",
    "DriftError",
    "Exit",
    "InputError",
    "Interruption",
    "PluginExit",
    "print_error",
    "reported_errors",
]


class Exit(IntEnum):
    """What a command's exit status says. Never renumber: scripts depend on it."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTH = 4
    UNREACHABLE = 5
    TIMEOUT = 6
    CONFLICT = 7
    DRIFT = 8
    INTERRUPTED = 9
    RUN_FAILED = 10
    RUN_UNFINISHED = 11
    RUN_CANCELLED = 12
    RUN_COMPENSATED = 13
    RUN_ABORTED = 14
    RUN_REJECTED = 15
    RUN_STUCK = 16
    RECYCLED = 17


class PluginExit(IntEnum):
    """What `cuebook doctor` and `cuebook check` end with, as every monitoring system reads it."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


OUTCOMES = {
    "completed": Exit.OK,
    "failed": Exit.RUN_FAILED,
    "cancelled": Exit.RUN_CANCELLED,
    "compensated": Exit.RUN_COMPENSATED,
    "aborted": Exit.RUN_ABORTED,
    "rejected": Exit.RUN_REJECTED,
    "stuck": Exit.RUN_STUCK,
}
"""The status with which waiting for a run ends, by how the run ended."""


class InputError(CuebookError):
    """What was said on the command line cannot be meant: malformed JSON, a moment that is none, flags that disagree."""


class DecidedError(CuebookError):
    """A person's word comes too late, or to a place that does not ask for one."""


class DriftError(CuebookError):
    """Something was checked against the log and differs."""


class Interruption:
    """What to tell who interrupts a command: `resume` is the command that goes on from here."""

    resume: str = ""


_STATUSES: tuple[tuple[type[Exception], Exit], ...] = (
    (InputError, Exit.USAGE),
    (InvalidTokenError, Exit.USAGE),
    (PoisonMessageError, Exit.USAGE),
    (NotFoundError, Exit.NOT_FOUND),
    (StreamMissingError, Exit.NOT_FOUND),
    (AccessDeniedError, Exit.AUTH),
    (UnavailableError, Exit.UNREACHABLE),
    (ConcurrencyConflictError, Exit.CONFLICT),
    (DecidedError, Exit.CONFLICT),
    (ExportError, Exit.USAGE),
    (HistoryRegressedError, Exit.DRIFT),
    (TamperedError, Exit.DRIFT),
    (DriftError, Exit.DRIFT),
    (TimeoutError, Exit.TIMEOUT),
)


@contextmanager
def reported_errors(*, as_json: bool = False) -> Iterator[Interruption]:
    """Report a CuebookError, a timeout or an interruption, and exit with its status. All else is a defect of ours.

    Raises BrokenPipeError, by itself, when nobody reads our output any more; typer ends the process in silence then.
    """
    interruption = Interruption()
    try:
        yield interruption
    except KeyboardInterrupt as interrupt:
        fix = f"go on with: {interruption.resume}" if interruption.resume else ""
        print_error("interrupted", fix, as_json=as_json)
        raise typer.Exit(Exit.INTERRUPTED) from interrupt
    except Exception as raised:
        error = _cause(raised)
        if error is None:
            if _reader_gone(raised):  # out of a group, so that whoever calls us sees what it is
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise
        print_error(str(error) or type(error).__name__, getattr(error, "remedy", ""), as_json=as_json)
        raise typer.Exit(_status(error)) from raised


def print_error(message: str, fix: str, *, as_json: bool) -> None:
    """Write an error to stderr: two lines for people, or one JSON object with `error` and `fix`."""
    if as_json:
        lines = [json.dumps({"error": message, "fix": fix})]
    else:
        lines = [f"error: {message}", *([f"fix: {fix}"] if fix else [])]
    for line in lines:
        typer.echo(line, file=sys.stderr)


def _reader_gone(raised: BaseException) -> bool:
    """Whether all that went wrong is that nobody reads our output any more, as after `| head`."""
    if isinstance(raised, BaseExceptionGroup):
        return all(_reader_gone(inner) for inner in raised.exceptions)
    return isinstance(raised, BrokenPipeError)


def _cause(raised: BaseException) -> Exception | None:
    """The error to report: the first known one, also out of a group."""
    if isinstance(raised, BaseExceptionGroup):
        found = (_cause(inner) for inner in raised.exceptions)
        return next((error for error in found if error is not None), None)
    return raised if isinstance(raised, CuebookError | TimeoutError) else None


def _status(error: Exception) -> Exit:
    if isinstance(error.__cause__, ConcurrencyConflictError):  # a command refused because another was first
        return Exit.CONFLICT
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), Exit.FAILURE)
