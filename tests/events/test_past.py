"""The list of a log's generations, as the metadata of its stream hold it: small, and read for ever."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuebook.events.connection import Connection
from cuebook.events.errors import ConfigurationError
from cuebook.events.generations import BEFORE, chain_of
from cuebook.events.jetstream import js_request
from cuebook.events.log import EventLog
from cuebook.events.past import (
    MOST_METADATA,
    Generation,
    bytes_when_dropped,
    pack_generations,
    parse_generations,
)

COUNTS = st.integers(0, 10**12)
PLACES = ["bucket cue_segments", "directory /srv/old on host a"]


@st.composite
def logs(draw: st.DrawFn) -> list[Generation]:
    """The generations of a log, some of them dropped."""
    found: list[Generation] = []
    last = draw(st.integers(0, 5))
    for number in range(1, draw(st.integers(1, 8)) + 1):
        first, last = last + 1, last + draw(st.integers(1, 10**9))
        place = draw(st.sampled_from(["", *PLACES]))
        found.append(
            Generation(
                generation=number,
                stream="CUE" if number == 1 else f"CUE@{number}",
                first=first,
                last=last,
                created="2026-11-22T21:50:38.123456789Z" if number == 1 else "",
                bytes=draw(COUNTS),
                messages=draw(COUNTS),
                subjects=draw(COUNTS),
                segments=place,
                digest=draw(st.binary(min_size=32, max_size=32)).hex() if place else "",
            )
        )
    return found


@given(logs())
def test_what_is_packed_is_read_again(earlier: list[Generation]) -> None:
    assert parse_generations(pack_generations(earlier)) == earlier
    assert parse_generations(json.dumps([asdict(one) for one in earlier])) == earlier
    assert parse_generations("[]") == []


@given(logs())
def test_a_roll_leaves_room_to_drop_all_generations(earlier: list[Generation]) -> None:
    dropped = [replace(one, segments=one.segments or PLACES[1], digest=one.digest or "ab" * 32) for one in earlier]
    assert len(pack_generations(dropped)) <= bytes_when_dropped(earlier)


def test_a_space_that_is_rolled_every_day_lives_for_four_years() -> None:
    number = last = 0
    earlier: list[Generation] = []
    while bytes_when_dropped(earlier) < MOST_METADATA - 2048:
        number, last = number + 1, last + 100_000
        stream = "CUE" if number == 1 else f"CUE@{number}"
        one = Generation(
            generation=number, stream=stream, first=last - 99_999, last=last, bytes=31_234_567, messages=101_234,
            subjects=51_234, segments="bucket cue_segments", digest="1f" * 32,
        )  # fmt: skip
        earlier.append(one)
    assert number > 4 * 365


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "[1]", '{"form":2}', '{"form":2,"generations":[[1]]}', "null"])
def test_what_describes_no_generations_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="describes no generation"):
        parse_generations(text)


def test_a_form_of_a_later_release_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigurationError, match="form 3") as refused:
        parse_generations('{"form":3}')
    assert "upgrade" in refused.value.remedy


async def test_the_server_takes_as_much_as_we_count_on_and_no_more(log: EventLog, connection: Connection) -> None:
    config = (await log.chain.look())["config"]
    for much, taken in ((MOST_METADATA - 200, True), (MOST_METADATA + 1, False)):
        request = {**config, "metadata": {"x": "y" * (much - 1)}}
        if taken:
            await js_request(connection, f"STREAM.UPDATE.{config['name']}", request)
        else:
            with pytest.raises(ConfigurationError, match="metadata"):
                await js_request(connection, f"STREAM.UPDATE.{config['name']}", request)


async def test_the_newest_of_many_generations_is_found_in_few_steps(
    connection: Connection, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = log.subjects
    config = (await log.chain.look())["config"]
    for number in range(1, 31):
        stream = names.stream if number == 1 else f"{names.stream}@{number}"
        ended = number < 30
        metadata = {"cuebook.next": f"{names.stream}@{number + 1}"} if ended else {}
        earlier = [
            Generation(
                generation=one, stream=names.stream if one == 1 else f"{names.stream}@{one}", first=one, last=one
            )
            for one in range(1, number)
        ]
        metadata |= {BEFORE: pack_generations(earlier)} if earlier else {}
        subjects = [f"rolled.{names.space}.{number}"] if ended else config["subjects"]
        settings = {key: value for key, value in config.items() if key != "republish" or not ended}
        kind = "UPDATE" if number == 1 else "CREATE"
        config_of_it = {**settings, "name": stream, "subjects": subjects, "metadata": metadata}
        await js_request(connection, f"STREAM.{kind}.{stream}", config_of_it)
    asked: list[str] = []
    request_of = connection.request

    async def request(subject: str, *args: object, **options: object) -> object:
        asked.append(subject)
        return await request_of(subject, *args, **options)

    monkeypatch.setattr(connection, "request", request)
    connection.shared.clear()
    chain = chain_of(connection, names)
    await chain.look()
    assert (chain.generation, chain.start) == (30, 29)
    assert len(asked) <= 4
