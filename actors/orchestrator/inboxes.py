"""The instances' own consumers. The orchestrator makes them, since an agent has no right to create any."""

from __future__ import annotations

from typing import Any

import nats.errors

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.feed import js_request
from cuebook.events.subjects import Subjects

__all__ = ["Inboxes"]

INACTIVE_S = 3600


class Inboxes:
    """One durable push consumer per instance, without acks.

    The instance says with each heartbeat up to where it has received without a gap; when assignments stay behind that,
    delivery begins anew from there, and the instance skips what it already has.
    """

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection, self._subjects = connection, subjects
        self._opened: set[tuple[str, str]] = set()

    async def open(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        """Make the consumer unless it is there; with `anew`, in place of the one that is there.

        Raises UnavailableError, ConfigurationError.
        """
        key = (agent, instance)
        if anew:
            await self.close(agent, instance)
        elif key in self._opened:
            return
        self._opened.add(key)
        stream, name = self._subjects.stream, f"{agent}__{instance}"
        config: dict[str, Any] = {
            "durable_name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "filter_subject": self._subjects.inbox(agent, instance),
            "deliver_subject": self._subjects.delivery(agent, instance),
            "inactive_threshold": INACTIVE_S * 10**9,
            "replay_policy": "instant",
        }
        request = {"stream_name": stream, "config": config}
        try:
            await js_request(self._connection, f"CONSUMER.DURABLE.CREATE.{stream}.{name}", request)
        except UnavailableError:
            self._opened.discard(key)
            raise
        except ConfigurationError as error:
            if not _is_there_already(error):
                raise

    async def close(self, agent: str, instance: str) -> None:
        """Delete the consumer; it may be gone already. Raises UnavailableError."""
        self._opened.discard((agent, instance))
        try:
            await self._connection.request(
                f"$JS.API.CONSUMER.DELETE.{self._subjects.stream}.{agent}__{instance}", b"", timeout=5
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"JetStream did not answer: {str(error) or type(error).__name__}") from error


def _is_there_already(error: ConfigurationError) -> bool:
    """An earlier orchestrator made it, perhaps with another start: 10012 (configuration differs), 10148 (exists)."""
    return any(code in str(error) for code in ("10012", "10148", "10105", "10013"))
