"""`cuebook events`: what the log holds, exactly, whoever wrote it."""

from __future__ import annotations

import json
import signal

import pytest

from cuebook.actors.client import Client
from cuebook.cli.events.log_reading import newest
from cuebook.cli.history.filters import subject_filters, type_filter
from cuebook.events.errors import CuebookError
from cuebook.events.facts import OutsideEvent
from cuebook.events.log import EventLog
from cuebook.events.subjects import Subjects
from tests.cli.conftest import Cli, Start


@pytest.fixture
async def published(client: Client) -> list[int]:
    """Events a.1 to a.6 and b.1, with a message in between that is none."""
    sequences = [await client.publish(f"a.{n}", {"n": n}) for n in range(1, 7)]
    await client.log.connection.publish(client.log.subjects.event("broken"), b"{nope")
    await client.log.connection.flush()
    return [*sequences, 7, await client.publish("b.1", {"text": "\x1b[31mred\x1b[0m \u202eabc"})]


async def test_the_newest_events_a_line_each(cli: Cli, published: list[int]) -> None:
    lines = (await cli.ok("events", "tail", "-n", "3")).splitlines()
    assert [int(line.split()[0]) for line in lines] == published[-3:]
    assert "unreadable: the body is neither an envelope nor JSON" in lines[1]
    assert lines[0].endswith('event.a.6  {"n": 6}')
    assert "\x1b" not in lines[2]
    assert "\u202e" not in lines[2]


async def test_events_for_programs(cli: Cli, published: list[int]) -> None:
    rows = [json.loads(line) for line in (await cli.ok("events", "tail", "-o", "jsonl")).splitlines()]
    assert rows == await cli.json("events", "tail")
    assert [row["sequence"] for row in rows] == published
    assert (rows[0]["topic"], rows[0]["data"], rows[0]["source"]) == ("a.1", {"n": 1}, "tests")
    assert rows[0]["recorded_at"].endswith("Z")
    assert rows[6]["unreadable"]
    assert rows[7]["data"] == {"text": "\x1b[31mred\x1b[0m \u202eabc"}
    assert "\\u202e" in await cli.ok("events", "tail", "-o", "json"), "also here nothing unprintable reaches a terminal"


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--topic", "a.*", "-n", "2"], [5, 6]),
        (["--topic", "a.1", "--topic", "b.>"], [1, 8]),
        (["--filter", "event.b.1"], [8]),
        (["--filter", "event.>", "--topic", "a.1", "--type", "a.[12]"], [1, 2]),
        (["--type", "unreadable"], [7]),
        (["--from", "5"], [5, 6, 7, 8]),
        (["--from", "5", "-n", "1"], [8]),
        (["--from", "1h", "--type", "b.1"], [8]),
        (["--since", "1h", "--limit", "2"], [7, 8]),
        (["--since", "2100-01-01"], []),
        (["-n", "0"], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
async def test_which_events(cli: Cli, published: list[int], words: list[str], chosen: list[int]) -> None:
    assert [row["sequence"] for row in await cli.json("events", "tail", *words)] == chosen


@pytest.mark.parametrize("words", [["--from", "99"], ["--type", "tsak.failed"], ["--run", "nobody"]])
async def test_that_nothing_is_like_that_is_said(cli: Cli, published: list[int], words: list[str]) -> None:
    result = await cli.run("events", "tail", *words)
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "",
        "nothing like that is in the log, which ends at 8\n",
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--filter", "a b"], "is no subject filter"),
        (["--filter", "run.>.x"], "is no subject filter"),
        (["--filter", ""], "is no subject filter"),
        (["--topic", "Ticket"], "is no subject filter"),
        (["--run", "a.b"], "cannot be part of a subject"),
        (["--since", "1 fortnight"], "is no moment"),
        (["--from", "-5"], "is no moment"),
        (["--from", "9" * 30], "is no stream sequence"),
        (["--since", "1h", "--from", "3"], "say one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("client")
async def test_what_cannot_be_meant(cli: Cli, words: list[str], complaint: str) -> None:
    assert complaint in await cli.fails(2, "events", "tail", *words)


async def test_following_shows_what_comes_and_says_how_to_go_on(cli: Cli, client: Client, start: Start) -> None:
    first = await client.publish("a", 1)
    async with start("events", "tail", "-f", "-o", "jsonl") as tail:
        await tail.prints('"data": 1')
        second = await client.publish("a", 2)
        await tail.prints('"data": 2')
        tail.send(signal.SIGINT)
        assert await tail.ends() == 9
        assert [json.loads(line)["sequence"] for line in tail.output.splitlines()] == [first, second]
        fix = json.loads(tail.errors)["fix"]
    assert fix == f"go on with: cuebook events tail -f --from {second + 1}"
    async with start("events", "tail", "-f", "-o", "json", "--from", str(second)) as tail:
        await tail.prints('"data": 2')
        tail.send(signal.SIGINT)
        assert await tail.ends() == 9
        assert [row["sequence"] for row in json.loads(tail.output)] == [second], "the array is complete all the same"


async def test_a_reader_that_goes_away_is_no_error(cli: Cli, client: Client, start: Start) -> None:
    await client.publish("a", "x" * 100_000)
    async with start("events", "tail", "-f") as tail:
        await tail.prints("event.a")
        assert tail.process.stdout is not None
        tail.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        await client.publish("a", 2)
        assert await tail.ends() == 1
        assert "Traceback" not in tail.errors


async def test_one_message_by_sequence_or_id(cli: Cli, client: Client, published: list[int]) -> None:
    shown = await cli.json("events", "show", str(published[1]))
    assert (shown["data"], shown["topic"]) == ({"n": 2}, "a.2")
    assert await cli.json("events", "show", shown["id"]) == shown
    assert (await cli.json("events", "show", "seq-7"))["unreadable"]
    assert '"n": 2' in await cli.ok("events", "show", shown["id"])
    assert "the log ends at 8" in await cli.fails(3, "events", "show", "99")
    assert "no message of the log has the id" in await cli.fails(3, "events", "show", "nobody-1")


async def test_publishing_tells_the_sequence_and_a_repetition(cli: Cli, client: Client) -> None:
    assert await cli.json("events", "publish", "order.placed", '{"n": 1}', "--id", "e1") == {
        "sequence": 1, "subject": client.log.subjects.event("order.placed"), "topic": "order.placed",
        "stored_before": False,
    }  # fmt: skip
    again = await cli.run("events", "publish", "order.placed", '{"n": 1}', "--id", "e1")
    assert (again.exit_code, again.stdout) == (0, "1\n")
    assert "was stored before, at sequence 1" in again.stderr
    stored = await client.log.at(1)
    assert stored is not None
    assert getattr(stored, "source", "") == "ann"
    assert "cannot be part of a subject" in await cli.fails(2, "events", "publish", "Order.Placed", "1")
    assert "what is to be published is not JSON" in await cli.fails(2, "events", "publish", "order.placed", "{")


@pytest.mark.usefixtures("orchestrator")
async def test_publishing_to_a_topic_that_starts_nothing_is_mentioned(cli: Cli) -> None:
    result = await cli.run("events", "publish", "order.paced", "{}")
    assert "no saga begins with order.paced; did you mean 'order.placed'?" in result.stderr


async def test_looking_backwards_finds_what_is_far_away(log: EventLog, client: Client) -> None:
    first = await client.publish("rare", 0)
    for n in range(1, 1_200):
        log.post(log.subjects.event("usual"), OutsideEvent(data=n), done=lambda sequence, error: None)
    await log.appender.flushed()
    found = await newest(log, [log.subjects.all], type_filter(["rare"]), 5, (await log.verify()).last_sequence)
    assert [item.sequence for item in found] == [first]


def test_filters_that_lie_within_others_are_left_out() -> None:
    subjects = Subjects("cue")
    assert subject_filters(subjects, ["run.>", "cue.run.*.completed"], [], ["r1"]) == ["cue.run.>", "cue.progress.r1.*"]
    assert subject_filters(subjects, ["live.cue.event.>", "event.>"], ["a"], []) == ["cue.event.>"]
    assert subject_filters(subjects, [">"], ["a.b"], ["r"]) == ["cue.>"]
    assert subject_filters(subjects, ["run.*.completed", "run.r1.*"], [], []) == ["cue.run.*.completed", "cue.run.r1.*"]
    with pytest.raises(CuebookError, match="no subject filter"):
        subject_filters(subjects, ["a..b"], [], [])
