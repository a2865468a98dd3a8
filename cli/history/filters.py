"""Choosing messages by subject, topic, run and type, in the words of people."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from cuebook.cli.exits import InputError
from cuebook.cli.history.views import Item
from cuebook.events.envelope import Envelope
from cuebook.events.subjects import Subjects

__all__ = ["subject_filter", "subject_filters", "type_filter"]

_TOKEN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}|\*")
_HINT = "write tokens of a-z, 0-9, '-' and '_' with dots between; * is any one token, > at the end any more"


def subject_filters(
    subjects: Subjects, filters: Sequence[str], topics: Sequence[str], runs: Sequence[str]
) -> list[str]:
    """The subject filters that together choose what was asked for; none at all means everything. Raises InputError."""
    chosen = [subject_filter(subjects, text) for text in filters]
    chosen += [subject_filter(subjects, f"event.{topic}") for topic in topics]
    for run_id in runs:
        chosen += [subjects.everything_of(run_id), subjects.progress_of(run_id)]
    return [
        one
        for n, one in enumerate(chosen)
        if not any(_covers(other, one, n > m) for m, other in enumerate(chosen) if m != n)
    ]


def subject_filter(subjects: Subjects, text: str) -> str:
    """A filter with or without the space in front, as in `cue.run.>`, `run.>` or `live.cue.run.>`."""
    tokens = text.split(".")
    if tokens[:2] == ["live", subjects.space]:
        tokens = tokens[1:]
    if tokens[0] == subjects.space and len(tokens) > 1:
        tokens = tokens[1:]
    if tokens[-1] == ">":
        tokens, rest = tokens[:-1], [">"]
    else:
        rest = []
    if not all(_TOKEN.fullmatch(token) for token in tokens) or not tokens + rest:
        raise InputError(f"{text!r} is no subject filter", remedy=_HINT)
    return ".".join([subjects.space, *tokens, *rest])


def type_filter(types: Sequence[str]) -> Callable[[Item], bool]:
    """Whether a message is of one of the types; `task.failed` also means all its versions. Without types: any."""
    if not types:
        return lambda _: True

    def keep(item: Item) -> bool:
        if not isinstance(item, Envelope):
            return "unreadable" in types
        return any(fnmatchcase(item.event_type, pattern) or fnmatchcase(item.event_type, f"{pattern}.v[0-9]*")
                   for pattern in types)  # fmt: skip

    return keep


def _covers(wide: str, narrow: str, also_equal: bool) -> bool:
    """Whether everything that matches `narrow` matches `wide`: the server takes no filters that overlap so."""
    if wide == narrow:
        return also_equal
    ours, theirs = wide.split("."), narrow.split(".")
    if ours[-1] == ">":
        ours = ours[:-1]
        if len(theirs) <= len(ours):
            return False
        theirs = theirs[: len(ours)]
    return len(ours) == len(theirs) and all(a in ("*", b) and b != ">" for a, b in zip(ours, theirs, strict=True))
