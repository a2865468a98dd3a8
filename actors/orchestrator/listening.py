"""From when the events on a topic start runs of a saga: from where a fact on the log says, `saga.<saga>.served`.

Until that fact has been folded, the events on the saga's topic are kept as candidates, since it may count from one of
them. What comes of them follows from the log and from what the sagas say (name, topic, since), from nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cuebook.actors.saga import Saga
from cuebook.events.envelope import Envelope
from cuebook.events.errors import CuebookError
from cuebook.events.facts import OutsideEvent, SagaServed

__all__ = ["MOST_CANDIDATES", "Listening", "SnapshotGapError", "Trigger"]

MOST_CANDIDATES = 10_000
"""Of a saga that nobody serves yet the newest so many events are kept, unless it counts from the beginning."""

logger = logging.getLogger(__name__)


class SnapshotGapError(CuebookError):
    """The snapshot was made without a saga that counts events from before it: only the whole log has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """An outside event that a saga listens to and that has not started its run yet.

    `refused`: the sequence of the last `rejected` fact about it, which other sagas got; 0 when there is none.
    """

    sequence: int
    saga: str
    event_id: str
    data: Any
    correlation_id: str
    traceparent: str
    refused: int = 0


@dataclass(slots=True)
class _Candidates:
    """Events on the topic of a saga that nobody has served yet. `given_up`: the newest that there was no room for."""

    events: dict[int, Trigger] = field(default_factory=dict)
    given_up: int = 0


class Listening:
    """Who listens to what, and from when. `on`: by topic the sagas that count what comes now."""

    def __init__(self, sagas: Mapping[str, Saga[Any, Any]]) -> None:
        self.on: dict[str, list[str]] = {}
        self.names = [name for name, saga in sagas.items() if saga.on]
        self.candidates = {name: _Candidates() for name in self.names}
        """By saga, of those that nobody has served yet."""
        self.served: dict[tuple[str, str], int] = {}
        """By saga and topic the sequence after which events count; also of sagas whose code is not here."""
        self._topics = {name: sagas[name].on for name in self.names}
        self._since = {name: sagas[name].since for name in self.names}
        self._implied: dict[str, int] = {}
        """Sagas that were served by a release which did not say so: their runs do, and from where."""
        self._began: set[str] = set()
        """Sagas that events had started runs of before there was any fact about them; also those not served here."""
        self._last: dict[str, int] = {}
        self.blind: dict[str, int] = {}
        """Sagas that the snapshot did not know, and up to where their events were not seen."""
        self.process_began = 0
        """Not folded: where the stream ended when this process began. What came later must not be lost."""

    # --- the fold ---

    def keep(self, envelope: Envelope) -> None:
        """An outside event, for those of the sagas on its topic that nobody has served yet."""
        for name, candidates in self.candidates.items():
            if self._topics[name] == envelope.address.topic:
                candidates.events[envelope.sequence] = trigger_of(envelope, name)
                if len(candidates.events) > MOST_CANDIDATES and self._since[name] == "now":
                    candidates.given_up = next(iter(candidates.events))
                    del candidates.events[candidates.given_up]

    def serve(self, envelope: Envelope) -> Iterable[Trigger]:
        """A fact about a saga: the candidates that are triggers by it, in order. The first one of a topic counts."""
        name, event = envelope.address.agent, envelope.event
        self.skip(name, envelope.sequence)
        assert isinstance(event, SagaServed)
        if (name, event.on) in self.served:
            return ()
        here = self._topics.get(name) == event.on
        after = self.served[name, event.on] = self._implied.pop(name) if here and name in self._implied else event.after
        return self._count(name, after) if here else ()

    def skip(self, saga: str, sequence: int) -> None:
        """Something stands under a saga's scope: whoever appends next there has to name it."""
        self._last[saga] = sequence

    def begin(self, saga: str, trigger: int) -> Iterable[Trigger]:
        """A run that the message at `trigger` has started, where nobody has said that the saga is served.

        A release that did not say so has done that: it counted from there on, or before.
        """
        if saga in self._last:
            return ()
        self._began.add(saga)
        if saga in self.blind and trigger <= self.blind[saga]:
            raise _gap(saga)
        found = self.candidates.get(saga)
        if found is None or trigger not in found.events:
            return ()
        self._implied[saga] = trigger - 1 if self._since[saga] == "now" else 0
        return self._count(saga, self._implied[saga])

    def refuse(self, sequence: int, rejected: int, sagas: list[str]) -> None:
        """The message at `sequence` was refused at `rejected` for these sagas, or for whoever there was."""
        for name, candidates in self.candidates.items():
            if sequence in candidates.events:
                if not sagas or name in sagas:
                    del candidates.events[sequence]
                else:
                    candidates.events[sequence] = replace(candidates.events[sequence], refused=rejected)

    def _count(self, name: str, after: int) -> list[Trigger]:
        if name in self.blind and after < self.blind.pop(name):
            raise _gap(name)
        candidates = self.candidates.pop(name, None)
        if candidates is None:
            return []
        self.on.setdefault(self._topics[name], []).append(name)
        return [trigger for trigger in candidates.events.values() if trigger.sequence > after]

    # --- deciding ---

    def unrecorded(self) -> list[tuple[str, SagaServed, int]]:
        """The sagas whose fact is missing on the log: name, fact, and the last sequence under its scope."""
        missing = []
        for name, topic in self._topics.items():
            if (name, topic) not in self.served:
                if name in self._implied:
                    after = self._implied[name]
                elif self._since[name] == "beginning":
                    after = 0
                else:
                    after = self._now(name)
                missing.append((name, SagaServed(on=topic, after=after), self._last.get(name, 0)))
        return missing

    def _now(self, name: str) -> int:
        given_up = self.candidates[name].given_up
        if given_up > self.process_began:
            logger.warning("a new saga stood by for too long, its oldest events do not count", extra={"saga": name})
        return max(self.process_began, given_up)

    @property
    def all_recorded(self) -> bool:
        """Whether the log says from when each saga counts."""
        return all(key in self.served for key in self._topics.items())

    # --- snapshots ---

    def dump(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "served": [[name, topic, after] for (name, topic), after in self.served.items()],
            "complete": [
                [name, topic, self._since[name]] for name, topic in self._topics.items() if name not in self.blind
            ],
            "implied": dict(self._implied),
            "began": sorted(self._began),
            "last": dict(self._last),
            "candidates": [
                [name, found.given_up, [asdict(trigger) for trigger in found.events.values()]]
                for name, found in self.candidates.items()
            ],
        }

    def load(self, data: dict[str, Any], position: int) -> None:
        """Take over what a dump made at `position` says.

        Raises SnapshotGapError when it was made without a saga that counts events from before it; LookupError,
        TypeError, ValueError, AttributeError for what is no dump. Then nothing has changed.
        """
        served = {(name, topic): after for name, topic, after in data["served"]}
        complete = {name: (topic, since) for name, topic, since in data["complete"]}
        began, last, implied = set(data["began"]), dict(data["last"]), dict(data["implied"])
        kept = {
            name: _Candidates({one["sequence"]: Trigger(**one) for one in triggers}, given_up)
            for name, given_up, triggers in data["candidates"]
        }
        blind, on, candidates = {}, dict[str, list[str]](), {}
        for name, topic in self._topics.items():
            known = complete.get(name)
            counts = (name, topic) in served or name in implied
            if known is not None and known[0] == topic and (counts or known[1] == self._since[name]):
                if counts:
                    on.setdefault(topic, []).append(name)
                else:
                    candidates[name] = kept[name]
            elif counts or name in began or self._since[name] == "beginning" or position > self.process_began:
                raise _gap(name)
            else:
                blind[name], candidates[name] = position, _Candidates()
        self.served, self._began, self._last, self.blind = served, began, last, blind
        self._implied = {name: after for name, after in implied.items() if name in self._topics}
        self.on, self.candidates = on, candidates


def trigger_of(envelope: Envelope, saga: str) -> Trigger:
    """What is kept of an outside event for a saga."""
    assert isinstance(envelope.event, OutsideEvent)
    return Trigger(
        sequence=envelope.sequence,
        saga=saga,
        event_id=envelope.id,
        data=envelope.event.data,
        correlation_id=envelope.correlation_id,
        traceparent=envelope.traceparent,
    )


def _gap(saga: str) -> SnapshotGapError:
    return SnapshotGapError(f"saga {saga!r} counts events from before it, and it was made without that saga")
