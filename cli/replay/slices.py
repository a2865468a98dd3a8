"""The part of a log that is sent somewhere: which messages, and how it is recognised when it is sent again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cuebook.cli.history.filters import subject_filters, type_filter
from cuebook.cli.history.points import find_range, last_place
from cuebook.cli.history.views import Item
from cuebook.events.copies import original_of
from cuebook.events.errors import NotFoundError
from cuebook.events.log import EventLog, Stored

__all__ = ["Choice", "Message", "Slice", "make_slice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, as people say it; empty means everything."""

    runs: Sequence[str] = ()
    filters: Sequence[str] = ()
    types: Sequence[str] = ()
    first: str = ""
    last: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message of the source, with the time (nanoseconds since 1970) and headers it had where it was written first."""

    subject: str
    body: bytes
    sequence: int
    recorded_ns: int
    headers: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Messages of `log` with `after` < sequence <= `until` under `filters`, of `types`."""

    log: EventLog
    filters: list[str]
    types: list[str]
    after: int
    until: int

    @property
    def key(self) -> str:
        """Twelve characters that stand for stream and choice, whatever the range."""
        return hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:12]

    @property
    def origin(self) -> str:
        """The same in words that can be read again, with where it begins."""
        return json.dumps({**self._identity, "after": self.after})

    @property
    def _identity(self) -> dict[str, Any]:
        return {"replay": 1, "stream": self.log.subjects.stream, "filters": self.filters, "types": self.types}

    def began_in(self, origin: str) -> int | None:
        """After which sequence the slice began that a recording says it has; None when it has something else."""
        try:
            found = json.loads(origin)
            after = found.pop("after")
        except (ValueError, LookupError, AttributeError, TypeError):
            return None
        return after if found == self._identity and isinstance(after, int) else None

    def decode(self, message: Stored) -> Item:
        """The event of a stored message."""
        subject, body, sequence, recorded_ns, headers = message
        return self.log.decode(subject, body, sequence, recorded_ns // 1000, headers)

    def take(self, message: Stored) -> Message | None:
        """The message, if it is of the types wanted."""
        if self.types and not type_filter(self.types)(self.decode(message)):
            return None
        subject, body, sequence, recorded_ns, headers = message
        original = original_of(headers) if self.log.sees_originals else None
        if original is not None:
            recorded_ns, headers = original.recorded_ns, original.headers
        return Message(subject=subject, body=body, sequence=sequence, recorded_ns=recorded_ns, headers=headers or b"")

    async def first(self) -> int:
        """The sequence of its first message, of whatever type. Raises NotFoundError when there is none."""
        found = [await self.log.first_match(one, self.after) for one in self.filters]
        first = min((one.sequence for one in found if one is not None), default=self.until + 1)
        if first > self.until:
            raise NotFoundError(
                f"nothing of that is in the log from {self.after + 1} to {self.until}",
                remedy="see 'cuebook events tail' for what there is",
            )
        return first


async def make_slice(log: EventLog, choice: Choice) -> Slice:
    """The slice that was chosen, ending at the latest with what is stored now.

    Raises InputError for a range that is empty or in the future, NotFoundError.
    """
    after, until = await find_range(log, choice.first, choice.last)
    filters = subject_filters(log.subjects, choice.filters, [], choice.runs)
    end = until if until is not None else (await last_place(log)).sequence
    return Slice(
        log=log, filters=sorted(filters) or [log.subjects.all], types=sorted(set(choice.types)), after=after, until=end
    )
