"""Rolling a space: its log goes on in a fresh stream that holds what is open, and the old one stays as it is.

The numbering goes on, and what is carried over keeps its sequences: so every guard and every position means what it
meant. The order of the steps makes each of them safe to repeat, and says how far somebody came who was killed:

1. The log is folded, and the new stream is made as a mirror of what is open: so little is left for the pause, and
   what the server would refuse then it refuses now.
2. The old stream takes in nothing but the marker: the pause begins, and whoever writes tries again.
3. The marker, the event `space.rolled`, is its last message. The rest is folded.
4. The mirror is made again if more is open by now, and has caught up when it has the marker.
5. The old stream takes in nothing at all; the new one takes in what is written: the pause ends.
6. The old stream is sealed.

What goes wrong in the pause, until the old stream has ended, undoes the roll: nobody shall have to wait for a person.

Source: JetStream ADR-43 (subject transforms of mirrors); that a mirror can be made a stream of its own since server
2.12, and keeps sequences, times, headers and message ids, by measurement on 2.15.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from cuebook.actors.orchestrator.guard import is_guarded
from cuebook.actors.orchestrator.snapshot import SnapshotStore
from cuebook.actors.orchestrator.world import SnapshotGapError, World
from cuebook.events.errors import CommandRejectedError, ConfigurationError, CuebookError, UnavailableError
from cuebook.events.facts import SpaceRolled
from cuebook.events.generations import (
    BEFORE,
    FROZE,
    KEPT,
    NEXT,
    WHOLE,
    Chain,
    frozen_subject,
    is_current,
    marker_of,
    stream_name,
)
from cuebook.events.jetstream import NO_STREAM, js_request
from cuebook.events.log import EventLog
from cuebook.events.lookup import message_at
from cuebook.events.past import MOST_METADATA, Generation, bytes_when_dropped, pack_generations
from cuebook.events.reading import Stored
from cuebook.events.reservation import Reservation, reserved
from cuebook.events.stream import refuse_recording, stream_config

__all__ = ["Plan", "Rolled", "Roller"]

MOST_FILTERS = 1_000
"""Scopes that are carried over one by one. Of more the server makes no quick mirror (4 s for 3,000, 25 s for 20,000,
measured on 2.15.1): then all is carried over from where the oldest of them begins."""
_LOOK_S: Final = 0.01
_MIRRORED_WITHIN_S: Final = 120.0
"""How long a stream that is being filled may stand still."""
_NEARLY_S: Final = 2.0
_PATIENCE_S: Final = 20.0
"""How long the server may fail to answer in the pause, as it does while it elects a leader."""
_AGAIN_S: Final = 0.2
_AGAIN: Final = "say 'cuebook space roll' again, or 'cuebook space roll --abort' if it was not undone"
_UNDONE_WITHIN_S: Final = 15.0
_OTHER_METADATA: Final = 2 * 1024
"""For what else is in the metadata of a stream: the server's own, and where the log goes on."""

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
Read = Callable[[int, int], None]
"""Told how far the log has been folded, and up to where it goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a roll would do. `kept` > 0: all from that sequence on is carried over, else what matches `filters`."""

    generation: int
    stream: str
    into: str
    last: int
    runs: int
    instances: int
    filters: list[str]
    kept: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What a roll has done. `pause_s`: for how long nothing could be written; None where somebody else began it."""

    generation: int
    stream: str
    into: str
    last: int
    carried: int
    messages_before: int
    subjects_before: int
    subjects_after: int
    pause_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """The generation that ends, and those before it."""

    stream: str
    generation: int
    start: int
    earlier: Sequence[Generation]


class Roller:
    """Rolls one space, or goes on where somebody has stopped. `say` hears of each step; `read` of the folding."""

    def __init__(self, log: EventLog, *, by: str, say: Say, read: Read | None = None) -> None:
        self._log, self._by, self._say, self._read = log, by, say, read
        self._connection, self._names = log.connection, log.subjects
        self._chain: Chain = log.chain
        self._world = World(log.subjects, {})
        self._froze_at: float | None = None
        self._reservation: Reservation | None = None

    async def plan(self) -> Plan:
        """Fold the log as it is now. Raises ConfigurationError for a space that cannot be rolled."""
        facts = await self._log.verify()
        refuse_recording(facts)
        if facts.sealed or facts.imported:
            raise ConfigurationError(f"space {self._names.space!r} is an import: nothing more comes, so it stays")
        self._refuse_too_many(facts.last_sequence)
        await self._restore(facts.last_sequence)
        await self._fold(facts.last_sequence)
        return self._planned(facts.last_sequence, most=MOST_FILTERS)

    async def roll(self) -> Rolled | None:
        """Roll the space, or complete a roll that somebody began.

        None when there was only the old stream left to seal. When it cannot be completed, or is cancelled in the pause,
        it is undone, or completed where the old stream has ended. Raises ConfigurationError, UnavailableError,
        CommandRejectedError.
        """
        replicas = (await self._log.verify()).replicas
        async with reserved(self._connection, self._names.space, self._by, replicas=replicas) as self._reservation:
            begun: Plan | None = None
            if (await self._log.verify()).rolling:
                self._say("going on with a roll that was begun before")
            elif await self._seal_last():
                return None
            else:
                begun = plan = await self.plan()
                await self._forget_attempt(plan.into)
                await self._make(plan)
                if plan.kept:
                    self._say(f"carrying over all from sequence {plan.kept} on, before the pause")
                    await self._mirrored(plan.into, plan.last)
                else:
                    await self._nearly_mirrored(plan.into)
            try:
                if begun is not None:
                    await self._freeze(begun)
                return await self._completed()
            except (CuebookError, asyncio.CancelledError):
                await self._end_the_pause()
                raise

    async def abort(self) -> None:
        """Undo a roll that was begun, before the old stream has ended. Raises CommandRejectedError."""
        facts = await self._log.verify()
        if not facts.rolling:
            raise CommandRejectedError(f"space {self._names.space!r} is not being rolled: there is nothing to undo")
        async with reserved(
            self._connection, self._names.space, self._by, replicas=facts.replicas
        ) as self._reservation:
            if not (await self._log.verify()).rolling:
                raise CommandRejectedError(
                    f"space {self._names.space!r} was rolled meanwhile: there is nothing to undo"
                )
            await self._undo()

    async def _undo(self) -> None:
        info = await self._info(self._chain.stream)
        assert info is not None, "it was looked at just now"
        config = info["config"]
        into = config["metadata"][NEXT]
        if config["subjects"] != [marker_of(self._names)]:
            raise CommandRejectedError(
                f"stream {config['name']} has ended; what is missing is little",
                remedy="complete it with 'cuebook space roll'",
            )
        await self._forget_attempt(into)
        metadata = {key: value for key, value in config["metadata"].items() if key not in (NEXT, FROZE)}
        await self._update({**config, "subjects": [self._names.all], "metadata": metadata})
        await self._chain.look()
        self._say(f"stream {config['name']} takes in everything again")

    async def _end_the_pause(self) -> None:
        """After something has gone wrong; who asked for the roll is told that, not what happens here."""
        try:
            async with asyncio.timeout(_UNDONE_WITHIN_S):
                if self._reservation is not None:
                    await self._reservation.begin(_UNDONE_WITHIN_S)
                if not (await self._log.verify()).rolling:
                    return
                if await self._has_ended():
                    await self._completed()
                else:
                    await self._undo()
                    self._say("the roll was undone: all is as it was before")
        except (CuebookError, TimeoutError) as error:
            logger.debug("the pause goes on: %s", error)
            with contextlib.suppress(CuebookError):
                await self._chain.look()  # or it does not: what was asked for last may have happened

    async def _has_ended(self) -> bool:
        """Whether the old stream does not even take in the marker any more."""
        info = await self._info(self._chain.stream)
        return info is not None and info["config"]["subjects"] != [marker_of(self._names)]

    def _refuse_too_many(self, last: int) -> None:
        chain = self._chain
        ended = Generation(
            generation=chain.generation,
            stream=chain.stream,
            first=1,
            last=last,
            bytes=10**12,
            messages=last,
            subjects=last,
        )
        if bytes_when_dropped([*chain.earlier, ended]) > MOST_METADATA - _OTHER_METADATA:
            raise ConfigurationError(
                f"space {self._names.space!r} has {chain.generation} generations, and no server keeps a longer list",
                remedy="leave this space as it is, readable, and let new work begin in another one",
            )

    # --- the fold ---

    async def _restore(self, last: int) -> None:
        """Begin with the orchestrator's snapshot, which saves time and changes nothing."""
        data = await SnapshotStore(self._connection, self._names).load()
        if data is None:
            return
        try:
            self._world.load(data)
        except (ValueError, SnapshotGapError) as error:
            logger.info("the snapshot cannot be used, reading the whole log: %s", error)
            return
        if self._world.position.sequence > last:
            self._world = World(self._names, {})
            return
        await self._log.verify_position(self._world.position)

    async def _fold(self, until: int) -> None:
        after = self._world.position.sequence
        if after >= until:
            return
        async with aclosing(self._log.batches(after=after, until=until)) as batches:
            async for batch in batches:
                for message in batch:
                    self._apply(message)
                if self._read is not None:
                    self._read(batch[-1].sequence, until)

    def _apply(self, message: Stored) -> None:
        subject, body, sequence, recorded_ns, headers = message
        if not subject.isascii():
            subject = subject.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        item = self._log.decode(subject, body, sequence, recorded_ns // 1000, headers)
        self._world.fold(item, guarded=is_guarded(item, headers, self._chain.generation_of(sequence)))
        self._world.owed.clear()  # for who decides; here nobody does

    def _planned(self, last: int, *, most: int) -> Plan:
        world, names = self._world, self._names
        here = [one for one in world.registry.instances.values() if one.health not in ("stopped", "unregistered")]
        filters = [names.all_of_space, names.all_sagas]
        filters += [names.agent_scope(one.agent, one.instance) for one in here]
        filters += [names.everything_of(run_id) for run_id in world.runs]
        kept = 0
        if len(filters) > most:
            kept = max(min((run.opened_sequence for run in world.runs.values()), default=last), 1)
            filters = []
        return Plan(
            generation=self._chain.generation + 1,
            stream=self._chain.stream,
            into=stream_name(names, self._chain.generation + 1),
            last=last,
            runs=len(world.runs),
            instances=len(here),
            filters=filters,
            kept=kept,
        )

    # --- the steps ---

    async def _freeze(self, plan: Plan) -> None:
        info = await self._info(plan.stream)
        assert info is not None, "it was folded just now"
        config = info["config"]
        metadata = {**(config.get("metadata") or {}), NEXT: plan.into, FROZE: str(info["state"]["last_seq"])}
        self._check()  # it may have waited for the server, and somebody else have rolled
        self._froze_at = time.monotonic()
        await self._update({**config, "subjects": [marker_of(self._names)], "metadata": metadata})
        await self._chain.look()
        self._say(f"stream {plan.stream} takes in nothing more: the pause begins")

    async def _completed(self) -> Rolled:
        """`_complete`, and again where the server did not answer."""
        chain = self._chain
        ending = _Ending(stream=chain.stream, generation=chain.generation, start=chain.start, earlier=chain.earlier)
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                if self._reservation is not None:
                    await self._reservation.begin(_PATIENCE_S)
                return await self._complete(ending)
            except UnavailableError as error:
                if time.monotonic() > give_up:
                    raise
                logger.debug("a step of the roll is tried again: %s", error)
            await asyncio.sleep(_AGAIN_S)

    async def _complete(self, ending: _Ending) -> Rolled:
        """From the freeze on, wherever somebody has come to."""
        info = await self._info(ending.stream)
        assert info is not None, "it was looked at just now"
        old, into = info["config"], info["config"]["metadata"][NEXT]
        if old["subjects"] == [marker_of(self._names)]:
            while True:
                last = await self._mark(ending, into)
                await self._fill(into, last)
                await self._mirrored(into, last)
                info = await self._info(ending.stream)
                assert info is not None, "nobody removes a stream that is being rolled"
                if info["state"]["last_seq"] == last:
                    break  # else something was on its way to the old stream when that was frozen
            self._check()
            await self._update({**old, "subjects": [frozen_subject(self._names, ending.generation)]})
        elif not old.get("sealed") and await self._info(into) is None:  # nothing was ever written to it
            await self._fill(into, info["state"]["last_seq"])
            await self._mirrored(into, info["state"]["last_seq"])
        ended = Generation(
            generation=ending.generation,
            stream=ending.stream,
            first=ending.start + 1 if ending.earlier else max(info["state"]["first_seq"], 1),
            last=info["state"]["last_seq"],
            created=info["created"],
            bytes=info["state"]["bytes"],
            messages=info["state"]["messages"],
            subjects=info["state"].get("num_subjects", 0),
        )
        await self._promote(into, [*ending.earlier, ended])
        pause_s = time.monotonic() - self._froze_at if self._froze_at is not None else None
        self._say(f"stream {into} takes in what is written: the pause is over")
        found = await self._chain.look()
        try:
            await self._seal_last()
        except UnavailableError as error:
            self._say(f"stream {ended.stream} is not sealed yet ({error}): say 'cuebook space roll' again")
        return Rolled(
            generation=ending.generation + 1,
            stream=ended.stream,
            into=into,
            last=ended.last,
            carried=_carried(found, ended.last),
            messages_before=ended.messages,
            subjects_before=ended.subjects,
            subjects_after=found["state"].get("num_subjects", 0),
            pause_s=pause_s,
        )

    async def _fill(self, into: str, last: int) -> None:
        """See that the new stream is being filled with what is open at the end of the old one."""
        info = await self._info(into)
        mirror = info["config"].get("mirror") if info is not None else None
        if info is not None and not (mirror and mirror.get("subject_transforms")):
            return  # it takes in what is written, or is being filled with all from a sequence on
        if self._world.position.sequence == 0:
            await self._restore(last)
        await self._fold(last)
        plan = self._planned(last, most=2 * MOST_FILTERS)  # in the pause a slow mirror of these is quicker than of all
        if mirror:
            if plan.filters and {one["src"] for one in mirror["subject_transforms"]}.issuperset(plan.filters):
                return
            await self._forget_attempt(into)  # more is open than when it was made
        await self._make(plan)

    async def _mark(self, ending: _Ending, into: str) -> int:
        """See that the marker is the last message of the old stream; returns its sequence."""
        marker = marker_of(self._names)
        while True:
            info = await self._info(ending.stream)
            assert info is not None, "nobody removes a stream that is being rolled"
            last, froze = int(info["state"]["last_seq"]), int(info["config"]["metadata"].get(FROZE, ending.start))
            found = await message_at(self._connection, ending.stream, last) if last > froze else None
            if found is not None and found.subject == marker:
                return last
            event = SpaceRolled(generation=ending.generation + 1, stream=ending.stream, into=into, by=self._by)
            await self._log.append(marker, event)

    async def _make(self, plan: Plan) -> None:
        """The new stream, as a mirror."""
        info = await self._info(plan.stream)
        assert info is not None, "it was folded just now"
        config = _settings(info["config"], plan.into)
        mirror: dict[str, Any] = {"name": plan.stream}
        if plan.kept:
            mirror["opt_start_seq"] = plan.kept
        else:
            mirror["subject_transforms"] = [{"src": one, "dest": one} for one in plan.filters]
        chain = self._chain
        whole = max(plan.kept, chain.whole) if plan.kept else 0
        metadata = {KEPT: str(max(plan.kept, chain.kept)), **({WHOLE: str(whole)} if whole else {})}
        config |= {"mirror": mirror, "allow_atomic": False, "metadata": metadata}
        await js_request(self._connection, f"STREAM.CREATE.{plan.into}", config, 120.0)
        self._say(f"stream {plan.into} is being filled with {_what(plan)}")

    async def _mirrored(self, into: str, last: int) -> None:
        at, give_up = -1, 0.0
        while True:
            info = await self._info(into)
            if info is not None and (not info["config"].get("mirror") or info["state"]["last_seq"] >= last):
                return
            now, came_to = time.monotonic(), info["state"]["last_seq"] if info is not None else at
            if came_to != at:
                at, give_up = came_to, now + _MIRRORED_WITHIN_S
            if info is None:
                raise UnavailableError(f"stream {into} is gone, while it was being filled", remedy=_AGAIN)
            if now > give_up:
                raise UnavailableError(
                    f"stream {into} stands at sequence {at} since {_MIRRORED_WITHIN_S:g} s, of {last}",
                    remedy=_AGAIN,
                )
            await asyncio.sleep(_LOOK_S)

    async def _nearly_mirrored(self, into: str) -> None:
        """Wait until the new stream is about as far as the old one, but not for long: in the pause it is made sure."""
        give_up = time.monotonic() + _NEARLY_S
        while time.monotonic() < give_up:
            info = await self._info(into)
            mirror = (info or {}).get("mirror") or {}
            if mirror.get("lag") == 0 and mirror.get("active", -1) >= 0:
                return
            await asyncio.sleep(_LOOK_S)

    async def _promote(self, into: str, before: Sequence[Generation]) -> None:
        info = await self._info(into)
        if info is None:
            raise ConfigurationError(
                f"stream {into} is gone", remedy="restore it, or ask for help before anything else"
            )
        if is_current(info, self._names):
            return
        config, own = info["config"], stream_config(self._names, info["config"]["num_replicas"])
        metadata = {
            **(config.get("metadata") or {}),
            BEFORE: pack_generations(before),
        }
        taken = {key: own[key] for key in ("subjects", "republish", "allow_atomic", "description")}
        # the server lets a mirror answer direct gets from what it mirrors, and would let it do so for ever
        await self._update({**config, **taken, "mirror": None, "mirror_direct": False, "metadata": metadata})

    async def _seal_last(self) -> bool:
        """Seal the stream before the current one, if that was not done. Whether there was anything to do."""
        for one in self._chain.earlier[-1:]:
            info = await self._info(one.stream)
            if info is not None and not info["config"].get("sealed"):
                await self._update({**info["config"], "sealed": True})
                self._say(f"stream {one.stream} is sealed")
                return True
        return False

    async def _forget_attempt(self, into: str) -> None:
        """Remove what an earlier attempt has made and nobody has used: a mirror, with nothing of its own."""
        info = await self._info(into)
        if info is None:
            return
        if not info["config"].get("mirror"):
            raise ConfigurationError(
                f"there is a stream {into} already, and it is no mirror",
                remedy="look at it with 'nats stream info', and move it out of the way",
            )
        self._check()
        await js_request(self._connection, f"STREAM.DELETE.{into}", {}, none_for={NO_STREAM})

    def _check(self) -> None:
        """Before what cannot be undone: is it still ours to do?"""
        if self._reservation is not None:
            self._reservation.check()

    async def _info(self, stream: str) -> dict[str, Any] | None:
        info: dict[str, Any] | None = await js_request(
            self._connection, f"STREAM.INFO.{stream}", {}, none_for={NO_STREAM}
        )
        return info

    async def _update(self, config: dict[str, Any]) -> None:
        """Change a stream. Who is cancelled meanwhile learns it afterwards: what is undone next must have happened."""
        config = {key: value for key, value in config.items() if value is not None}
        request = js_request(self._connection, f"STREAM.UPDATE.{config['name']}", config, 30.0)
        asked = asyncio.ensure_future(request)
        try:
            await asyncio.shield(asked)
        except asyncio.CancelledError:
            await asyncio.wait([asked])
            if not asked.cancelled() and (error := asked.exception()) is not None:
                logger.debug("a step of the roll was refused: %s", error)
            raise


def _settings(config: dict[str, Any], into: str) -> dict[str, Any]:
    """What the next stream takes over: where and how the old one is stored, not what it takes in."""
    left = ("subjects", "republish", "metadata", "sealed", "mirror")
    return {**{key: value for key, value in config.items() if key not in left}, "name": into}


def _carried(info: dict[str, Any], last: int) -> int:
    state = info["state"]
    return int(state["messages"]) - max(int(state["last_seq"]) - last, 0)


def _what(plan: Plan) -> str:
    if plan.kept:
        return f"all from sequence {plan.kept} on"
    return f"{plan.runs} open runs and {plan.instances} agent instances"
