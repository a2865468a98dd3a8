"""Answers that the log has not taken at once: which come too late, and what is done about them. On a real server."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cuebook.actors.answering import Answering
from cuebook.actors.handling import OfAgent
from cuebook.actors.work import Work
from cuebook.events.envelope import Envelope
from cuebook.events.facts import Event, TaskAssigned, TaskCancelled, TaskCompleted
from cuebook.events.log import EventLog
from tests.actors.desk import Desk
from tests.waiting import eventually


class Instance:
    """What an instance has of its answers. It has no handlers: whatever it should undo, it could not."""

    def __init__(self, log: EventLog) -> None:
        self.finished: list[Work] = []
        self.measured = OfAgent()
        self.answering = Answering(
            log,
            "bank",
            "i1",
            {},
            context=lambda work: pytest.fail("nothing is undone"),
            finish=self.finished.append,
            agent_logger=logging.LoggerAdapter(logging.getLogger("test"), {}),
            shelf=None,
            measured=self.measured,
        )


async def offered(desk: Desk, assigned: TaskAssigned, since: dict[str, Event], answer_id: str = "") -> Instance:
    """An instance offers that it has completed an assignment, after which the log has something else already."""
    log, subjects = desk.client.log, desk.client.log.subjects
    await log.append(subjects.task("r", 0, "assigned", "bank", "i1"), assigned)
    for fact, event in since.items():
        await log.append(subjects.task("r", 0, fact), event, event_id=answer_id)
    item: Any = (await log.history("r"))[0]
    assert isinstance(item, Envelope)
    instance, work = Instance(log), Work(item, assigned)
    work.answer_id = answer_id
    instance.answering.offer(work, "completed", TaskCompleted(output={"n": 2}, attempt=1, by="i1"), work.assigned)
    await eventually(lambda: instance.finished == [work])
    return instance


ASSIGNED = TaskAssigned(handler="add", attempt=1, timeout_s=20.0, input={"n": 1})


async def test_an_answer_that_was_taken_without_a_word_is_no_late_one(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space) as desk:
        taken: dict[str, Event] = {"completed": TaskCompleted(output={"n": 2}, attempt=1, by="i1")}
        assert (await offered(desk, ASSIGNED, taken, "e1")).measured.late == 0
        assert (await desk.facts("r"))[1:] == ["run.r.task.0.completed"]


async def test_a_compensation_that_ends_too_late_is_not_undone_itself(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space) as desk:
        undoing = TaskAssigned(handler="add", attempt=1, timeout_s=20.0, input={"input": 1, "output": 2}, compensates=3)
        instance = await offered(desk, undoing, {"cancelled": TaskCancelled(reason="no")})
        assert instance.measured.late == 1
        assert (await desk.facts("r"))[1:] == ["run.r.task.0.cancelled"]
