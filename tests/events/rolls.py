"""A roll as far as the log goes, which needs nobody to know what is open: nothing but the marker is carried over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace

from cuebook.events.facts import SpaceRolled
from cuebook.events.generations import BEFORE, NEXT, frozen_subject, marker_of, stream_name
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.past import Generation
from tests.waiting import eventually

__all__ = ["roll"]


async def roll(log: EventLog, frozen: asyncio.Event | None = None, go_on: asyncio.Event | None = None) -> None:
    """Let the log go on in a fresh stream. `frozen` is set when there is only the marker left to copy."""
    facts, connection, names = await log.verify(), log.connection, log.subjects
    config = (await log.chain.look())["config"]
    into, marker = stream_name(names, facts.generation + 1), marker_of(names)
    ending = {**config, "subjects": [marker], "metadata": {NEXT: into}}
    ending["metadata"] |= {key: value for key, value in config["metadata"].items() if key == BEFORE}
    await js_request(connection, f"STREAM.UPDATE.{facts.name}", ending)
    last = await log.append(marker, SpaceRolled(generation=facts.generation + 1, stream=facts.name, into=into))
    if frozen is not None and go_on is not None:
        frozen.set()
        await go_on.wait()
    next_ = {key: value for key, value in config.items() if key not in ("subjects", "republish", "metadata")}
    mirror = {"name": facts.name, "subject_transforms": [{"src": marker, "dest": marker}]}
    await js_request(
        connection, f"STREAM.CREATE.{into}", {**next_, "name": into, "mirror": mirror, "allow_atomic": False}
    )

    async def filled() -> bool:
        return bool((await js_request(connection, f"STREAM.INFO.{into}", {}))["state"]["last_seq"] == last)

    await eventually(filled)
    ending["subjects"] = [frozen_subject(names, facts.generation)]
    await js_request(connection, f"STREAM.UPDATE.{facts.name}", ending)
    first = facts.earlier[-1].last + 1 if facts.earlier else 1
    about = Generation(generation=facts.generation, stream=facts.name, first=first, last=last)
    before = [asdict(one) for one in (*facts.earlier, replace(about, created=facts.created))]
    whole = {**next_, "name": into, "subjects": config["subjects"], "republish": config["republish"]}
    await js_request(connection, f"STREAM.UPDATE.{into}", {**whole, "metadata": {BEFORE: json.dumps(before)}})
    await log.chain.look()
