"""The stream of a space: how it must be configured, and the refusal to work on one that could lose events.

Source of the settings: design §6; JetStream ADR-1, ADR-8, ADR-50; server 2.12 or newer for atomic batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.js import api
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from cuebook.events.codec import MAX_BYTES
from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.events.subjects import Subjects

__all__ = ["StreamFacts", "ensure_stream", "verify_stream"]

DUPLICATE_WINDOW_S = 120
HEADER_ALLOWANCE = 4 * 1024
"""`max_msg_size` counts headers too."""
MAX_CONSUMERS = 100_000
"""The server's own default is 1,000 a stream (err_code 10026), one per agent instance is needed."""
MINIMUM_SERVER = (2, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What the server says about the stream. Sequences are 0 when it is empty; `bytes` is what it takes on disk."""

    name: str
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    consumers: int
    replicas: int


def stream_config(subjects: Subjects, replicas: int) -> api.StreamConfig:
    """The configuration a space's stream is created with."""
    return api.StreamConfig(
        name=subjects.stream,
        description=f"cuebook space {subjects.space}: the log",
        subjects=[subjects.all],
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.NEW,
        storage=api.StorageType.FILE,
        max_age=0,
        max_msgs=-1,
        max_bytes=-1,
        max_msg_size=MAX_BYTES + HEADER_ALLOWANCE,
        max_consumers=MAX_CONSUMERS,
        num_replicas=replicas,
        duplicate_window=DUPLICATE_WINDOW_S,
        deny_delete=True,
        deny_purge=True,
        allow_rollup_hdrs=False,
        allow_direct=True,
        allow_atomic=True,
        republish=api.RePublish(src=subjects.all, dest=subjects.live),
    )


async def ensure_stream(connection: Connection, subjects: Subjects, *, replicas: int = 1) -> StreamFacts:
    """Create the stream of a space, or check the one that is there. Raises as `verify_stream`."""
    version = connection.connected_server_version
    if (version.major, version.minor) < MINIMUM_SERVER:
        raise ConfigurationError(
            f"nats-server {version.major}.{version.minor} is older than {'.'.join(map(str, MINIMUM_SERVER))}",
            remedy="upgrade the server",
        )
    js = connection.jetstream()
    try:
        await js.add_stream(stream_config(subjects, replicas))
    except APIError as error:
        if error.err_code != 10058:  # the name is in use with another configuration: let the check say which
            raise _api_error(error) from error
    except nats.errors.Error as error:
        raise _no_jetstream(connection) from error
    return await verify_stream(connection, subjects)


async def verify_stream(connection: Connection, subjects: Subjects) -> StreamFacts:
    """Refuse a stream that could lose or change events.

    Raises ConfigurationError naming each setting that is wrong, or when there is no such stream; UnavailableError when
    JetStream does not answer.
    """
    js = connection.jetstream()
    try:
        info = await js.stream_info(subjects.stream)
    except NotFoundError as error:
        raise ConfigurationError(
            f"there is no stream {subjects.stream} for space {subjects.space!r}",
            remedy="start the orchestrator once ('cuebook serve orchestrator' or 'cuebook dev'); it creates the stream",
        ) from error
    except ServiceUnavailableError as error:
        raise _no_jetstream(connection) from error
    except nats.errors.Error as error:
        raise UnavailableError(f"JetStream did not answer: {str(error) or type(error).__name__}") from error
    wrong = _differences(info.config, subjects)
    if wrong:
        raise ConfigurationError(
            f"stream {subjects.stream} could lose events: " + "; ".join(wrong),
            remedy="correct these settings with 'nats stream edit', or use another space",
        )
    state = info.state
    return StreamFacts(
        name=subjects.stream,
        first_sequence=state.first_seq,
        last_sequence=state.last_seq,
        messages=state.messages,
        bytes=state.bytes,
        consumers=state.consumer_count,
        replicas=info.config.num_replicas or 1,
    )


def _differences(config: api.StreamConfig, subjects: Subjects) -> list[str]:
    wanted: dict[str, tuple[Any, Any]] = {
        "subjects": (config.subjects, [subjects.all]),
        "retention": (_plain(config.retention), "limits"),
        "discard": (_plain(config.discard), "new"),
        "storage": (_plain(config.storage), "file"),
        "max_age": (config.max_age or 0, 0),
        "max_msgs": (config.max_msgs, -1),
        "max_msgs_per_subject": (config.max_msgs_per_subject, -1),
        "deny_delete": (bool(config.deny_delete), True),
        "deny_purge": (bool(config.deny_purge), True),
        "allow_rollup_hdrs": (bool(config.allow_rollup_hdrs), False),
        "allow_msg_ttl": (bool(config.allow_msg_ttl), False),
        "allow_direct": (bool(config.allow_direct), True),
        "persist_mode": (_plain(getattr(config, "persist_mode", None)) in (None, "", "default"), True),
        "republish": (config.republish.dest if config.republish else None, subjects.live),
    }
    return [f"{name} is {have!r}, must be {want!r}" for name, (have, want) in wanted.items() if have != want]


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _api_error(error: APIError) -> ConfigurationError:
    return ConfigurationError(f"JetStream refused the stream: {error.description} (err_code {error.err_code})")


def _no_jetstream(connection: Connection) -> ConfigurationError:
    url = connection.connected_url.netloc if connection.connected_url else "the server"
    return ConfigurationError(
        f"JetStream is not enabled on {url}", remedy="start nats-server with -js, or with nats/production.conf"
    )
