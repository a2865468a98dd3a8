"""What names the runs that programs submit: the saga's key, as for an event, or nothing but chance."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from cuebook.actors import Run, saga
from cuebook.actors import client as module
from cuebook.events.errors import CommandRejectedError, InvalidTokenError, UnavailableError
from tests.actors.desk import Desk
from tests.waiting import eventually


class Door(str, enum.Enum):  # noqa: UP042 - the older way, whose str() is not its value
    BACK = "back"


class Bell(BaseModel):
    door: str
    times: int = 1

    @field_validator("times")
    @classmethod
    def _known(cls, times: int) -> int:
        return {1: 1, 2: 2}[times]


@saga(on="bell.rung", key="door")
async def ring(run: Run, bell: dict[str, Any]) -> str:
    return run.id


@saga(on="bell.heard", key="door")
async def hear(run: Run, bell: Bell) -> str:
    return run.id


@saga()
async def knock(run: Run, bell: dict[str, Any]) -> str:
    return run.id


@saga()
async def dig(run: Run, callback: Callable[[], None]) -> str:
    return run.id


Play = Callable[[], Desk]


@pytest.fixture
def play(nats_url: str, space: str) -> Play:
    return lambda: Desk(nats_url, space, sagas=[ring, hear, knock, dig])


@pytest.mark.parametrize("named", [ring, "ring"], ids=["the saga", "its name"])
async def test_a_key_runs_once_however_it_comes(play: Play, named: Any) -> None:
    async with play() as desk:
        client = desk.client
        assert (await client.run_saga(named, {"door": "a"}, timeout_s=20)).result == "ring-a"
        assert await client.submit_run(named, {"door": "b"}) == "ring-b"
        await client.publish("bell.rung", {"door": "c"})
        await desk.saw("ring-c", "started")
        for door in "abc":
            for again in (client.submit_run, client.run_saga):
                with pytest.raises(CommandRejectedError, match=f"run ring-{door} exists already"):
                    await again(named, {"door": door})
        sequences = [await client.publish("bell.rung", {"door": door}) for door in "ab"]
        rejections = await eventually(lambda: rejected(desk, 2))
        assert sorted(item.address.n for item in rejections) == sequences
        assert await client.submit_run(named, {"door": "a"}, run_id="other") == "other"


async def rejected(desk: Desk, count: int) -> list[Any]:
    found = await desk.rejections()
    return found if len(found) >= count else []


@pytest.mark.parametrize("door", [Door.BACK, "Back Door!", 2.5, True, ("a", 1), "x" * 100])
async def test_any_key_names_the_run_as_its_event_does(play: Play, door: Any) -> None:
    async with play() as desk:
        value = door.value if isinstance(door, Door) else door
        given = {"door": value}
        await desk.client.publish("bell.rung", given)
        run_id = ring.run_id({"door": list(value) if isinstance(value, tuple) else value}, "")
        await desk.saw(run_id, "started")
        for named in (ring, "ring"):
            with pytest.raises(CommandRejectedError, match=f"run {run_id} exists already"):
                await desk.client.submit_run(named, {"door": door})


@pytest.mark.parametrize(
    ("name", "data"), [("ring", {}), ("ring", {"door": None}), ("knock", {"door": "a"}), ("?", {})]
)
async def test_without_a_key_each_run_is_another(play: Play, name: str, data: Any) -> None:
    name = name.replace("?", "unserved")
    async with play() as desk:
        outcomes = [await desk.client.run_saga(name, data, timeout_s=20) for _ in range(2)]
        assert {one.status for one in outcomes} == {"rejected" if name == "unserved" else "completed"}
        assert len({one.run_id for one in outcomes}) == 2
        assert all(one.run_id.startswith(f"{name}-") for one in outcomes)


async def test_when_nobody_tells_the_key_nothing_is_stored(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_KEY_S", 0.5)
    async with play() as desk:
        await desk.stage.stop()
        for submit in (desk.client.submit_run, desk.client.run_saga):
            with pytest.raises(UnavailableError, match="nobody tells the key of saga ring") as raised:
                await submit("ring", {"door": "a"})
            assert "the saga itself" in raised.value.remedy
            with pytest.raises(InvalidTokenError):
                await submit("ri.ng", {"door": "a"})
        assert {item.address.kind for item in await desk.log()} == {"saga"}
        assert await desk.client.submit_run(ring, {"door": "a"}) == "ring-a"
        assert await desk.client.submit_run("ring", {"door": "a"}, run_id="r") == "r"
        await desk.direct()
        assert (await desk.client.wait("ring-a", timeout_s=20)).result == "ring-a"


async def test_who_tells_the_key_may_just_be_taking_over(play: Play) -> None:
    async with play() as desk:
        await desk.stage.stop()
        submitting = asyncio.create_task(desk.client.submit_run("ring", {"door": "a"}))
        await desk.direct()
        assert await submitting == "ring-a"


async def test_the_orchestrator_tells_the_key_of_a_saga_its_schema_and_what_is_wrong_with_an_input(play: Play) -> None:
    async with play() as desk:
        ask = desk.client.ask
        answer = await ask("sagas")
        assert {one["saga"]: one["key"] for one in answer["sagas"]} == {
            "ring": "door", "hear": "door", "knock": "", "dig": ""
        }  # fmt: skip
        assert "saga" not in answer
        assert "saga" not in await ask("sagas", {"saga": "unserved"})
        told = (await ask("sagas", {"saga": "hear"}))["saga"]
        assert told == {
            "saga": "hear", "version": "1", "on": "bell.heard", "key": "door",
            "input_schema": Bell.model_json_schema(),
        }  # fmt: skip
        for data, wrong in (({"door": "a"}, ""), ({"times": 2}, "door: Field required"), (None, "valid dictionary")):
            error = (await ask("sagas", {"saga": "hear", "input": data}))["saga"]["input_error"]
            assert (wrong in error) if wrong else error == ""
        faulty = (await ask("sagas", {"saga": "hear", "input": {"door": "a", "times": 3}}))["saga"]["input_error"]
        assert faulty == "checking it failed: KeyError: 3"
        outcome = await desk.client.run_saga("hear", {"door": "a", "times": 3}, run_id="faulty", timeout_s=20)
        assert (outcome.status, outcome.error) == ("rejected", "saga hear: checking it failed: KeyError: 3")
        assert (await ask("sagas", {"saga": "dig"}))["saga"]["input_schema"] == {}
