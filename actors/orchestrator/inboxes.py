"""The instances' own consumers. The orchestrator makes them, since an agent has no right to create any."""

from __future__ import annotations

from typing import Any

import nats.errors

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.generations import chain_of
from cuebook.events.jetstream import js_request
from cuebook.events.subjects import Subjects

__all__ = ["Inboxes"]

INACTIVE_S = 3600
TELL_S = 2.0
TELLS = 3
"""So often an instance is told that its delivery begins anew; one of an earlier release does not answer."""


class Inboxes:
    """One durable push consumer per instance, without acks.

    The instance says with each heartbeat up to where it has received without a gap; when assignments stay behind that,
    delivery begins anew from there, and the instance skips what it already has. It is told so on its control subject
    before, and answers: over a link that breaks, the first messages of a delivery may be lost too.
    """

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection, self._subjects = connection, subjects
        self._chain = chain_of(connection, subjects)
        self._wanted: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._wanted)

    def want(self, agent: str, instance: str) -> bool:
        """Whether the consumer has to be made: nobody has wanted it before."""
        key = (agent, instance)
        if key in self._wanted:
            return False
        self._wanted.add(key)
        return True

    def forget(self, agent: str, instance: str) -> None:
        """The instance is silent or gone. Its consumer may stay: the server removes it when nobody listens for long."""
        self._wanted.discard((agent, instance))

    def forget_all(self) -> None:
        """Somebody else takes care of them now."""
        self._wanted.clear()

    async def open(self, agent: str, instance: str, after: int, *, anew: bool = False) -> None:
        """Make the consumer if it is still wanted and not there; with `anew`, in place of the one that is there.

        Raises UnavailableError; ConfigurationError, and then it may be wanted again.
        """
        if (agent, instance) not in self._wanted:
            return
        if anew:
            await self.close(agent, instance)
            await self._tell(agent, instance)
        await self._chain.known()
        stream, name = self._chain.stream, f"{agent}__{instance}"
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
        except ConfigurationError as error:
            if not _is_there_already(error):
                self.forget(agent, instance)
                raise

    async def _tell(self, agent: str, instance: str) -> None:
        """Return when it knows that the delivery begins anew, or cannot be made to say so."""
        for _ in range(TELLS):
            try:
                await self._connection.request(
                    self._subjects.control(agent, instance), b'{"anew": true}', timeout=TELL_S
                )
            except nats.errors.NoRespondersError:  # nobody is there to whom anything could be delivered
                return
            except (nats.errors.Error, TimeoutError):
                continue
            return

    async def close(self, agent: str, instance: str) -> None:
        """Delete the consumer, also one from before a roll; it may be gone already. Raises UnavailableError."""
        before = [one.stream for one in self._chain.earlier[-1:]]
        try:
            for stream in (*before, self._chain.stream):
                await self._connection.request(f"$JS.API.CONSUMER.DELETE.{stream}.{agent}__{instance}", b"", timeout=5)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"JetStream did not answer: {str(error) or type(error).__name__}") from error


def _is_there_already(error: ConfigurationError) -> bool:
    """An earlier orchestrator made it, perhaps with another start: 10012 (configuration differs), 10148 (exists)."""
    return any(code in str(error) for code in ("10012", "10148", "10105", "10013"))
