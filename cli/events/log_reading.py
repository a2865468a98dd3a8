"""Printing parts of the log, following it, finding one message, publishing one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from cuebook.actors.client import Client
from cuebook.cli.directory import ask_or_none, nearest
from cuebook.cli.exits import InputError, Interruption
from cuebook.cli.history.filters import subject_filters, type_filter
from cuebook.cli.history.points import after_point
from cuebook.cli.history.timeline import event_line
from cuebook.cli.history.views import Item, event_view
from cuebook.cli.meter import Meter
from cuebook.cli.options import Output, Target
from cuebook.cli.output import Lines, document, fields, heading, line, note, show_one
from cuebook.cli.session import session
from cuebook.events.envelope import Envelope
from cuebook.events.errors import NotFoundError
from cuebook.events.log import EventLog

__all__ = ["Chosen", "Reach", "find_message", "publish", "show", "tail"]

DEFAULT_LIMIT = 20
FIRST_WINDOW = 1_000
"""Sequences read at first when looking backwards; each further window is four times as long."""
Keep = Callable[[Item], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which messages; nothing at all means every one."""

    filters: Sequence[str]
    topics: Sequence[str]
    types: Sequence[str]
    runs: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """From where: a point, an age or time, or the newest `limit`. What is empty is not said."""

    first: str
    since: str
    limit: int | None


async def tail(
    target: Target, chosen: Chosen, reach: Reach, output: Output, interruption: Interruption, *, follow: bool
) -> None:
    """Print stored messages and, if asked, those to come until interrupted. Raises InputError."""
    if reach.first and reach.since:
        raise InputError("--from and --since say both where to begin", remedy="say one of them")
    keep = type_filter(chosen.types)
    async with session(target, follows=follow) as client:
        log = client.log
        filters = subject_filters(log.subjects, chosen.filters, chosen.topics, chosen.runs)
        last = (await log.verify()).last_sequence

        def add(item: Item) -> None:
            if keep(item):
                lines.add(event_view(item), partial(event_line, item))
            interruption.resume = f"cuebook events tail -f --from {item.sequence + 1}{target.hint}" if follow else ""

        with Lines(output) as lines:
            if begin := reach.first or reach.since:
                await _print_range(log, filters, await after_point(log, begin), last, reach.limit, keep, add)
            else:
                limit = DEFAULT_LIMIT if reach.limit is None else reach.limit
                for item in await newest(log, filters, keep, limit, last):
                    add(item)
            if not follow:
                if lines.is_empty and reach.limit != 0:
                    note(f"nothing like that is in the log, which ends at {last}", output)
                return
            interruption.resume = interruption.resume or f"cuebook events tail -f --from {last + 1}{target.hint}"
            async with aclosing(log.follow(after=last, filters=filters)) as items:
                async for item in items:
                    add(item)


async def _print_range(
    log: EventLog,
    filters: Sequence[str],
    after: int,
    last: int,
    limit: int | None,
    keep: Keep,
    add: Callable[[Item], None],
) -> None:
    newest_of: deque[Item] = deque(maxlen=limit)
    async with aclosing(log.read(after=after, until=last, filters=filters)) as items:
        async for item in items:
            if limit is None:
                add(item)
            elif keep(item):
                newest_of.append(item)
    for item in newest_of:
        add(item)


async def newest(log: EventLog, filters: Sequence[str], keep: Keep, limit: int, last: int) -> list[Item]:
    """The newest `limit` messages up to a sequence, in order: read in windows that grow backwards."""
    found: list[Item] = []
    until, size = last, FIRST_WINDOW
    while until > 0 and len(found) < limit:
        after = max(0, until - size)
        part: deque[Item] = deque(maxlen=limit - len(found))
        async with aclosing(log.read(after=after, until=until, filters=filters)) as items:
            async for item in items:
                if keep(item):
                    part.append(item)
        found = [*part, *found]
        until, size = after, size * 4
    return found


async def show(target: Target, name: str, output: Output) -> None:
    """Print one message by its sequence or its id. Raises NotFoundError."""
    async with session(target) as client:
        item = await find_message(client.log, name, output)
    view = event_view(item)
    show_one(output, view, lambda: _print_event(view))


async def find_message(log: EventLog, name: str, output: Output) -> Item:
    """The message with a sequence or an id. Raises NotFoundError."""
    number = name.removeprefix("seq-")  # the id of what came without one
    if number.isascii() and number.isdigit() and len(number) < 19:
        found = await log.at(int(number)) if int(number) else None
        if found is None:
            last = (await log.verify()).last_sequence
            raise NotFoundError(f"there is no message at sequence {number}", remedy=f"the log ends at {last}")
        return found
    until, size = (await log.verify()).last_sequence, FIRST_WINDOW
    with Meter(1, until, silent=output.for_programs) as meter:
        while until > 0:
            after = max(0, until - size)
            async with aclosing(log.read(after=after, until=until)) as items:
                async for item in items:
                    meter.at(until - item.sequence + after)
                    if isinstance(item, Envelope) and item.id == name:
                        return item
            until, size = after, size * 4
    raise NotFoundError(f"no message of the log has the id {name!r}", remedy="see 'cuebook events tail -o jsonl'")


def _print_event(view: dict[str, Any]) -> None:
    fields((name.replace("_", " "), value) for name, value in view.items() if name not in ("data", "body"))
    if "data" in view:
        heading("data")
        document(view["data"])
    else:
        heading("body, base64")
        line(view["body"])


async def publish(target: Target, topic: str, data: Any, event_id: str, output: Output, *, by: str) -> None:
    """Publish an outside event. Raises InvalidTokenError, PoisonMessageError, UnavailableError."""
    async with session(target, by=by) as client:
        subject = client.log.subjects.event(topic)
        last = (await client.log.verify()).last_sequence
        sequence = await client.publish(topic, data, event_id=event_id)
        view = {"sequence": sequence, "subject": subject, "topic": topic, "stored_before": sequence <= last}
        show_one(output, view, lambda: line(str(sequence)))
        if sequence <= last:
            note(f"event {event_id} was stored before, at sequence {sequence}", output)
        elif not output.for_programs:
            await _tell_listeners(client, topic)


async def _tell_listeners(client: Client, topic: str) -> None:
    """Say if no saga begins with such an event; one that goes on may still wait for it."""
    answer = await ask_or_none(client, "sagas")
    topics = {one["on"] for one in answer.get("sagas", []) if one["on"]} if answer is not None else {topic}
    if topic not in topics:
        note(f"no saga begins with {topic}; {nearest(topic, topics, 'topic')}")
