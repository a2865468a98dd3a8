"""What people type and read: times, spans, JSON, names of errors."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.cli.exits import Exit, reported_errors
from cuebook.cli.history.timeline import event_line, words
from cuebook.cli.history.views import event_view
from cuebook.cli.inputs import read_json
from cuebook.cli.moments import clock, iso, now, parse_duration, parse_point, parse_since, span
from cuebook.cli.output import compact, plain, to_json
from cuebook.events import catalogue, errors, facts
from cuebook.events.envelope import Envelope
from cuebook.events.subjects import Address


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400), ("500ms", 0.5), ("1w", 604800)]
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert abs(now() - parse_since(text) - seconds * 1e6) < 5e6


@pytest.mark.parametrize(
    "text", ["", "1", "h", "1y", "-1h", "1h 30m", "1e3s", "9" * 400 + "w", "\N{FULLWIDTH DIGIT ONE}h"]
)
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(errors.CuebookError, match=r"no span of time|longer"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00", "2026-01-31 14:00+02:00", "2026-01-31T12:00:00.000000+00:00"]
)
def test_moments_are_utc_unless_they_say_otherwise(text: str) -> None:
    assert iso(parse_since(text)) == "2026-01-31T12:00:00.000000Z"
    assert parse_point(text) == (None, parse_since(text))


def test_points_are_sequences_ages_or_times() -> None:
    assert parse_point("17").sequence == 17
    assert parse_point("1h").sequence is None
    for text in ("", "x", "1.5", "99999-01-01", "9" * 19):
        with pytest.raises(errors.CuebookError):
            parse_point(text)


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2262, 1, 1)))  # noqa: DTZ001
def test_a_moment_that_was_printed_can_be_typed(moment: datetime) -> None:
    microseconds = int(moment.replace(tzinfo=UTC).timestamp() * 1_000_000)
    printed = iso(microseconds)
    assert printed is not None
    assert abs(parse_since(printed) - microseconds) <= 1
    assert iso(moment.replace(tzinfo=UTC)) is not None


@pytest.mark.parametrize("moment", [0, -(2**62), 2**62])
def test_moments_that_no_clock_shows_are_empty(moment: int) -> None:
    assert iso(moment) is None
    assert clock(moment) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0 ms"), (0.012, "12 ms"), (3.44, "3.4 s"), (312, "5m 12s"), (7500, "2h 5m"), (273_600, "3d 4h")],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.text())
def test_nothing_unprintable_is_printed(text: str) -> None:
    assert plain(text).isprintable()
    shown = to_json({"text": text}) if text.isprintable() else to_json(json.loads(json.dumps({"text": text})))
    assert shown.isprintable()
    assert json.loads(shown) == {"text": text}
    assert compact(text, 20).isprintable()
    assert len(compact(text, 20)) <= 20


def test_json_with_what_only_the_log_can_hold() -> None:
    assert json.loads(to_json({"bytes": b"\x00\xff"})) == {"bytes": "AP8="}
    assert json.loads(to_json({"a": 1}, indent=2)) == {"a": 1}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(), st.lists, max_leaves=5))
def test_json_is_read_as_it_is(value: object) -> None:
    assert read_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.CommandRejectedError("no"), Exit.FAILURE),
        (errors.ConfigurationError("no"), Exit.FAILURE),
        (errors.InvalidTokenError("no"), Exit.USAGE),
        (errors.PoisonMessageError("no"), Exit.USAGE),
        (errors.NotFoundError("no"), Exit.NOT_FOUND),
        (errors.StreamMissingError("no"), Exit.NOT_FOUND),
        (errors.AccessDeniedError("no"), Exit.AUTH),
        (errors.UnavailableError("no"), Exit.UNREACHABLE),
        (TimeoutError("no"), Exit.TIMEOUT),
        (errors.ConcurrencyConflictError("no", 1), Exit.CONFLICT),
        (errors.HistoryRegressedError("no"), Exit.DRIFT),
        (ExceptionGroup("several", [ValueError("x"), errors.UnavailableError("no")]), Exit.UNREACHABLE),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_class_of_error_has_its_status(
    error: BaseException, status: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in (False, True):
        with pytest.raises(RuntimeError) as exited, reported_errors(as_json=as_json):
            raise error
        assert getattr(exited.value, "exit_code", None) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert re.match(r'{"error": ".+", "fix": ".*"}\n$' if as_json else r"error: .+\n(fix: .+\n)?$", said.err)


def test_a_defect_of_ours_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError), reported_errors():
        raise ZeroDivisionError


VALUES = {
    "error": facts.Error(type="ValueError", message="no"), "saga": "order", "reason": "because", "handler": "add",
    "attempt": 1, "timeout_s": 1.0, "seconds": 1.0, "topic": "order.paid", "sequence": 1, "question": "really?",
    "action": "retry", "slots": 1, "handlers": {}, "subject": "cue.event.a", "on": "order.placed",
    "run_id": "r1", "n": 0, "fork_of": "r0", "at": 9, "copied": 1, "started_at": 1, "started_sequence": 1,
    "kind": "ask", "generation": 2, "stream": "CUE", "into": "CUE@2",
    "origin": facts.Origin(run_id="r0", n=0, sequence=3, recorded_at=1), "status": "cancelled",
}  # fmt: skip


@pytest.mark.parametrize("kind", catalogue.EVENT_TYPES, ids=lambda kind: kind.event_type)
def test_every_kind_of_event_is_told_in_words(kind: type[facts.Event]) -> None:
    required = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]  # type: ignore[arg-type]
    event = kind(**({name: VALUES[name] for name in required} | ({"reason": {}} if kind is facts.TaskAssigned else {})))
    family, fact, _ = kind.event_type.split(".")
    address = Address(family, fact, "r1", 0, "echo", "i1")  # type: ignore[arg-type]
    envelope = Envelope(
        id="e1", event_type=kind.event_type, time=1, source="s", correlation_id="c", data={"raw": 1}, event=event,
        address=address, subject=f"cue.{family}.x", sequence=1, recorded_at=1,
    )  # fmt: skip
    told = words(envelope)
    assert told != '{"raw": 1}'
    assert told.isprintable()
    assert told
    assert event_line(envelope).startswith("       1  1970-01-01 00:00:00.000")
    assert event_view(envelope)["fact"] == fact
