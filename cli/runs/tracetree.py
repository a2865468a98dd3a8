"""`cuebook trace`: a run as a tree of spans, from the log alone, and where Jaeger has it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cuebook.cli.history.views import Item
from cuebook.cli.moments import iso, now, span
from cuebook.cli.options import Output, Target
from cuebook.cli.output import fields, line, note, show_one, styled
from cuebook.cli.runs.showing import find_run
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError
from cuebook.events.facts import RunStarted
from cuebook.events.log import EventLog
from cuebook.telemetry import attributes as names
from cuebook.telemetry.life import RunTrace, origin_of
from cuebook.telemetry.span import Span
from cuebook.telemetry.trace import find_context

__all__ = ["show_trace", "tree_of"]

_BAR = 24
_QUIET = "dim"


async def show_trace(target: Target, run_id: str, jaeger_url: str, output: Output) -> None:
    """Print the spans of a run as a tree. Raises NotFoundError."""
    async with session(target) as client:
        _, history = await find_run(client.log, run_id)
        trace, spans = await tree_of(client.log, run_id, history)
        origin = await _origin(client.log, history)
    trace_id = f"{trace.context.trace_id:032x}"
    link = f"{jaeger_url.rstrip('/')}/trace/{trace_id}" if jaeger_url else ""
    ordered = _in_order(spans)
    view = {
        "run_id": run_id,
        "trace_id": trace_id,
        "url": link or None,
        "origin": origin,
        "spans": [_view(one) for one, _ in ordered],
    }

    def render() -> None:
        fields([("run", run_id), ("trace", trace_id), ("jaeger", link), ("origin", _of(origin))])
        line("")
        _print_tree(ordered)
        if not link:
            note("for the link to Jaeger set CUEBOOK_JAEGER_URL", output)

    show_one(output, view, render)


async def tree_of(log: EventLog, run_id: str, history: list[Item]) -> tuple[RunTrace, list[Span]]:
    """All spans of a run that follow from the log, those that go on among them. Raises NotFoundError."""
    events = [item for item in history if isinstance(item, Envelope)]
    if not events:
        raise NotFoundError(f"nothing about run {run_id!r} can be read", remedy="see 'cuebook run show'")
    trace = RunTrace(run_id, events[0], log.subjects.space, trigger=await _trigger(log, events[0]))
    spans = [trace.publish] if trace.publish is not None else []
    for item in events:
        spans += trace.apply(item)
    return trace, spans + trace.open()


async def _trigger(log: EventLog, opening: Envelope) -> Envelope | None:
    if not isinstance(opening.event, RunStarted) or not opening.event.trigger:
        return None
    found = await log.at(opening.event.trigger)
    return found if isinstance(found, Envelope) else None


async def _origin(log: EventLog, history: list[Item]) -> dict[str, str] | None:
    """The run that this one goes back to, its trace, and why."""
    for item in history:
        run_id, why = origin_of(item.event) if isinstance(item, Envelope) else ("", "")
        if run_id:
            opened = next((one for one in await log.history(run_id) if isinstance(one, Envelope)), None)
            if opened is None:
                return {"run_id": run_id, "trace_id": "", "why": why}
            context = find_context(run_id, opened.traceparent, opened.correlation_id)
            return {"run_id": run_id, "trace_id": f"{context.trace_id:032x}", "why": why}
    return None


def _of(origin: dict[str, str] | None) -> str:
    return f"{origin['why']}, {origin['run_id']}, trace {origin['trace_id'] or 'unknown'}" if origin else ""


def _in_order(spans: list[Span]) -> list[tuple[Span, str]]:
    """The tree from the top, each with the lines that lead to it."""
    known = {span.span_id for span in spans}
    below: dict[int, list[Span]] = defaultdict(list)
    for one in spans:
        below[one.parent_id if one.parent_id in known else 0].append(one)
    found: list[tuple[Span, str]] = []

    def add(one: Span, lead: str, tail: str) -> None:
        found.append((one, lead))
        inner = sorted(below[one.span_id], key=lambda each: (each.begin, each.end or 1 << 62, each.name))
        for place, each in enumerate(inner):
            last = place == len(inner) - 1
            add(each, tail + ("└─ " if last else "├─ "), tail + ("   " if last else "│  "))

    for top in sorted(below[0], key=lambda each: each.begin):
        add(top, "", "")
    return found


def _print_tree(ordered: list[tuple[Span, str]]) -> None:
    first = min(one.begin for one, _ in ordered)
    last = max(one.end or now() for one, _ in ordered)
    width = max(len(lead) + len(one.name) for one, lead in ordered)
    for one, lead in ordered:
        end = one.end or now()
        took = span(max(end - one.begin, 0) / 1e6) + ("" if one.end else " so far")
        text = f"{(lead + one.name).ljust(width)}  {_bar(one.begin, end, first, last)}  {took:>9}  {_remark(one)}"
        line(styled(text.rstrip(), "red" if one.error else "" if one.end else "cyan"))


def _bar(begin: int, end: int, first: int, last: int) -> str:
    """Where in the whole time this one lies."""
    whole = max(last - first, 1)
    start = min(int((begin - first) / whole * _BAR), _BAR - 1)
    length = max(1, min(round((end - begin) / whole * _BAR), _BAR - start))
    return " " * start + "━" * length + " " * (_BAR - start - length)


def _remark(one: Span) -> str:
    said = one.attributes
    parts = [
        f"step {said[names.STEP]}" if one.name.startswith(("step ", "undo ")) else "",
        f"attempt {said[names.ATTEMPT]}" if one.name.startswith(("execute", "place")) else "",
        f"at {said[names.AGENT_ID]}" if one.name.startswith("execute") else "",
        f"undoes step {said[names.UNDOES]}" if names.UNDOES in said else "",
        str(said.get(names.ACTION, "")),
        one.error or str(said.get(names.OUTCOME, "")),
        *(event.name for event in one.events if event.name != "started"),
    ]
    return ", ".join(part for part in parts if part)


def _view(one: Span) -> dict[str, Any]:
    return {
        "name": one.name,
        "span_id": f"{one.span_id:016x}",
        "parent_id": f"{one.parent_id:016x}" if one.parent_id else None,
        "kind": one.kind,
        "begin": iso(one.begin),
        "end": iso(one.end) if one.end else None,
        "duration_s": (one.end - one.begin) / 1e6 if one.end else None,
        "error": one.error or None,
        "attributes": one.attributes,
        "events": [{"name": event.name, "at": iso(event.at)} for event in one.events],
        "links": [
            {"trace_id": f"{each.trace_id:032x}", "span_id": f"{each.span_id:016x}", "why": each.why}
            for each in one.links
        ],
    }
