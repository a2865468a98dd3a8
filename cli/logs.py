"""Logging to stderr: one line per record, as text or as JSON. The message is constant, its facts follow as fields."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

__all__ = ["LogFormat", "LogLevel", "configure_logs"]

MOST_CHARACTERS: Final = 20_000
"""Of a message, a fact or a traceback each: what an author's error says may be megabytes."""
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logs(level: str, format_: str, facts: Mapping[str, Any] | None = None) -> None:
    """Send all logging of the process to stderr, in place of what was configured before.

    `facts`: fields that every record gets, where it does not have them itself.
    """
    handler = logging.StreamHandler(sys.stderr)
    if facts:
        handler.addFilter(_Facts(facts))
    handler.setFormatter(_JsonLines() if format_ == LogFormat.JSON else _TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class _Facts(logging.Filter):
    """Lets every record pass, with more facts."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self._facts = dict(facts)

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        vars(record).update({**self._facts, **vars(record)})
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {name: _bounded(value) if isinstance(value, str) else value for name, value in facts.items()}


def _bounded(text: str) -> str:
    """Beginning and end of what is too long."""
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[: MOST_CHARACTERS // 2]} [{left_out} characters left out] {text[-MOST_CHARACTERS // 2 :]}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO cuebook.x: message key=value`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        facts = "".join(f" {name}={_short(value)}" for name, value in _fields(record).items())
        text = f"{_time(record)} {record.levelname} {record.name}: {_one_line(_bounded(record.getMessage()))}{facts}"
        if record.exc_info:
            text += "\n" + _bounded(self.formatException(record.exc_info))
        return text


class _JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, the record's own fields, and `exception` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        data = {
            **_fields(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(record.getMessage()),
        }
        if record.exc_info:
            data["exception"] = _bounded(self.formatException(record.exc_info))
        return json.dumps(data, default=str)


def _short(value: Any) -> str:
    text = _one_line(str(value))
    return json.dumps(text) if " " in text or '"' in text or not text else text


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
