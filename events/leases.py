"""The bucket of what one process at a time may do in a space: keys that expire unless their holder renews them."""

from __future__ import annotations

from typing import Final

from nats.js import api
from nats.js.errors import NotFoundError as NoSuchBucketError
from nats.js.kv import KeyValue

from cuebook.events.connection import Connection

__all__ = ["EXPIRES_S", "leases"]

EXPIRES_S: Final = 3.0


async def leases(connection: Connection, space: str, *, replicas: int, timeout_s: float = 5.0) -> KeyValue:
    """The bucket of a space, made where it is not there. Raises the errors of nats-py.

    `replicas`: as many as the log has, or it is lost with one node. `timeout_s` holds for later requests, too.
    """
    js = connection.jetstream(timeout=timeout_s)
    name = f"{space}_leases"
    try:
        return await js.key_value(name)
    except NoSuchBucketError:
        return await js.create_key_value(
            api.KeyValueConfig(bucket=name, ttl=EXPIRES_S, history=1, replicas=replicas, description="who decides")
        )
