"""Sends the spans of what the orchestrator sees end in the log; see cuebook.telemetry.life.

Stands beside the fold and takes nothing from it but which event opened a run. A run that began before this process
looked is read from the log once something happens in it. A standby keeps what ended lately: when it takes over, it
sends that too, since the one before may have died with it in its queue. Both make the same spans with the same ids.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from cuebook.actors.orchestrator.world import World
from cuebook.events.envelope import Envelope
from cuebook.events.facts import OutsideEvent, TaskProgressed, TaskReverted
from cuebook.events.log import EventLog
from cuebook.telemetry.life import RunTrace, origin_of
from cuebook.telemetry.pipeline import Tracing
from cuebook.telemetry.span import Span
from cuebook.telemetry.trace import find_context, run_span

__all__ = ["RunTracer"]

LATELY_S: Final = 30.0
"""What ended so long before a standby takes over is sent again: more than a lease and the delay of the queue."""
MOST_KEPT: Final = 10_000
MOST_TRIGGERS: Final = 1_000

logger = logging.getLogger(__name__)

_Errand = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class RunTracer:
    """Given every event after it was folded. `errand` runs something that needs an answer from the server."""

    def __init__(self, tracing: Tracing, log: EventLog, errand: _Errand) -> None:
        self._tracing, self._log, self._errand = tracing, log, errand
        self._space = log.subjects.space
        self._runs: dict[str, RunTrace | None] = {}
        """By run id; None for those that are not sampled."""
        self._loading: dict[str, list[Envelope]] = {}
        """Runs whose history is being read, and what has come since."""
        self._triggers: OrderedDict[str, Envelope] = OrderedDict()
        """Outside events that came lately, by id."""
        self._kept: deque[Span] = deque(maxlen=MOST_KEPT)
        self._active = False

    def activated(self, now: int) -> None:
        """From here on we send; `now` in microseconds since 1970."""
        self._active = True
        since = now - int(LATELY_S * 1_000_000)
        self._tracing.emit([span for span in self._kept if span.end >= since])
        self._kept.clear()

    def deactivated(self) -> None:
        """Somebody else does."""
        self._active = False

    def saw(self, envelope: Envelope, world: World) -> None:
        """One event, after it was folded into `world`."""
        if self._tracing.skips(envelope.traceparent) and envelope.address.run_id not in self._runs:
            return
        event = type(envelope.event)
        if event is OutsideEvent:
            self._triggers[envelope.id] = replace(envelope, data=None, event=OutsideEvent())  # what it says is large
            if len(self._triggers) > MOST_TRIGGERS:
                self._triggers.popitem(last=False)
            return
        run_id = envelope.address.run_id
        if not run_id or event is TaskProgressed or event is TaskReverted:
            return
        try:
            self._follow(run_id, envelope, world)
        except Exception:  # a mistake in what only watches must not stop what works
            logger.exception("a run cannot be traced", extra={"run_id": run_id})
            self._runs[run_id] = None

    def _follow(self, run_id: str, envelope: Envelope, world: World) -> None:
        if run_id in self._runs:
            trace = self._runs[run_id]
            if trace is not None:
                self._apply(run_id, trace, envelope)
            elif run_id not in world.runs:
                del self._runs[run_id]
        elif run_id in self._loading:
            self._loading[run_id].append(envelope)
        else:
            self._begin(run_id, envelope, world)

    def _begin(self, run_id: str, envelope: Envelope, world: World) -> None:
        run = world.runs.get(run_id)
        said = run if run is not None else envelope
        if not self._tracing.samples(find_context(run_id, said.traceparent, said.correlation_id), "run"):
            if run is not None:
                self._runs[run_id] = None
        elif run is not None and run.opened_sequence == envelope.sequence:
            self._apply(run_id, self._open(run_id, envelope), envelope)
        else:
            self._loading[run_id] = [envelope]
            self._errand(lambda: self._load(run_id))

    def _open(self, run_id: str, opening: Envelope) -> RunTrace:
        trace = self._runs[run_id] = RunTrace(
            run_id, opening, self._space, trigger=self._triggers.get(opening.causation_id)
        )
        if trace.publish is not None and trace.publish.author == "orchestrator":
            self._send([trace.publish])
        return trace

    def _apply(self, run_id: str, trace: RunTrace, envelope: Envelope) -> None:
        self._send(trace.apply(envelope))
        origin, why = origin_of(envelope.event)
        if origin:
            self._errand(lambda: self._link(trace, origin, why))
        if trace.closed:
            del self._runs[run_id]

    async def _load(self, run_id: str) -> None:
        """Follow a run that we have not followed from its beginning; what ended before is not sent again."""
        history = [item for item in await self._log.history(run_id) if isinstance(item, Envelope)]
        since = self._loading.pop(run_id)
        if not history:
            return
        trace = RunTrace(run_id, history[0], self._space)
        after = history[-1].sequence
        for item in [*history, *(item for item in since if item.sequence > after)]:
            spans = trace.apply(item)
            if item.sequence >= since[0].sequence:
                self._send(spans)
        if not trace.closed:
            self._runs[run_id] = trace

    async def _link(self, trace: RunTrace, origin: str, why: str) -> None:
        """Link a run to the one that it goes back to."""
        opened = next((one for one in await self._log.history(origin) if isinstance(one, Envelope)), None)
        if opened is not None:
            context = find_context(origin, opened.traceparent, opened.correlation_id)
            trace.link_origin(context.trace_id, run_span(context.trace_id, origin), why)

    def _send(self, spans: list[Span]) -> None:
        ours = [span for span in spans if span.author == "orchestrator"]
        if self._active:
            self._tracing.emit(ours)
        else:
            self._kept.extend(ours)
