"""When what ended could be seen in the tables: a span for each task, step and run that a batch has brought to its end.

From the moment the log had it until the commit. A replay is no part of what it replays: where the events are a copy, or
old, the batch has a trace of its own, with links to the runs in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from cuebook.events.envelope import Envelope
from cuebook.telemetry import attributes as names
from cuebook.telemetry.life import SYSTEM, closes
from cuebook.telemetry.pipeline import Tracing
from cuebook.telemetry.span import Link, Span, Value
from cuebook.telemetry.trace import TraceContext, context_of, run_span, span_id, task_span

__all__ = ["project"]

OLD_S: Final = 600.0
MAX_LINKS: Final = 32


def project(
    tracing: Tracing,
    batch: Iterable[object],
    projections: Sequence[str],
    space: str,
    *,
    began: int,
    ended: int,
    copies: bool,
) -> None:
    """Send the spans of one batch, committed at `ended` (microseconds since 1970), of a stream that holds `copies`."""
    closing = [
        item
        for item in batch
        if isinstance(item, Envelope) and closes(item.event) and not tracing.skips(item.traceparent)
    ]
    sampled = [(item, context) for item in closing if tracing.samples(context := context_of(item), "project")]
    if not sampled:
        return
    oldest = ended - int(OLD_S * 1_000_000)
    about: dict[str, Value] = {
        names.SYSTEM: SYSTEM,
        names.OPERATION: "project",
        names.OPERATION_TYPE: "process",
        names.SPACE: space,
        names.PROJECTIONS: list(projections),
        names.BATCH_COUNT: len(sampled),
    }
    spans = []
    replayed = [one for one in sampled if copies or one[0].recorded_at < oldest]
    for item, context in sampled:
        if copies or item.recorded_at < oldest:
            continue
        span = Span(
            name="project",
            kind="consumer",
            trace_id=context.trace_id,
            span_id=span_id(context.trace_id, "project", item.id),
            parent_id=_about_whom(item, context),
            begin=item.recorded_at,
            end=max(ended, item.recorded_at),
        )
        span.attributes = {**about, names.RUN_ID: item.address.run_id, names.SEQUENCE: item.sequence}
        spans.append(span)
    if replayed:
        trace_id = int.from_bytes(os.urandom(16)) or 1
        links = {
            (context.trace_id, _about_whom(item, context)): Link(context.trace_id, _about_whom(item, context), "replay")
            for item, context in replayed[:MAX_LINKS]
        }
        span = Span(
            name="project again", kind="consumer", trace_id=trace_id, span_id=span_id(trace_id, "project"),
            parent_id=0, begin=began, end=ended,
        )  # fmt: skip
        span.attributes, span.links = dict(about), list(links.values())
        spans.append(span)
    tracing.emit(spans)


def _about_whom(item: Envelope, context: TraceContext) -> int:
    address = item.address
    if address.kind == "run":
        return run_span(context.trace_id, address.run_id)
    return task_span(context.trace_id, address.run_id, address.n)
