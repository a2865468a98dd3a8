"""The stream of a space: how it must be configured, and the refusal to work on one that could lose events.

Source of the settings: design §6; JetStream ADR-1, ADR-8, ADR-50; server 2.12 or newer for atomic batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cuebook.events.codec import MAX_BYTES
from cuebook.events.connection import Connection
from cuebook.events.copies import IMPORT
from cuebook.events.errors import ConfigurationError, StreamMissingError
from cuebook.events.generations import NEXT, StreamNames, chain_of, frozen_subject, marker_of
from cuebook.events.jetstream import NAME_IN_USE, js_request
from cuebook.events.past import Generation

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MINIMUM_SERVER",
    "RECORDING",
    "StreamFacts",
    "StreamNames",
    "ensure_stream",
    "find_differences",
    "refuse_recording",
    "stream_config",
    "verify_stream",
]

RECORDING = "cuebook.recording"
"""Key in the metadata of a stream that holds a copy of history, such as a replay or an import. It is set when the
stream is made, and whoever drives a space refuses such a stream: so nothing in a copy has an effect a second time."""

DUPLICATE_WINDOW_S = 120
MIN_DUPLICATE_WINDOW_S = 60
"""Appends without an expected sequence are repeated for half as long; see append.GIVE_UP_S."""
RECORDING_DUPLICATE_WINDOW_NS = 100_000_000
"""The least the server takes. Copies name each other by message id, and each id is 250 bytes of memory for so long."""
HEADER_ALLOWANCE = 4 * 1024
"""`max_msg_size` counts headers too."""
MAX_MESSAGE_BYTES = MAX_BYTES + HEADER_ALLOWANCE
MAX_CONSUMERS = 100_000
"""The server's own default is 1,000 a stream (err_code 10026), one per agent instance is needed."""
MINIMUM_SERVER = (2, 12)

logger = logging.getLogger(__name__)

_MUST: dict[str, Any] = {
    "retention": "limits",
    "discard": "new",
    "storage": "file",
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "deny_delete": True,
    "deny_purge": True,
    "allow_direct": True,
    "allow_atomic": True,
}
"""As the server spells them; what is not named here nor below must be unset."""
_MUST_NOT = (
    "allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules", "allow_msg_counter", "allow_batched", "no_ack",
    "sealed", "mirror", "sources", "subject_transform",
)  # fmt: skip
"""They remove, rewrite or add messages behind our back, or never acknowledge them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What the server says about a log: of all its generations where it was rolled, and else of its one stream.

    Sequences are 0 when it is empty; `bytes` is what its streams take on disk. `name`, `consumers` and `subjects` are
    those of the current stream.
    """

    name: str
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    consumers: int
    subjects: int
    replicas: int
    recording: bool = False
    """It holds a copy of history, which nothing may drive; see `RECORDING`."""
    origin: str = ""
    """Of a recording: where it comes from, as whoever made it has said."""
    created: str = ""
    """When it was made, by the server's clock: two streams of one name differ in it."""
    imported: str = ""
    """What was imported into it, as JSON; empty for a stream that was not. Its messages are copies, see `copies`."""
    sealed: bool = False
    """Nothing can be added any more: an import that is complete."""
    generation: int = 1
    """Which one is the current one; see `generations`."""
    earlier: Sequence[Generation] = ()
    """Those that have ended, oldest first."""
    rolling: bool = False
    """The next generation is being made: what is to be written waits until it is there."""


def stream_config(subjects: StreamNames, replicas: int, *, recording: bool = False) -> dict[str, Any]:
    """The configuration a space's stream is created with, as the server takes it."""
    return {
        **_MUST,
        **({"metadata": {RECORDING: "true"}} if recording else {}),
        "name": subjects.stream,
        "description": f"cuebook space {subjects.space}: {subjects.purpose}",
        "subjects": [subjects.all],
        "max_bytes": -1,
        "max_msg_size": MAX_MESSAGE_BYTES,
        "max_consumers": MAX_CONSUMERS,
        "num_replicas": replicas,
        "duplicate_window": DUPLICATE_WINDOW_S * 10**9,
        "republish": {"src": subjects.all, "dest": subjects.live},
    }


async def ensure_stream(
    connection: Connection, subjects: StreamNames, *, replicas: int = 1, recording: bool = False, origin: str = ""
) -> StreamFacts:
    """Create the stream of a space, or check the one that is there. Raises as `verify_stream`.

    `recording` marks a stream that is created here, with its `origin`: nobody hears of its messages on `live.` a second
    time, and there is room for what a copy says about its original. One that is there stays what it is: look at what is
    returned.
    """
    config = stream_config(subjects, replicas, recording=recording)
    if recording:
        config |= {
            "max_msg_size": MAX_MESSAGE_BYTES + HEADER_ALLOWANCE,
            "metadata": {RECORDING: origin or "true"},
            "duplicate_window": RECORDING_DUPLICATE_WINDOW_NS,
        }
        config.pop("republish", None)
    _check_server(connection)
    try:  # one that was rolled would be missed under its first name
        await chain_of(connection, subjects).look()
    except StreamMissingError:
        # One that is there with another configuration is left alone: the check says what is wrong with it.
        await js_request(connection, f"STREAM.CREATE.{subjects.stream}", config, none_for={NAME_IN_USE})
    return await verify_stream(connection, subjects)


async def verify_stream(connection: Connection, subjects: StreamNames) -> StreamFacts:
    """Refuse a stream that could lose or change events.

    Raises ConfigurationError naming each setting that is wrong, or when there is no such stream or no JetStream;
    UnavailableError when JetStream does not answer.
    """
    _check_server(connection)
    chain = chain_of(connection, subjects)
    info = await chain.look()
    config, state = info["config"], info["state"]
    wrong = find_differences(config, subjects)
    if "sealed" in wrong:
        raise ConfigurationError(
            f"stream {config['name']} is sealed: nothing is written to it any more, and no edit undoes that",
            remedy=f"keep what is there with 'nats stream backup {config['name']} FOLDER', and use another space",
        )
    if wrong:
        raise ConfigurationError(
            f"stream {config['name']} could lose events: " + "; ".join(wrong.values()),
            remedy="correct these settings with 'nats stream edit', or use another space",
        )
    if chain.rolling:
        logger.warning("space %s is being rolled to a fresh stream: what is written waits for it", subjects.space)
    metadata = config.get("metadata") or {}
    first, own = state["first_seq"], state["messages"]
    if chain.earlier:
        first, own = chain.earlier[0].first, state["last_seq"] - chain.start
    return StreamFacts(
        name=config["name"],
        first_sequence=first,
        last_sequence=state["last_seq"],
        messages=sum(one.last - one.first + 1 for one in chain.earlier) + own,
        bytes=sum(one.bytes for one in chain.earlier if not one.segments) + state["bytes"],
        consumers=state["consumer_count"],
        subjects=state.get("num_subjects", 0),
        replicas=config.get("num_replicas", 1),
        recording=RECORDING in metadata,
        origin=metadata.get(RECORDING, ""),
        created=chain.earlier[0].created if chain.earlier else info["created"],
        imported=metadata.get(IMPORT, ""),
        sealed=bool(config.get("sealed")) and NEXT not in metadata,
        generation=chain.generation,
        earlier=chain.earlier,
        rolling=chain.rolling,
    )


def refuse_recording(facts: StreamFacts) -> None:
    """Raise ConfigurationError for a stream that nothing may drive or add work to."""
    if facts.recording:
        raise ConfigurationError(
            f"stream {facts.name} is a recording of what happened elsewhere: nothing in it may have effects",
            remedy="use another --space; a recording is there to be read",
        )


def _check_server(connection: Connection) -> None:
    version = connection.connected_server_version
    if (version.major, version.minor) < MINIMUM_SERVER:
        raise ConfigurationError(
            f"nats-server {version.major}.{version.minor} is older than {'.'.join(map(str, MINIMUM_SERVER))}",
            remedy="upgrade the server",
        )
    if not connection.has_jetstream:
        url = connection.connected_url
        raise ConfigurationError(
            f"JetStream is not enabled on {url.hostname if url else 'the server'}",
            remedy="start nats-server with -js, or with nats/production.conf",
        )


def find_differences(config: dict[str, Any], subjects: StreamNames) -> dict[str, str]:
    """What is wrong with a stream's configuration, by the name of the setting; empty when it cannot lose events."""
    must = {
        **_MUST,
        **dict.fromkeys(_MUST_NOT),
        "subjects": [subjects.all],
        "republish": {"src": subjects.all, "dest": subjects.live},
    }
    if NEXT in (config.get("metadata") or {}):  # it is being rolled; see actors/rolling
        taken = config.get("subjects") or [""]
        ended = len(taken) == 1 and taken[0].startswith(frozen_subject(subjects, 0)[:-1])
        must |= {"subjects": taken if ended else [marker_of(subjects)], "sealed": config.get("sealed")}
    copy = not {IMPORT, RECORDING}.isdisjoint(config.get("metadata") or {})
    if copy:  # nobody shall hear of it again, and to one that is complete nothing can be added
        must |= {"republish": None, "sealed": config.get("sealed")}
    wrong = {
        name: f"{name} is {config.get(name)!r}, must be {want!r}"
        for name, want in must.items()
        if (config.get(name) or None) != (want or None)  # the server leaves out what is off
    }
    if config.get("persist_mode", "default") not in ("", "default"):
        wrong["persist_mode"] = f"persist_mode is {config['persist_mode']!r}, must be 'default'"
    if 0 <= config.get("max_msg_size", -1) < MAX_MESSAGE_BYTES:
        wrong["max_msg_size"] = f"max_msg_size is {config['max_msg_size']}, must be at least {MAX_MESSAGE_BYTES}"
    if config.get("duplicate_window", 0) < MIN_DUPLICATE_WINDOW_S * 10**9 and not copy:
        window = config.get("duplicate_window", 0)
        wrong["duplicate_window"] = f"duplicate_window is {window}, must be at least {MIN_DUPLICATE_WINDOW_S} s"
    return wrong
