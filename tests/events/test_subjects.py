from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cuebook.events.errors import InvalidTokenError, PoisonMessageError
from cuebook.events.subjects import MAX_TOPIC_LENGTH, Address, Subjects, check_token, parse_task_id, task_id
from tests.events.strategies import addresses, subject_of, tokens

SUBJECTS = Subjects("cue")
TOKEN = re.compile(r"\A[a-z0-9][a-z0-9_-]{0,63}\Z")
HOSTILE = [
    "", " ", ".", "*", ">", "a.b", "a b", "a\r\nPUB x 0\r\n", "a\n", "a\x00", "A", "-a", "_a", "é", "ａ", "a" * 65,  # noqa: RUF001
    "a*", "a>", "$js", "٣", "a" * 300,
]  # fmt: skip


@given(tokens)
def test_a_token_is_given_back_unchanged(token: str) -> None:
    assert check_token(token) == token


@given(st.text())
@example("a\n")
def test_a_token_is_what_the_pattern_says_and_nothing_else(text: str) -> None:
    if TOKEN.match(text):
        assert check_token(text) == text
    else:
        with pytest.raises(InvalidTokenError):
            check_token(text)


@given(addresses)
def test_every_subject_built_parses_back_to_the_same_address(address: Address) -> None:
    assert SUBJECTS.parse(subject_of(SUBJECTS, address)) == address


@given(addresses)
def test_no_subject_of_one_space_parses_in_another(address: Address) -> None:
    with pytest.raises(PoisonMessageError):
        Subjects("cue2").parse(subject_of(SUBJECTS, address))


_parts = st.lists(st.text() | tokens | st.sampled_from(["run", "task", "step", "agent", "rejected", "0"]))


@given(st.text() | _parts.map(lambda parts: ".".join(["cue", *parts])))
def test_parsing_anything_gives_an_address_or_a_poison_message(subject: str) -> None:
    try:
        address = SUBJECTS.parse(subject)
    except PoisonMessageError:
        return
    assert subject_of(SUBJECTS, address) == subject


@pytest.mark.parametrize("token", HOSTILE)
def test_no_builder_takes_a_hostile_token(token: str) -> None:
    n = SUBJECTS
    builders: list[Callable[[], object]] = [
        lambda: n.run(token, "started"), lambda: n.run("r", token), lambda: n.task(token, 0, "completed"),
        lambda: n.task("r", 0, token), lambda: n.step(token, 0, "asked"), lambda: n.step("r", 0, token),
        lambda: n.progress(token, 0), lambda: n.agent(token, "i", "lost"), lambda: n.agent("a", token, "lost"),
        lambda: n.agent("a", "i", token), lambda: n.run_scope(token), lambda: n.task_scope(token, 0),
        lambda: n.step_scope(token, 0), lambda: n.agent_scope(token, "i"), lambda: n.agent_scope("a", token),
        lambda: n.everything_of(token), lambda: n.inbox(token, "i"), lambda: n.inbox("a", token),
        lambda: n.delivery(token, "i"), lambda: n.delivery("a", token), lambda: n.control(token, "i"),
        lambda: n.control("a", token), lambda: n.heartbeat(token, "i"), lambda: n.heartbeat("a", token),
        lambda: n.query(token), lambda: Subjects(token),
    ]  # fmt: skip
    if token:  # empty means: none
        builders += [
            lambda: n.run("r", "requested", token),
            lambda: n.task("r", 0, "requested", token),
            lambda: n.task("r", 0, "assigned", "a", token),
        ]
    if "." not in token or token == ".":
        builders += [lambda: n.event(token), lambda: n.event(f"ticket.{token}")]
    for build in builders:
        with pytest.raises(InvalidTokenError):
            build()


@pytest.mark.parametrize("number", [-1, 1_000_000_000, True, 1.0])
def test_the_number_of_a_task_is_a_small_whole_number(number: int) -> None:
    for build in (SUBJECTS.task_scope, SUBJECTS.step_scope, SUBJECTS.progress):
        with pytest.raises(InvalidTokenError):
            build("r", number)
    with pytest.raises(InvalidTokenError):
        SUBJECTS.task("r", number, "completed")
    with pytest.raises(InvalidTokenError):
        SUBJECTS.step("r", number, "asked")


@pytest.mark.parametrize("sequence", [-1, 2**63, 1.5])
def test_only_a_stream_sequence_can_be_rejected(sequence: int) -> None:
    with pytest.raises(InvalidTokenError):
        SUBJECTS.rejected(sequence)


def test_an_instance_without_its_agent_is_refused() -> None:
    with pytest.raises(InvalidTokenError):
        SUBJECTS.task("r", 0, "assigned", instance="i")


def test_only_a_request_for_a_run_names_a_saga() -> None:
    with pytest.raises(InvalidTokenError):
        SUBJECTS.run("r", "started", "support")


def test_a_topic_is_at_most_255_characters() -> None:
    longest = ".".join(["a" * 63] * 4)
    assert len(longest) == MAX_TOPIC_LENGTH
    assert SUBJECTS.parse(SUBJECTS.event(longest)).topic == longest
    with pytest.raises(InvalidTokenError):
        SUBJECTS.event(longest + "a")
    with pytest.raises(PoisonMessageError):
        SUBJECTS.parse(f"cue.event.{longest}a")


@pytest.mark.parametrize("space", ["control", "deliver", "heartbeat", "live", "query"])
def test_a_space_cannot_take_in_the_subjects_of_others(space: str) -> None:
    with pytest.raises(InvalidTokenError):
        Subjects(space)


@pytest.mark.parametrize(
    "subject",
    [
        "cue", "cue.", "cue.run", "cue.run.r", "cue.run.r.task.0", "cue.run.r.task.01.completed",
        "cue.run.r.task.-1.completed", "cue.run.r.task.0.a.b.c.d", "cue.run.r.step.0.asked.x", "cue.run.r.started.x",
        "cue.event", "cue.event.", "cue.event.a..b", "cue.rejected.01", "cue.rejected.9223372036854775808",
        "cue.agent.a.lost", "cue.progress.r", "cue.other.x", "live.cue.event.a", "CUE.event.a", "cue.event.a\n",
    ],
)  # fmt: skip
def test_what_was_not_built_here_does_not_parse(subject: str) -> None:
    with pytest.raises(PoisonMessageError):
        SUBJECTS.parse(subject)


@given(tokens, st.integers(0, 999_999_999))
def test_a_task_id_names_the_task_it_was_made_from(run_id: str, n: int) -> None:
    assert parse_task_id(task_id(run_id, n)) == (run_id, n)
    assert parse_task_id(run_id) == (run_id, 0)


@pytest.mark.parametrize("text", ["", "/", "a/", "a/x", "a/01", "a/-1", "a/1/2", "/1", "A/1", "a/1 ", "a/1000000000"])
def test_what_names_no_task_is_refused(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse_task_id(text)


def test_scopes_hold_what_is_filed_under_them() -> None:
    assert SUBJECTS.run_scope("r") == "cue.run.r.*"
    assert SUBJECTS.task_scope("r", 3) == "cue.run.r.task.3.>"
    assert SUBJECTS.step_scope("r", 3) == "cue.run.r.step.3.>"
    assert SUBJECTS.agent_scope("a", "i") == "cue.agent.a.i.>"
    assert SUBJECTS.everything_of("r") == "cue.run.r.>"
    assert SUBJECTS.inbox("a", "i") == "cue.run.*.task.*.assigned.a.i"
    assert (SUBJECTS.all, SUBJECTS.live, SUBJECTS.stream) == ("cue.>", "live.cue.>", "CUE")
