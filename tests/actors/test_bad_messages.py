"""Messages that can have no effect: each gets one answer that says why and what to do, and everybody else goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from cuebook.actors.orchestrator import dispatcher
from cuebook.actors.orchestrator.liveness import Liveness
from cuebook.events.codec import pack_data
from cuebook.events.envelope import Envelope
from cuebook.events.facts import MessageRejected, RunRejected, TaskRejected
from tests.actors.cast import Bank, approved, awaited, chain
from tests.actors.desk import Desk
from tests.waiting import eventually

ADD = b'{"handler": "add", "input": {"n": 1}}'


class Play(Desk):
    """A desk with the bank, and a way to write whatever one likes to the stream, as any NATS client can."""

    def __init__(self, url: str, space: str) -> None:
        super().__init__(url, space, sagas=[chain, awaited, approved], agents=[Bank])

    async def write(self, subject: str, body: bytes = ADD, headers: dict[str, str] | None = None) -> int:
        """Store a message under a subject of the space; its sequence."""
        js = self.client.log.connection.jetstream()
        return (await js.publish(f"{self.space}.{subject}", body, headers=headers, timeout=10)).seq

    async def refused(self, *sequences: int) -> list[MessageRejected]:
        """Wait until these messages, and no others, have been refused, each once."""

        async def told() -> bool:
            return len(await self.rejections()) >= len(sequences)

        await eventually(told)
        await self.works()  # whatever else there was to say has been said by now
        found = {item.address.n: item.event for item in await self.rejections()}
        assert sorted(item.address.n for item in await self.rejections()) == sorted(sequences)
        events = [found[sequence] for sequence in sequences]
        subjects = {item.sequence: item.subject async for item in self.client.log.read()}
        for sequence, event in zip(sequences, events, strict=True):
            assert isinstance(event, MessageRejected)
            assert event.reason
            assert event.remedy
            assert event.subject == subjects[sequence]
        return [event for event in events if isinstance(event, MessageRejected)]

    async def works(self) -> None:
        """The reader goes on."""
        outcome = await self.client.run_task("bank", {"n": 1}, handler="add", timeout_s=20)
        assert outcome.result == {"n": 2}

    async def restart(self) -> None:
        """Let the orchestrator die, and another begin without a snapshot."""
        await self.stage.die()
        await self.direct()


@pytest.fixture
def play(nats_url: str, space: str) -> Play:
    return Play(nats_url, space)


def native(event_type: str, data: Any, **fields: Any) -> bytes:
    """An envelope as ours, with whatever in it."""
    return pack_data([1, "", b"", pack_data({"id": "e1", "type": event_type, "data": data, **fields})])


UNREADABLE = {
    "no JSON": b"{nope",
    "bytes": b"\xff\xfe\x00",
    "a cut envelope": native("task.requested.v1", {})[:-3],
    "an envelope of another version": pack_data([2, "", b"", b""]),
    "an envelope without an id": pack_data([1, "", b"", pack_data({"type": "task.requested.v1"})]),
    "an extension type": msgpack.packb([1, "", b"", msgpack.ExtType(4, b"x")]),
    "an unknown version of an event": native("task.requested.v2", {}),
    "an event of another subject": native("task.completed.v1", {}),
    "a wrong field": b'{"handler": 7}',
    "no object": b"[]",
    "too deep": b'{"input": ' + b"[" * 30 + b"]" * 30 + b"}",
    "a number that is none": b'{"input": NaN}',
    "a key twice": b'{"handler": "add", "handler": "take"}',
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_what_cannot_be_read_is_refused_once_also_over_a_restart(play: Play, kind: str) -> None:
    async with play as desk:
        await desk.stage.die()
        bad = await desk.write("run.r.task.0.requested.bank", UNREADABLE[kind])
        good = await desk.client.submit_task("bank", {"n": 5}, handler="add")
        await desk.direct()
        await desk.refused(bad)
        assert (await desk.client.wait(good, timeout_s=20)).result == {"n": 6}
        await desk.restart()
        await desk.refused(bad)


async def test_what_is_too_large_never_gets_into_the_log(play: Play) -> None:
    async with play as desk:
        with pytest.raises(Exception, match="message size exceeds maximum allowed"):
            await desk.write("run.r.task.0.requested.bank", b'{"input": "%b"}' % (b"x" * 300_000))
        await desk.works()
        assert await desk.rejections() == []


STRANGE_SUBJECTS = [
    "run.Upper.task.0.requested.bank",
    "run.r.task.0.requested.Bank",
    "run.r.task.00.requested.bank",
    "run.r.task.-1.requested.bank",
    "run.r.task.x.requested.bank",
    "run.r.task.0.requested.bank.more.tokens",
    "run.r.step.0.asked.more",
    "run.r.task.0",
    "run.r.task.0.demanded.bank",
    "run.dotted.id.task.0.requested.bank",
    "run.ü.task.0.requested.bank",
    f"run.{'x' * 65}.task.0.requested.bank",
    "run.-r.requested.chain",
    "run.r.started.chain",
    "run.r",
    "nothing.of.ours",
    "event.Upper",
    "agent.bank.i1.registered.more",
    "rejected.nothing",
    "saga.chain",
    "saga.chain.stopped",
    "saga.chain.served.more",
]


async def test_subjects_with_ids_that_are_none_are_refused(play: Play) -> None:
    async with play as desk:
        sequences = [await desk.write(subject) for subject in STRANGE_SUBJECTS]
        await desk.refused(*sequences)
        await desk.restart()
        await desk.refused(*sequences)


@pytest.mark.parametrize("subject", ["run.a b.task.0.requested.bank", "run.r\tx.requested.chain", "run.r..requested"])
async def test_subjects_that_nats_does_not_take_harm_nobody(play: Play, subject: str) -> None:
    async with play as desk:
        with pytest.raises(Exception, match=r"subject|timeout|no response|violation"):
            await desk.write(subject)
        await desk.works() if desk.client.log.connection.is_connected else await eventually(
            lambda: desk.client.log.connection.is_connected
        )
        assert await desk.rejections() == []


async def rejected(desk: Desk, run_id: str, kind: type[Any]) -> Any:
    """The one fact by which a request was refused."""
    assert (await desk.client.wait(run_id, timeout_s=20)).status == "rejected"
    (event,) = await desk.events(run_id, "rejected")
    assert isinstance(event, kind)
    assert event.reason
    assert event.remedy
    return event


async def test_a_request_that_nobody_can_meet_is_rejected_in_its_own_history(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "UNKNOWN_AGENT_GRACE_S", 0.1)
    async with play as desk:
        requests = {
            "handler": ("task.0.requested.bank", b'{"handler": "ad", "input": {"n": 1}}', "no handler 'ad'"),
            "many": ("task.0.requested.bank", b'{"input": {"n": 1}}', "several handlers"),
            "input": ("task.0.requested.bank", b'{"handler": "add", "input": {"n": "x"}}', "n: "),
            "agent": ("task.0.requested.bnk", ADD, "no agent 'bnk' has ever registered"),
            "saga": ("requested.chian", b'{"input": {"n": 1}}', "no saga 'chian'"),
            "saga-input": ("requested.chain", b'{"input": {"n": "x"}}', "saga chain: n: "),
        }
        for run_id, (subject, body, _) in requests.items():
            await desk.write(f"run.{run_id}.{subject}", body)
        for run_id, (subject, _, reason) in requests.items():
            event = await rejected(desk, run_id, TaskRejected if "task" in subject else RunRejected)
            assert reason in event.reason
        assert "did you mean 'bank'" in (await rejected(desk, "agent", TaskRejected)).remedy
        assert "did you mean 'chain'" in (await rejected(desk, "saga", RunRejected)).remedy
        await desk.restart()
        await desk.works()
        for run_id in requests:
            assert len(await desk.events(run_id, "rejected")) == 1
        assert await desk.rejections() == []


# --- the same again ---


async def test_a_request_that_was_made_before_is_refused_while_its_run_is_open(play: Play) -> None:
    async with play as desk:
        await desk.write("run.task.task.0.requested.bank", b'{"handler": "refuse", "input": {"n": 1}}')
        await desk.saw("task", "escalated")
        await desk.write("run.saga.requested.approved", b'{"input": {"n": 1}}')
        await desk.saw("saga", "asked")
        again = [
            await desk.write("run.task.task.0.requested.bank"),
            await desk.write("run.task.requested.chain", b'{"input": {"n": 1}}'),
            await desk.write("run.task.task.1.requested.bank"),
            await desk.write("run.saga.requested.approved", b'{"input": {"n": 1}}'),
            await desk.write("run.saga.task.0.requested.bank"),
        ]
        await desk.refused(*again)
        await desk.restart()
        await desk.refused(*again)
        await desk.client.resolve("task", 0, action="supply", value={"n": 7})
        assert (await desk.client.wait("task", timeout_s=20)).result == {"n": 7}
        await desk.client.resolve("saga", 1, value={"approved": True})
        assert (await desk.client.wait("saga", timeout_s=20)).result == {"n": 3}


async def test_a_request_that_was_made_before_is_refused_once_its_run_is_over(play: Play) -> None:
    async with play as desk:
        for run_id, subject in (("task", "task.0.requested.bank"), ("saga", "requested.chain")):
            await desk.write(f"run.{run_id}.{subject}", ADD if run_id == "task" else b'{"input": {"n": 1}}')
            await eventually(lambda run_id=run_id: ended(desk, run_id))  # type: ignore[misc]
        again = [
            await desk.write("run.task.task.0.requested.bank"),
            await desk.write("run.task.requested.chain", b'{"input": {"n": 1}}'),
            await desk.write("run.saga.requested.chain", b'{"input": {"n": 1}}'),
        ]
        await desk.refused(*again)
        again.append(await desk.write("run.saga.task.0.requested.bank"))
        *_, last = await desk.refused(*again)
        assert last.reason == "saga was requested before and is over"
        await desk.restart()
        await desk.refused(*again)
        for run_id in ("task", "saga"):
            assert sum(item.address.fact == "assigned" for item in await desk.log(run_id)) in (1, 4)
            assert (await desk.client.wait(run_id)).status == "completed"


async def ended(desk: Desk, run_id: str) -> bool:
    facts = await desk.facts(run_id)
    return bool(facts) and (await desk.client.state(run_id)).outcome() == "completed"


async def test_of_many_requests_with_one_id_and_no_guard_the_first_counts(play: Play) -> None:
    async with play as desk:
        await desk.stage.die()
        sequences = [await desk.write("run.r.task.0.requested.bank", b'{"handler": "add", "input": {"n": %d}}' % n)
                     for n in range(5)]  # fmt: skip
        await desk.direct()
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 1}
        await desk.refused(*sequences[1:])
        assert len(await desk.events("r", "assigned")) == 1


# --- answers to nothing ---

DECISIONS: Sequence[tuple[str, dict[str, Any]]] = [
    ("run.{}.cancel_requested", {}),
    ("run.{}.retry_requested", {}),
    ("run.{}.task.0.cancel_requested", {}),
    ("run.{}.task.0.resolved", {"action": "retry"}),
    ("run.{}.step.0.answered", {"value": {"approved": True}}),
]


@pytest.mark.parametrize("run_id", ["nothing", "over"])
async def test_decisions_about_a_run_that_is_not_open_are_refused(play: Play, run_id: str) -> None:
    async with play as desk:
        await desk.client.run_task("bank", {"n": 1}, handler="add", run_id="over", timeout_s=20)
        wrong = [await desk.write(subject.format(run_id), json.dumps(data).encode()) for subject, data in DECISIONS]
        for event in await desk.refused(*wrong):
            assert event.reason == f"run {run_id} is not open"
        await desk.restart()
        await desk.refused(*wrong)


async def test_decisions_about_what_nobody_has_asked_for_are_refused_and_stand_in_nobodys_way(play: Play) -> None:
    async with play as desk:
        await desk.client.submit_run("awaited", {"n": 5}, run_id="r")
        await desk.saw("r", "waiting")
        wrong = [
            await desk.write("run.r.step.1.answered", b'{"value": 1}'),
            await desk.write("run.r.task.1.resolved", b'{"action": "abort"}'),
            await desk.write("run.r.task.0.resolved", b'{"action": "abort"}'),
        ]
        reasons = [event.reason for event in await desk.refused(*wrong)]
        assert reasons[:2] == ["nobody has asked for step 1 of r", "nobody has asked for task 1 of r"]
        assert reasons[2] == "task 0 of r is a step"
        await desk.restart()
        await desk.refused(*wrong)
        await desk.client.publish("paid", {"n": 5})  # the next step is task 1
        assert (await desk.client.wait("r", timeout_s=20)).result == {"n": 6}


async def test_noise_between_the_facts_of_a_run_does_not_keep_it_from_its_end(play: Play) -> None:
    async with play as desk:
        await desk.client.submit_run("approved", {"n": 1}, run_id="r")
        await desk.saw("r", "asked")
        noise = [
            await desk.write(f"run.r.{subject}", b"{nope")
            for subject in ("noise", "task.0.noise", "step.1.noise", "task.2.noise", "step.2.noise", "completed")
        ]
        await desk.refused(*noise)
        await desk.client.resolve("r", 1, value={"approved": True})
        outcome = await desk.client.wait("r", timeout_s=20)
        assert (outcome.status, outcome.result) == ("completed", {"n": 3})


async def test_what_is_no_control_message_is_named_and_harms_no_instance(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    nothing: Sequence[bytes] = (
        b"", b"\xff", b"7", b"[]", b"{}", b'"drain"', b'{"cancel": 3}', b'{"cancel": ["a", "b", "c"]}', b"[" * 100_000
    )  # fmt: skip
    async with play as desk:
        [instance] = desk.crews[0].host.instances
        control = desk.client.log.subjects.control("bank", instance.id)
        for body in nothing:
            desk.client.log.connection.post(control, body)
        await eventually(lambda: caplog.text.count("not a control message") == len(nothing))
        assert "Traceback" not in caplog.text
        await desk.works()


async def test_what_is_no_heartbeat_harms_nobody(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def hear(self: Liveness, agent: str, instance: str, *rest: Any, **options: Any) -> None:
        heard.append(instance)
        hearing(self, agent, instance, *rest, **options)

    hearing = Liveness.heard
    monkeypatch.setattr(Liveness, "heard", hear)
    async with play as desk:
        [instance] = desk.crews[0].host.instances
        subjects, post = desk.client.log.subjects, desk.client.log.connection.post
        for body in (b"", b"\xff", b"7", b"[]", b"{}", b'{"received": "7"}', b'{"received": null}', b"[" * 100_000):
            post(subjects.heartbeat("bank", instance.id), body)
        post(subjects.heartbeat("bank", "the-last"), b'{"received": 1}')
        await desk.sees(lambda: "the-last" in heard)
        await desk.works()


async def test_valid_work_among_a_thousand_bad_messages_is_all_done(play: Play) -> None:
    async with play as desk:
        connection = desk.client.log.connection
        good = []
        for turn in range(1_000):
            await connection.publish(f"{desk.space}.run.bad-{turn}.task.0.requested.bank", b"{nope")
            if turn % 50 == 0:
                good.append(await desk.client.submit_task("bank", {"n": turn}, handler="add"))
        outcomes = await asyncio.gather(*(desk.client.wait(run_id, timeout_s=30) for run_id in good))
        assert [one.result["n"] for one in outcomes] == [turn + 1 for turn in range(0, 1_000, 50)]

        async def all_told() -> bool:
            return len(await desk.rejections()) >= 1_000

        await eventually(all_told, within_s=30)
        told: list[Envelope] = await desk.rejections()
        assert len({item.address.n for item in told}) == len(told) == 1_000
