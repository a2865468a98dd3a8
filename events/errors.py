"""Every error cuebook raises on purpose, one class for each thing the caller does next.

CuebookError
├── CommandRejectedError       a rule said no                      answer with the reason
├── ConcurrencyConflictError   lost the race to append             reload, decide again, a few times
├── UnavailableError           broker, database or model down      try again with a delay
├── PoisonMessageError         can never be decoded                record it as rejected and go on
│   └── UnknownEventError      decodes, but its type is not known  the same; newer code may read it
├── InvalidTokenError          an id that no subject may hold      correct the id
├── NotFoundError              no such run, task, agent or answer  correct the name
├── HistoryRegressedError      the log lost or rewrote events      stop; a person decides
└── ConfigurationError         wrong before we started             exit; never retried
    ├── AccessDeniedError      the server refuses who we are       correct the credentials
    └── StreamMissingError     nobody has made the space yet, or   start the orchestrator, or wait for it
                               its stream was dropped
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "CommandRejectedError",
    "ConcurrencyConflictError",
    "ConfigurationError",
    "CuebookError",
    "HistoryRegressedError",
    "InvalidTokenError",
    "NotFoundError",
    "PoisonMessageError",
    "StreamMissingError",
    "UnavailableError",
    "UnknownEventError",
]


class CuebookError(Exception):
    """Base of all errors raised on purpose. `remedy` says what to do next, or is empty."""

    remedy: str = ""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        if remedy:
            self.remedy = remedy


class CommandRejectedError(CuebookError):
    """A rule refused the command; sending it again unchanged will be refused again."""


class ConcurrencyConflictError(CuebookError):
    """Another writer appended first: reload and decide again.

    Source: JetStream err_code 10071 (wrong last sequence); 10164 where a replicated stream has it in the air.
    """

    def __init__(self, scope: str, expected_sequence: int) -> None:
        super().__init__(f"{scope} has events after sequence {expected_sequence}")
        self.scope, self.expected_sequence = scope, expected_sequence


class UnavailableError(CuebookError):
    """A server we depend on did not answer in time; the same call may succeed later."""


class PoisonMessageError(CuebookError):
    """The bytes can never become an event: malformed, too large, too deep, or of the wrong shape."""


class UnknownEventError(PoisonMessageError):
    """A well-formed envelope whose type or version this release does not know."""


class InvalidTokenError(CuebookError, ValueError):
    """An id that cannot be one token of a subject."""


class NotFoundError(CuebookError):
    """No such run, task, agent or escalation."""


class HistoryRegressedError(CuebookError):
    """The log no longer holds what was already read from it: it was truncated, restored or rewritten."""

    remedy = "compare the stream with its backup before anything reads on; a rebuild starts again from event 1"


class ConfigurationError(CuebookError):
    """Something is wrong that no retry will mend: a setting, a version, a missing program."""


class AccessDeniedError(ConfigurationError):
    """The server does not take our credentials, or there are none."""


class StreamMissingError(ConfigurationError):
    """There is no such stream: the space's orchestrator has never run, its name is another one, or it was dropped."""
